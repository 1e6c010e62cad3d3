"""Atomic checkpoints: safetensors in a folder that is renamed into place when complete.

Unsharded weights are one file; of sharded weights every process writes a file, and any number of processes can read
them. File sizes reveal a damaged checkpoint, which is skipped for the one before.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from besttake.data.files import normalise_files
from besttake.models.sharding import is_sharded
from besttake.runtime.distributed import OtherProcessError, broadcast_from_main, control_group, is_main

log = logging.getLogger(__name__)

TENSORS, STATE = "training.safetensors", "state.json"


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> None:
    """Write `folder/step-XXXXXXXX`, then delete all but the `keep` newest.

    If tensors are sharded, every process calls this and writes its part; otherwise process 0 alone.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    target = folder / f"step-{step:08d}"
    partial = folder / f".{target.name}.part"
    state = {"step": step, **state}
    try:
        if any(is_sharded(tensor) for tensor in tensors.values()):
            broadcast_from_main(lambda: _new_folder(partial))
            writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
            shards.save(tensors, storage_writer=writer, process_group=control_group())
            broadcast_from_main(lambda: _finalize(partial, target, state))
        else:
            _new_folder(partial)
            here = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
            save_file(_without_shared_memory(here), partial / TENSORS)
            _finalize(partial, target, state)
    except (OSError, SafetensorError, CheckpointException, OtherProcessError) as error:
        if is_main():
            shutil.rmtree(partial, ignore_errors=True)
        reason = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise OSError(f"the checkpoint of step {step} could not be written to {folder}: {reason}") from error
    parts = folder.glob(".step-*.part")  # incomplete, of a process that was killed
    for old in [*checkpoints(folder)[:-keep], *parts] if is_main() else ():
        shutil.rmtree(old, ignore_errors=True)


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Path and state of the newest intact checkpoint; None if there is none.

    Damaged ones are deleted, with a warning.
    """
    for path in reversed(checkpoints(folder)):
        try:
            state = json.loads((path / STATE).read_text())
            for name, size in _sizes(state).items():
                if (path / name).stat().st_size != size:
                    raise ValueError(f"{name} has {(path / name).stat().st_size} bytes, expected {size}")
            shapes(path)
            return path, state
        except (FileNotFoundError, ValueError, KeyError, SafetensorError) as error:
            log.warning("checkpoint %s is damaged (%s); falling back to the previous one", path, error)
            shutil.rmtree(path)
    return None


def wait_for_checkpoint(path: Path, state: dict[str, Any], seconds: float = 60.0) -> None:
    """Wait until this process sees the complete files of a checkpoint, as process 0 does.

    Raises:
        OSError: it does not see them within `seconds`.
    """
    until = time.monotonic() + seconds
    while late := [name for name, size in _sizes(state).items() if not _is_whole(path / name, size)]:
        if time.monotonic() > until:
            raise OSError(
                f"process 0 sees {path / late[0]}, but this process does not after {seconds:g} s; "
                "--out must be on a disk that all processes share"
            )
        os.listdir(path.parent)  # makes a network file system refresh its listing
        time.sleep(0.1)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a checkpoint, from the headers of its files."""
    return {name: tuple(entry.size) for name, entry in _entries(path).items()}


def load_tensors(path: Path, like: Callable[[str], Tensor | None] = lambda name: None) -> dict[str, Tensor]:
    """The tensors of a checkpoint; each process reads its shards only.

    Args:
        like: name -> a tensor whose device and, if the shape is the same, sharding is used; None for the CPU.
    """
    tensors = {}
    for name, entry in _entries(path).items():
        model, dtype = like(name), entry.properties.dtype
        if model is not None and model.shape == entry.size:
            tensors[name] = torch.empty_like(model, dtype=dtype)
        else:
            tensors[name] = torch.empty(entry.size, dtype=dtype, device=None if model is None else model.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as intended
        shards.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    return tensors


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.name.removeprefix("step-"))


def oldest_resumable_step(folder: Path) -> int:
    """The step of the oldest checkpoint in a folder; 0 if there is none."""
    return next(map(step_of, checkpoints(folder)), 0)


def _sizes(state: dict[str, Any]) -> dict[str, int]:
    return state["bytes"] if isinstance(state["bytes"], dict) else {TENSORS: state["bytes"]}


def _is_whole(file: Path, size: int) -> bool:
    try:
        return file.stat().st_size == size
    except FileNotFoundError:
        return False


def _without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without shared memory, which safetensors refuses."""
    first = {tensor.data_ptr(): name for name, tensor in reversed(tensors.items())}
    return {name: tensor if first[tensor.data_ptr()] == name else tensor.clone() for name, tensor in tensors.items()}


def _entries(path: Path) -> dict[str, Any]:
    return HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata


def _new_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _finalize(partial: Path, target: Path, state: dict[str, Any]) -> None:
    """Write the state with the file sizes, flush, and rename the folder into place."""
    normalise_files(partial)
    sizes = {file.name: file.stat().st_size for file in partial.iterdir()}
    (partial / STATE).write_text(json.dumps({**state, "bytes": sizes.get(TENSORS, sizes)}))
    for file in partial.iterdir():
        _fsync(file)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    """fsync a file or folder, so that it survives a power cut."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot open folders, nor flush a file that is open for reading only
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
