"""Models whose plans take seconds: the embedded ones but for fewer and narrower layers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from besttake.world.build import build

NARROW: dict[str, dict] = {
    "tiny-cogvideox": {"num_attention_heads": 2, "attention_head_dim": 32, "time_embed_dim": 64},
    "tiny-wan": {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 128, "freq_dim": 32},
}
AUTOENCODERS: dict[str, dict] = {
    "tiny-cogvideox": {"block_out_channels": [8] * 3, "decoder_block_out_channels": [8] * 3},
    "tiny-wan": {"base_dim": 8},
}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Callable[..., str]:
    """The folder of a small model of a family, with so many layers, written once; do not change it."""
    written: dict[tuple[str, int], Path] = {}

    def folder(family: str, layers: int = 2) -> str:
        if (family, layers) not in written:
            pipeline = build(family)
            denoiser = {**pipeline.transformer.config, **NARROW[family], "num_layers": layers}
            pipeline.transformer = type(pipeline.transformer).from_config(denoiser).eval()
            pipeline.vae = type(pipeline.vae).from_config({**pipeline.vae.config, **AUTOENCODERS[family]}).eval()
            written[family, layers] = tmp_path_factory.mktemp("small") / family
            pipeline.save_pretrained(written[family, layers])
        return str(written[family, layers])

    return folder
