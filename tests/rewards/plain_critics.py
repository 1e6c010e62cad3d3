"""Critics for a server, of numpy alone: `server.py` takes them from this file, by path, without besttake."""

import sys
import threading

import numpy as np


def load(path=None, device="cpu"):
    return Brightness()


def without_besttake(path=None, device="cpu"):
    assert not any(name.split(".")[0] in ("besttake", "torch") for name in sys.modules)
    return Brightness()


def broken(path=None, device="cpu"):
    raise RuntimeError("the weights are not there")


def mistaken(path=None, device="cpu"):
    raise ValueError("there is no folder of weights")


class Brightness:
    """Mean brightness in 0..255, and the length of the prompt; its calls are kept."""

    name, dimensions, revision = "brightness", ("light", "words"), "1"
    card = {"source": "tests", "licence": "none", "ranges": {"light": [0, 255], "words": [0, 99]}}  # noqa: RUF012

    def __init__(self, frames=None, frame_rate=None, **also):
        self.frames, self.frame_rate = frames, frame_rate
        self.calls, self.gate, self.entered = [], threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.__dict__.update(also)

    def __call__(self, videos, prompts, fps):
        self.calls += [(video.shape, prompt, fps) for video, prompt in zip(videos, prompts, strict=True)]
        self.entered.release()
        self.gate.wait(20)
        if any("bad" in prompt for prompt in prompts):
            raise ValueError("cannot read it")
        scores = [[v.mean(), np.nan if "nan" in p else len(p)] for v, p in zip(videos, prompts, strict=True)]
        return np.array(scores, np.float32)
