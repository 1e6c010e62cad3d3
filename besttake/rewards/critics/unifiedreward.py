"""UnifiedReward 2.0 (Wang et al. 2025, arXiv 2503.05236): a judge of alignment, physics and style.

Serve it with vLLM: `vllm serve CodeGoat24/UnifiedReward-2.0-qwen3vl-8b --served-model-name UnifiedReward
--limit-mm-per-prompt.image 32` (see github.com/CodeGoat24/UnifiedReward). It gets 16 frames as images.
"""

from __future__ import annotations

from pathlib import Path

from besttake.rewards.remote.judge import URL, Judge, JudgeConfig

RUBRIC = (
    "You are presented with a generated video and its associated text caption. "
    "Your task is to analyze the video across multiple dimensions in relation to the caption. Specifically:\n"
    "Provide overall assessments for the video along the following axes (each rated from 1 to 5):\n"
    "- Alignment Score: How well the video matches the caption in terms of content.\n"
    "- Physics Score: How well the gravity, movements, collisions, and interactions make physical sense.\n"
    "- Style Score: How visually appealing the video looks, regardless of caption accuracy.\n\n"
    "Output your evaluation using the format below:\n\n"
    "Alignment Score (1-5): X\n"
    "Physics Score (1-5): Y\n"
    "Style Score (1-5): Z\n\n"
    "Your task is provided as follows:\n"
    "Text Caption: [{prompt}]"
)
"""The exact training prompt."""

DIMENSIONS = ("alignment score", "physics score", "style score")


def load(path: str | Path | None = None, device: str = "cpu") -> Judge:
    """The judge; `path` is the URL of its server, including `/v1`."""
    config = JudgeConfig(
        url=str(path or URL),
        model="UnifiedReward",
        rubric=RUBRIC,
        dimensions=dict.fromkeys(DIMENSIONS, (1.0, 5.0)),
        frames=16,
        side=960,
    )
    return Judge(config, "unifiedreward")
