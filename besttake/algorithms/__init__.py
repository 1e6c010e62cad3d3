"""Training algorithms, one file per paper, each with a `Config` and a `train(config)`; found by module name."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def algorithms() -> dict[str, ModuleType]:
    """Every algorithm in this folder: the modules that have a `train`."""
    modules = {m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}
    return {name: module for name, module in modules.items() if hasattr(module, "train")}
