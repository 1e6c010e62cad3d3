"""Loading of pipelines from folders and hub ids: the denoiser at once, other parts when they are first used.

A part that is not in use is *empty*: its weights are on PyTorch's meta device. Weights are loaded shard by shard from
safetensors straight to their device, without a second copy.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from torch import nn

from besttake.models.quantization import Quantization, quantize

FAULTS = (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError)
"""Exceptions that loading a broken checkpoint raises."""


def pipeline_class(source: str) -> str:
    """The pipeline class of a folder or hub id, according to its `model_index.json`.

    For a checkpoint without one but with a `config.json` (Open-Sora), the class of its network.

    Raises:
        ValueError: there is no such folder or hub id, or it names no class.
    """
    if not Path(source).exists() and (source.startswith((".", "/")) or source.count("/") != 1):
        raise ValueError(
            f"there is no model folder '{source}'; give a diffusers pipeline folder or a hub id 'owner/name'"
        )
    try:
        index: Any = DiffusionPipeline.load_config(source)
        return index["_class_name"]
    except (OSError, KeyError, TypeError) as error:
        with suppress(OSError, KeyError, TypeError, ValueError):
            return json.loads(file_of(source, "config.json").read_text())["architectures"][0]
        raise ValueError(f"'{source}' is not a diffusers pipeline (no readable model_index.json): {error}") from error


def file_of(source: str, name: str) -> Path:
    """A file in a folder, or of a hub id (downloaded to the cache); OSError if there is none."""
    return Path(source, name) if Path(source).is_dir() else Path(hf_hub_download(source, name))


def pipeline_folder(source: str) -> str:
    """The folder itself; for a hub id, its folder in the cache after downloading what the pipeline needs."""
    try:
        return source if Path(source).is_dir() else DiffusionPipeline.download(source)
    except FAULTS as error:
        raise ValueError(f"the model '{source}' cannot be downloaded from the hub: {error}") from error


def read_pipeline(
    source: str, dtypes: dict[str, torch.dtype], device: str, bits: Quantization = "none", offload: bool = False
) -> Any:
    """Load the pipeline in a folder: denoisers with their weights, other modules empty.

    Args:
        dtypes: dtype of each part by name; "" stands for all others.
        bits: quantization of the denoisers.
        offload: leave the denoisers' blocks on the CPU.

    Raises:
        ValueError: a part is missing or broken, or its weights do not match its class.
    """
    try:
        index: Any = DiffusionPipeline.load_config(source)
        check_files(source)
        parts: dict[str, Any] = {}
        for name, entry in index.items():
            if name.startswith("_"):
                continue
            if not isinstance(entry, (list, tuple)):
                parts[name] = entry  # a setting
            elif entry[0] is None:
                parts[name] = None
            elif not issubclass(cls := class_of(*entry), nn.Module):
                parts[name] = cls.from_pretrained(source, subfolder=name)
            elif name.startswith("transformer"):
                read = partial(read_part, source, name, cls, dtypes.get(name, dtypes[""]))
                parts[name] = read_denoiser(read, device, bits, offload)
            else:
                parts[name] = empty_part(source, name, cls)
        return getattr(diffusers, index["_class_name"])(**parts)
    except FAULTS as error:
        raise ValueError(f"the model in '{source}' does not load: {error}") from error


def class_of(library: str, name: str) -> Any:
    """A class named in a `model_index.json`, in diffusers, transformers, or one of diffusers' pipeline modules."""
    return getattr(getattr(diffusers.pipelines, library, None) or importlib.import_module(library), name)


def is_empty(part: nn.Module) -> bool:
    """Whether a part has no weights in memory."""
    return any(parameter.is_meta for parameter in part.parameters())


def empty_part(source: str, name: str, cls: Any) -> nn.Module:
    """A part of a pipeline built from its configuration, with weights on the meta device."""
    if issubclass(cls, transformers.PreTrainedModel):
        config = cls.config_class.from_pretrained(source, subfolder=name)
        with torch.device("meta"):  # in which transformers initializes no weights
            part = cls(config)
    else:
        config = cls.load_config(source, subfolder=name)
        with init_empty_weights():
            part = cls.from_config(config)
    return part.requires_grad_(False).eval()


def read_part(source: str, name: str, cls: Any, dtype: torch.dtype, device: str) -> nn.Module:
    """Load a part of a pipeline; ValueError unless its weights match its class exactly."""
    settings = {"subfolder": name, "dtype": dtype, "output_loading_info": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            part, info = cls.from_pretrained(source, **settings, device_map={"": device})
        except NotImplementedError:  # a weight is missing, which cannot be moved: load again to find out which
            part, info = cls.from_pretrained(source, **settings)
    for what in ("missing", "unexpected", "mismatched"):
        if keys := sorted(map(str, info.get(f"{what}_keys", ()))):
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(
                f"the weights in {name}/ do not match {cls.__name__}: {what} {', '.join(keys[:3])}{more}; "
                "download it again, or correct its config.json"
            )
    return part.requires_grad_(False).eval()


def read_denoiser(read: Callable[[str], Any], device: str, bits: Quantization, offload: bool) -> Any:
    """Load a denoiser to its device, quantized or with its blocks left on the CPU if requested.

    Args:
        read: loads the network to the given device.
    """
    if offload:
        return move_without_blocks(read("cpu"), device)
    return quantize(read("cpu"), bits, device) if bits != "none" else read(device)


def move_without_blocks(network: Any, device: str) -> Any:
    """Move a network to the device, except for its blocks."""
    for child in network.children():
        if not isinstance(child, nn.ModuleList):
            child.to(device)
    for tensor in (*network.parameters(recurse=False), *network.buffers(recurse=False)):
        tensor.data = tensor.data.to(device)
    return network


def check_files(source: str) -> None:
    """ValueError if a safetensors file is truncated, before its part is first used."""
    for path in sorted(Path(source).glob("*/*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path.relative_to(source)} is damaged ({error}); download it again") from error
