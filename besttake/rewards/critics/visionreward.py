"""VisionReward for video (Xu et al. 2024, arXiv 2412.21059): yes-or-no questions to a video model, weighted and summed.

Its published code wants transformers 4.42, so it runs in an environment of its own (`isolated.py`), which is made when
it is first asked.
"""

from __future__ import annotations

from pathlib import Path

from besttake.rewards.remote.isolated import CRITICS, EnvironmentSpec, Isolated
from besttake.types import CriticCard

CARD = CriticCard(
    source="VisionReward, arXiv 2412.21059; THUDM/VisionReward-Video",
    licence="that of its page on the hub; it is built on CogVLM2-Video and Llama 3, whose licences hold too",
    ranges={"preference": (-1.0, 1.0)},
    frame_rate=4.0,
    resolution="224 x 224",
    memory=25.0,
)


def load(path: str | Path | None = None, device: str = "cpu") -> Isolated:
    """The published model, or the one in a folder; nothing is installed or started before it is asked."""
    return Isolated(
        "visionreward", CARD, EnvironmentSpec(CRITICS / "visionreward", ("3.10", "3.11", "3.9")), path, device
    )
