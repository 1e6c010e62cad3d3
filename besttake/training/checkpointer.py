"""Saving and resuming a run: regular checkpoints, emergency checkpoints by any process, and the adapter."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock
from torch import Tensor

from besttake.models.policy import Policy
from besttake.models.sharding import find_non_finite, is_sharded
from besttake.runtime import interruption
from besttake.runtime.configuration import fingerprint, write_config
from besttake.runtime.distributed import (
    broadcast_from_main,
    failure_group,
    is_main,
    raise_on_all,
)
from besttake.training.checkpoint_files import (
    checkpoints,
    load_tensors,
    newest_checkpoint,
    save_checkpoint,
    shapes,
    step_of,
    wait_for_checkpoint,
)
from besttake.training.config import LOWER_LR, TrainConfig
from besttake.training.optimization import Optimization

log = logging.getLogger(__name__)


class Stateful(Protocol):
    """An object whose state is saved in checkpoints and restored on resume."""

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        step: number of completed steps.
        updates: number of optimizer steps.
        seconds: time spent on training, without validation.
        rate: learning rate of the last step.
    """

    step: int
    updates: int
    seconds: float
    rate: float


@dataclass(frozen=True)
class Snapshot:
    """State after the last completed step, from which a checkpoint can be written while the next one runs.

    Attributes:
        gradients: accumulated gradients that have not been applied yet.
        kept: state of each `Stateful` object, by name.
    """

    progress: Progress
    gradients: dict[str, Tensor]
    kept: dict[str, dict[str, Tensor]]


