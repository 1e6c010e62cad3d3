"""Checkpoints that are whole or not there: safetensors in a folder that is renamed into place when complete.

A truncated or damaged checkpoint is noticed by its own file sizes and passed over for the one before.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger(__name__)

TENSORS, STATE = "training.safetensors", "state.json"


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Write `folder/step-XXXXXXXX`, then delete all but the `keep` newest.

    Raises:
        OSError: the disk is full or not writable; what was there before is untouched.
    """
    target = folder / f"step-{step:08d}"
    partial = folder / f".{target.name}.part"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        here = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        save_file(_apart(here), partial / TENSORS)
        size = (partial / TENSORS).stat().st_size
        (partial / STATE).write_text(json.dumps({"step": step, "bytes": size, **state}))
        for file in partial.iterdir():
            _flush(file)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"the checkpoint of step {step} could not be written to {folder}: {error}") from error
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint that is whole; None if there is none.

    A damaged one is reported, deleted and passed over.
    """
    for path in reversed(checkpoints(folder)):
        try:
            state = json.loads((path / STATE).read_text())
            if (path / TENSORS).stat().st_size != state["bytes"]:
                raise ValueError(
                    f"{TENSORS} has {(path / TENSORS).stat().st_size} bytes, {state['bytes']} were written"
                )
            return load_file(path / TENSORS), state
        except (FileNotFoundError, ValueError, KeyError, SafetensorError) as error:
            log.warning("the checkpoint %s is damaged (%s): going back to the one before", path, error)
            shutil.rmtree(path)
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def oldest_step(folder: Path) -> int:
    """The step of the oldest checkpoint in a folder; 0 if there is none."""
    return next((int(path.name.removeprefix("step-")) for path in checkpoints(folder)), 0)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each with memory of its own: safetensors takes no two that share it."""
    first = {tensor.data_ptr(): name for name, tensor in reversed(tensors.items())}
    return {name: tensor if first[tensor.data_ptr()] == name else tensor.clone() for name, tensor in tensors.items()}


def _flush(path: Path) -> None:
    """Have the operating system write a file or folder to the disk itself, so that not even a power cut loses it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
