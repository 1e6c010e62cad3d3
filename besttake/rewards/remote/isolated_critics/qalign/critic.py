"""Q-Align (arXiv 2312.17090), in its own environment (requirements.txt), served by `rewards/server.py`.

The model is asked "How would you rate the quality of this video?"; its score is the expectation of 5 (excellent) to
1 (bad) under the softmax over the five words (section 3.4), which is what `score` of the code beside its weights gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

PUBLISHED = "q-future/one-align"


def load(path: str | None, device: str) -> QAlign:
    """The model, in half precision.

    Raises:
        ValueError: the device is a CPU, which its code does not run on.
    """
    if device == "cpu":
        raise ValueError("Q-Align computes in half precision, on a GPU alone; give a device such as cuda")
    return QAlign(path or PUBLISHED, device)


class QAlign:
    """One frame of each second of a clip, in the order of the clip."""

    name = "qalign"
    dimensions = ("quality", "aesthetics")
    frame_rate = 1.0

    def __init__(self, path: str, device: str):
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            trust_remote_code=True,
            attn_implementation="eager",
            torch_dtype=torch.float16,
            device_map=device,
        )
        self.revision = getattr(self.model.config, "_commit_hash", None) or path

    @torch.inference_mode()
    def __call__(self, videos: list[np.ndarray], prompts: list[str], fps: float) -> np.ndarray:
        """Scores (b, 2) from 1 to 5 of uint8 videos (f, h, w, 3)."""
        clips = [[Image.fromarray(frame) for frame in video] for video in videos]
        scores = [self.model.score(clips, task_=dimension, input_="video") for dimension in self.dimensions]
        return torch.stack(scores, 1).float().cpu().numpy()
