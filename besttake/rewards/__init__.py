"""Critics, one file each: videos and prompts in, scores out. A new critic is one new file with a `load`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from besttake.rewards import critics
from besttake.rewards.judges import judge_loader, judge_names
from besttake.rewards.remote import judge
from besttake.types import Reward

__all__ = ["critic_names", "find_critic", "load_reward"]


def critic_names() -> list[str]:
    """The names of the critics in `critics/`, the modules that have a `load`, and of the judges in `judges/`."""
    names = [module.name for module in pkgutil.iter_modules(critics.__path__)]
    modules = [name for name in [*names, "judge"] if hasattr(critic_module(name), "load")]
    return sorted([*modules, *judge_names()])


def critic_module(name: str) -> ModuleType:
    """The module of a critic."""
    return judge if name == "judge" else importlib.import_module(f"besttake.rewards.critics.{name}")


def load_reward(
    name_or_path: str | Path,
    device: str = "cpu",
    path: str | Path | None = None,
    looks: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Reward:
    """The critic of a name ("world", "temporal-flicker"), or the one that a folder's `config.json` names.

    A name may also be the URL of a served critic, or several of them with commas between; or the .yaml file of a judge.

    Args:
        path: folder or hub id of the critic's weights; by default those it was published with. Of a judge with a name
            ("videoscore2"), the URL that its model is served at.
        looks: `frames` and `aggregate`, for image critics; the others let them be.
        settings: what the critic's own `load` takes besides, such as VideoAlign's `num_frames`.

    Raises:
        ValueError: there is no such critic, its files are broken, or it has no such setting.
    """
    if str(name_or_path).startswith(("http://", "https://")):
        from besttake.rewards.remote.client import Remote

        if path or settings:
            raise ValueError(f"critic {name_or_path} is served elsewhere: give its path and settings there, not here")
        return Remote(str(name_or_path))
    name, folder = find_critic(name_or_path)
    load = judge_loader(name) if name in judge_names() else critic_module(name).load
    takes = inspect.signature(load).parameters
    if unknown := sorted(settings.keys() - takes.keys()):
        there = ", ".join(takes.keys() - {"path", "device"}) or "none"
        raise ValueError(f"critic {name_or_path} has no setting {', '.join(unknown)}; there are {there}")
    looks = {key: value for key, value in (looks or {}).items() if key in takes}
    return load(path=folder or path, device=device, **{**looks, **settings})


def find_critic(name_or_path: str | Path) -> tuple[str, Path | None]:
    """The module of a critic that is no URL, and the folder or file that it was named by, if it was.

    Raises:
        ValueError: there is no such critic.
    """
    place = Path(name_or_path)
    if place.suffix in (".yaml", ".yml"):
        return "judge", place
    folder = place if (place / "config.json").is_file() else None
    name = _named_in(folder) if folder else str(name_or_path)
    module = name.replace("-", "_").replace(" ", "_")
    if module not in critic_names():
        known = ", ".join(critic.replace("_", "-") for critic in critic_names())
        raise ValueError(
            f"there is no critic {name!r}; there are {known}, or a folder with a critic's config.json, the .yaml file "
            "of a judge, or the URL of a served critic"
        )
    return module, folder


def _named_in(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text())["critic"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} does not name its critic: {error!r}") from error
