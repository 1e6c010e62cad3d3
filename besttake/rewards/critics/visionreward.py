"""VisionReward for video (Xu et al. 2024, arXiv 2412.21059): weighted sum of a video model's yes-or-no answers.

Its published code needs transformers 4.42, so it runs in a separate environment (`isolated.py`), which is created at
the first call.
"""

from __future__ import annotations

from pathlib import Path

from besttake.rewards.remote.isolated import CRITICS, EnvironmentSpec, Isolated
from besttake.types import CriticCard

CARD = CriticCard(
    source="VisionReward, arXiv 2412.21059; THUDM/VisionReward-Video",
    licence="see its page on the hub; based on CogVLM2-Video and Llama 3, whose licences apply too",
    ranges={"preference": (-1.0, 1.0)},
    frame_rate=4.0,
    resolution="224 x 224",
    memory=25.0,
)


def load(path: str | Path | None = None, device: str = "cpu") -> Isolated:
    """The published model, or one in a folder; its environment is installed and started at the first call."""
    return Isolated(
        "visionreward", CARD, EnvironmentSpec(CRITICS / "visionreward", ("3.10", "3.11", "3.9")), path, device
    )
