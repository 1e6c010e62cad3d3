"""Contract of critics. The checks are called with a critic, two videos `b f 3 h w` in [-1, 1], and their prompts."""

from __future__ import annotations

import torch

from besttake.contracts import ContractError, demand
from besttake.rewards.checks import score_checked
from besttake.rewards.remote.server import select_frames
from besttake.types import CriticCard, Reward, Video

FPS = 8.0
PROMPTS = ["a red ball rolls to the left", "a large blue square floats"]


def example_videos(frames: int = 16, height: int = 32, width: int = 32) -> Video:
    """Two videos of noise."""
    return torch.rand(2, frames, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def scores_every_video(critic: Reward, videos: Video, prompts: list[str]) -> None:
    """Every video has a finite float32 score in every dimension."""
    score_checked(critic, videos, prompts, FPS)


def has_a_complete_card(critic: Reward, videos: Video, prompts: list[str]) -> None:
    """The card has the source, licence, resolution, and the range of every dimension."""
    card = critic.card
    demand(isinstance(card, CriticCard), f"card is a {type(card).__name__}; expected a besttake.types.CriticCard")
    demand(
        tuple(card.ranges) == tuple(critic.dimensions),
        f"card.ranges has {', '.join(card.ranges)}; expected (low, high) for each of {', '.join(critic.dimensions)}",
    )
    for dimension, (low, high) in card.ranges.items():
        demand(low < high, f"the range of {dimension} is ({low}, {high}); expected (low, high) with low < high")
    for field in ("source", "licence", "resolution"):
        demand(bool(getattr(card, field)), f"card.{field} is empty; fill it in")


def does_not_depend_on_the_batch(critic: Reward, videos: Video, prompts: list[str]) -> None:
    """A video's score does not depend on the other videos of the batch, nor on their order."""
    both = critic(videos, prompts, FPS).values
    alone, turned = critic(videos[1:], prompts[1:], FPS).values, critic(videos.flip(0), prompts[::-1], FPS).values
    demand(
        torch.allclose(alone, both[1:], 1e-4, 1e-4) and torch.allclose(turned, both.flip(0), 1e-4, 1e-4),
        f"the second video scores {both[1].tolist()} in a batch with the first, but {alone[0].tolist()} alone; do not "
        "normalise over the batch, and call eval() on the network",
    )


def is_deterministic(critic: Reward, videos: Video, prompts: list[str]) -> None:
    """Scoring the same videos twice gives bit-identical scores."""
    one, two = (critic(videos, prompts, FPS).values for _ in range(2))
    demand(
        torch.equal(one, two),
        f"the same videos score {one.tolist()}, then {two.tolist()}; call eval() on the network, and use a seeded "
        "generator for random numbers",
    )


def depends_on_the_video(critic: Reward, videos: Video, prompts: list[str]) -> None:
    """Two different videos of one prompt get different scores."""
    values = critic(videos, prompts[:1] * 2, FPS).values
    demand(not torch.allclose(values[0], values[1]), f"two videos of noise both score {values[0].tolist()}")


def declares_its_gradient(critic: Reward, videos: Video, prompts: list[str]) -> None:
    """`differentiable` is True exactly if the score has a gradient with respect to the video."""
    videos = videos.clone().requires_grad_(True)
    values = critic(videos, prompts, FPS).values
    demand(
        values.requires_grad == critic.differentiable,
        f"differentiable is {critic.differentiable}, and the scores {'have' if values.requires_grad else 'lack'} a "
        "gradient; set it right, or add or remove torch.no_grad()",
    )
    if critic.differentiable:
        (gradient,) = torch.autograd.grad(values.sum(), videos)
        demand(bool(gradient.isfinite().all()), "the gradient is not finite; guard square roots and divisions at 0")
        demand(bool(gradient.any()), "the gradient is 0 everywhere; set differentiable to False")


def uses_the_frames_it_chooses(critic: Reward, videos: Video, prompts: list[str]) -> None:
    """The score depends only on the frames that `chosen` returns, since a server receives no others."""
    if not hasattr(critic, "chosen"):
        frames = critic.card.frames
        demand(
            frames is None,
            f"card.frames is {frames}, but there is no method `chosen`; add it, or leave out card.frames",
        )
        return
    for fps in (8.0, 24.0):
        places, rate = select_frames(critic, videos.shape[1], fps)
        most = critic.card.frames or videos.shape[1]
        demand(len(places) <= most, f"`chosen` returns {len(places)} frames, but card.frames is {critic.card.frames}")
        again = select_frames(critic, len(places), rate)[0]
        demand(
            again == list(range(len(places))),
            f"given the {len(places)} chosen frames, `chosen` must return all of them, not {again}",
        )
        whole, part = (critic(v, prompts[:1], f).values for v, f in ((videos[:1], fps), (videos[:1, places], rate)))
        demand(
            torch.allclose(whole, part, atol=1e-5, rtol=1e-5),
            f"a clip scores {whole[0].tolist()}, but its chosen frames alone score {part[0].tolist()}",
        )


def refuses_invalid_videos(critic: Reward, videos: Video, prompts: list[str]) -> None:
    """Videos with one channel, four axes or too few prompts raise a ValueError that names the critic."""
    for what, wrong, words in (
        ("one colour channel", videos[:, :, :1], prompts),
        ("four axes", videos[0], prompts),
        ("one prompt for two videos", videos, prompts[:1]),
    ):
        try:
            score_checked(critic, wrong, words, FPS)
        except ValueError as error:
            demand(critic.name in str(error), f"{what}: the error does not name {critic.name}: {error}")
        except Exception as error:
            raise ContractError(_no_value_error(what, f"{type(error).__name__}: {error}")) from error
        else:
            raise ContractError(_no_value_error(what, "a score"))


def _no_value_error(what: str, got: str) -> str:
    return f"{what}: expected a ValueError, got {got}; call besttake.rewards.shipped.check_videos first"


CHECKS = (
    scores_every_video,
    has_a_complete_card,
    does_not_depend_on_the_batch,
    is_deterministic,
    depends_on_the_video,
    declares_its_gradient,
    uses_the_frames_it_chooses,
    refuses_invalid_videos,
)
