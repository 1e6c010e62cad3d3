"""The two tiny base models as folders that `DiffusionPipeline.from_pretrained` loads: real classes, tiny sizes.

`tiny-cogvideox` is a CogVideoX (v-prediction, zero terminal SNR), `tiny-wan` a Wan (rectified flow); both shoot
17 frames of 32 x 32 pixels at 8 frames a second. The text encoder is a frozen random T5: telling a hundred words
apart needs no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
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

from besttake.world.captions import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES
from besttake.world.physics import FRAMES, WIDTH

WORDS = 16
"""Tokens of the longest caption, rounded up."""

LATENT_CHANNELS, SPACE, TIME = 16, 4, 2
"""Latent channels, and how often the autoencoders halve: pixels per latent in space, frames per latent in time."""

FAMILIES = ("tiny-cogvideox", "tiny-wan")


def build(family: str, seed: int = 0) -> CogVideoXPipeline | WanPipeline:
    """The pipeline of one family with random weights, the same for the same seed."""
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}, expected one of {', '.join(FAMILIES)}")
    torch.manual_seed(seed)
    return _cogvideox() if family == "tiny-cogvideox" else _wan()


def _cogvideox() -> CogVideoXPipeline:
    return CogVideoXPipeline(
        tokenizer=tokenizer(),
        text_encoder=_text_encoder(T5Config, T5EncoderModel),
        vae=cogvideox_vae(),
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=6,
            attention_head_dim=32,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            time_embed_dim=128,
            text_embed_dim=64,
            num_layers=5,
            sample_width=WIDTH // SPACE,
            sample_height=WIDTH // SPACE,
            sample_frames=FRAMES,
            patch_size=2,
            temporal_compression_ratio=TIME,
            max_text_seq_length=WORDS,
            use_rotary_positional_embeddings=True,
            use_learned_positional_embeddings=True,
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
    return WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=_text_encoder(UMT5Config, UMT5EncoderModel),
        vae=wan_vae(),
        transformer=WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=6,
            attention_head_dim=32,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            text_dim=64,
            freq_dim=64,
            ffn_dim=768,
            num_layers=5,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=64,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def cogvideox_vae() -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        temporal_compression_ratio=TIME,
        sample_height=WIDTH,
        sample_width=WIDTH,
        scaling_factor=1.0,
    )


def wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=32,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_spatial=SPACE,
        scale_factor_temporal=TIME,
    )


VAES: dict[str, Callable[[], Any]] = {"tiny-cogvideox": cogvideox_vae, "tiny-wan": wan_vae}


def _text_encoder(config_class, model_class):
    config = config_class(
        vocab_size=len(_vocabulary()),
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


def _vocabulary() -> dict[str, int]:
    sentences = [*SIZES, *COLOURS, *SHAPES, *BACKGROUNDS, *MOTIONS.values(), "a on background"]
    words = dict.fromkeys(word for sentence in sentences for word in sentence.split())
    return {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, padded and closed with `</s>` as T5 does."""
    vocabulary = _vocabulary()
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=WORDS
    )
