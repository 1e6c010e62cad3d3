"""Measures one training step of a recipe on a fake device, by running the algorithm's own `step` under a meter.

Nothing here is specific to an algorithm.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import itertools
import tempfile
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor, nn

from besttake.evaluation.held_out import listed_count
from besttake.models import split_backward
from besttake.models.checkpointing import GradientCheckpointing
from besttake.models.policy import Policy
from besttake.plan.block_cache import cached_recompute, reuse_equal_blocks
from besttake.plan.critics import Critics
from besttake.plan.fake_device import CARD, fake_device
from besttake.plan.meter import Meter, Phase, Throughput
from besttake.plan.processes import fake_process_group
from besttake.plan.skeletons import skeleton
from besttake.rewards.panel import PanelScores
from besttake.runtime.configuration import algorithm_of
from besttake.runtime.distributed import backward, single_process
from besttake.sampling import rollout
from besttake.sampling.rollout import RolloutConfig, Rows, generate
from besttake.sampling.step_cache import CacheConfig
from besttake.training.config import adamw
from besttake.types import Prompt, Video

PARTS = ("encode", "step", "validate", "evaluate")
"""Parts of a recipe that are measured: encoding before training, a step, and validation and evaluation."""

STEP = ("prompts", "sample", "decode", "score", "train")
"""The phases of a step."""

OWNERS = {"transformer": "weights", "transformer_2": "weights", "vae": "autoencoder", "text_encoder": "text encoder"}


def measure(
    config: Any,
    throughput: Throughput,
    gpus: int = 1,
    parts: Iterable[str] = PARTS,
    enough: Callable[[dict[str, Phase]], bool] = lambda found: False,
) -> dict[str, Phase]:
    """The phases of the second step, when optimizer states exist, and of encoding, validation and evaluation.

    "encode" is for one real clip, "validate" for one validation pass, "evaluate" for one batch of videos.

    Args:
        gpus: number of cards, each with a process and its shard of the rows; the first one is measured.
        parts: the parts of `PARTS` to measure.
        enough: called with the phases after each part; the parts that follow are left out if it is true.

    Raises:
        ValueError: the model is not available, or cannot sample the size.
    """
    found: dict[str, Phase] = {}
    with _prepared(config, throughput, gpus) as (step, meter, set_level):
        set_level(step.policy.gradient_checkpointing)
        for part in parts:
            gc.collect()
            meter.reset()
            getattr(step, part)()
            beside = part in ("validate", "evaluate") and meter.phases
            found |= {part: merge_phases(part, meter.phases.values())} if beside else meter.phases
            if enough(found):
                break
    return found


def training_peaks(
    config: Any, throughput: Throughput, gpus: int, ways: Iterable[tuple[GradientCheckpointing, int]]
) -> Generator[int, None, None]:
    """The peak memory of the training phase, in bytes, for each level of checkpointing and size of micro-batches."""
    with _prepared(config, throughput, gpus) as (step, meter, set_level):
        for step.policy.gradient_checkpointing, step.policy.micro_batch_size in ways:
            set_level(step.policy.gradient_checkpointing)
            gc.collect()
            meter.reset()
            step.step()
            yield meter.phases["train"].peak


@contextmanager
def _prepared(
    config: Any, throughput: Throughput, gpus: int
) -> Iterator[tuple[Step, Meter, Callable[[GradientCheckpointing], None]]]:
    """A recipe's step on a fake device, its meter, and a function that sets its networks' gradient checkpointing."""
    config = _without_data_dependence(config)
    with (
        warnings.catch_warnings(action="ignore"),  # about the fake device
        _garbage_of_its_own(),
        fake_process_group(gpus, config.parallel),
        black_picture() as picture,
        fake_device(),
        Meter(CARD, throughput) as meter,
        ExitStack() as stack,
    ):
        step = Step(config, meter, picture)
        networks = (*step.model.denoisers.values(), *step.policy.reference.networks)
        setters = [reuse_equal_blocks(meter, network) for network in networks]
        stack.enter_context(patch.object(split_backward, "recompute", cached_recompute(meter, step.policy)))
        stack.enter_context(patch.object(rollout, "_sample", meter.memoize(rollout._sample, key=_sampled)))

        def set_level(level: GradientCheckpointing) -> None:
            for setter in setters:
                setter(level)

        yield step, meter, set_level


@contextmanager
def _garbage_of_its_own() -> Iterator[None]:
    """Context in which garbage collection looks at newer objects only: there are a million of imports."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Step:
    """A recipe's model, policy and optimizer on a device, and the parts of a run that can be measured.

    Args:
        meter: a `Meter`, or a `Clock` for a real device.
        picture: a first frame, for models that need one.
    """

    def __init__(self, config: Any, meter: Any, picture: Path, device: torch.device = CARD):
        self.config, self.meter, self.device = config, meter, device
        self.algorithm = importlib.import_module(type(config).__module__)
        if not hasattr(self.algorithm, "plan_batch"):
            raise ValueError(
                f"{algorithm_of(config)} has no function plan_batch, which `besttake plan` needs to make a batch"
            )
        self.critics = Critics(config, device, meter.claim)
        dtype, offload = getattr(torch, config.dtype), config.policy.offload
        self.model = skeleton(config.model, dtype, self._claim, config.quantize, offload, device)
        self.model.parts.set_up_vae(config.vae_dtype, config.tiling)
        self.policy = Policy(self.model, config.policy, config.seed)
        self.optimizer: Any = adamw(config.optim, self.policy.trainable.values())
        self.prompts = self._prompts(picture if self.model.needs_first_frame else None)
        self._memoize()
        self._allocate_optimizer_state()
        if config.offload_idle:
            self._offload_idle()

    def encode(self) -> None:
        """Encode a real clip, as before training."""
        if hasattr(self.config, "clips_per_step"):
            frames, height, width = self.config.rollout.size(self.model)
            video = torch.empty(1, frames, 3, height, width)
            with self.meter.phase("encode"), torch.no_grad(), self.model.using("vae"):
                self.model.encode(video.to(self.device))

    def step(self) -> None:
        """The algorithm's step, and the optimizer step."""
        config, policy = self.config, self.policy
        with ExitStack() as phase:
            phase.enter_context(self.meter.phase("sample"))
            with torch.no_grad():
                batch = self.algorithm.plan_batch(policy, config, self.prompts)

            def train() -> None:
                phase.close()
                phase.enter_context(self.meter.phase("train"))

            reward = self._reward(then=train) if hasattr(config, "reward") else None
            if reward is None:
                train()
            loss, _ = self.algorithm.step(policy, reward, batch, config, key=(config.seed, 1))
            backward(loss / config.optim.gradient_accumulation_steps, list(policy.trainable.values()))
            nn.utils.clip_grad_norm_(policy.trainable.values(), config.optim.max_grad_norm, foreach=True)
            self.optimizer.step()
            self._zero_grad()
            policy.update_ema(1)

    def validate(self) -> None:
        """A validation pass."""
        config = self.config.validation
        if config.every:
            with self.meter.phase("validate"), self.policy.ema_weights():
                rollout = generate(self.policy, self._next_prompts(config.count), config.rollout)
                self.critics.score("validate", rollout.videos, rollout.prompts, self.model.fps)

    def evaluate(self) -> None:
        """A batch of the evaluation."""
        config = self.config.evaluation
        count = min(listed_count(config.prompts, config.count), config.rollout.batch)
        with self.meter.phase("evaluate"), single_process():  # each process evaluates whole batches
            generate(self.policy, self._next_prompts(count), config.rollout)

    def _reward(self, then: Callable[[], None]) -> Callable[[Video, list[str], float], PanelScores]:
        """The recipe's reward, with made-up scores; calls `then` after scoring, to start the next phase."""

        def reward(videos: Video, prompts: list[str], fps: float) -> PanelScores:
            with self.meter.phase("score"), torch.no_grad():
                self.critics.score("score", videos, prompts, fps)
            then()
            return PanelScores.of(torch.arange(len(prompts), dtype=torch.float32))

        return reward

    def _next_prompts(self, count: int) -> list[str]:
        return [next(self.prompts) for _ in range(count)]

    def _prompts(self, first_frame: Path | None) -> Iterator[str]:
        """Distinct prompts of realistic length, with a first frame if the model needs one."""
        for number in itertools.count():
            text = f"a woman opens a red umbrella in the rain and walks on, number {number}"
            yield Prompt(text, first_frame=first_frame) if first_frame else text

    def _memoize(self) -> None:
        """Memoize work that a step repeats with equal shapes."""
        model, once, read_part = self.model, self.meter.memoize, self.model.parts.read
        make_scheduler_of_model, using_of_model = model.make_scheduler, model.using

        @contextmanager
        def using(*names: str) -> Iterator[None]:
            """From its loading until it is freed, a text encoder's memory belongs to "prompts" alone."""
            with (
                self.meter.phase("prompts") if {*names} & {*model.text_parts} else nullcontext(),
                using_of_model(*names),
            ):
                yield

        def read(name: str, cls: type, dtype: torch.dtype) -> nn.Module:
            part: Any = read_part(name, cls, dtype)
            if name == "vae":
                _memoize_decoding(part, once)
            return part

        def make_scheduler(steps: int, shape: Sequence[int]) -> Any:
            scheduler = make_scheduler_of_model(steps, shape)
            scheduler.step = once(partial(type(scheduler).step, weakref.proxy(scheduler)))  # no cycle, which would last
            return scheduler

        memoized = {"embed": once(model.embed, "prompts"), "decode": once(model.decode, "decode")}
        memoized |= {"encode": once(model.encode), "predict": once(model.predict)}
        memoized |= {"make_scheduler": make_scheduler, "using": using}
        vars(model).update(memoized)
        vars(model.parts).update(read=read)

    def _allocate_optimizer_state(self) -> None:
        """Allocate what exists from the second step on: optimizer states, and gradients if they are accumulated."""
        policy, claim = self.policy, self.meter.claim
        self._claim_weights()
        claim("ema", policy.ema.values())
        for group in self.optimizer.param_groups:
            if "foreach" in group:
                group["foreach"] = True  # as on a card
        for parameter in policy.trainable.values():
            parameter.register_post_accumulate_grad_hook(lambda p: claim("gradients", [p.grad]))
            parameter.grad = torch.zeros_like(parameter)
            claim("gradients", [parameter.grad])
        self.optimizer.step()
        for state in self.optimizer.state.values():
            claim("optimizer", [value for value in state.values() if isinstance(value, Tensor)])
        self._zero_grad()

    def _offload_idle(self) -> None:
        """Offload idle networks as a run does; weights are claimed again when they return to the device."""
        model, to_device = self.model, self.model.parts.to_device
        model.parts.offload_idle = [*model.denoisers.values(), *self.policy.reference.networks]

        def claimed() -> None:
            to_device()
            self._claim_weights()

        vars(model.parts)["to_device"] = claimed

    def _claim_weights(self) -> None:
        """Claim the denoiser's memory for the base, then the trained weights and the reference's within it."""
        policy, claim = self.policy, self.meter.claim
        for name, part in self.model.denoisers.items():
            self._claim(name, part)
        claim("trained weights", policy.trainable.values())
        claim("reference", policy.reference.weights.values())
        for network in policy.reference.networks:
            claim("reference", network.parameters())

    def _zero_grad(self) -> None:
        if self.config.optim.gradient_accumulation_steps == 1:
            self.optimizer.zero_grad()

    def _claim(self, name: str, part: nn.Module) -> None:
        self.meter.claim(OWNERS.get(name, name.replace("_", " ")), [*part.parameters(), *part.buffers()])


