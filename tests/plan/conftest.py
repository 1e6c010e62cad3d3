"""Models whose plans take seconds: the embedded ones but for fewer and narrower layers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures import small_pipeline

NARROW: dict[str, dict] = {
    "tiny-cogvideox": {"num_attention_heads": 2, "attention_head_dim": 32, "time_embed_dim": 64},
    "tiny-wan": {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 128, "freq_dim": 32},
}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Callable[..., str]:
    """The folder of a small model of a family, with so many layers, written once; do not change it."""
    written: dict[tuple[str, int], Path] = {}

    def folder(family: str, layers: int = 2) -> str:
        if (family, layers) not in written:
            written[family, layers] = tmp_path_factory.mktemp("small") / family
            small_pipeline(family, layers, **NARROW[family]).save_pretrained(written[family, layers])
        return str(written[family, layers])

    return folder
