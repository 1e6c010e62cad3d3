"""Devices: choosing one, describing it, and memory settings."""

from __future__ import annotations

import ctypes
import os
import platform

import torch


def find_device(name: str) -> str:
    """Resolve a device name ("auto" included); ValueError if this machine has no such device.

    With several processes on a machine, each gets its own GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device '{name}' is not available ({str(error).splitlines()[0]}); give cpu, cuda or auto"
        ) from error
    return name


def check_dtype(dtype: torch.dtype, device: str) -> None:
    """ValueError if a device only emulates a dtype, like bfloat16 on GPUs before Ampere."""
    half = device.startswith("cuda") and dtype == torch.bfloat16
    if half and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"{describe_device(device)} only emulates bfloat16, which is many times slower; "
            "set dtype float32, or use a newer GPU"
        )


def describe_device(name: str) -> str:
    """The name of the device's hardware."""
    if name.startswith("cuda"):
        return torch.cuda.get_device_name(name)
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, which makes training steps on a CPU a quarter faster."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 100_000_000)
    libc.mallopt(m_mmap_max, 0)
