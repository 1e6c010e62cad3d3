"""Contract of model families. The checks are called with a model and a `Subject`: how to load and run it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from besttake.contracts import ContractError, demand
from besttake.evaluation.before_after import with_adapter
from besttake.models import VideoModel
from besttake.models.base import Size
from besttake.models.policy import Policy, PolicyConfig
from besttake.sampling.rollout import RolloutConfig, generate, plan_rows, sample_rows
from besttake.types import Condition, Latent, Time

PROMPTS = ["a red ball", "a large blue square"]


@dataclass(frozen=True)
class Subject:
    """A model under test.

    Attributes:
        load: loads the model again, since training changes it.
        size: frames, height and width of the videos.
        prompts: two prompts, with first frames if the model needs them.
        folder: for temporary files.
    """

    load: Callable[[], VideoModel]
    size: Size
    prompts: list[str]
    folder: Path

    def rollout(self, **settings: object) -> RolloutConfig:
        """Rollout settings with its size, without guidance."""
        size = dict(zip(("frames", "height", "width"), self.size, strict=True))
        values: dict = {"steps": 2, "guidance": 1.0, **size, **settings}
        return RolloutConfig(**values)


def samples_videos(model: VideoModel, subject: Subject) -> None:
    """`generate` returns finite videos b f 3 h w of the requested size, and latents of `latent_shape`."""
    rollout = generate(model, subject.prompts, subject.rollout())
    frames, height, width = subject.size
    expected = 2, frames, 3, height, width
    demand(tuple(rollout.videos.shape) == expected, f"videos are {tuple(rollout.videos.shape)}, expected {expected}")
    shape = 2, *model.latent_shape(*subject.size)
    demand(
        tuple(rollout.latents.shape) == shape, f"latents are {tuple(rollout.latents.shape)}, latent_shape says {shape}"
    )
    demand(bool(rollout.videos.isfinite().all()), "a pixel is not finite")
    demand(
        rollout.latents.std().item() > 0.01, "the latents are constant; does `predict` return the schedule's target?"
    )


@torch.no_grad()
def encodes_and_decodes(model: VideoModel, subject: Subject) -> None:
    """`encode` returns latents of `latent_shape`, and `decode` videos of the original size."""
    frames, height, width = subject.size
    video = torch.rand(2, frames, 3, height, width, device=model.device) * 2 - 1
    latents = model.encode(video)
    shape = tuple(model.latent_shape(*subject.size))
    demand(tuple(latents.shape[1:]) == shape, f"encode returns {tuple(latents.shape[1:])}, latent_shape says {shape}")
    decoded = model.decode(latents, frames)
    demand(decoded.shape == video.shape, f"{tuple(video.shape)} decodes to {tuple(decoded.shape)}")


@torch.no_grad()
def predicts_row_by_row(model: VideoModel, subject: Subject) -> None:
    """A row of a prediction has the shape of its latents, and does not depend on the other rows."""
    x_t = torch.randn(2, *model.latent_shape(*subject.size), generator=torch.Generator().manual_seed(0)).to(
        model.device
    )
    t = torch.tensor([0.2, 0.95], device=model.device)  # one for each of two experts
    condition = subject.rollout().condition(model, subject.prompts)
    both = model.predict(model.denoiser, x_t, t, condition)
    second = model.predict(model.denoiser, x_t[1:], t[1:], {name: value[1:] for name, value in condition.items()})
    demand(both.shape == x_t.shape, f"predict returns {tuple(both.shape)} for latents {tuple(x_t.shape)}")
    demand(
        torch.allclose(both[1:], second, atol=1e-5, rtol=1e-4),
        "the second row's prediction is different without the first; the first axis of every condition must be the "
        "batch",
    )


def shares_one_noise_process(model: VideoModel, subject: Subject) -> None:
    """Schedule and scheduler agree: with exact predictions of the schedule's target, sampling ends at the data."""
    rollout = subject.rollout(steps=4)
    rows = plan_rows(model, subject.prompts[:1], rollout, 1, (0,))
    noise = torch.Generator().manual_seed(0)
    x_0 = model.with_known_frames(torch.randn(1, *rows.shape, generator=noise).to(model.device), rows.condition)
    with torch.no_grad():
        (latents,) = sample_rows(_Oracle(model, x_0), rows, rollout, [0])  # type: ignore[arg-type]
    distance = (latents - x_0).abs().max().item()
    demand(
        distance < 2e-2,
        f"sampling ends {distance:.3g} away from the data; `schedule` and the pipeline's scheduler must have the same "
        "noise process: time, alpha, sigma and prediction type",
    )


def saves_an_adapter_for_the_pipeline(model: VideoModel, subject: Subject) -> None:
    """A saved LoRA gives the same latents when the pipeline loads it."""
    policy = Policy(subject.load(), PolicyConfig(rank=2))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.trainable.values():
            weight += 0.3 * torch.randn(weight.shape, generator=noise).to(weight.device)
    ours = generate(policy, subject.prompts, subject.rollout(), decode=False).latents
    before = generate(model, subject.prompts, subject.rollout(), decode=False).latents
    demand(not torch.allclose(ours, before, atol=1e-2), "a LoRA has no effect; see `lora_targets`")
    policy.save(subject.folder / "adapter")
    theirs = with_adapter(subject.load(), subject.folder / "adapter")
    loaded = generate(theirs, subject.prompts, subject.rollout(), decode=False).latents
    demand(
        torch.allclose(loaded, ours, atol=1e-3, rtol=1e-3),
        "the loaded adapter gives different latents; see `save_lora`",
    )


def refuses_invalid_prompts_and_sizes(model: VideoModel, subject: Subject) -> None:
    """Empty and too long prompts, and clips of 0 frames, raise a ValueError."""
    for what, call in (
        ("an empty prompt", lambda: model.check_prompts([" "])),
        ("a prompt of 10,000 words", lambda: model.check_prompts(["ball " * 10_000])),
        ("a clip of 0 frames", lambda: model.latent_shape(0, *subject.size[1:])),
    ):
        try:
            call()
        except ValueError:
            continue
        raise ContractError(f"{what} is accepted; see `longest_prompt`, and `check_size` in `latent_shape`")


@dataclass(frozen=True)
class _Oracle:
    """A policy that knows the data."""

    model: VideoModel
    x_0: Latent

    def predict(self, x_t: Latent, t: Time, condition: Condition) -> Tensor:
        alpha, sigma = (scale.view(-1, 1, 1, 1, 1) for scale in self.model.schedule.alpha_sigma(t))
        return self.model.schedule.target(self.x_0, (x_t - alpha * self.x_0) / sigma, t)

    def merged(self) -> AbstractContextManager:
        return nullcontext()


CHECKS = (
    samples_videos,
    encodes_and_decodes,
    predicts_row_by_row,
    shares_one_noise_process,
    saves_an_adapter_for_the_pipeline,
    refuses_invalid_prompts_and_sizes,
)
