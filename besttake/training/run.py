"""The machine under an algorithm: devices, optimizer, accumulation, logging, checkpoints and resume.

The algorithm owns the loop; `Run` owns everything that is the same for all of them. All randomness is keyed on the
seed and the step, so a checkpoint is the weights, the optimizer and the step: on CPU a resumed run goes on bit by bit.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from besttake.data.cache import GB, TensorCache
from besttake.data.files import atomic
from besttake.data.prompts import described, prompt_batches
from besttake.evaluation.before_after import EvaluateConfig, check_evaluation
from besttake.evaluation.held_out import (
    EvaluationSet,
    evaluation_set,
    examples,
    left_to_train_on,
    read_set,
    text_of,
    write_set,
)
from besttake.models import Quantization, load_model
from besttake.models.policy import FORM, Policy, PolicyConfig, signature, signature_of_ends
from besttake.models.sharding import check_tokens, in_full, is_sharded, not_finite
from besttake.rewards.cache import weights_of
from besttake.rewards.guard import Alarm, Guard, watching
from besttake.rewards.offloading import send_away
from besttake.runtime import interruption
from besttake.runtime.configuration import check_finite, fingerprint, require, to_dict, write_config
from besttake.runtime.console import err
from besttake.runtime.devices import find_device, keep_freed_memory
from besttake.runtime.distributed import (
    ParallelConfig,
    agree,
    agree_on_each,
    backward,
    by_itself,
    digest,
    join,
    last_words,
    leads,
    led,
    place,
    together,
)
from besttake.runtime.embedded import embedded_family
from besttake.sampling.rollout import RolloutConfig
from besttake.training.checkpoint import (
    checkpoints,
    find_newest,
    load_tensors,
    oldest_step,
    save_checkpoint,
    shapes,
    step_of,
    wait_for,
)
from besttake.training.validation import Monitor, MonitorConfig
from besttake.types import Latent, Reward, Video

log = logging.getLogger(__name__)
Item = TypeVar("Item")

LOWER = "lower optim.lr, and give another --out: the checkpoints are of these settings"

COMPARE_EVERY = 50
"""Updates after which the processes compare the weights that they train, which should be the same to the bit."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and what surrounds it."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 10
    """Updates over which the learning rate rises to `lr`."""
    decay: float = 0.0
    """Last share of the steps, or of the minutes if they end first, over which the learning rate falls to zero."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    accumulate: int = 1
    """Steps whose gradients are averaged into one update."""
    eight_bit: bool = False
    """Keep AdamW's two moments in a byte each (Dettmers et al. 2022, arXiv 2110.02861) instead of four."""

    def __post_init__(self):
        require(self.lr > 0, "lr", self.lr, "a number above 0")
        require(self.clip > 0, "clip", self.clip, "a number above 0")
        require(self.accumulate >= 1, "accumulate", self.accumulate, "1 or more")
        require(0 <= self.decay <= 1, "decay", self.decay, "a share of the steps, in [0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """What every training recipe has."""

    model: str = "tiny-cogvideox"
    """Folder or hub id of a diffusers pipeline, or the name of an embedded one."""
    out: Path = Path("runs/run")
    """Run folder; the same command on the same folder resumes."""
    steps: int = 100
    seed: int = 0
    minutes: float = 0.0
    """Stop after so many minutes of training, if that comes before `steps`; 0 = no limit."""
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the frozen part of the model is held in, and what a full fine-tune computes in; what is trained, and every
    loss, is float32."""
    quantize: Quantization = "none"
    """What the weights of the denoiser's blocks are held in instead, below a LoRA."""
    tiling: bool = False
    """Encode and decode in tiles that overlap: less memory, for faint seams."""
    by_turns: bool = False
    """One role on the device at a time, of what samples and trains, what decodes, what scores; the others wait on the
    CPU."""
    cache: Path | None = None
    """Folder where text embeddings and real clips' latents are kept for this run and others."""
    cache_limit: float = 50.0
    """GB of disk that it may take; what was used longest ago makes room."""
    save_every: int = 50
    """Steps between checkpoints."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    evaluation: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self):
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        require(self.save_every >= 1, "save_every", self.save_every, "1 or more")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(self.minutes >= 0, "minutes", self.minutes, "0 or more")
        require(self.cache_limit > 0, "cache_limit", self.cache_limit, "a positive number of GB")
        if self.by_turns and self.policy.offload:
            raise ValueError("by_turns moves whole networks; leave it out where policy.offload splits them")
        if self.quantize != "none" and self.policy.offload:
            raise ValueError(
                f"quantize is {self.quantize}: weights in few bits are not kept on the CPU; leave out "
                "policy.offload, or quantize"
            )
        if self.quantize != "none" and self.policy.train == "full":
            raise ValueError(
                f"quantize is {self.quantize}, and policy.train full; weights in few bits cannot be trained"
            )
        self._check_parallel()

    @property
    def own_rollout(self) -> RolloutConfig:
        """How the run samples, or the size of its clips."""
        return getattr(self, "rollout", RolloutConfig())

    @property
    def looks(self) -> MonitorConfig:
        """How the run is watched, with what is left out of its `rollout` filled in."""
        return replace(self.monitor, rollout=self.monitor.rollout.over(self.own_rollout))

    @property
    def measuring(self) -> EvaluateConfig:
        """How the run is evaluated, with what is left out of its `rollout` filled in."""
        return replace(self.evaluation, rollout=self.evaluation.rollout.over(self.own_rollout))

    def _check_parallel(self) -> None:
        """Refuse what does not go with weights or tokens that processes have together."""
        shard, context, full = self.parallel.shard, self.parallel.context, self.policy.train == "full"
        sharded = {
            "quantize": self.quantize != "none",
            "by_turns": self.by_turns,
            "policy.offload": self.policy.offload,
            "policy.reference_on: cpu": full and self.policy.reference_on == "cpu",
            "optim.eight_bit": full and self.optim.eight_bit,
        }
        # each process leaves out blocks as its own takes allow, and the others would wait for it there
        rollouts = {"rollout": self.own_rollout, "monitor.rollout": self.monitor.rollout}
        caches = {
            f"{name}.cache.name: first-block": rollout.cache.name == "first-block" for name, rollout in rollouts.items()
        }
        for name, number, refused in (("shard", shard, sharded | caches), ("context", context, caches)):
            if number > 1 and (conflicts := [setting for setting, chosen in refused.items() if chosen]):
                raise ValueError(
                    f"parallel.{name} is {number}, which does not go with {', '.join(conflicts)}; leave out one or the "
                    "other"
                )


def adamw(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer; ValueError if eight bits are asked for and bitsandbytes is not installed."""
    kind: Any = torch.optim.AdamW
    if config.eight_bit:
        try:
            kind = importlib.import_module("bitsandbytes.optim").AdamW8bit
        except ImportError as error:
            raise ValueError("optim.eight_bit needs bitsandbytes: pip install 'besttake[quantize]'") from error
    return kind(parameters, config.lr, betas=config.betas, weight_decay=config.weight_decay)


class Stateful(Protocol):
    """What changes as it is used, and must be as it was when a run is resumed."""

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Finished:
    """How things stood when the last step was over, for a checkpoint of it while the next is under way.

    Attributes:
        gradients: of steps that wait for the rest of their update.
        kept: states of what a run keeps, by its name for it.
    """

    step: int
    seconds: float
    gradients: dict[str, Tensor]
    kept: dict[str, dict[str, Tensor]]


class Run:
    """A training run in a folder: `config.yaml`, `metrics.jsonl`, TensorBoard, samples, checkpoints, adapter.

    As a context, `with Run(config, data) as run:`, it saves all whole steps if it fails, or if a signal ends it.
    """

    def __init__(self, config: TrainConfig, data: Sequence[Any] = (), **kept: Stateful):
        """
        Args:
            data: what there is to train on: prompts, real clips or preference pairs. `self.data` is what is left of it
                when some is held out, for the evaluation to be measured on.
            kept: what else a checkpoint keeps, by a name for it.
        """
        check_finite(config)
        keep_freed_memory()
        self.kept = kept
        self.config, self.folder, self.source = config, Path(config.out), str(getattr(config, "data", "world"))
        self.family = embedded_family(self.source, {text_of(item) for item in data})
        device = find_device(config.device)
        join(config.parallel, device)
        agree(_flat(to_dict(config)))
        found = led(self._open_folder)
        self._send_away(thing for panel in kept.values() for thing in getattr(panel, "rewards", ()))
        self.model = load_model(
            config.model, getattr(torch, config.dtype), device, config.quantize, config.policy.offload
        )
        self.model.cache = TensorCache(config.cache, int(config.cache_limit * GB)) if config.cache else None
        if config.tiling:
            self.model.tile()
        looks = [config.looks.rollout.over(RolloutConfig())] if config.monitor.every else []
        check_tokens(self.model, [rollout.size(self.model) for rollout in (config.own_rollout, *looks)])
        self.chosen = led(lambda: self._choose(data, resumed=bool(found)))
        self.data = left_to_train_on(data, self.chosen.held_out)
        with together():
            check_evaluation(config.measuring, self.model, self.chosen.prompts, config.own_rollout.size(self.model))
        self.base = signature(self.model.denoiser)
        self._agree_on_networks()
        if found and not found[1]["base"].startswith(FORM):  # of before a signature saw all of the weights
            self.base = signature_of_ends(self.model.denoiser)
        self.policy = Policy(self.model, config.policy, config.seed)
        self.optimizer = adamw(config.optim, self.policy.trainable.values())
        own = self._own_prompts(data) if config.monitor.every else []
        self.monitor = Monitor(config.looks, self.policy, self.folder, config.seed, device, self.family, own)
        self._send_away(self.monitor.rewards)
        if config.by_turns:
            self.model.by_turns = [*self.model.denoisers.values(), *self.policy.reference.networks]
        trained = list(config.reward.chosen) if hasattr(config, "reward") else []
        self.guard = Guard(config.monitor.guard, watching(self.monitor.rewards, trained, config.monitor.guard))
        self.step, self.updates, self.seconds, self._rate = 0, 0, 0.0, config.optim.lr
        self._limit = config.minutes * 60 or float("inf")
        if found:
            with together():
                self._restore(*found)
        self._spoilt, self._changing, self._over = False, False, ExitStack()
        self._compare_weights()
        self._gradients_agree = False
        self._finished = self._stand()
        self._open_logs()

    def _agree_on_networks(self) -> None:
        """Refuse processes that have read other weights than the rest, of the model or of a critic."""
        if by_itself():
            return
        read: dict[str, Any] = {
            "the model's weights": self.base,
            "the model's other parts": self.model.identity(*self.model.parts),
        }
        for panel in self.kept.values():
            for critic in getattr(panel, "rewards", ()):
                read[f"the critic {critic.name}"] = weights_of(getattr(critic, "reward", critic))
        agree({name: hashlib.sha256(repr(told).encode()).hexdigest()[:16] for name, told in read.items()})

    def _choose(self, data: Sequence[Any], resumed: bool) -> EvaluationSet:
        """What the run is measured on; one that goes on holds out what it has held out from its start."""
        config, before = self.config.measuring, read_set(self.folder) if resumed else None
        listed = config.prompts or (self.family and f"{self.family}-test")
        if before and before.source == (listed or self.source):
            return before
        held_out, size = before.held_out if before else [], config.rollout.over(RolloutConfig()).size(self.model)
        left, spare = left_to_train_on(data, held_out), not resumed
        chosen = evaluation_set(listed, self.source, left, config.count, config.seed, self.model, size, spare)
        chosen = replace(chosen, held_out=chosen.held_out or held_out)
        write_set(self.folder, chosen)
        return chosen

    def _own_prompts(self, data: Sequence[Any]) -> list[str]:
        """Prompts of the run's own data, for looks: those that it is measured on, if they are of it."""
        if self.chosen.source == self.source or not data:
            return self.chosen.prompts
        count, size = self.config.monitor.count, self.config.looks.rollout.over(RolloutConfig()).size(self.model)
        return [prompt for prompt, _ in examples(data, count, self.config.evaluation.seed, self.model, size)]

    def _send_away(self, critics: Iterable[Reward]) -> None:
        for critic in critics if self.config.by_turns else ():
            send_away(critic)

    def steps(self, items: Sequence[Item], batch: int) -> Iterator[tuple[int, list[Item]]]:
        """The steps that are left, each with its batch of items; saves, watches and shows progress on the way.

        Processes must have the same items: the same text, prompts with the same pictures. Of numbers, whoever gives
        them must have compared what they stand for (`agree_on_each`).
        """
        if len(items) < batch:
            log.warning("a step takes %d items and there are only %d: some come twice", batch, len(items))
        agree_on_each("what there is to train on", map(described, items))
        with _progress() as bar:
            task, stopped = bar.add_task("training", total=self.config.steps, completed=self.step), False
            while self.step < self.config.steps and self.seconds < self._limit:
                if stopped := self._watch() and self.config.monitor.guard.stop:
                    log.warning("stopped by monitor.guard.stop; with it off, the same command goes on")
                    break
                self._began = time.perf_counter()
                yield self.step, [item for _, item in prompt_batches(items, batch, self.config.seed, self.step)]
                self._finish_step()
                within = self.step * self._limit / self.seconds  # as many as the limit leaves time for
                bar.update(task, completed=self.step, total=min(self.config.steps, within))
                if self.step % self.config.save_every == 0:
                    self.save()
            self.save()
            self._end_update()
            if not stopped:
                self._watch(last=True)
        self._save_adapter()

    def __enter__(self) -> Run:
        self._over.enter_context(interruption.saving(self._save_at_the_end))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error and not interruption.stopping() and (said := self._save_at_the_end()):
                error.add_note(said)
        finally:
            if self._changing:
                interruption.release()
            with suppress(OSError) if error else nullcontext():  # a full disk, say, which would be told instead
                self._over.close()

    def _finish_step(self) -> None:
        """Count the step that is over; from here on it is whole."""
        self.step += 1
        self.seconds += time.perf_counter() - self._began
        self._finished, updated = self._stand(), self._changing
        self._let_go()
        if updated and self.every(COMPARE_EVERY):  # not before: where a process is gone, the others have this step
            self._compare_weights()
        self.seconds = led(lambda: self.seconds)  # process 0's clock is everyone's: it decides when to stop

    def _let_go(self) -> None:
        """An update, and all that belongs to it, is made."""
        if self._changing:
            self._changing = False
            interruption.release()

    def _stand(self) -> Finished:
        gradients = {name: weight.grad for name, weight in self.policy.trainable.items() if weight.grad is not None}
        # a backward pass adds to them in place
        gradients = {
            name: grad.clone() if is_sharded(grad) else grad.to("cpu", copy=True) for name, grad in gradients.items()
        }
        return Finished(
            self.step, self.seconds, gradients, {name: dict(thing.state()) for name, thing in self.kept.items()}
        )

    def update(self, loss: Tensor | None, **watched: float | Tensor) -> bool:
        """Take the gradient of a step's loss, and an optimizer step when enough of them are summed.

        Args:
            loss: None when a step has nothing to learn from (every pair was a tie): it is counted as skipped.
            watched: numbers to log.

        Returns:
            Whether the weights were changed.

        Raises:
            FloatingPointError: the loss, or its gradient, is not finite.
        """
        optim = self.config.optim
        row: dict[str, Any] = {name: float(value) for name, value in watched.items()}
        if loss is None:
            row["skipped"] = 1.0
        else:
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss of step {self.step} is {loss.item()}; {LOWER}")
            self._backward(loss / optim.accumulate)
            row["loss"] = loss.item()
        self._rate = self._learning_rate()
        changes = (self.step + 1) % optim.accumulate == 0 and self._clip(row)
        self._log(row)  # before the weights change: where it fails, on a full disk, say, no step is half done
        if changes:
            self._optimizer_step()
        return changes

    def every(self, interval: int) -> bool:
        """Whether the update just made completes an interval; never for an interval of 0."""
        return interval > 0 and self.updates % interval == 0

    def generator(self, step: int) -> torch.Generator:
        """The random numbers of a step's loss."""
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)

    @torch.no_grad()
    def encode(self, videos: Video, batch: int = 8) -> Latent:
        """Latents of videos, a few at a time, or one where memory is dear."""
        device, batch = self.model.device, 1 if self.model.frugal else batch
        return torch.cat([self.model.encode(part.to(device)).float() for part in videos.split(batch)])

    def oldest_kept(self) -> int:
        """The earliest step that this run can still be resumed from."""
        return oldest_step(self.folder / "checkpoints")

    def save(self) -> None:
        """Write a checkpoint of the state after the current step."""
        self._compare_weights()
        with together():
            if leads() or self._sharded:
                self._write()
        if leads():
            self._board.flush()

    def _save_at_the_end(self) -> str:
        """Save all whole steps, at any moment, if no other process has done so; what there is to go on from.

        Where a process has died or is stuck, any of the others has all there is to save, unless it is sharded.
        """
        folder, step = self.folder / "checkpoints", self._finished.step
        beside = threading.current_thread() is not threading.main_thread()
        trouble = f"step {self.step} was being finished" if self._changing else ""
        if self._spoilt:
            trouble = "weights that differ are not saved"
        try:
            if not trouble and step:
                with _a_stream_of_its_own() if beside else nullcontext():
                    trouble = self._write_with_others() if self._sharded else self._write()
        except Exception as error:  # whatever it is, it must not be told instead of what ended the run
            trouble = str(error)
        newest = self._newest()
        there = f"the same command goes on from step {newest}, in {folder}" if newest > 0 else "no step is saved"
        return f"{trouble + '; ' if trouble else ''}{there}" if leads() or newest == step else ""

    def _newest(self) -> int:
        """The step of the newest checkpoint, -1 if there is none."""
        return max(map(step_of, checkpoints(self.folder / "checkpoints")), default=-1)

    def _write_with_others(self) -> str:
        """Of sharded weights each process writes a part, if all of them are there to; what kept them from it."""
        with last_words(self._finished.step) as all_here:
            if all_here:
                return self._write()
        return "the weights are sharded, and not all processes are there to write their part"

    def _write(self) -> str:
        """Write a checkpoint of the last step that is over, if it is not there."""
        done, folder = self._finished, self.folder / "checkpoints"
        state = {"updates": self.updates, "seconds": done.seconds, "config": fingerprint(self.config)}
        state |= {"base": self.base, "rate": self._rate}
        alone: AbstractContextManager = nullcontext() if self._sharded else FileLock(self.folder / ".lock")
        with interruption.held(), alone:
            if (led(self._newest) if self._sharded else self._newest()) < done.step:
                with together() if self._sharded else nullcontext():
                    self._refuse_what_is_not_finite()
                save_checkpoint(folder, done.step, self._tensors(), state)
        return ""

    def _save_adapter(self) -> None:
        with together():
            self._refuse_what_is_not_finite()
        with together():
            self.policy.save(self.folder / "adapter")

    def _refuse_what_is_not_finite(self) -> None:
        """FloatingPointError if this process has anything that is not finite of what a checkpoint keeps."""
        if name := not_finite(self._tensors()):
            raise FloatingPointError(f"{name} is not finite at step {self.step}, and nothing is saved; {LOWER}")

    def _compare_weights(self) -> None:
        try:
            self._compare("the weights that are trained", list(self.policy.trainable.values()))
        except ValueError:
            self._spoilt = True
            raise

    def _compare(self, what: str, tensors: Sequence[Tensor]) -> None:
        """ValueError on every process unless all that hold the same part of the weights have the same tensors."""
        if not by_itself():
            agree({what: digest(tensors)}, place() if self._sharded else 0)

    @property
    def _sharded(self) -> bool:
        """Whether what is trained is sharded: every process then has a part of a checkpoint to write."""
        return any(is_sharded(weight) for weight in self.policy.trainable.values())

    def _backward(self, loss: Tensor) -> None:
        weights = list(self.policy.trainable.values())
        backward(loss, weights)
        if not self._gradients_agree:
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            self._finite_norm(nn.utils.get_total_norm(gradients))
            self._compare("the gradients", gradients)
            self._gradients_agree = True

    def _finite_norm(self, norm: Tensor) -> float:
        """The gradient's norm as a number; FloatingPointError on every process if it is none on one."""
        number = float(in_full(norm))
        with together():
            if not math.isfinite(number):
                raise FloatingPointError(f"the gradient of step {self.step} has norm {number}; {LOWER}")
        return number

    def _clip(self, row: dict[str, Any]) -> bool:
        """Clip the gradient, if there is any, and put its norm and the rate into a row of the log."""
        parameters = [p for p in self.policy.trainable.values() if p.grad is not None]
        if not parameters:
            return False
        norm = self._finite_norm(nn.utils.clip_grad_norm_(parameters, self.config.optim.clip))
        row |= {"gradient_norm": norm, "lr": self._rate}
        return True

    def _optimizer_step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate
        interruption.hold()  # until the step is over: whatever of it follows an update belongs to it
        self._changing = True
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        self.policy.update_average(self.updates)

    def _end_update(self) -> None:
        """Take the optimizer step of the last steps, where they are fewer than `optim.accumulate`.

        The checkpoint before it holds their gradients, so that a short run made longer is the long run.
        """
        row: dict[str, Any] = {}
        for weight in self.policy.trainable.values():
            if weight.grad is not None:  # a sum of parts of `accumulate`, to be the mean of as many as there are
                weight.grad *= self.config.optim.accumulate / (self.step % self.config.optim.accumulate)
        if self._clip(row):
            self._log(row)
            self._optimizer_step()
            self._let_go()

    def _learning_rate(self) -> float:
        optim, steps = self.config.optim, self.config.steps
        factors = [1.0, (self.updates + 1) / max(1, optim.warmup)]
        if optim.decay:
            factors += [(steps - self.step) / (optim.decay * steps), (1 - self.seconds / self._limit) / optim.decay]
        return optim.lr * min(factors)

    def _watch(self, last: bool = False) -> bool:
        """Look at the policy if it is time to; whether that raised an alarm."""
        every = self.config.monitor.every
        if not every or not (last or self.step % every == 0):
            return False
        alarms = [str(alarm) for alarm in self._log(self.monitor.look(self.step))]
        for alarm in alarms:
            log.warning(alarm)
        if alarms:
            self._log({"alarms": alarms})
        return bool(alarms)

    def _log(self, row: dict[str, Any]) -> list[Alarm]:
        row = {"step": self.step, "minutes": round(self.seconds / 60, 4), **row}
        if leads():
            self._metrics.write(json.dumps(row) + "\n")
            self._metrics.flush()
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, self.step)
        return self.guard.hear(row)

    def _weights(self) -> dict[str, Mapping[str, Tensor]]:
        policy = self.policy
        return {"policy": policy.current, "reference": policy.reference.weights, "average": policy.average}

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for group, weights in self._weights().items():
            tensors |= {f"{group}/{name}": weight for name, weight in weights.items()}
        for name, state in self._finished.kept.items():
            tensors |= {f"kept.{name}/{key}": value for key, value in state.items()}
        tensors |= {f"gradient/{name}": gradient for name, gradient in self._finished.gradients.items()}
        for name, parameter in self.policy.trainable.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}/{name}"] = torch.as_tensor(value)
        return tensors

    @torch.no_grad()
    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        wait_for(path, state)
        self.step, self.updates, self.seconds = state["step"], state["updates"], state["seconds"]
        self._rate = state.get("rate", self._rate)  # which older checkpoints did not keep
        policy = self.policy
        saved = {key.partition("/")[2]: shape for key, shape in shapes(path).items() if key.startswith("policy/")}
        different = saved.items() ^ {(name, tuple(weight.shape)) for name, weight in policy.trainable.items()}
        if different:
            name, shape = min(different)
            raise ValueError(
                f"the checkpoint in {self.folder} is of another model than {self.config.model}: only one of them has "
                f"'{name}' of shape {shape}; give another --out"
            )
        tensors = load_tensors(path, self._laid_out_as)
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
                # a whole number stays one, as the optimizer keeps it
                value: Any = tensor if tensor.ndim or tensor.is_floating_point() else tensor.item()
                self.optimizer.state[policy.trainable[name]][group.removeprefix("optimizer.")] = value
            else:
                self._weights()[group][name].copy_(tensor)
        policy.reference.moved()
        if state["base"] != self.base:
            raise ValueError(
                f"the run in {self.folder} began from other weights than {self.config.model} holds now; "
                "give another --out"
            )
        log.info("resuming %s from step %d", self.folder, self.step)

    def _laid_out_as(self, key: str) -> Tensor | None:
        """The weight that a tensor of a checkpoint lies beside."""
        group, _, name = key.partition("/")
        if group.startswith("kept.") or group == "optimizer.step":  # which the optimizer keeps on the CPU
            return None
        return self.policy.trainable[name]

    def _open_folder(self):
        """Make the run folder, or check that the run in it is this one; what there is to resume from."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".writable").touch()
            (self.folder / ".writable").unlink()
        except OSError as error:
            raise ValueError(
                f"the run folder {self.folder} cannot be written to ({error}); give another --out"
            ) from error
        found = find_newest(self.folder / "checkpoints")
        if found and found[1]["config"] != fingerprint(self.config):
            raise ValueError(
                f"{self.folder} holds a run with other settings (see its config.yaml); give another --out, "
                "or the same settings to resume it"
            )
        write_config(self.config, self.folder / "config.yaml")
        return found

    def _open_logs(self) -> None:
        """`metrics.jsonl`, cut back to the step the run goes on from, and TensorBoard; the guard hears what was."""
        path = self.folder / "metrics.jsonl"
        for line in led(lambda: self._cut_back(path)):
            self.guard.hear(json.loads(line))
        if leads():
            self._metrics = self._over.enter_context(path.open("a"))
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step or None)
            self._over.callback(self._board.close)

    def _cut_back(self, path: Path) -> list[str]:
        if not path.exists():
            return []
        rows = [line for line in path.read_text().splitlines() if _step_of(line) < self.step]
        with atomic(path) as part:
            part.write_text("".join(f"{line}\n" for line in rows))
        return rows


def _flat(values: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """A mapping of mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{head}{name}.") if isinstance(value, dict) else {head + name: value}
    return flat


def _a_stream_of_its_own() -> AbstractContextManager:
    """Within this context a GPU copies beside what it may be stuck in."""
    return torch.cuda.stream(torch.cuda.Stream()) if torch.cuda.is_available() else nullcontext()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line that a kill cut short


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=err, disable=not leads())
