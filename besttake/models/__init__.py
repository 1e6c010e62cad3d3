"""Video models, one file per family. A new family is one new file in `families/`; it is found by its `pipelines`."""

from __future__ import annotations

import importlib
import pkgutil

import torch

from besttake.models import families
from besttake.models.base import Size, VideoModel
from besttake.models.loading import pipeline_class
from besttake.models.quantization import Quantization
from besttake.runtime.devices import check_dtype
from besttake.runtime.embedded import embedded_model

__all__ = ["Quantization", "Size", "VideoModel", "load_model", "model_classes"]


def model_classes() -> list[type[VideoModel]]:
    """Every model class in `families/`."""
    classes: list[type[VideoModel]] = []
    for module in pkgutil.iter_modules(families.__path__):
        contents = vars(importlib.import_module(f"{families.__name__}.{module.name}")).values()
        classes += [c for c in contents if isinstance(c, type) and issubclass(c, VideoModel) and c is not VideoModel]
    return classes


def load_model(
    source: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    bits: Quantization = "none",
    offload: bool = False,
) -> VideoModel:
    """The model in a pipeline folder, on the hub, or embedded, in the dtype asked for.

    The denoiser is read at once, other parts when they are first used.

    Args:
        bits: what the weights of the denoiser's blocks are held in instead, frozen.
        offload: leave these blocks on the CPU: whoever runs the denoiser brings them to the device.

    Raises:
        ValueError: there is no such model, its files are broken, no file here knows its pipeline, or the device has no
            such dtype.
    """
    source = embedded_model(source)
    check_dtype(dtype, device)
    for family in model_classes():
        if family.serves(source):
            return family.load(source, dtype, device, bits, offload)
    known = sorted(name for family in model_classes() for name in family.pipelines)
    raise ValueError(
        f"'{source}' is a {pipeline_class(source)}; besttake knows {', '.join(known)}. "
        "Add a file to besttake/models/families/ for it"
    )
