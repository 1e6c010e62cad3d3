"""Critics on the imagined card: those that are arithmetic are asked, of networks their published size counts."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from besttake.plan.imagined import CARD
from besttake.plan.meter import Meter
from besttake.rewards import load_reward
from besttake.rollout import Rollout
from besttake.types import CriticCard, Reward


class Critics:
    """The critics of a recipe that are on its own card.

    Attributes:
        unasked: those whose work is not counted, since their networks are not here.
    """

    def __init__(self, config: Any, meter: Meter):
        trained_on = [name for name in _trained_on(config) if not _elsewhere(name, config)]
        watched = [name for name in config.monitor.rewards if config.monitor.every and not _elsewhere(name, config)]
        cards = {name: card_of(name) for name in (*trained_on, *watched)}
        self.unasked = sorted(name for name, card in cards.items() if card.memory)
        self.trained_on = _loaded(trained_on, self.unasked)
        self.watched = _loaded(watched, self.unasked)
        sizes = [cards[name].memory for name in (*trained_on, *watched)]  # one that does both is there twice
        self.weights = [torch.empty(int(size * 1e9), dtype=torch.uint8, device=CARD) for size in sizes]
        meter.claim("critics", self.weights)


def ask(critics: Iterable[Reward], takes: Rollout, fps: float) -> list[Tensor]:
    """What critics say of takes."""
    return [critic(takes.videos, takes.prompts, fps).values for critic in critics]


def card_of(name: str) -> CriticCard:
    """What a critic says of itself, without its weights."""
    module = importlib.import_module(f"besttake.rewards.{name.replace('-', '_').replace(' ', '_')}")
    own = [thing for thing in vars(module).values() if getattr(thing, "__module__", "") == module.__name__]
    found = [getattr(thing, "card", None) for thing in own] + list(vars(module).values())
    return next(card for card in found if isinstance(card, CriticCard))


def _trained_on(config: Any) -> list[str]:
    return list(config.reward.chosen) if hasattr(config, "reward") else []


def _elsewhere(name: str, config: Any) -> bool:
    """Whether a critic is a server, a judge behind an endpoint, or a folder of somebody's own."""
    judges = config.reward.judges if hasattr(config, "reward") else {}
    return name.startswith(("http://", "https://")) or name in judges or "/" in name


def _loaded(names: Iterable[str], without: Iterable[str]) -> list[Reward]:
    return [load_reward(name, str(CARD)) for name in names if name not in without]
