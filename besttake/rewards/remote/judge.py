"""Judges: a vision-language model receives frames and a rubric, and answers with a text that contains scores.

VideoScore2 (arXiv 2509.22799), UnifiedReward (arXiv 2503.05236) or any other model behind an OpenAI-compatible server,
`/v1/chat/completions`, such as vLLM or SGLang. Rubric, dimensions and answer format are settings. An unusable answer
is an error or an abstention, never a score.
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
"""Statuses below 500 after which a retry may succeed."""

URL = "http://localhost:8000/v1"
"""vLLM's default URL."""


@dataclass(frozen=True)
class JudgeConfig:
    """A judge: server, rubric, and answer format."""

    url: str = URL
    """URL of an OpenAI-compatible server, including `/v1`."""
    model: str = ""
    """Name of the model on the server."""
    rubric: str = ""
    """Rubric: the question to the model, with `{prompt}` for the prompt. It must name every dimension."""
    dimensions: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Dimensions with their lowest and highest score; higher must be better."""
    answer: Literal["lines", "json"] = "lines"
    """Answer format: a line `dimension: number` for each dimension, or a JSON object."""
    unusable: Literal["error", "abstain"] = "error"
    """Effect of an answer that cannot be parsed or is out of range: stop with an error, or leave the video unscored."""
    frames: int = 8
    """Maximum number of frames sent per clip."""
    frame_rate: float | None = None
    """Frames per second that are sent; by default `frames` frames, spread evenly over the clip."""
    side: int = 512
    """Maximum side of a frame in pixels; larger frames are scaled down."""
    picture: Literal["jpeg", "png", "mp4"] = "jpeg"
    """Format of the frames: images (jpeg, png), or one video (mp4), which vLLM and SGLang accept for video models."""
    temperature: float = 0.0
    """Sampling temperature; 0 = greedy."""
    max_tokens: int = 1024
    """Maximum tokens of an answer."""
    retries: int = 4
    """Retries of a failed request or (if temperature > 0) an unusable answer."""
    wait: float = 1.0
    """Seconds before the first retry, doubled for each further one; the server's `Retry-After` takes precedence."""
    timeout: float = 120.0
    """Read time-out in seconds."""
    concurrency: int = 8
    """Concurrent requests."""
    api_key: str = ""
    """Name of the environment variable with the API key; empty = no key."""
    price_in: float = 0.0
    """Price of a million input tokens, in any currency."""
    price_out: float = 0.0
    """Price of a million output tokens."""

    def __post_init__(self):
        web = self.url.startswith(("http://", "https://"))
        require(web, "url", self.url, "http://... or https://... up to /v1")
        require(bool(self.model), "model", self.model, "the model's name on the judge's server")
        require(bool(self.dimensions), "dimensions", self.dimensions, "ranges such as {visual quality: [1, 5]}")
        for name, (low, high) in self.dimensions.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"dimensions.{name} ranges from {low} to {high}; expected [lowest, highest]")
            if name.lower() not in self.rubric.lower():
                raise ValueError(f"rubric does not name the dimension {name!r}; add it, so that the model can score it")
        for name in ("frames", "side", "max_tokens", "concurrency"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("temperature", "retries", "wait", "price_in", "price_out"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(self.timeout > 0, "timeout", self.timeout, "seconds, more than 0")
        require(
            self.frame_rate is None or self.frame_rate > 0,
            "frame_rate",
            self.frame_rate,
            "more than 0, or leave it out",
        )


@dataclass
class Usage:
    """Answers, failures and cost of a judge since it was loaded.

    Attributes:
        failures: requests that failed and were retried.
        unusable: answers that could not be parsed.
        abstentions: videos without a score.
    """

    answers: int = 0
    failures: int = 0
    unusable: int = 0
    abstentions: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0


def load(path: str | Path | None = None, device: str = "cpu") -> Judge:
    """Load a judge from a .yaml file with the settings of `JudgeConfig`; its name is the file's.

    Or from a folder whose `config.json` has the settings and `"critic": "judge"`.

    Raises:
        ValueError: no file or folder is given, or its settings are invalid.
    """
    if path is None:
        raise ValueError(
            "a judge needs a rubric: give a .yaml file with url, model, rubric and dimensions as the critic's name, "
            "or put these settings into the recipe under reward.judges"
        )
    path = Path(path)
    if path.suffix not in (".yaml", ".yml"):
        config = read_config(path, "judge")
        return Judge(from_dict(JudgeConfig, {key: value for key, value in config.items() if key != "critic"}))
    return Judge(judge_config(path), path.stem)


def judge_config(file: Path) -> JudgeConfig:
    """Read a judge's .yaml file; ValueError if it is invalid."""
    try:
        return from_dict(JudgeConfig, read_yaml(file))
    except ValueError as error:
        raise ValueError(f"judge {file}: {error}") from error


class Judge:
    """A `Reward` that queries a vision-language model on a server; it may abstain if `unusable` is "abstain".

    Attributes:
        usage: requests, tokens and cost so far.
    """

    differentiable = False

    def __init__(self, config: JudgeConfig, name: str = "judge"):
        """
        Raises:
            ValueError: the environment variable of the API key is not set.
        """
        if config.api_key and config.api_key not in os.environ:
            raise ValueError(
                f"critic {name}: the environment variable {config.api_key} is not set; set it to the API key"
            )
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
        """A hash of all settings that affect the scores."""
        irrelevant = ("retries", "wait", "timeout", "concurrency", "api_key", "price_in", "price_out", "unusable")
        settings = {key: value for key, value in to_dict(self.config).items() if key not in irrelevant}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def metrics(self) -> dict[str, float]:
        """`usage`, by metric name."""
        return {f"{self.name}/{what}": float(value) for what, value in vars(self.usage).items()}

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """Send a request per video; a `PartialScore` if there are abstentions.

        Raises:
            ValueError: videos or prompts are invalid, the server rejects a request, or an answer is unusable.
            ConnectionError: the server cannot be reached, or fails after all retries.
        """
        check_videos(self.name, videos, prompts, least_frames=1)
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            requests = [
                pool.submit(self._request, self._question(*one, fps), one[1])
                for one in zip(videos, prompts, strict=True)
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
            media = [{"type": "video_url", "video_url": {"url": data_url("video/mp4", as_mp4(frames, rate))}}]
        else:
            files = [as_picture(frame, config.picture) for frame in frames]
            media = [
                {"type": "image_url", "image_url": {"url": data_url(f"image/{config.picture}", file)}} for file in files
            ]
        text = {"type": "text", "text": config.rubric.replace("{prompt}", prompt)}
        body = {
            "model": config.model,
            "messages": [{"role": "user", "content": [*media, text]}],
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }
        return json.dumps(body).encode()

    def _request(self, question: bytes, prompt: str) -> dict[str, float] | None:
        """The scores of an answer; None = an abstention."""
        again = self.config.retries if self.config.temperature else 0  # at temperature 0 the answer would be the same
        while True:
            text, whole = self._answer(question)
            try:
                if not whole:
                    raise ValueError("it is truncated; raise max_tokens")
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
                        f"critic {self.name}: the answer for the video of {prompt!r} is unusable: {error}; "
                        f"edit the rubric, or set `unusable: abstain`. The answer: {text[-300:]!r}"
                    ) from error

    def _answer(self, question: bytes) -> tuple[str, bool]:
        """The text of the model's answer, and whether it is complete."""
        try:
            return self._http.retry.call(lambda: self._post(question), lambda _: self._count(failures=1))
        except NoAnswerError as error:
            raise ConnectionError(
                f"critic {self.name}: {self.config.url} failed {self.config.retries + 1} times; the last error: {error}"
            ) from error

    def _post(self, question: bytes) -> tuple[str, bool]:
        response = self._http.request("POST", "/chat/completions", [question], "application/json")
        if response.status != 200:
            raise ValueError(
                f"critic {self.name}: {self.config.url} rejects the request ({response.status}: "
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
            raise NoAnswerError(f"its reply is not a chat completion ({error!r})") from error

    def _count(self, **more: int) -> None:
        usage, config = self.usage, self.config
        with self._lock:
            for what, number in more.items():
                setattr(usage, what, getattr(usage, what) + number)
            usage.cost = (usage.tokens_in * config.price_in + usage.tokens_out * config.price_out) / 1e6


def chosen(frames: int, fps: float, config: JudgeConfig) -> list[int]:
    """Indices of the frames of a clip that are sent, in order."""
    if config.frame_rate is None:
        return even_frames(frames, min(frames, config.frames))
    places = frames_at_rate(frames, fps, config.frame_rate)
    return [places[i] for i in even_frames(len(places), min(len(places), config.frames))]


def small(frame: torch.Tensor, side: int) -> Image.Image:
    """A uint8 `h w 3` frame as an image, scaled down so that no side exceeds `side` pixels."""
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
