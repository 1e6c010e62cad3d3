"""Former names of settings, metrics and files: one table that keeps old recipes, runs and checkpoints working."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

RENAMED = {
    "by_turns": "offload_idle",
    "draws": "timesteps_per_pair",
    "guard": "dpop_weight",
    "monitor": "validation",
    "renew_every": "regenerate_every",
    "optim.accumulate": "optim.gradient_accumulation_steps",
    "optim.clip": "optim.max_grad_norm",
    "optim.eight_bit": "optim.use_8bit_adam",
    "optim.warmup": "optim.warmup_steps",
    "policy.average": "policy.ema_decay",
    "policy.clips_at_once": "policy.micro_batch_size",
    "policy.halve": "policy.halve_on_oom",
    "policy.reference_on": "policy.reference_device",
    "rollout.asked": "rollout.evaluations",
    "rollout.guided": "rollout.guidance_interval",
    "validation.guard.watch": "validation.guard.critics",
}
"""Settings, old to new; those of `rollout` also within `validation` and `evaluation`."""

RENAMED_VALUES: dict[str, dict[Any, str]] = {
    "policy.gradient_checkpointing": {False: "none", True: "full"},
    "rollout.compile": {False: "never", True: "always"},
}
"""Former values of settings, by the settings' current names, also within `validation` and `evaluation`."""

RENAMED_FLAGS = {"draws": "n_resamples", "takes": "samples"}
"""Flags of `besttake score`, old to new."""

REMOVED: dict[str, Any] = {
    "preview_at": 0.0,
    "preview_keeps": 3,
    "rollout.cache.threshold": 0.1,
    "rollout.decoded": None,
    "rollout.shared": 0.0,
}
"""Removed settings, each with the value that disabled it."""

RENAMED_METRICS = {
    "loss": "train/loss",
    "gradient_norm": "train/grad_norm",
    "lr": "train/lr",
    "skipped": "train/skipped",
    "reward": "reward/mean",
    "abstained": "reward/abstained",
    "ties": "pairs/ties",
    "below_margin": "pairs/below_margin",
    "score_spread": "pairs/score_spread",
    "winner_error": "dpo/winner_error",
    "loser_error": "dpo/loser_error",
    "winner_gain": "dpo/winner_gain",
    "loser_gain": "dpo/loser_gain",
    "margin": "dpo/margin",
    "implicit_accuracy": "dpo/implicit_accuracy",
    "drift": "dpo/reference_distance",
}
"""Columns of `metrics.jsonl`, old to new; `monitor/...` is now `eval/...`."""

RENAMED_FILES = {"takes.jsonl": "samples.jsonl", "takes.yaml": "samples.yaml", "takes.png": "samples.png"}
"""Files that `besttake generate` writes, old to new."""

RENAMED_KEYS = {"takes": "videos"}
"""Keys of a line of `samples.jsonl` or of a votes file, old to new."""


def with_new_names(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A recipe's values by their current names, with one warning that lists the former names.

    Raises:
        ValueError: a removed setting is not disabled, or a setting is given by both of its names.
    """
    flat, old = dict(_flattened(values)), []
    new: dict[str, Any] = {}
    for name, value in flat.items():
        today = new_name(name)
        if today is None:
            if value != _off(name) and name != "preview_keeps":
                raise ValueError(f"{source}: '{name}' is {value!r}, but this setting was removed; leave it out")
            old.append(f"{name} (removed)")
            continue
        if today != name:
            if today in flat:
                raise ValueError(f"{source}: '{today}' is given twice, also by its former name '{name}'; keep one")
            old.append(f"{name} -> {today}")
        new[today] = new_value(today, value)
        if new[today] != value:
            old.append(f"{today}: {str(value).lower()} -> {new[today]}")
    if old:
        log.warning("%s uses former names of settings: %s", source, ", ".join(old))
    return _nested(new)


def new_name(name: str) -> str | None:
    """The current name of a dotted setting; None if it was removed."""
    section, _, rest = name.partition(".")
    if section in ("monitor", "validation", "evaluation") and rest:
        section = RENAMED.get(section, section)
        if rest.startswith("rollout."):
            inner = new_name(rest)
            return inner and f"{section}.{inner}"
        name = f"{section}.{rest}"
    return None if name in REMOVED else RENAMED.get(name, name)


def new_value(name: str, value: Any) -> Any:
    """The current value of a setting for a former one; any other value as it is."""
    former = RENAMED_VALUES.get(_inner(name), {})
    return former[value] if isinstance(value, bool) and value in former else value


def _inner(name: str) -> str:
    """A setting without `validation` or `evaluation` in front."""
    section, _, rest = name.partition(".")
    return rest if section in ("validation", "evaluation") else name


def with_old_names(values: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """A config's values by their original names, from which a run is hashed, so that old checkpoints resume."""
    flat = {_old_name(name): value for name, value in _flattened(values)}
    for name, off in REMOVED.items():
        if (name.startswith("rollout.") and "rollout" in values) or (
            name.startswith("preview") and algorithm == "onlinevpo"
        ):
            flat.setdefault(name, off)
    return _nested(flat)


def _old_name(name: str) -> str:
    old = next((old for old, new in RENAMED.items() if new == name), name)
    section, _, rest = old.partition(".")
    if section in ("validation", "evaluation") and rest:
        first = "monitor" if section == "validation" else section
        return f"{first}.{_old_name(rest) if rest.startswith('rollout.') else rest}"
    return old


def with_new_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `metrics.jsonl` by its current names."""

    def today(name: str) -> str:
        return f"eval/{name[8:]}" if name.startswith("monitor/") else RENAMED_METRICS.get(name, name)

    return {today(name): value for name, value in row.items()}


def with_new_keys(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `samples.jsonl` or of a votes file by its current keys."""
    return {RENAMED_KEYS.get(key, key): value for key, value in row.items()}


def rename_files(folder: Path) -> None:
    """Rename the files that an earlier version's `besttake generate` wrote to their current names."""
    for old, new in RENAMED_FILES.items():
        if (folder / old).exists() and not (folder / new).exists():
            (folder / old).rename(folder / new)


def _off(name: str) -> Any:
    return next(off for removed, off in REMOVED.items() if name.endswith(removed))


def _flattened(values: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value and all(str(key).isidentifier() for key in value):
            yield from _flattened(value, f"{head}{name}.")
        else:
            yield f"{head}{name}", value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested
