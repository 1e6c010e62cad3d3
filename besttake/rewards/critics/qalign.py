"""Q-Align (Wu et al. 2024, arXiv 2312.17090): quality and aesthetics of a video, rated by a vision-language model.

Its published code needs transformers 4.36, so it runs in a separate environment (`isolated.py`), which is created at
the first call. The prompt is ignored.
"""

from __future__ import annotations

from pathlib import Path

from besttake.rewards.remote.isolated import CRITICS, EnvironmentSpec, Isolated
from besttake.types import CriticCard

CARD = CriticCard(
    source="Q-Align, arXiv 2312.17090; q-future/one-align",
    licence="MIT; based on LLaMA 2, whose licence applies too",
    ranges={"quality": (1.0, 5.0), "aesthetics": (1.0, 5.0)},
    frame_rate=1.0,
    resolution="448 x 448, padded to a square",
    memory=16.4,
)


def load(path: str | Path | None = None, device: str = "cpu") -> Isolated:
    """The published model, or one in a folder; its environment is installed and started at the first call."""
    return Isolated("qalign", CARD, EnvironmentSpec(CRITICS / "qalign", ("3.10", "3.11", "3.9")), path, device)
