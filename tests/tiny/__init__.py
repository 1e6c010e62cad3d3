"""Tiny random checkpoints of every video model, in its own on-disk format, and how its official pipeline samples.

A model is one file here, as in `besttake/models/`: it lists what the contract tests run over as `TINY`.
"""

import importlib
import pkgutil

from tests.tiny.parts import Tiny


def tiny_models() -> dict[str, Tiny]:
    """Every tiny model of this folder, by name."""
    found: dict[str, Tiny] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= getattr(importlib.import_module(f"{__name__}.{module.name}"), "TINY", {})
    return found
