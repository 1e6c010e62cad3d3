"""What every model family must do. Each check takes the model, a size it is run at, its prompts, and a folder."""

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
        load: gives it anew, since it is changed.
        size: frames, height and width of the videos.
        prompts: two of them, with what else the model is shown.
        folder: for files.
    """

    load: Callable[[], VideoModel]
    size: Size
    prompts: list[str]
    folder: Path

    def rollout(self, **settings: object) -> RolloutConfig:
        """A rollout of its size without guidance."""
        size = dict(zip(("frames", "height", "width"), self.size, strict=True))
        values: dict = {"steps": 2, "guidance": 1.0, **size, **settings}
        return RolloutConfig(**values)


def samples_videos(model: VideoModel, subject: Subject) -> None:
    """`generate` gives finite videos b f 3 h w of the size asked for, from latents of `latent_shape`."""
    rollout = generate(model, subject.prompts, subject.rollout())
    frames, height, width = subject.size
    expected = 2, frames, 3, height, width
    demand(tuple(rollout.videos.shape) == expected, f"videos are {tuple(rollout.videos.shape)}, expected {expected}")
    shape = 2, *model.latent_shape(*subject.size)
    demand(
        tuple(rollout.latents.shape) == shape, f"latents are {tuple(rollout.latents.shape)}, latent_shape says {shape}"
    )
    demand(bool(rollout.videos.isfinite().all()), "a pixel is not finite")
    demand(rollout.latents.std().item() > 0.01, "all latents are alike; does `predict` give what the schedule expects?")


@torch.no_grad()
def encodes_and_decodes(model: VideoModel, subject: Subject) -> None:
    """`encode` gives latents of `latent_shape`, and `decode` videos of the size they were of."""
    frames, height, width = subject.size
    video = torch.rand(2, frames, 3, height, width, device=model.device) * 2 - 1
    latents = model.encode(video)
    shape = tuple(model.latent_shape(*subject.size))
    demand(tuple(latents.shape[1:]) == shape, f"encode gives {tuple(latents.shape[1:])}, latent_shape says {shape}")
    decoded = model.decode(latents, frames)
    demand(decoded.shape == video.shape, f"{tuple(video.shape)} decodes to {tuple(decoded.shape)}")


@torch.no_grad()
def predicts_row_by_row(model: VideoModel, subject: Subject) -> None:
    """One row of a prediction does not depend on the others, and has the shape of its latents."""
    x_t = torch.randn(2, *model.latent_shape(*subject.size), generator=torch.Generator().manual_seed(0)).to(
        model.device
    )
    t = torch.tensor([0.2, 0.95], device=model.device)  # of two experts, one each
    condition = subject.rollout().condition(model, subject.prompts)
    both = model.predict(model.denoiser, x_t, t, condition)
    second = model.predict(model.denoiser, x_t[1:], t[1:], {name: value[1:] for name, value in condition.items()})
    demand(both.shape == x_t.shape, f"predict gives {tuple(both.shape)} for latents {tuple(x_t.shape)}")
    demand(
        torch.allclose(both[1:], second, atol=1e-5, rtol=1e-4),
        "the second row's prediction is another one when it is alone; the first axis of every condition is the batch",
    )


def shares_one_noise_process(model: VideoModel, subject: Subject) -> None:
    """A network that predicts the schedule's target exactly brings the sampler to the data, from any noise."""
    rollout = subject.rollout(steps=4)
    rows = plan_rows(model, subject.prompts[:1], rollout, 1, (0,))
    noise = torch.Generator().manual_seed(0)
    x_0 = model.with_known(torch.randn(1, *rows.shape, generator=noise).to(model.device), rows.condition)
    with torch.no_grad():
        (latents,) = sample_rows(_Oracle(model, x_0), rows, rollout, [0])  # type: ignore[arg-type]
    distance = (latents - x_0).abs().max().item()
    demand(
        distance < 2e-2,
        f"the sampler ends {distance:.3g} away from the data; `schedule` and the pipeline's scheduler must have the "
        "same noise process: the same time, alpha, sigma and kind of prediction",
    )


def trains_to_an_adapter_of_the_pipeline(model: VideoModel, subject: Subject) -> None:
    """A LoRA that is trained here gives the same videos when the pipeline loads it."""
    policy = Policy(subject.load(), PolicyConfig(rank=2))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.trainable.values():
            weight += 0.3 * torch.randn(weight.shape, generator=noise).to(weight.device)
    ours = generate(policy, subject.prompts, subject.rollout(), decode=False).latents
    before = generate(model, subject.prompts, subject.rollout(), decode=False).latents
    demand(not torch.allclose(ours, before, atol=1e-2), "a LoRA changes nothing; see `lora_targets`")
    policy.save(subject.folder / "adapter")
    theirs = with_adapter(subject.load(), subject.folder / "adapter")
    loaded = generate(theirs, subject.prompts, subject.rollout(), decode=False).latents
    demand(
        torch.allclose(loaded, ours, atol=1e-3, rtol=1e-3), "the loaded adapter gives other latents; see `save_lora`"
    )


def refuses_what_it_cannot_do(model: VideoModel, subject: Subject) -> None:
    """Empty and over-long prompts, and clips of no frame, are a ValueError."""
    for what, ask in (
        ("an empty prompt", lambda: model.check_prompts([" "])),
        ("a prompt of 10,000 words", lambda: model.check_prompts(["ball " * 10_000])),
        ("a clip of 0 frames", lambda: model.latent_shape(0, *subject.size[1:])),
    ):
        try:
            ask()
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
    trains_to_an_adapter_of_the_pipeline,
    refuses_what_it_cannot_do,
)
