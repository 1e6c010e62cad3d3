"""Where tensors live: the device asked for, what to call it, and how its memory is kept."""

from __future__ import annotations

import ctypes
import os
import platform

import torch


def find_device(name: str) -> str:
    """The device asked for, "auto" resolved; ValueError if this machine has no such device.

    Of several processes on a machine each has a GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device '{name}' is not there ({str(error).splitlines()[0]}); give cpu, cuda or auto"
        ) from error
    return name


def check_dtype(dtype: torch.dtype, device: str) -> None:
    """ValueError if a device computes in a dtype by emulation only, as GPUs before Ampere do in bfloat16."""
    half = device.startswith("cuda") and dtype == torch.bfloat16
    if half and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"{describe_device(device)} does not compute in bfloat16 but by emulation, many times slower; "
            "give dtype float32, or a newer GPU"
        )


def describe_device(name: str) -> str:
    """The device in words, for whoever reads a figure."""
    if name.startswith("cuda"):
        return torch.cuda.get_device_name(name)
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def keep_freed_memory() -> None:
    """Have glibc keep the memory that tensors free: on a CPU a training step is a quarter faster for it."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 100_000_000)
    libc.mallopt(m_mmap_max, 0)
