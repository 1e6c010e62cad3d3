"""Critics (reward models): videos and prompts in, scores out. A new critic is one new file with a `load` function.

The file may be in `critics/`, a file or module of the user's own, or in an installed package (see docs/extending.md).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from besttake.rewards import critics
from besttake.rewards.judges import judge_loader, judge_names
from besttake.rewards.remote import judge
from besttake.runtime.plugins import CRITICS, load_named, load_offered, named_in, offered, split_name
from besttake.types import Reward

__all__ = ["critic_names", "find_critic", "load_reward"]

FACTORIES = ("load", "make")
"""What a user's file has that makes its critic."""


def critic_names() -> list[str]:
    """Names of critics: modules in `critics/` that have a `load`, judges in `judges/`, and what packages offer."""
    names = [*(module.name for module in pkgutil.iter_modules(critics.__path__)), "judge"]
    shipped = [name for name in names if hasattr(_shipped(name), "load")]
    return sorted({*shipped, *judge_names(), *_offered()})


def critic_module(name: str) -> ModuleType:
    """The module of a critic."""
    return sys.modules[_factory(name).__module__]


def is_users(name: str) -> bool:
    """Whether a critic is a user's or another package's, so that nothing is known of it without running its code."""
    return bool(split_name(name)) or _module_name(name) in _offered()


def load_reward(
    name_or_path: str | Path,
    device: str = "cpu",
    path: str | Path | None = None,
    frame_settings: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Reward:
    """Load a critic by its name ("world", "temporal-flicker"), or from a folder whose `config.json` names it.

    A name may also be the URL of a served critic, or several of them with commas between; the .yaml file of a judge;
    or a file or module of the user's own, with what makes the critic in it: "./my_critic.py" (its `load` or `make`),
    "./my_critic.py:make", "my_package.critic:make".

    Args:
        path: folder or hub id of the critic's weights; default: the published weights. For a named judge
            ("videoscore2"), the URL at which its model is served.
        frame_settings: `frames` and `aggregate` for image critics; other critics ignore them.
        settings: further arguments of the critic's own `load`, such as VideoAlign's `num_frames`.

    Raises:
        ValueError: there is no such critic, its files are broken, it has no such setting, or it is no `Reward`.
    """
    if str(name_or_path).startswith(("http://", "https://")):
        from besttake.rewards.remote.client import Remote

        if path or settings:
            raise ValueError(f"critic {name_or_path} is remote; pass its path and settings to the server instead")
        return Remote(str(name_or_path))
    name, folder = find_critic(name_or_path)
    load = _factory(name)
    if not callable(load):
        raise ValueError(f"{name} is {load!r}; expected a function that returns the critic, or the critic's class")
    parameters = inspect.signature(load).parameters
    if unknown := sorted(settings.keys() - parameters.keys()):
        known = ", ".join(parameters.keys() - {"path", "device"}) or "none"
        raise ValueError(f"critic {name_or_path} has no setting {', '.join(unknown)}; its settings: {known}")
    given = {**(frame_settings or {}), "device": device, "path": folder or path}
    if path and "path" not in parameters:
        raise ValueError(f"critic {name_or_path} takes no path, and {path} is given; leave it out")
    reward = load(**{key: value for key, value in given.items() if key in parameters} | settings)
    return complete(reward, name) if is_users(name) else reward


def find_critic(name_or_path: str | Path) -> tuple[str, Path | None]:
    """Resolve the name or path of a local critic: its module, and its folder or file if a path was given.

    Raises:
        ValueError: the critic is unknown.
    """
    path = Path(name_or_path)
    if split_name(str(name_or_path)):
        _factory(str(name_or_path))
        return str(name_or_path), None
    if path.suffix in (".yaml", ".yml"):
        return "judge", path
    folder = path if (path / "config.json").is_file() else None
    name = _critic_name(folder) if folder else str(name_or_path)
    module = _module_name(name)
    if module not in critic_names():
        known = ", ".join(critic.replace("_", "-") for critic in critic_names())
        raise ValueError(
            f"unknown critic {name!r}; expected one of {known}, a folder with a critic's config.json, a judge's .yaml "
            "file, the URL of a served critic, or a file of your own: ./my_critic.py"
        )
    return module, folder


def _factory(name: str) -> Callable[..., Reward]:
    """What makes a critic."""
    if split_name(name):
        return load_named(name, FACTORIES)
    if _module_name(name) in judge_names():
        return judge_loader(_module_name(name))
    point = _offered().get(_module_name(name))
    if not point:
        return _shipped(_module_name(name)).load
    found = load_offered(point)
    return named_in(found, FACTORIES, point.value) if isinstance(found, ModuleType) else found


def complete(reward: Any, name: str) -> Reward:
    """A critic of the user's, if it has what a `Reward` has."""
    missing = [part for part in ("name", "dimensions", "differentiable", "card") if not hasattr(reward, part)]
    missing += [] if callable(reward) else ["__call__"]
    if missing:
        raise ValueError(
            f"critic {name} is a {type(reward).__name__} without {', '.join(missing)}; a critic has them all: see "
            "docs/extending.md"
        )
    return reward


def _shipped(name: str) -> ModuleType:
    return judge if name == "judge" else importlib.import_module(f"{critics.__name__}.{name}")


def _offered() -> dict[str, Any]:
    return {_module_name(name): point for name, point in offered(CRITICS).items()}


def _module_name(name: str) -> str:
    return name.replace("-", "_").replace(" ", "_")


def _critic_name(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text())["critic"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} does not name a critic (key 'critic'): {error!r}") from error
