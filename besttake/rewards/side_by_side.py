"""Several critics as one whose dimensions are the union of all, without combining them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from besttake.rewards.checks import score_checked
from besttake.rewards.offloading import offload_reward, on_device
from besttake.types import FPS, CriticCard, Reward, Score, Video


class SideBySide:
    """Concatenated critics with dimensions named `critic/dimension`; only one is on the device at a time."""

    differentiable = False

    def __init__(self, critics: Mapping[str, Reward]):
        self.critics = dict(critics)
        self.name = " and ".join(self.critics)
        cards = {name: reward.card for name, reward in self.critics.items()}
        ranges = {f"{name}/{d}": of for name, card in cards.items() for d, of in card.ranges.items()}
        sources, licences = ("; ".join(getattr(card, key) for card in cards.values()) for key in ("source", "licence"))
        self.card = CriticCard(sources, licences, ranges)
        self.dimensions = tuple(f"{name}/{d}" for name, reward in self.critics.items() for d in reward.dimensions)
        for reward in self.critics.values():
            offload_reward(reward)

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """Scores of all critics, concatenated."""
        parts = []
        for reward in self.critics.values():
            with on_device(reward):
                parts.append(score_checked(reward, videos, prompts, fps).values.cpu())
        return Score(torch.cat(parts, 1), self.dimensions)
