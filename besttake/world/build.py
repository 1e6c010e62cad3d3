"""The two tiny base models: diffusers' own classes at tiny sizes, loadable by `DiffusionPipeline.from_pretrained`.

`tiny-cogvideox` is a CogVideoX (v-prediction, zero terminal SNR), `tiny-wan` a Wan (rectified flow); both generate
clips of 32 x 32 pixels at 8 frames a second. The text encoder is a frozen random T5, which suffices to distinguish a
hundred words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from besttake.world import physics
from besttake.world.captions import vocabulary
from besttake.world.physics import WIDTH

SPECIAL = ("<pad>", "</s>", "<unk>")

WORDS = 24
"""Longest prompt in tokens; the world's own captions have at most 16."""

SPATIAL_FACTOR = 4
"""Pixels per latent, in both autoencoders."""

FRAMES = {"tiny-cogvideox": physics.FRAMES, "tiny-wan": physics.FRAMES + 1}
"""Frames of a clip: Wan's autoencoder encodes the first frame alone, then four at a time."""

FAMILIES = tuple(FRAMES)

SAMPLING_DEFAULTS = {"sample_steps": 16, "sample_guidance": 1.0}
"""Default sampling settings of the embedded models."""


def build(family: str, seed: int = 0) -> CogVideoXPipeline | WanPipeline:
    """The pipeline of a family with random weights, deterministic in `seed`."""
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}, expected one of {', '.join(FAMILIES)}")
    torch.manual_seed(seed)
    return _cogvideox() if family == "tiny-cogvideox" else _wan()


def _cogvideox() -> CogVideoXPipeline:
    text_encoder = _text_encoder(T5Config, T5EncoderModel)
    vae: Any = cogvideox_vae()
    vae.register_to_config(sample_fps=physics.FPS, **SAMPLING_DEFAULTS)
    return CogVideoXPipeline(
        tokenizer=tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=6,
            attention_head_dim=32,
            in_channels=12,
            out_channels=12,
            time_embed_dim=128,
            text_embed_dim=64,
            num_layers=5,
            sample_width=WIDTH // SPATIAL_FACTOR,
            sample_height=WIDTH // SPATIAL_FACTOR,
            sample_frames=FRAMES["tiny-cogvideox"],
            patch_size=2,
            patch_size_t=2,
            patch_bias=False,
            temporal_compression_ratio=1,
            max_text_seq_length=WORDS,
            use_rotary_positional_embeddings=True,
        ),
        scheduler=CogVideoXDDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=3.0,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
            clip_sample=False,
        ),
    )


def _wan() -> WanPipeline:
    vae: Any = wan_vae()
    vae.register_to_config(
        sample_frames=FRAMES["tiny-wan"],
        sample_height=WIDTH,
        sample_width=WIDTH,
        sample_fps=physics.FPS,
        **SAMPLING_DEFAULTS,
    )
    return WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=_text_encoder(UMT5Config, UMT5EncoderModel),
        vae=vae,
        transformer=WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=5,
            attention_head_dim=32,
            in_channels=12,
            out_channels=12,
            text_dim=64,
            freq_dim=64,
            ffn_dim=640,
            num_layers=5,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=64,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def cogvideox_vae() -> AutoencoderKLLTXVideo:
    """An autoencoder on patches of 4 x 4 pixels, which is sharp after minutes of training on a CPU.

    CogVideoX's own class works at full resolution and would need hours; its pipeline accepts both. Time is not
    compressed; the denoiser, like CogVideoX 1.5's, has two frames per token.
    """
    width, blocks = 32, 3  # the pipeline derives the spatial factor, 4, from the number of blocks
    return AutoencoderKLLTXVideo(
        latent_channels=12,
        block_out_channels=(width,) * blocks,
        down_block_types=("LTXVideoDownBlock3D",) * blocks,
        decoder_block_out_channels=(width,) * blocks,
        layers_per_block=(1,) * (blocks + 1),
        decoder_layers_per_block=(1,) * (blocks + 1),
        spatio_temporal_scaling=(False,) * blocks,
        decoder_spatio_temporal_scaling=(False,) * blocks,
        decoder_inject_noise=(False,) * (blocks + 1),
        downsample_type=("conv",) * blocks,
        upsample_residual=(False,) * blocks,
        upsample_factor=(1,) * blocks,
        patch_size=SPATIAL_FACTOR,
        encoder_causal=False,
        decoder_causal=False,
        spatial_compression_ratio=SPATIAL_FACTOR,
        temporal_compression_ratio=1,
    )


def wan_vae() -> AutoencoderKLWan:
    """Wan's own class with one stage on patches of 4 x 4 pixels, without temporal compression."""
    return AutoencoderKLWan(
        base_dim=32,
        z_dim=12,
        dim_mult=[1],
        num_res_blocks=1,
        temperal_downsample=[],
        in_channels=3 * SPATIAL_FACTOR**2,
        out_channels=3 * SPATIAL_FACTOR**2,
        patch_size=SPATIAL_FACTOR,
        latents_mean=[0.0] * 12,
        latents_std=[1.0] * 12,
        scale_factor_spatial=SPATIAL_FACTOR,
        scale_factor_temporal=1,
    )


VAES: dict[str, Callable[[], Any]] = {"tiny-cogvideox": cogvideox_vae, "tiny-wan": wan_vae}


def _text_encoder(config_class, model_class):
    config = config_class(
        vocab_size=len(SPECIAL) + len(vocabulary()),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    encoder = model_class(config)
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    return encoder.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, padding and `</s>` like T5."""
    ids = {word: i for i, word in enumerate([*SPECIAL, *vocabulary()])}
    backend = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", ids["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=WORDS
    )
