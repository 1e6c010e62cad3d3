"""Critics (reward models): videos and prompts in, scores out. A new critic is one new file with a `load` function."""

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
from besttake.rewards.remote import judge
from besttake.types import Reward

__all__ = ["critic_names", "find_critic", "load_reward"]


def critic_names() -> list[str]:
    """The names of all critics: the modules in `critics/` that have a `load` function, and `judge`."""
    names = [module.name for module in pkgutil.iter_modules(critics.__path__)]
    return sorted(name for name in [*names, "judge"] if hasattr(critic_module(name), "load"))


def critic_module(name: str) -> ModuleType:
    """The module that implements a critic."""
    return judge if name == "judge" else importlib.import_module(f"besttake.rewards.critics.{name}")


def load_reward(
    name_or_path: str | Path,
    device: str = "cpu",
    path: str | Path | None = None,
    frame_settings: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Reward:
    """Load a critic by its name ("world", "temporal-flicker"), or from a folder whose `config.json` names it.

    Instead of a name, the URL of a served critic (or several, separated by commas) or a judge's .yaml file also works.

    Args:
        path: folder or hub id of the critic's weights; default: the published weights. For a named judge
            ("videoscore2"), the URL at which its model is served.
        frame_settings: `frames` and `aggregate` for image critics; other critics ignore them.
        settings: further arguments of the critic's own `load`, such as VideoAlign's `num_frames`.

    Raises:
        ValueError: the critic is unknown, its files are broken, or it has no such setting.
    """
    if str(name_or_path).startswith(("http://", "https://")):
        from besttake.rewards.remote.client import Remote

        if path or settings:
            raise ValueError(f"critic {name_or_path} is remote; pass its path and settings to the server instead")
        return Remote(str(name_or_path))
    name, folder = find_critic(name_or_path)
    load = critic_module(name).load
    parameters = inspect.signature(load).parameters
    if unknown := sorted(settings.keys() - parameters.keys()):
        known = ", ".join(parameters.keys() - {"path", "device"}) or "none"
        raise ValueError(f"critic {name_or_path} has no setting {', '.join(unknown)}; its settings: {known}")
    frame_settings = {key: value for key, value in (frame_settings or {}).items() if key in parameters}
    return load(path=folder or path, device=device, **{**frame_settings, **settings})


def find_critic(name_or_path: str | Path) -> tuple[str, Path | None]:
    """Resolve the name or path of a local critic: its module, and its folder or file if a path was given.

    Raises:
        ValueError: the critic is unknown.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return "judge", path
    folder = path if (path / "config.json").is_file() else None
    name = _critic_name(folder) if folder else str(name_or_path)
    module = name.replace("-", "_").replace(" ", "_")
    if module not in critic_names():
        known = ", ".join(critic.replace("_", "-") for critic in critic_names())
        raise ValueError(
            f"unknown critic {name!r}; expected one of {known}, a folder with a critic's config.json, a judge's "
            ".yaml file, or the URL of a served critic"
        )
    return module, folder


def _critic_name(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text())["critic"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} does not name a critic (key 'critic'): {error!r}") from error
