"""VisionReward for video (arXiv 2412.21059), in its own environment (requirements.txt), served by `rewards/server.py`.

The model answers each question of a list with yes or no; the score is the mean of the answers, yes = 1 and no = -1,
times the questions' weights (section 3.2). Questions and weights are the files `VisionReward_video_qa_select.txt` and
`weight.json` of its repository; put them beside the weights if they are not there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer

PUBLISHED = "THUDM/VisionReward-Video"
QUESTIONS, WEIGHTS = "VisionReward_video_qa_select.txt", "weight.json"
FRAMES = 24


def load(path: str | None, device: str) -> VisionReward:
    """The model, in half precision as published.

    Raises:
        ValueError: the questions or their weights are not beside the model, or not as many.
    """
    return VisionReward(path or PUBLISHED, device)


class VisionReward:
    """The frames nearest to each whole second of a clip, 24 at most."""

    name = "visionreward"
    dimensions = ("preference",)
    frame_rate = 4.0  # what is sent, for the nearest to be near

    def __init__(self, path: str, device: str):
        self.questions = [line for line in text_of(path, QUESTIONS).splitlines() if line.strip()]
        self.weights = np.array(json.loads(text_of(path, WEIGHTS)), np.float64)
        if self.weights.shape != (len(self.questions),):
            raise ValueError(f"{path} has {len(self.questions)} questions, but weights of shape {self.weights.shape}")
        self.device = device
        self.dtype = torch.bfloat16 if device == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        model: Any = AutoModelForCausalLM.from_pretrained(path, torch_dtype=self.dtype, trust_remote_code=True)
        self.model = model.eval().to(device)
        self.revision = getattr(self.model.config, "_commit_hash", None) or path

    @torch.inference_mode()
    def __call__(self, videos: list[np.ndarray], prompts: list[str], fps: float) -> np.ndarray:
        """Scores (b, 1) of uint8 videos (f, h, w, 3)."""
        return np.array([[self.score(videos[i], prompts[i], fps)] for i in range(len(videos))], np.float32)

    def score(self, video: np.ndarray, prompt: str, fps: float) -> float:
        """Mean of the weighted answers."""
        frames = torch.from_numpy(video[seconds(len(video), fps)]).permute(3, 0, 1, 2)
        said = [self.says_yes(frames, question.replace("[[prompt]]", prompt)) for question in self.questions]
        return float(np.mean(np.where(said, 1.0, -1.0) * self.weights))

    def says_yes(self, frames: torch.Tensor, question: str) -> bool:
        """Whether the first word of the answer is yes; frames uint8 (3, f, h, w)."""
        conversation = self.model.build_conversation_input_ids(
            tokenizer=self.tokenizer, query=question, images=[frames], history=[], template_version="chat"
        )
        inputs = {
            key: conversation[key][None].to(self.device) for key in ("input_ids", "token_type_ids", "attention_mask")
        }
        images = [[conversation["images"][0].to(self.device, self.dtype)]]
        answer = self.model.generate(**inputs, images=images, max_new_tokens=1, do_sample=False, pad_token_id=128002)
        return self.tokenizer.decode(answer[0, inputs["input_ids"].shape[1]]) == "yes"


def seconds(frames: int, fps: float) -> list[int]:
    """The frame nearest to each second of a clip, up to that which its last frame rounds to; 24 at most."""
    last = round((frames - 1) / fps)
    return [min(frames - 1, round(second * fps)) for second in range(min(FRAMES, last + 1))]


def text_of(path: str, name: str) -> str:
    """A small file of a folder or of the hub; ValueError if it is not there."""
    try:
        file = Path(path) / name
        return (file if Path(path).is_dir() else Path(hf_hub_download(path, name))).read_text()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} has no {name}; put it there from the repository of VisionReward ({error})") from error