class Checkpointer:
    """Writes and restores the checkpoints in a run's folder.

    Attributes:
        diverged: whether the processes' weights have diverged; such weights are not saved.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        optimization: Optimization,
        kept: Mapping[str, Stateful],
        base: str,
    ):
        """
        Args:
            kept: objects whose state is saved, by name.
            base: hash of the base model's weights.
        """
        self.config, self.policy, self.optimization, self.kept, self.base = config, policy, optimization, kept, base
        self.optimizer, self.is_sharded = optimization.optimizer, optimization.is_sharded
        self.folder = Path(config.out) / "checkpoints"
        self.diverged = False
        self._snapshot: Snapshot

    def take_snapshot(self, step: int, seconds: float) -> None:
        """Take the snapshot that checkpoints are written from, after so many completed steps and seconds."""
        progress = Progress(step, self.optimization.updates, seconds, self.optimization.rate)
        gradients = {name: weight.grad for name, weight in self.policy.trainable.items() if weight.grad is not None}
        # copied, since a backward pass accumulates in place
        gradients = {
            name: grad.clone() if is_sharded(grad) else grad.to("cpu", copy=True) for name, grad in gradients.items()
        }
        self._snapshot = Snapshot(progress, gradients, {name: dict(thing.state()) for name, thing in self.kept.items()})

    def save(self) -> None:
        """Write a checkpoint of the last completed step unless it exists. All processes call this."""
        self.compare_weights()
        with raise_on_all():
            if is_main() or self.is_sharded:
                self._write()

    def save_adapter(self) -> None:
        """Write the trained weights in the format that diffusers loads."""
        with raise_on_all():
            self._check_finite()
        with raise_on_all():
            self.policy.save(self.folder.parent / "adapter")

    def emergency_save(self) -> tuple[str, bool]:
        """Save the last completed step at any moment, unless another process has already done so.

        If a process has died or hangs, any other can write the checkpoint, except when weights are sharded.

        Returns:
            A message that says which step can be resumed from, and whether this process wrote a checkpoint.
        """
        step, wrote = self._snapshot.progress.step, False
        beside = threading.current_thread() is not threading.main_thread()
        trouble = f"step {step} was interrupted in the middle of its update" if self.optimization.updating else ""
        if self.diverged:
            trouble = "the processes' weights differ, so they are not saved"
        try:
            if not trouble and step:
                with _own_cuda_stream() if beside else nullcontext():
                    trouble, wrote = self._write_sharded() if self.is_sharded else ("", self._write())
        except Exception as error:  # must not hide the error that ended the run
            trouble = str(error)
        newest = self._newest()
        saved = f"the same command resumes from step {newest}, in {self.folder}" if newest > 0 else "no step is saved"
        return f"{trouble + '; ' if trouble else ''}{saved}" if is_main() or newest == step else "", wrote

    @torch.no_grad()
    def restore(self, path: Path, state: dict[str, Any]) -> tuple[int, float]:
        """Load a checkpoint into the policy, the optimizer and the `Stateful` objects.

        Returns:
            The number of completed steps, and the seconds spent on them.

        Raises:
            ValueError: it belongs to another model, or to a run with other base weights.
        """
        wait_for_checkpoint(path, state)
        policy = self.policy
        saved = {key.partition("/")[2]: shape for key, shape in shapes(path).items() if key.startswith("policy/")}
        different = saved.items() ^ {(name, tuple(weight.shape)) for name, weight in policy.trainable.items()}
        if different:
            name, shape = min(different)
            raise ValueError(
                f"the checkpoint in {self.folder.parent} does not match {self.config.model}: only one of them has "
                f"'{name}' of shape {shape}; give another --out"
            )
        tensors = load_tensors(path, self._layout_of)
        for name, thing in self.kept.items():
            head = f"kept.{name}/"
            thing.load_state({key.removeprefix(head): t for key, t in tensors.items() if key.startswith(head)})
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            if group.startswith("kept."):
                continue
            if group == "gradient":
                policy.trainable[name].grad = tensor
            elif group.startswith("optimizer."):
                # an integer stays an int, as in the optimizer
                value: Any = tensor if tensor.ndim or tensor.is_floating_point() else tensor.item()
                self.optimizer.state[policy.trainable[name]][group.removeprefix("optimizer.")] = value
            else:
                self._weights()[group][name].copy_(tensor)
        policy.reference.weights_changed()
        if state["base"] != self.base:
            raise ValueError(
                f"the run in {self.folder.parent} was started from other weights than {self.config.model} has now; "
                "give another --out"
            )
        log.info("resuming %s from step %d", self.folder.parent, state["step"])
        self.optimization.updates = state["updates"]
        self.optimization.rate = state.get("rate", self.config.optim.lr)  # older checkpoints lack it
        return state["step"], state["seconds"]

    def compare_weights(self) -> None:
        """ValueError on every process unless all have the same weights."""
        try:
            self.optimization.compare("the trained weights", list(self.policy.trainable.values()))
        except ValueError:
            self.diverged = True
            raise

    @property
    def last_step(self) -> int:
        """The last completed step."""
        return self._snapshot.progress.step

    def _newest(self) -> int:
        """The step of the newest checkpoint, -1 if there is none."""
        return max(map(step_of, checkpoints(self.folder)), default=-1)

    def _write_sharded(self) -> tuple[str, bool]:
        """Write sharded weights, if all processes are alive; the reason if not, and whether it was written."""
        with failure_group(self._snapshot.progress.step) as all_here:
            if all_here:
                return "", self._write()
        return "the weights are sharded, and not all processes are alive to write their part", False

    def _write(self) -> bool:
        """Write a checkpoint of the last completed step; False if it exists."""
        done = self._snapshot.progress
        state = {"updates": done.updates, "seconds": done.seconds, "config": fingerprint(self.config)}
        state |= {"base": self.base, "rate": done.rate}
        alone: AbstractContextManager = nullcontext() if self.is_sharded else FileLock(self.folder.parent / ".lock")
        with interruption.signals_blocked(), alone:
            if (broadcast_from_main(self._newest) if self.is_sharded else self._newest()) >= done.step:
                return False
            with raise_on_all() if self.is_sharded else nullcontext():
                self._check_finite()
            save_checkpoint(self.folder, done.step, self._tensors(), state)
        return True

    def _check_finite(self) -> None:
        """FloatingPointError if a tensor to be saved is not finite."""
        if name := find_non_finite(self._tensors()):
            step = self._snapshot.progress.step
            raise FloatingPointError(f"{name} is not finite at step {step}, so nothing is saved; {LOWER_LR}")

    def _weights(self) -> dict[str, Mapping[str, Tensor]]:
        policy = self.policy
        return {"policy": policy.current, "reference": policy.reference.weights, "average": policy.ema}

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for group, weights in self._weights().items():
            tensors |= {f"{group}/{name}": weight for name, weight in weights.items()}
        for name, state in self._snapshot.kept.items():
            tensors |= {f"kept.{name}/{key}": value for key, value in state.items()}
        tensors |= {f"gradient/{name}": gradient for name, gradient in self._snapshot.gradients.items()}
        for name, parameter in self.policy.trainable.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}/{name}"] = torch.as_tensor(value)
        return tensors

    def _layout_of(self, key: str) -> Tensor | None:
        """The weight whose device and sharding a tensor of a checkpoint has; None for a plain tensor on the CPU."""
        group, _, name = key.partition("/")
        if group.startswith("kept.") or group == "optimizer.step":
            return None
        return self.policy.trainable[name]


def open_run_folder(folder: Path, config: TrainConfig) -> tuple[Path, dict[str, Any]] | None:
    """Create the run folder, or find the checkpoint to resume from.

    Returns:
        Path and state of the newest checkpoint, if there is one.

    Raises:
        ValueError: the folder cannot be written to, or contains a run with other settings.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"the run folder {folder} cannot be written to ({error}); give another --out") from error
    found = newest_checkpoint(folder / "checkpoints")
    if found and found[1]["config"] != fingerprint(config):
        raise ValueError(
            f"{folder} contains a run with other settings (see its config.yaml); give another --out, "
            "or the same settings to resume it"
        )
    write_config(config, folder / "config.yaml")
    return found


def _own_cuda_stream() -> AbstractContextManager:
    """Context with a CUDA stream of its own: copies work even if the main stream hangs."""
    return torch.cuda.stream(torch.cuda.Stream()) if torch.cuda.is_available() else nullcontext()
