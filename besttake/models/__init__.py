"""Video models, one file per family. A new family is one new file in `families/`; it is found by its `pipelines`.

Such a file may also be the user's own, or part of an installed package (see docs/extending.md).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any

import torch

from besttake.models import families
from besttake.models.base import Size, VideoModel
from besttake.models.loading import pipeline_class
from besttake.models.quantization import Quantization
from besttake.runtime.devices import check_dtype
from besttake.runtime.embedded import embedded_model
from besttake.runtime.plugins import FILE, MODELS, load_module, load_offered, offered

__all__ = ["Quantization", "Size", "VideoModel", "load_model", "model_classes"]


def model_classes() -> list[type[VideoModel]]:
    """Every model class in `families/`, and those of installed packages."""
    modules = [
        importlib.import_module(f"{families.__name__}.{m.name}") for m in pkgutil.iter_modules(families.__path__)
    ]
    shipped = [family for module in modules for family in classes_in(module)]
    return [*shipped, *(family for point in offered(MODELS).values() for family in classes_in(load_offered(point)))]


def classes_in(found: Any) -> list[type[VideoModel]]:
    """The concrete model classes of a module; or the given class itself."""
    things = vars(found).values() if isinstance(found, ModuleType) else [found]
    classes = [thing for thing in things if isinstance(thing, type) and issubclass(thing, VideoModel)]
    return [family for family in classes if not inspect.isabstract(family)]


def users_family(source: str) -> tuple[list[type[VideoModel]], str]:
    """Parse `./my_family.py:CHECKPOINT` into the file's model classes and the checkpoint.

    Any other source gives no classes, and the source itself.

    Raises:
        ValueError: the file cannot be loaded, has no model class, or the checkpoint is not named.
    """
    found = FILE.fullmatch(source)
    if not found:
        return [], source
    file, checkpoint = found["place"], found["name"]
    if not checkpoint:
        raise ValueError(
            f"{source} is a model family; name its checkpoint too: {source}:FOLDER, or {source}:owner/name"
        )
    own = [family for family in classes_in(load_module(file)) if not family.__module__.startswith("besttake.")]
    if not own:
        raise ValueError(
            f"{file} has no model family: a subclass of besttake.models.VideoModel with all its abstract methods"
        )
    return own, checkpoint


def load_model(
    source: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    bits: Quantization = "none",
    offload: bool = False,
) -> VideoModel:
    """Load a model.

    The denoiser is loaded now, other parts when they are first used.

    Args:
        source: pipeline folder, hub id, or name of an embedded model; for a family of the user's own,
            "./my_family.py:FOLDER" or "./my_family.py:owner/name".
        bits: quantization of the denoiser's blocks, which are then frozen.
        offload: leave these blocks on the CPU; the caller moves them to the device when it runs the denoiser.

    Raises:
        ValueError: there is no such model, its files are broken, no family supports its pipeline, or the device does
            not support the dtype.
    """
    own, checkpoint = users_family(source)
    checkpoint = embedded_model(checkpoint)
    check_dtype(dtype, device)
    for family in own or model_classes():
        if family.serves(checkpoint):
            return family.load(checkpoint, dtype, device, bits, offload)
    known = sorted(name for family in own or model_classes() for name in family.pipelines)
    supported_by = source.rpartition(":")[0] if own else "besttake"
    raise ValueError(
        f"'{checkpoint}' is a {pipeline_class(checkpoint)}; {supported_by} supports {', '.join(known)}. "
        "docs/extending.md shows how to add a model family"
    )