def _sampled(policy: Policy, rows: Rows, config: RolloutConfig, batch: Sequence[int], noise: Tensor) -> Any:
    """What the cost of sampling a batch depends on, besides the policy."""
    return str(config), noise, rows.condition, rows.negative, rows.source


def _memoize_decoding(vae: Any, once: Callable[[Callable], Callable]) -> None:
    """Memoize decoding by clip, chunk and tile."""
    if hasattr(vae, "_decode"):
        vae._decode = once(vae._decode)
    if hasattr(vae, "decoder"):
        causal = "feat_cache" in inspect.signature(vae.decoder.forward).parameters
        vae.decoder.forward = _memoize_causal(vae.decoder.forward, once) if causal else once(vae.decoder.forward)


def _memoize_causal(forward: Callable[..., Any], once: Callable[[Callable], Callable]) -> Callable[..., Any]:
    """Memoize Wan's decoder, which updates the frames in its `feat_cache`: from the third chunk on all are alike."""

    def run(x: Tensor, feat_cache: list[Any], **kwargs: Any) -> Tensor:
        return forward(x, feat_cache=feat_cache, feat_idx=[0], **kwargs)

    steady = once(run)

    def chunk(x: Tensor, feat_cache: Any = None, feat_idx: Any = (0,), **kwargs: Any) -> Tensor:
        if feat_cache is None:
            return forward(x, **kwargs)
        kinds = {type(frames) for frames in feat_cache}  # first all are None; then some are a word; then tensors
        return (run if str in kinds or kinds == {type(None)} else steady)(x, feat_cache, **kwargs)

    return chunk


