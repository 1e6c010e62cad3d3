"""A training run: everything around an algorithm's loop that is common to all algorithms.

The algorithm owns the loop and its `step`. `Run` yields the batches, receives the losses, and handles the optimizer,
metrics, validation, checkpoints and resume. All random numbers are keyed on the seed and the step, so a checkpoint
consists of the weights, the optimizer and the step; on the CPU a resumed run is bit-identical.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

from besttake.data.prompts import describe_prompt, prompt_batches
from besttake.evaluation.held_out import text_of, without_held_out
from besttake.models.policy import HASH_PREFIX, Policy, legacy_weights_hash, weights_hash
from besttake.rewards.guard import Alarm
from besttake.runtime import interruption
from besttake.runtime.configuration import check_finite, flattened, to_dict
from besttake.runtime.console import err
from besttake.runtime.devices import find_device, keep_freed_memory
from besttake.runtime.distributed import (
    broadcast_from_main,
    check_equal,
    check_equal_items,
    init_processes,
    is_main,
    raise_on_all,
)
from besttake.runtime.embedded import embedded_family
from besttake.training.callbacks import current_callbacks
from besttake.training.checkpoint_files import oldest_resumable_step
from besttake.training.checkpointer import Checkpointer, Stateful, open_run_folder
from besttake.training.config import OptimConfig, TrainConfig
from besttake.training.metrics import Metrics, MetricsLog
from besttake.training.optimization import Optimization
from besttake.training.setup import (
    check_attention,
    check_same_weights,
    load_trained_model,
    make_auto_compile,
    make_guard,
    make_validator,
    offload_critics,
    prepare_evaluation,
    set_up_attention,
)
from besttake.training.trackers import check_trackers
from besttake.types import Latent, Video

__all__ = ["Metrics", "OptimConfig", "Run", "TrainConfig"]

log = logging.getLogger(__name__)
Item = TypeVar("Item")

COMPARE_EVERY = 50
"""Updates between checks that all processes have bit-identical trained weights."""


class Run:
    """A training run in a folder: `config.yaml`, `metrics.jsonl`, trackers, samples, checkpoints, adapter.

    Used as a context, `with Run(config, data) as run:`, so that completed steps are saved on an error or a signal.

    Attributes:
        data: the training data, without what is held out for the evaluation.
        step: number of completed steps.
        seconds: time spent on training, without validation.
    """

    def __init__(self, config: TrainConfig, data: Sequence[Any] = (), **kept: Stateful):
        """
        Args:
            data: prompts, real clips or preference pairs.
            kept: further objects whose state is saved in checkpoints, by name.
        """
        check_finite(config)
        check_trackers(config.log)
        check_attention(config)
        keep_freed_memory()
        self.config, self.folder, self.source = config, Path(config.out), str(getattr(config, "data", "world"))
        self.family = embedded_family(self.source, {text_of(item) for item in data})
        self.callbacks = current_callbacks()
        device = find_device(config.device)
        init_processes(config.parallel, device)
        check_equal(flattened(to_dict(config)))
        found = broadcast_from_main(lambda: open_run_folder(self.folder, config))
        critics = [critic for panel in kept.values() for critic in getattr(panel, "rewards", ())]
        offload_critics(config, critics)
        self.model = load_trained_model(config, device)
        self.evaluation_set = prepare_evaluation(config, self.model, data, self.source, self.family, bool(found))
        self.data = without_held_out(data, self.evaluation_set.held_out)
        self.base = weights_hash(self.model.denoiser)
        check_same_weights(self.model, self.base, critics)
        if found and not found[1]["base"].startswith(HASH_PREFIX):  # written before the hash covered all weights
            self.base = legacy_weights_hash(self.model.denoiser)
        self.policy = Policy(self.model, config.policy, config.seed)
        self.optimization = Optimization(config.optim, self.policy)
        self.validator = make_validator(config, self.policy, self.evaluation_set, data, self.source, self.family)
        self.guard = make_guard(config, self.validator, critics)
        if config.offload_idle:
            self.model.parts.offload_idle = [*self.model.denoisers.values(), *self.policy.reference.networks]
        self.checkpointer = Checkpointer(config, self.policy, self.optimization, kept, self.base)
        self.step, self.seconds, self._limit = 0, 0.0, config.minutes * 60 or float("inf")
        if found:
            with raise_on_all():
                self.step, self.seconds = self.checkpointer.restore(*found)
        self.checkpointer.compare_weights()
        self.checkpointer.take_snapshot(self.step, self.seconds)
        set_up_attention(config, self.policy, self.evaluation_set.prompts)
        self._auto_compile = make_auto_compile(config, self.policy)
        self._metrics: dict[str, Any] = {}
        self._exit_stack = ExitStack()
        self.log = MetricsLog(self.folder, self.step, config)
        self._exit_stack.callback(self.log.close)
        for row in self.log.earlier:
            self.guard.observe(row)

    def steps(self, items: Sequence[Item], batch: int) -> Iterator[tuple[int, list[Item]]]:
        """The remaining steps, each with its batch of items. Saves, validates and shows progress in between.

        All processes must have the same items, which is checked for text and prompts. If the items are numbers, the
        caller must have checked what they refer to (`check_equal_items`).
        """
        if len(items) < batch:
            log.warning("a step uses %d items but there are only %d: some occur twice in a batch", batch, len(items))
        check_equal_items("the training data", map(describe_prompt, items))
        with _progress_bar() as bar:
            task, stopped = bar.add_task("training", total=self.config.steps, completed=self.step), False
            while self.step < self.config.steps and self.seconds < self._limit:
                if stopped := self._validate() and self.config.validation.guard.stop:
                    log.warning("stopped by validation.guard.stop; turn it off to resume with the same command")
                    break
                if self._auto_compile:
                    self._auto_compile.begin_step()
                self._step_started = time.perf_counter()
                yield self.step, [item for _, item in prompt_batches(items, batch, self.config.seed, self.step)]
                self._finish_step()
                self.callbacks.after_step(self, self._metrics)
                within = self.step * self._limit / self.seconds  # steps that fit into the time limit
                bar.update(task, completed=self.step, total=min(self.config.steps, within))
                if self.step % self.config.save_every == 0:
                    self.save()
            self.save()
            self._apply_remaining_gradients()
            if not stopped:
                self._validate(last=True)
        self.checkpointer.save_adapter()

    def update(self, loss: Tensor | None, metrics: Metrics | None = None) -> bool:
        """Backward pass of a step's loss, and an optimizer step when enough gradients are accumulated.

        Args:
            loss: None if the step has no pairs to learn from (all were ties); it is logged as skipped.
            metrics: numbers to log.

        Returns:
            Whether there was an optimizer step.

        Raises:
            FloatingPointError: the loss, or its gradient, is not finite.
        """
        row: dict[str, Any] = {name: float(value) for name, value in (metrics or {}).items()}
        if loss is None:
            row["train/skipped"] = 1.0
        else:
            self.optimization.backward(loss, self.step)
            row["train/loss"] = loss.item()
        self.optimization.schedule(self.step, self.config.steps, self.seconds / self._limit)
        clipped = self.optimization.clip(self.step) if self.optimization.completes(self.step) else {}
        self._metrics = row | clipped
        self._log(self._metrics)  # before the update: an error here (a full disk) leaves no step half done
        if clipped:
            self.optimization.apply()
        return bool(clipped)

    @property
    def updates(self) -> int:
        """Number of optimizer steps."""
        return self.optimization.updates

    def every(self, interval: int) -> bool:
        """Whether the last update completes an interval of so many updates; False for an interval of 0."""
        return interval > 0 and self.updates % interval == 0

    @torch.no_grad()
    def encode(self, videos: Video, batch: int = 8) -> Latent:
        """Latents of videos, in batches (of one if `low_memory`)."""
        device, batch = self.model.device, 1 if self.model.parts.low_memory else batch
        return torch.cat([self.model.encode(part.to(device)).float() for part in videos.split(batch)])

    def oldest_resumable_step(self) -> int:
        """The earliest step that this run can be resumed from."""
        return oldest_resumable_step(self.folder / "checkpoints")

    def save(self) -> None:
        """Write a checkpoint of the state after the current step."""
        self.checkpointer.save()

    def __enter__(self) -> Run:
        self._exit_stack.enter_context(interruption.save_on_signal(self._emergency_save))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error and not interruption.is_stopping() and (message := self._emergency_save()):
                error.add_note(message)
        finally:
            self.optimization.finish()
            with suppress(OSError) if error else nullcontext():  # must not hide the error
                self._exit_stack.close()

    # Within a step ---------------------------------------------------------------------------------------------------

    def _finish_step(self) -> None:
        """Complete the step: count it and take the snapshot."""
        self.step += 1
        self.seconds += time.perf_counter() - self._step_started
        self.checkpointer.take_snapshot(self.step, self.seconds)
        updated = self.optimization.finish()
        if updated and self.every(COMPARE_EVERY):  # after the snapshot: if a process has died, the others can save it
            self.checkpointer.compare_weights()
        self.seconds = broadcast_from_main(lambda: self.seconds)  # process 0's clock decides when to stop
        if self._auto_compile:
            within = min(self.config.steps, self.step * self._limit / self.seconds)
            self._auto_compile.decide(within - self.step)
            self._auto_compile = None

    def _apply_remaining_gradients(self) -> None:
        """Take the optimizer step of the last steps, where they are fewer than `optim.gradient_accumulation_steps`.

        The checkpoint before it holds their gradients, so that a short run made longer is the long run.
        """
        self.optimization.rescale(self.step)
        if clipped := self.optimization.clip(self.step):
            self._log(clipped)
            self.optimization.apply()
            self.optimization.finish()

    # Between steps ---------------------------------------------------------------------------------------------------

    def _validate(self, last: bool = False) -> bool:
        """Validate the policy if it is due; whether there was an alarm."""
        every = self.config.validation.every
        if not every or not (last or self.step % every == 0):
            return False
        metrics = self.validator.validate(self.step)
        alarms = [str(alarm) for alarm in self._log(metrics)]
        files, prompts = self.validator.saved_videos(self.step)
        self.log.write_videos(files, prompts, self.step)
        self.callbacks.after_validation(self, metrics)
        for alarm in alarms:
            log.warning(alarm)
        if alarms:
            self._log({"alarms": alarms})
        return bool(alarms)

    def _log(self, row: dict[str, Any]) -> list[Alarm]:
        row = {"step": self.step, "minutes": round(self.seconds / 60, 4), **row}
        self.log.write(row)
        return self.guard.observe(row)

    def _emergency_save(self) -> str:
        """Save the last completed step; a message that says which step can be resumed from."""
        message, wrote = self.checkpointer.emergency_save()
        if wrote and not is_main():
            with suppress(OSError):
                self.log.complete(self.checkpointer.last_step)
        return message


def _progress_bar() -> Bar:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Bar(*columns, TextColumn("left"), TimeRemainingColumn(), console=err, disable=not is_main())
