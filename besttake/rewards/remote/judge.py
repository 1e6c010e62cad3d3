"""Generative critics: a vision-language model gets frames and a rubric, and answers with a text that holds numbers.

VideoScore2 (arXiv 2509.22799), UnifiedReward (arXiv 2503.05236) and any other model that a server offers in the way of
OpenAI's `/v1/chat/completions`, as vLLM and SGLang do. Nothing here knows a model: the rubric, the dimensions and the
form of the answer are the recipe's. An answer that cannot be used is an error or an abstention, never a number.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from besttake.data.video import to_uint8, write_video
from besttake.rewards.frames import even_frames, frames_at_rate
from besttake.rewards.partial import PartialScore
from besttake.rewards.remote.answers import read_answer
from besttake.rewards.remote.http import Client, NoAnswerError, RetryPolicy
from besttake.rewards.shipped import check_videos, read_config
from besttake.runtime.configuration import from_dict, read_yaml, require, to_dict
from besttake.types import FPS, CriticCard, Score, Video

TRANSIENT = (408, 409, 425, 429)
"""Statuses below 500 after which the same question may be answered later."""

URL = "http://localhost:8000/v1"
"""Where vLLM serves by default."""


@dataclass(frozen=True)
class JudgeConfig:
    """A generative critic: its server, the question, and the form of the answer."""

    url: str = URL
    """Of an OpenAI-compatible server, up to and with `/v1`."""
    model: str = ""
    """The name that the server knows the model by."""
    rubric: str = ""
    """The question. `{prompt}` stands for the prompt; every dimension must be named as it is to be answered."""
    dimensions: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Lowest and highest number of each; higher must be better."""
    answer: Literal["lines", "json"] = "lines"
    """A line `dimension: number` for each dimension; or a JSON object of numbers."""
    unusable: Literal["error", "abstain"] = "error"
    """What an answer that cannot be read, or is out of range, does: end the run, or leave that take without a score."""
    frames: int = 8
    """The most frames of a clip that are sent."""
    frame_rate: float | None = None
    """Frames a second that are sent; by default `frames`, spread evenly over the clip."""
    side: int = 512
    """Longest side in pixels of a frame as it is sent; smaller frames stay as they are."""
    picture: Literal["jpeg", "png", "mp4"] = "jpeg"
    """How frames are sent: each as a picture, or all as one video, which vLLM and SGLang take for models of videos."""
    temperature: float = 0.0
    """Temperature of the answers; 0 = the likeliest."""
    max_tokens: int = 1024
    """Longest answer in tokens."""
    retries: int = 4
    """How often a question is repeated that failed or (with a temperature) had an unusable answer."""
    wait: float = 1.0
    """Seconds before the first retry, doubled for each further one; the server's `Retry-After` takes precedence."""
    timeout: float = 120.0
    """Seconds that the server may be silent."""
    concurrency: int = 8
    """Questions sent at the same time."""
    api_key: str = ""
    """Name of the environment variable that holds the key; none = the server asks for none."""
    price_in: float = 0.0
    """Of a million tokens that are sent, in whatever currency."""
    price_out: float = 0.0
    """Of a million tokens that are answered."""

    def __post_init__(self):
        web = self.url.startswith(("http://", "https://"))
        require(web, "url", self.url, "http://... or https://... up to /v1")
        require(bool(self.model), "model", self.model, "the name that the judge's server knows it by")
        require(bool(self.dimensions), "dimensions", self.dimensions, "ranges such as {visual quality: [1, 5]}")
        for name, (low, high) in self.dimensions.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"dimensions.{name} ranges from {low} to {high}; expected [lowest, highest]")
            if name.lower() not in self.rubric.lower():
                raise ValueError(f"rubric does not name {name!r}: it could not be answered")
        for name in ("frames", "side", "max_tokens", "concurrency"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("temperature", "retries", "wait", "price_in", "price_out"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(self.timeout > 0, "timeout", self.timeout, "seconds, more than 0")
        require(self.frame_rate is None or self.frame_rate > 0, "frame_rate", self.frame_rate, "more than 0, or none")


@dataclass
class Usage:
    """Answers, failures and cost of a judge since it was loaded.

    Attributes:
        failures: requests that failed and were repeated.
        unusable: answers that could not be used.
        abstentions: videos left without a score.
    """

    answers: int = 0
    failures: int = 0
    unusable: int = 0
    abstentions: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0


def load(path: str | Path | None = None, device: str = "cpu") -> Judge:
    """The judge whose settings are in a .yaml file, a `JudgeConfig`; its name is the file's.

    Or in a folder's `config.json`, with `"critic": "judge"` beside them.

    Raises:
        ValueError: no file or folder is given, or its settings are none.
    """
    if path is None:
        raise ValueError(
            "a judge needs its rubric: give its .yaml file of url, model, rubric and dimensions as the critic's name, "
            "or put the same into the recipe under reward.judges"
        )
    path = Path(path)
    if path.suffix not in (".yaml", ".yml"):
        config = read_config(path, "judge")
        return Judge(from_dict(JudgeConfig, {key: value for key, value in config.items() if key != "critic"}))
    return Judge(judge_config(path), path.stem)


def judge_config(file: Path) -> JudgeConfig:
    """The config in a judge's .yaml file; ValueError if it holds none."""
    try:
        return from_dict(JudgeConfig, read_yaml(file))
    except ValueError as error:
        raise ValueError(f"the judge of {file}: {error}") from error


class Judge:
    """A `Reward` that asks a served vision-language model; it abstains where the recipe lets it.

    Attributes:
        usage: counts of questions, tokens and cost so far.
    """

    differentiable = False

    def __init__(self, config: JudgeConfig, name: str = "judge"):
        """
        Raises:
            ValueError: the environment variable of the key is not set.
        """
        if config.api_key and config.api_key not in os.environ:
            raise ValueError(f"critic {name}: the environment variable {config.api_key} is not set; it holds the key")
        self.config, self.name, self.dimensions = config, name, tuple(config.dimensions)
        self.card = CriticCard(
            f"{config.model} at {config.url}",
            "the served model's own",
            config.dimensions,
            config.frames,
            config.frame_rate,
            f"longest side at most {config.side} pixels",
        )
        self.usage = Usage()
        retry = RetryPolicy(config.timeout, config.timeout, config.retries + 1, config.wait)
        key = os.environ[config.api_key] if config.api_key else None
        self._http = Client(config.url, key, retry, transient=TRANSIENT, proxies=True)
        self._lock = threading.Lock()

    @property
    def identity(self) -> str:
        """A hash of all that decides an answer: another rubric is another critic."""
        no_matter = ("retries", "wait", "timeout", "concurrency", "api_key", "price_in", "price_out", "unusable")
        settings = {key: value for key, value in to_dict(self.config).items() if key not in no_matter}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def metrics(self) -> dict[str, float]:
        """`usage` by names to log it under."""
        return {f"{self.name}/{what}": float(value) for what, value in vars(self.usage).items()}

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """A question for each video; a `PartialScore` if an answer is missing.

        Raises:
            ValueError: the videos or prompts are none, the server refuses the question, or an answer cannot be used.
            ConnectionError: the server cannot be reached, or fails again and again.
        """
        check_videos(self.name, videos, prompts, least_frames=1)
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            requests = [
                pool.submit(self._ask, self._question(*one, fps), one[1]) for one in zip(videos, prompts, strict=True)
            ]
            try:
                answers = [future.result() for future in requests]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        values = torch.zeros(len(prompts), len(self.dimensions))
        for row, answer in enumerate(answers):
            if answer is not None:
                values[row] = torch.tensor([answer[dimension] for dimension in self.dimensions])
        given = torch.tensor([answer is not None for answer in answers], dtype=torch.bool)
        if given.all():
            return Score(values.to(videos.device), self.dimensions)
        return PartialScore(values.to(videos.device), self.dimensions, given.to(videos.device))

    def _question(self, video: torch.Tensor, prompt: str, fps: float) -> bytes:
        config = self.config
        places = chosen(len(video), fps, config)
        frames = [small(frame, config.side) for frame in to_uint8(video.detach().cpu()[places])]
        if config.picture == "mp4":
            rate = config.frame_rate or fps * len(places) / len(video)
            looks = [{"type": "video_url", "video_url": {"url": data_url("video/mp4", as_mp4(frames, rate))}}]
        else:
            files = [as_picture(frame, config.picture) for frame in frames]
            looks = [
                {"type": "image_url", "image_url": {"url": data_url(f"image/{config.picture}", file)}} for file in files
            ]
        words = {"type": "text", "text": config.rubric.replace("{prompt}", prompt)}
        body = {
            "model": config.model,
            "messages": [{"role": "user", "content": [*looks, words]}],
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }
        return json.dumps(body).encode()

    def _ask(self, question: bytes, prompt: str) -> dict[str, float] | None:
        """The numbers of an answer; None = an abstention."""
        again = self.config.retries if self.config.temperature else 0  # without one the answer would be the same
        while True:
            text, whole = self._answer(question)
            try:
                if not whole:
                    raise ValueError("it was cut off: raise max_tokens")
                return read_answer(text, self.config.dimensions, self.config.answer)
            except ValueError as error:
                self._count(unusable=1)
                if again:
                    again -= 1
                elif self.config.unusable == "abstain":
                    self._count(abstentions=1)
                    return None
                else:
                    raise ValueError(
                        f"critic {self.name}: the answer on the video of {prompt!r} cannot be used: {error}; "
                        f"mend the rubric, or set `unusable: abstain`. It said: {text[-300:]!r}"
                    ) from error

    def _answer(self, question: bytes) -> tuple[str, bool]:
        """The text that the model answers, and whether it is complete."""
        try:
            return self._http.retry.call(lambda: self._post(question), lambda _: self._count(failures=1))
        except NoAnswerError as error:
            raise ConnectionError(
                f"critic {self.name}: {self.config.url} failed {self.config.retries + 1} times, last: {error}"
            ) from error

    def _post(self, question: bytes) -> tuple[str, bool]:
        response = self._http.request("POST", "/chat/completions", [question], "application/json")
        if response.status != 200:
            raise ValueError(
                f"critic {self.name}: {self.config.url} refuses the question ({response.status}: "
                f"{response.text[:300]}); check the judge's url, model and api_key"
            )
        content = response.json()
        try:
            choice, usage = content["choices"][0], content.get("usage") or {}
            text = str(choice["message"]["content"] or "")
            tokens = {"tokens_in": usage.get("prompt_tokens", 0), "tokens_out": usage.get("completion_tokens", 0)}
            self._count(answers=1, **tokens)
            return text, choice.get("finish_reason") != "length"
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise NoAnswerError(f"its reply is no chat completion ({error!r})") from error

    def _count(self, **more: int) -> None:
        usage, config = self.usage, self.config
        with self._lock:
            for what, number in more.items():
                setattr(usage, what, getattr(usage, what) + number)
            usage.cost = (usage.tokens_in * config.price_in + usage.tokens_out * config.price_out) / 1e6


def chosen(frames: int, fps: float, config: JudgeConfig) -> list[int]:
    """Which frames of a clip are sent, in their order."""
    if config.frame_rate is None:
        return even_frames(frames, min(frames, config.frames))
    places = frames_at_rate(frames, fps, config.frame_rate)
    return [places[i] for i in even_frames(len(places), min(len(places), config.frames))]


def small(frame: torch.Tensor, side: int) -> Image.Image:
    """A uint8 `h w 3` frame, its longest side at most `side` pixels."""
    image = Image.fromarray(frame.numpy())
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    return image


def as_picture(frame: Image.Image, kind: Literal["jpeg", "png"]) -> bytes:
    file = io.BytesIO()
    frame.save(file, kind, quality=95)
    return file.getvalue()


def as_mp4(frames: Sequence[Image.Image], rate: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        write_video(file, torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])), rate)
        return file.read_bytes()


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