def _without_data_dependence(config: Any) -> Any:
    """The config without compiled blocks and step caches, which depend on the machine or on values."""

    def plain(rollout: RolloutConfig) -> RolloutConfig:
        return replace(rollout, compile="never", cache=CacheConfig())

    monitor = replace(config.validation, rollout=plain(config.validation_config.rollout))
    evaluation = replace(config.evaluation, rollout=plain(config.evaluation_config.rollout))
    return replace(config, rollout=plain(config.rollout), validation=monitor, evaluation=evaluation)


def peak_phase(phases: Mapping[str, Phase]) -> Phase:
    """The phase with the highest peak during training; the evaluation runs afterwards and is left out."""
    return max((phase for name, phase in phases.items() if name != "evaluate"), key=lambda phase: phase.peak)


def merge_phases(name: str, phases: Iterable[Phase]) -> Phase:
    """Merge phases: FLOPs and seconds are summed, the peak is the highest."""
    phases = list(phases)
    fullest = max(phases, key=lambda phase: phase.peak)
    flops, seconds = sum(phase.flops for phase in phases), sum(phase.seconds for phase in phases)
    return Phase(name, flops, seconds, fullest.peak, fullest.owners)


@contextmanager
def black_picture() -> Iterator[Path]:
    """A temporary image file, for models that need a first frame."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "black.png"
        Image.new("RGB", (16, 16)).save(file)
        yield file
