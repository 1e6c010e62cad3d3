"""Wan 2.1, text- and image-to-video; 2.2's 5B with a time for each token, and its two experts."""

from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from tests.tiny.parts import TOKENS, Tiny, tokenizer, umt5, without_zeros

SIZE = (5, 16, 32)


def vae(**settings) -> AutoencoderKLWan:
    return AutoencoderKLWan(
        **{
            "base_dim": 4,
            "z_dim": 4,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "temperal_downsample": [False, True, True],
            "latents_mean": [0.1, -0.2, 0.0, 0.3],
            "latents_std": [1.5, 2.0, 0.8, 1.0],
        }
        | settings
    )


def transformer(**settings) -> WanTransformer3DModel:
    return without_zeros(
        WanTransformer3DModel(
            **{
                "patch_size": (1, 2, 2),
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "in_channels": 4,
                "out_channels": 4,
                "text_dim": 32,
                "freq_dim": 16,
                "ffn_dim": 32,
                "num_layers": 2,
                "cross_attn_norm": True,
                "qk_norm": "rms_norm_across_heads",
                "rope_max_seq_len": 32,
            }
            | settings
        )
    )


def parts(shift=3.0, **autoencoder):
    return {
        "tokenizer": tokenizer(),
        "text_encoder": umt5(),
        "vae": vae(**autoencoder),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
        ),
    }


def two_one():
    return WanPipeline(**parts(), transformer=transformer())


def two_one_i2v():
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )
    image_processor = CLIPImageProcessorPil(crop_size={"height": 16, "width": 16}, size={"shortest_edge": 16})
    denoiser = transformer(in_channels=12, image_dim=16, added_kv_proj_dim=24)
    return WanImageToVideoPipeline(
        **parts(), transformer=denoiser, image_encoder=vision, image_processor=image_processor
    )


def two_two_5b():
    # as the real one's: pixels in patches of two, twice the channels, sixteen pixels a latent
    whole = {"patch_size": 2, "in_channels": 12, "out_channels": 12, "is_residual": True, "decoder_base_dim": 4}
    autoencoder = parts(5.0, **whole, scale_factor_spatial=16)
    return WanPipeline(**autoencoder, transformer=transformer(), expand_timesteps=True)


def two_two_5b_i2v():
    whole = two_two_5b().components
    return WanImageToVideoPipeline(**{k: v for k, v in whole.items() if k != "transformer_2"}, expand_timesteps=True)


def two_two_experts():
    return WanPipeline(**parts(), transformer=transformer(), transformer_2=transformer(), boundary_ratio=0.875)


def two_two_experts_i2v():
    denoisers = {name: transformer(in_channels=12) for name in ("transformer", "transformer_2")}
    return WanImageToVideoPipeline(**parts(), **denoisers, boundary_ratio=0.9)


def official(guidance):
    return {"guidance_scale": guidance, "max_sequence_length": TOKENS}


TINY = {
    "wan-2.1": Tiny(two_one, SIZE, ((6, 16, 32), 5), official),
    "wan-2.1-i2v": Tiny(two_one_i2v, SIZE, ((5, 16, 24), 32), official, first_frame=True),
    "wan-2.2-5b": Tiny(two_two_5b, (5, 32, 64), ((5, 40, 64), 32), official),
    "wan-2.2-5b-i2v": Tiny(two_two_5b_i2v, (5, 32, 64), ((5, 40, 64), 32), official, first_frame=True),
    "wan-2.2-a14b": Tiny(two_two_experts, SIZE, ((5, 12, 32), 16), official),
    "wan-2.2-a14b-i2v": Tiny(two_two_experts_i2v, SIZE, ((3, 16, 32), 1), official, first_frame=True),
}
