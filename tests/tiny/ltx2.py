"""LTX-2 and 2.3, the latter with gates, prompt modulation and a projection of the text for each modality."""

from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from tests.tiny.ltx import SCHEDULER, packed, with_statistics
from tests.tiny.parts import TOKENS, Tiny, tokenizer, without_zeros

SIZE, CHANNELS, TEXT = (9, 64, 64), 4, 16
VIDEO, AUDIO = (2, 12), (2, 4)
"""Heads of either half, and their channels."""


def text_encoder() -> Gemma3ForConditionalGeneration:
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"vocab_size": len(tokenizer()), "hidden_size": TEXT, "intermediate_size": 16, "head_dim": 8}
    text = {**sizes, **heads, "num_key_value_heads": 1}
    vision = {**heads, "hidden_size": 8, "intermediate_size": 8, "image_size": 16, "patch_size": 8}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))


def connectors(**settings) -> LTX2TextConnectors:
    (heads, channels), (audio_heads, audio_channels) = settings.pop("sides", ((2, 8), (2, 8)))
    return LTX2TextConnectors(
        caption_channels=TEXT,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=heads,
        video_connector_attention_head_dim=channels,
        video_connector_num_layers=1,
        audio_connector_num_attention_heads=audio_heads,
        audio_connector_attention_head_dim=audio_channels,
        audio_connector_num_layers=1,
        **{"video_connector_num_learnable_registers": 8, "audio_connector_num_learnable_registers": 8} | settings,
    )


def transformer(**settings) -> LTX2VideoTransformer3DModel:
    denoiser = LTX2VideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=VIDEO[0],
        attention_head_dim=VIDEO[1],
        cross_attention_dim=VIDEO[0] * VIDEO[1],
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=AUDIO[0],
        audio_attention_head_dim=AUDIO[1],
        audio_cross_attention_dim=AUDIO[0] * AUDIO[1],
        num_layers=2,
        caption_channels=TEXT,
        rope_type="split",
        **settings,
    )
    return without_zeros(denoiser)


def vae() -> AutoencoderKLLTX2Video:
    autoencoder = AutoencoderKLLTX2Video(
        latent_channels=CHANNELS,
        block_out_channels=(4, 8, 16, 32),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 4,
        scaling_factor=0.7,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    return with_statistics(autoencoder)


def sound():
    """The parts that only the official pipeline uses."""
    autoencoder = AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=4,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
    )
    return {"audio_vae": autoencoder, "vocoder": vocoder}


def pipeline(denoiser, text):
    return LTX2Pipeline(
        tokenizer=tokenizer(),
        text_encoder=text_encoder(),
        connectors=text,
        vae=vae(),
        transformer=denoiser,
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        **sound(),
    )


def two():
    return pipeline(transformer(), connectors(video_connector_num_learnable_registers=None))


def two_point_three():
    gates = {"gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True, "audio_cross_attn_mod": True}
    text = connectors(
        sides=(VIDEO, AUDIO),
        per_modality_projections=True,
        video_hidden_dim=VIDEO[0] * VIDEO[1],
        audio_hidden_dim=AUDIO[0] * AUDIO[1],
        video_gated_attn=True,
        audio_gated_attn=True,
        proj_bias=True,
    )
    return pipeline(transformer(**gates, use_prompt_embeddings=False, perturbed_attn=True), text)


def deaf(pipeline, latents):
    """Packed latents, for a pipeline whose two halves are from here on isolated, and whose sound is any sound."""

    def isolated(_, args, kwargs):
        return args, {**kwargs, "isolate_modalities": True}

    pipeline.transformer.register_forward_pre_hook(isolated, with_kwargs=True)
    for name in ("audio_vae", "vocoder"):
        getattr(pipeline, name).to_empty(device="cpu")
    return packed(pipeline, latents)


def normalized(pipeline, latents, _):
    vae = pipeline.vae
    return pipeline._normalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)


def official(guidance):
    others = {"stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0}
    others |= {f"audio_{name}": value for name, value in others.items()} | {"audio_guidance_scale": guidance}
    return {"guidance_scale": guidance, "max_sequence_length": TOKENS} | others


AS_CALLED = {"call": official, "pack": deaf, "unpack": normalized}
TINY = {
    "ltx-2": Tiny(two, SIZE, ((10, 64, 64), 9), **AS_CALLED),
    "ltx-2.3": Tiny(two_point_three, SIZE, ((9, 80, 64), 64), **AS_CALLED),
}
