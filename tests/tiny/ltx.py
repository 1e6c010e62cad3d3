"""LTX-Video 0.9, and 0.9.1 whose decoder takes a time and adds noise of its own."""

from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

from tests.tiny.parts import TOKENS, Tiny, t5, tokenizer, without_zeros

SIZE, CHANNELS = (9, 32, 64), 4
SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "shift_terminal": 0.1,
}


def vae(**settings) -> AutoencoderKLLTXVideo:
    scaled = (True, True, True, False)
    autoencoder = AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=scaled,
        decoder_spatio_temporal_scaling=scaled,
        scaling_factor=0.7,
        **settings,
    )
    return with_statistics(without_zeros(autoencoder, 0.5))


def with_statistics(autoencoder):
    autoencoder.latents_mean.normal_()
    autoencoder.latents_std.uniform_(0.5, 2)
    return autoencoder


def transformer() -> LTXVideoTransformer3DModel:
    denoiser = LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=2,
        caption_channels=32,
    )
    return without_zeros(denoiser)


def pipeline(**settings):
    return LTXPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5(),
        vae=vae(**settings),
        transformer=transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
    )


def noisy_decoder():
    return pipeline(timestep_conditioning=True, decoder_inject_noise=(True, True, True, False, False))


def packed(_, latents):
    """`b c f h w` -> `b (f h w) c`"""
    return latents.flatten(2).transpose(1, 2)


def unpacked(_, tokens, shape):
    return tokens.transpose(1, 2).reshape(shape)


def official(guidance):
    return {"guidance_scale": guidance, "max_sequence_length": TOKENS}


TINY = {"ltx": Tiny(pipeline, SIZE, ((9, 32, 80), 64), official, packed, unpacked)}
