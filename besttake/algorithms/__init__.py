"""Training algorithms, one file per paper, each with a `Config`, a `step` (its loss) and a `train(config)` (its loop).

Such a file is in this folder, is the user's own, or belongs to an installed package (see docs/extending.md).
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from types import ModuleType

from besttake.runtime.plugins import ALGORITHMS, load_module, load_offered, offered
from besttake.training.config import TrainConfig


def algorithms() -> dict[str, ModuleType]:
    """Every algorithm in this folder, and those that packages offer; of two of one name the former."""
    others = {name: check_algorithm(load_offered(point), name) for name, point in offered(ALGORITHMS).items()}
    return others | shipped_algorithms()


def shipped_algorithms() -> dict[str, ModuleType]:
    """Every algorithm in this folder: the modules that have a `train`."""
    modules = {m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}
    return {name: module for name, module in modules.items() if hasattr(module, "train")}


def find_algorithm(name: str) -> ModuleType:
    """The module of an algorithm by name (`onlinevpo`), file (`./my_algorithm.py`) or dotted module name.

    Raises:
        ValueError: there is none, importing it fails, or it is not an algorithm.
    """
    shipped, others = shipped_algorithms(), offered(ALGORITHMS)  # others are loaded only if named: they may fail
    if name in shipped:
        return shipped[name]
    if name in others:
        return check_algorithm(load_offered(others[name]), name)
    for point in others.values():
        if point.module == name:
            return check_algorithm(load_offered(point), name)
    if "." not in name:
        known = ", ".join([*shipped, *others])
        raise ValueError(f"there is no algorithm {name!r}; there are {known}, or a file: ./my_algorithm.py")
    return check_algorithm(load_module(name), name)


def check_algorithm(module: ModuleType, name: str) -> ModuleType:
    """Return the module if it is an algorithm; otherwise ValueError says what is missing."""
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and issubclass(config, TrainConfig)):
        raise ValueError(
            f"{name} has no Config; add `class Config(TrainConfig)` below `@dataclass(frozen=True)`, with its settings"
        )
    if config.__module__ != module.__name__ or "__dataclass_fields__" not in vars(config):
        raise ValueError(
            f"{name} imports its Config from {config.__module__}, or its Config is not a frozen dataclass; define "
            "`class Config(TrainConfig)`, or a subclass of another Config, below `@dataclass(frozen=True)`"
        )
    required = [f.name for f in dataclasses.fields(config) if f.init and _has_no_default(f)]
    if required:
        raise ValueError(f"{name}: {', '.join(required)} in Config has no default; give every setting a default")
    if "data" not in config.__dataclass_fields__:
        raise ValueError(f"{name} has no data in Config; add `data: str = ...`, the training data")
    for function in ("step", "train"):
        if not callable(getattr(module, function, None)):
            raise ValueError(f"{name} has no function {function}; see docs/extending.md for what it does")
    return module


def _has_no_default(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
