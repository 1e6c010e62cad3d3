"""Q-Align (Wu et al. 2024, arXiv 2312.17090): quality and aesthetics of a video, by how a language model rates it.

Its published code wants transformers 4.36, so it runs in an environment of its own (`isolated.py`), which is made when
it is first asked. It does not look at the prompt.
"""

from __future__ import annotations

from pathlib import Path

from besttake.rewards.remote.isolated import CRITICS, EnvironmentSpec, Isolated
from besttake.types import CriticCard

CARD = CriticCard(
    source="Q-Align, arXiv 2312.17090; q-future/one-align",
    licence="MIT; it is built on LLaMA 2, whose licence holds too",
    ranges={"quality": (1.0, 5.0), "aesthetics": (1.0, 5.0)},
    frame_rate=1.0,
    resolution="448 x 448, padded to a square",
    memory=16.4,
)


def load(path: str | Path | None = None, device: str = "cpu") -> Isolated:
    """The published model, or the one in a folder; nothing is installed or started before it is asked."""
    return Isolated("qalign", CARD, EnvironmentSpec(CRITICS / "qalign", ("3.10", "3.11", "3.9")), path, device)
