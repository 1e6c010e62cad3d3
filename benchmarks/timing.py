"""Seconds, arithmetic and memory of a piece of work, and figures that are kept as they are measured."""

from __future__ import annotations

import gc
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from besttake.data.files import atomic
from besttake.plan.measured import flop_counter

KINDS = {
    "attention": ("flash", "fmha", "sdpa", "attention"),
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "splitk"),
    "convolutions": ("conv", "implicit", "cudnn", "nchw", "nhwc"),
}
"""Words in the names of a kind's kernels, the first that fits; everything else reads and writes memory."""


class Rows(dict[str, Any]):
    """Figures by name, written to a file whenever one is added, so that a time limit loses none."""

    def __init__(self, file: Path | None = None):
        super().__init__()
        self.file = file

    def __setitem__(self, name: str, figure: Any) -> None:
        super().__setitem__(name, figure)
        if self.file:
            with atomic(self.file) as file:
                file.write_text(json.dumps(self))


def figures(work: Callable[[], Any], repeats: int = 2, count: bool = False, per: int = 1) -> dict[str, float]:
    """The median of some runs after one to warm up: seconds and, on a GPU, GiB at the fullest moment.

    Args:
        count: also count TFLOP, in the first run.
        per: the work consists of so many equal pieces, and seconds and TFLOP are those of one.
    """
    free()
    with flop_counter() if count else nullcontext() as counter:
        work()
    synchronize()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    found = sorted(timed(work) for _ in range(repeats))
    row = {"seconds": round(found[len(found) // 2] / per, 5)}
    if counter is not None:
        row["tflop"] = float(f"{counter.get_total_flops() / per / 1e12:.5g}")
    if torch.cuda.is_available():
        row["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return row


def tried(work: Callable[[], Any], repeats: int = 2, count: bool = False, per: int = 1) -> dict[str, Any]:
    """`figures`, or why there are none."""
    try:
        return figures(work, repeats, count, per)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        return {"failed": in_one_line(error)}


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """The median of some runs, after one to warm up."""
    work()
    synchronize()
    return sorted(timed(work) for _ in range(repeats))[repeats // 2]


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free() -> None:
    """Give memory of what nothing refers to back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_one_line(error: BaseException) -> str:
    """What went wrong: the error's class and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def kernels(work: Callable[[], Any]) -> dict[str, Any]:
    """Where the time of one run on a GPU goes: shares by kind of kernel, and the longest ones."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        synchronize()
    spent: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_time_total:
            low = event.name.lower()
            kind = next((kind for kind, words in KINDS.items() if any(word in low for word in words)), "memory")
            spent[kind] += event.device_time_total
            names[event.name[:90]] += event.device_time_total
    total = sum(spent.values()) or 1
    return {
        "milliseconds": round(total / 1e3, 1),
        "shares": {kind: round(time / total, 3) for kind, time in spent.most_common()},
        "longest": {name: round(time / total, 3) for name, time in names.most_common(14)},
    }
