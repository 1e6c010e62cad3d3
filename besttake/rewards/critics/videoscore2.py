"""VideoScore2 (He et al. 2025, arXiv 2509.22799; TIGER-Lab/VideoScore2 on the hub): a reasoning judge.

Serve it with vLLM or SGLang: `vllm serve TIGER-Lab/VideoScore2`. It gets the clip as a video of 2 frames a second.
"""

from __future__ import annotations

from pathlib import Path

from besttake.rewards.remote.judge import URL, Judge, JudgeConfig

RUBRIC = (
    "\nYou are an expert for evaluating AI-generated videos from three dimensions:\n"
    "(1) visual quality \N{EN DASH} clarity, smoothness, artifacts;\n"
    "(2) text-to-video alignment \N{EN DASH} fidelity to the prompt;\n"
    "(3) physical/common-sense consistency \N{EN DASH} naturalness and physics plausibility.\n"
    "\nVideo prompt: {prompt}\n"
    "\nPlease output in this format:\n"
    "visual quality: <v_score>;\n"
    "text-to-video alignment: <t_score>,\n"
    "physical/common-sense consistency: <p_score>\n"
)
"""The exact prompt of its page on the hub."""

DIMENSIONS = ("visual quality", "text-to-video alignment", "physical/common-sense consistency")


def load(path: str | Path | None = None, device: str = "cpu") -> Judge:
    """The judge; `path` is the URL of its server, including `/v1`."""
    config = JudgeConfig(
        url=str(path or URL),
        model="TIGER-Lab/VideoScore2",
        rubric=RUBRIC,
        dimensions=dict.fromkeys(DIMENSIONS, (1.0, 5.0)),
        frame_rate=2.0,
        frames=64,
        side=960,
        picture="mp4",
        temperature=0.7,
    )
    return Judge(config, "videoscore2")
