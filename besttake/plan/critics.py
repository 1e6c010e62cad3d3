"""Critics on the fake device: analytic critics are run; of networks only the published size is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from besttake.plan.fake_device import real_device
from besttake.rewards import critic_module, is_users, load_reward
from besttake.rewards.judges import judge_names, load_judge
from besttake.runtime.distributed import shard_rows
from besttake.runtime.embedded import embedded_family
from besttake.types import CriticCard, Reward, Video

Claim = Callable[[str, Iterable[Tensor]], None]


class Critics:
    """The recipe's critics that run on its own card: those it trains on ("score") and those of "validate"."""

    def __init__(self, config: Any, device: torch.device, claim: Claim):
        self.device, self.claim = device, claim
        self.names = {"score": _training_critics(config), "validate": _validation_critics(config)}
        networks = uncounted_critics(config)
        self.loaded = {part: _load_all(names, networks, device) for part, names in self.names.items()}
        self.resident = [] if config.offload_idle else self._weights(chain(*self.names.values()))

    def score(self, part: str, videos: Video, prompts: Sequence[str], fps: float) -> None:
        """Score videos of this process's shard of the prompts."""
        weights = self.resident or self._weights(self.names[part])
        mine = [prompts[row] for row in shard_rows(len(prompts))]
        for critic in self.loaded[part]:
            critic(videos, mine, fps)
        del weights

    def _weights(self, names: Iterable[str]) -> list[Tensor]:
        """Allocate the published sizes; a critic in both parts is counted twice."""
        sizes = [int(card_of(name).memory * 1e9) for name in names]
        weights = [torch.empty(size, dtype=torch.uint8, device=self.device) for size in sizes]
        self.claim("critics", weights)
        return weights


def uncounted_critics(config: Any) -> list[str]:
    """Critics whose compute is not counted, since their networks are not run."""
    return sorted({name for name in (*_training_critics(config), *_validation_critics(config)) if card_of(name).memory})


def card_of(name: str) -> CriticCard:
    """The card of a critic, without its weights."""
    if name in judge_names():
        return load_judge(name).card
    module = critic_module(name.replace("-", "_").replace(" ", "_"))
    own = [thing for thing in vars(module).values() if getattr(thing, "__module__", "") == module.__name__]
    found = [getattr(thing, "card", None) for thing in own] + list(vars(module).values())
    return next(card for card in found if isinstance(card, CriticCard))


def _training_critics(config: Any) -> list[str]:
    return _shipped(config.reward.chosen, config.reward.judges) if hasattr(config, "reward") else []


def _validation_critics(config: Any) -> list[str]:
    return _shipped(config.validation.critics(embedded_family(str(config.data)))) if config.validation.every else []


def _shipped(names: Iterable[str], judges: Iterable[str] = ()) -> list[str]:
    """The shipped critics among them: no servers, no judges, no files of the user's own."""
    remote = (*judges, *judge_names())
    local = [name for name in names if name not in remote and "/" not in name and not name.endswith(".yaml")]
    return [name for name in local if not is_users(name)]


def _load_all(names: Iterable[str], without: Iterable[str], device: torch.device) -> list[Reward]:
    return [_load(name, device) for name in names if name not in without]


def _load(name: str, device: torch.device) -> Reward:
    """Load a critic whose weights, if any, are part of the package, onto the fake device."""
    with real_device():
        critic = load_reward(name)
    for part, value in vars(critic).items():
        if isinstance(value, Tensor | nn.Module):
            setattr(critic, part, value.to(device))
    return critic
