"""Where tensors live: the device asked for, and what to call it."""

from __future__ import annotations

import os
import platform

import torch


def find_device(name: str) -> str:
    """The device asked for, "auto" resolved; ValueError if this machine has no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device '{name}' is not there ({str(error).splitlines()[0]}); give cpu, cuda or auto"
        ) from error
    return name


def describe_device(name: str) -> str:
    """The device in words, for whoever reads a figure."""
    if name.startswith("cuda"):
        return torch.cuda.get_device_name(name)
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"
