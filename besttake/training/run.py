"""A training run: everything around an algorithm's loop that is common to all algorithms.

The algorithm owns the loop and its `step`. `Run` yields the batches, receives the losses, and handles the optimizer,
metrics, validation, checkpoints and resume. All random numbers are keyed on the seed and the step, so a checkpoint
consists of the weights, the optimizer and the step; on the CPU a resumed run is bit-identical.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor, nn

from besttake.data.cache import GB, TensorCache
from besttake.data.prompts import describe_prompt, prompt_batches
from besttake.evaluation.before_after import check_evaluation
from besttake.evaluation.held_out import (
    EvaluationSet,
    choose_evaluation_set,
    read_set,
    sample_items,
    text_of,
    without_held_out,
    write_set,
)
from besttake.models import load_model
from besttake.models.policy import HASH_PREFIX, Policy, legacy_weights_hash, weights_hash
from besttake.models.sharding import check_tokens, full_tensor
from besttake.rewards.cache import weights_of
from besttake.rewards.guard import Alarm, RewardHackingGuard, guarded_metrics
from besttake.rewards.offloading import offload_reward
from besttake.runtime import interruption
from besttake.runtime.configuration import check_finite, flattened, to_dict
from besttake.runtime.console import err
from besttake.runtime.devices import find_device, keep_freed_memory
from besttake.runtime.distributed import (
    backward,
    broadcast_from_main,
    check_equal,
    check_equal_items,
    init_processes,
    is_main,
    is_single_process,
    raise_on_all,
)
from besttake.runtime.embedded import embedded_family
from besttake.sampling.rollout import RolloutConfig
from besttake.training.callbacks import current_callbacks
from besttake.training.checkpoint_files import oldest_resumable_step
from besttake.training.checkpointer import Checkpointer, Progress, Stateful, open_run_folder
from besttake.training.config import LOWER_LR, OptimConfig, TrainConfig, adamw
from besttake.training.metrics import Metrics, MetricsLog
from besttake.training.trackers import check_trackers
from besttake.training.validation import Validator
from besttake.types import Latent, Reward, Video

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
        updates: number of optimizer steps.
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
        keep_freed_memory()
        self.config, self.folder, self.source = config, Path(config.out), str(getattr(config, "data", "world"))
        self.callbacks = current_callbacks()
        self._metrics: dict[str, Any] = {}
        self.family = embedded_family(self.source, {text_of(item) for item in data})
        device = find_device(config.device)
        init_processes(config.parallel, device)
        check_equal(flattened(to_dict(config)))
        found = broadcast_from_main(lambda: open_run_folder(self.folder, config))
        critics = [critic for panel in kept.values() for critic in getattr(panel, "rewards", ())]
        self._offload(critics)
        self.model = self._load_model(device)
        self.evaluation_set = broadcast_from_main(lambda: self._choose_evaluation_set(data, resumed=bool(found)))
        self.data = without_held_out(data, self.evaluation_set.held_out)
        with raise_on_all():
            size = config.rollout_config.size(self.model)
            check_evaluation(config.evaluation_config, self.model, self.evaluation_set.prompts, size)
        self.base = weights_hash(self.model.denoiser)
        self._check_same_weights(critics)
        if found and not found[1]["base"].startswith(HASH_PREFIX):  # written before the hash covered all weights
            self.base = legacy_weights_hash(self.model.denoiser)
        self.policy = Policy(self.model, config.policy, config.seed)
        self.optimizer = adamw(config.optim, self.policy.trainable.values())
        self.validator = self._validator(data, device)
        self.guard = self._guard(critics)
        if config.offload_idle:
            self.model.parts.offload_idle = [*self.model.denoisers.values(), *self.policy.reference.networks]
        self.checkpointer = Checkpointer(config, self.policy, self.optimizer, kept, self.base)
        self.step, self.updates, self.seconds, self._rate = 0, 0, 0.0, config.optim.lr
        self._limit = config.minutes * 60 or float("inf")
        if found:
            with raise_on_all():
                self._resume(self.checkpointer.restore(*found))
        self.checkpointer.compare_weights()
        self._gradients_compared, self._exit_stack = False, ExitStack()
        self.checkpointer.take_snapshot(self._progress())
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
        optim = self.config.optim
        row: dict[str, Any] = {name: float(value) for name, value in (metrics or {}).items()}
        if loss is None:
            row["train/skipped"] = 1.0
        else:
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss of step {self.step} is {loss.item()}; {LOWER_LR}")
            self._backward(loss / optim.gradient_accumulation_steps)
            row["train/loss"] = loss.item()
        self._rate = self._learning_rate()
        changes = (self.step + 1) % optim.gradient_accumulation_steps == 0 and self._clip_gradients(row)
        self._metrics = row
        self._log(row)  # before the update: an error here (a full disk) leaves no step half done
        if changes:
            self._optimizer_step()
        return changes

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
            self._finish_update()
            with suppress(OSError) if error else nullcontext():  # must not hide the error
                self._exit_stack.close()

    # Before the first step -------------------------------------------------------------------------------------------

    def _load_model(self, device: str) -> Any:
        config = self.config
        model = load_model(config.model, getattr(torch, config.dtype), device, config.quantize, config.policy.offload)
        model.prompts.cache = TensorCache(config.cache, int(config.cache_limit * GB)) if config.cache else None
        if config.tiling:
            model.parts.tile()
        others = [config.validation_config.rollout.over(RolloutConfig())] if config.validation.every else []
        check_tokens(model, [rollout.size(model) for rollout in (config.rollout_config, *others)])
        return model

    def _check_same_weights(self, critics: Iterable[Reward]) -> None:
        """ValueError on every process unless all have read the same weights of the model and the critics."""
        if is_single_process():
            return
        read: dict[str, Any] = {
            "the model's weights": self.base,
            "the model's other parts": self.model.identity(*self.model.parts.names),
        }
        for critic in critics:
            read[f"the critic {critic.name}"] = weights_of(getattr(critic, "reward", critic))
        check_equal({name: hashlib.sha256(repr(what).encode()).hexdigest()[:16] for name, what in read.items()})

    def _choose_evaluation_set(self, data: Sequence[Any], resumed: bool) -> EvaluationSet:
        """The evaluation set. A resumed run keeps its held-out data."""
        config, before = self.config.evaluation_config, read_set(self.folder) if resumed else None
        listed = config.prompts or (self.family and f"{self.family}-test")
        if before and before.source == (listed or self.source):
            return before
        held_out, size = before.held_out if before else [], config.rollout.over(RolloutConfig()).size(self.model)
        left, spare = without_held_out(data, held_out), not resumed
        chosen = choose_evaluation_set(listed, self.source, left, config.count, config.seed, self.model, size, spare)
        chosen = replace(chosen, held_out=chosen.held_out or held_out)
        write_set(self.folder, chosen)
        return chosen

    def _validator(self, data: Sequence[Any], device: str) -> Validator:
        config, own = self.config.validation_config, []
        if config.every:
            own = self.evaluation_set.prompts
            if self.evaluation_set.source != self.source and data:
                size, seed = config.rollout.over(RolloutConfig()).size(self.model), self.config.evaluation.seed
                own = [prompt for prompt, _ in sample_items(data, config.count, seed, self.model, size)]
        validator = Validator(config, self.policy, self.folder, self.config.seed, device, self.family, own)
        self._offload(validator.rewards)
        return validator

    def _guard(self, critics: Iterable[Reward]) -> RewardHackingGuard:
        config = self.config.validation.guard
        trained = [critic.name for critic in critics]
        trained += list(self.config.reward.chosen) if hasattr(self.config, "reward") else []
        return RewardHackingGuard(config, guarded_metrics(self.validator.rewards, trained, config))

    def _offload(self, critics: Iterable[Reward]) -> None:
        for critic in critics if self.config.offload_idle else ():
            offload_reward(critic)

    def _resume(self, progress: Progress) -> None:
        self.step, self.updates = progress.step, progress.updates
        self.seconds, self._rate = progress.seconds, progress.rate

    # Within a step ---------------------------------------------------------------------------------------------------

    def _progress(self) -> Progress:
        return Progress(self.step, self.updates, self.seconds, self._rate)

    def _finish_step(self) -> None:
        """Complete the step: count it and take the snapshot."""
        self.step += 1
        self.seconds += time.perf_counter() - self._step_started
        self.checkpointer.take_snapshot(self._progress())
        updated = self._finish_update()
        if updated and self.every(COMPARE_EVERY):  # after the snapshot: if a process has died, the others can save it
            self.checkpointer.compare_weights()
        self.seconds = broadcast_from_main(lambda: self.seconds)  # process 0's clock decides when to stop

    def _finish_update(self) -> bool:
        """Unblock signals after an update; whether there was one."""
        if not self.checkpointer.updating:
            return False
        self.checkpointer.updating = False
        interruption.unblock_signals()
        return True

    def _backward(self, loss: Tensor) -> None:
        weights = list(self.policy.trainable.values())
        backward(loss, weights)
        if not self._gradients_compared:
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            self._finite_norm(nn.utils.get_total_norm(gradients))
            self.checkpointer.compare("the gradients", gradients)
            self._gradients_compared = True

    def _finite_norm(self, norm: Tensor) -> float:
        """The gradient's norm as a float; FloatingPointError on every process if it is not finite on one."""
        number = float(full_tensor(norm))
        with raise_on_all():
            if not math.isfinite(number):
                raise FloatingPointError(f"the gradient of step {self.step} has norm {number}; {LOWER_LR}")
        return number

    def _clip_gradients(self, row: dict[str, Any]) -> bool:
        """Clip the gradient and log its norm and the learning rate; False if there is no gradient."""
        parameters = [p for p in self.policy.trainable.values() if p.grad is not None]
        if not parameters:
            return False
        norm = self._finite_norm(nn.utils.clip_grad_norm_(parameters, self.config.optim.max_grad_norm))
        row |= {"train/grad_norm": norm, "train/lr": self._rate}
        return True

    def _optimizer_step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate
        interruption.block_signals()  # until the step is complete
        self.checkpointer.updating = True
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        self.policy.update_ema(self.updates)

    def _apply_remaining_gradients(self) -> None:
        """Take the optimizer step of the last steps, where they are fewer than `optim.gradient_accumulation_steps`.

        The checkpoint before it holds their gradients, so that a short run made longer is the long run.
        """
        row: dict[str, Any] = {}
        steps = self.config.optim.gradient_accumulation_steps
        for weight in self.policy.trainable.values():
            if weight.grad is not None:  # was divided by `steps`, but fewer were summed
                weight.grad *= steps / (self.step % steps)
        if self._clip_gradients(row):
            self._log(row)
            self._optimizer_step()
            self._finish_update()

    def _learning_rate(self) -> float:
        optim, steps = self.config.optim, self.config.steps
        factors = [1.0, (self.updates + 1) / max(1, optim.warmup_steps)]
        if optim.decay:
            factors += [(steps - self.step) / (optim.decay * steps), (1 - self.seconds / self._limit) / optim.decay]
        return optim.lr * min(factors)

    # Between steps ---------------------------------------------------------------------------------------------------

    def _validate(self, last: bool = False) -> bool:
        """Validate the policy if it is due; whether there was an alarm."""
        every = self.config.validation.every
        if not every or not (last or self.step % every == 0):
            return False
        metrics = self.validator.validate(self.step)
        alarms = [str(alarm) for alarm in self._log(metrics)]
        self.log.write_videos(*self.validator.saved_videos(self.step), self.step)
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
