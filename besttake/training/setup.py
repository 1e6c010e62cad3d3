"""What a run does before its first step: load the model, and choose what it is evaluated and validated on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from besttake.data.cache import GB, TensorCache
from besttake.evaluation.before_after import check_evaluation
from besttake.evaluation.held_out import (
    EvaluationSet,
    choose_evaluation_set,
    read_set,
    sample_items,
    without_held_out,
    write_set,
)
from besttake.models import VideoModel, load_model
from besttake.models.attention import check_name, check_splits, choose, set_attention
from besttake.models.policy import Policy
from besttake.models.sharding import check_tokens
from besttake.rewards.cache import weights_of
from besttake.rewards.guard import RewardHackingGuard, guarded_metrics
from besttake.rewards.offloading import offload_reward
from besttake.runtime.devices import find_device
from besttake.runtime.distributed import broadcast_from_main, check_equal, is_single_process, raise_on_all
from besttake.sampling.rollout import RolloutConfig
from besttake.training.compilation import AutoCompile
from besttake.training.config import TrainConfig
from besttake.training.validation import Validator
from besttake.types import Reward

log = logging.getLogger(__name__)


def load_trained_model(config: TrainConfig, device: str) -> VideoModel:
    """A run's model. ValueError if it cannot sample the run's sizes, or take its negative prompts."""
    model = load_model(config.model, getattr(torch, config.dtype), device, config.quantize, config.policy.offload)
    if folder := config.cache or (config.out / "cache" if model.parts.low_memory else None):
        model.prompts.cache = TensorCache(folder, int(config.cache_limit * GB))
    model.parts.set_up_vae(config.vae_dtype, config.tiling)
    rollouts = [config.rollout_config]
    rollouts += [config.validation_config.rollout.over(RolloutConfig())] if config.validation.every else []
    check_tokens(model, [rollout.size(model) for rollout in rollouts])
    for rollout in (*rollouts, config.evaluation_config.rollout):
        model.check_negative(rollout.negative_prompt)
    return model


def check_attention(config: TrainConfig) -> None:
    """ValueError unless the attention backends that a config names are there."""
    for rollout in (config.rollout_config, config.validation_config.rollout, config.evaluation_config.rollout):
        if rollout.attention:
            check_name(rollout.attention, approximate=True)
    if config.attention != "auto":
        check_name(config.attention)
        check_splits(config.attention, config.parallel.context)


def set_up_attention(config: TrainConfig, policy: Policy, prompts: Sequence[str]) -> None:
    """Set the attention backend of a run: the fastest exact one on a clip of its size, or the one it names.

    Raises:
        ValueError: the named backend is not right for this network and size.
    """
    model, wanted = policy.model, config.attention
    if wanted == "auto" and model.device.type != "cuda":
        return  # PyTorch's is the only one on a CPU
    rollout, denoisers = config.rollout_config, list(model.denoisers.values())
    if model.needs_first_frame and not prompts:
        return

    def run() -> None:
        condition = rollout.condition(model, prompts[:1] or ["a video"])
        x_t = torch.randn(1, *model.latent_shape(*rollout.size(model)), device=model.device)
        model.parts.to_device()  # where encoding the prompt has moved the denoiser away
        policy.predict(x_t, torch.full((1,), 0.5, device=model.device), condition)

    with raise_on_all():
        chosen = choose(denoisers, wanted, run)
    chosen = broadcast_from_main(lambda: chosen)
    for denoiser in denoisers:
        set_attention(denoiser, chosen)
    log.info("attention: %s", chosen)


def check_same_weights(model: VideoModel, base: str, critics: Iterable[Reward]) -> None:
    """ValueError on every process unless all have read the same weights of the model and the critics.

    Args:
        base: hash of the denoiser's weights.
    """
    if is_single_process():
        return
    read: dict[str, Any] = {"the model's weights": base, "the model's other parts": model.identity(*model.parts.names)}
    for critic in critics:
        read[f"the critic {critic.name}"] = weights_of(getattr(critic, "reward", critic))
    check_equal({name: hashlib.sha256(repr(what).encode()).hexdigest()[:16] for name, what in read.items()})


def prepare_evaluation(
    config: TrainConfig, model: VideoModel, data: Sequence[Any], source: str, family: str | None, resumed: bool
) -> EvaluationSet:
    """The evaluation set, written to the run's folder. A resumed run keeps its held-out data.

    Args:
        data, source: the training data, and the name of where they are from.
        family: the embedded family that the data are of, if any.

    Raises:
        ValueError: the evaluation cannot be done with this model.
    """
    found = broadcast_from_main(lambda: _choose(config, model, data, source, family, resumed))
    with raise_on_all():
        check_evaluation(config.evaluation_config, model, found.prompts, config.rollout_config.size(model))
    return found


def _choose(
    run: TrainConfig, model: VideoModel, data: Sequence[Any], source: str, family: str | None, resumed: bool
) -> EvaluationSet:
    folder = Path(run.out)
    config, before = run.evaluation_config, read_set(folder) if resumed else None
    listed = config.prompts or (family and f"{family}-test")
    if before and before.source == (listed or source):
        return before
    held_out, size = before.held_out if before else [], config.rollout.over(RolloutConfig()).size(model)
    left, spare = without_held_out(data, held_out), not resumed
    chosen = choose_evaluation_set(listed, source, left, config.count, config.seed, model, size, spare)
    chosen = replace(chosen, held_out=chosen.held_out or held_out)
    write_set(folder, chosen)
    return chosen


def make_validator(
    run: TrainConfig,
    policy: Policy,
    evaluated: EvaluationSet,
    data: Sequence[Any],
    source: str,
    family: str | None,
) -> Validator:
    """The validator of a run: on its own prompts if the evaluation's are from elsewhere."""
    config, own = run.validation_config, []
    if config.every:
        own = evaluated.prompts
        if evaluated.source != source and data:
            size = config.rollout.over(RolloutConfig()).size(policy.model)
            own = [p for p, _ in sample_items(data, config.count, run.evaluation.seed, policy.model, size)]
    validator = Validator(config, policy, Path(run.out), run.seed, find_device(run.device), family, own)
    offload_critics(run, validator.rewards)
    return validator


def make_guard(config: TrainConfig, validator: Validator, critics: Iterable[Reward]) -> RewardHackingGuard:
    """The guard against reward hacking, on validation's critics that the run is not trained on."""
    guard = config.validation.guard
    trained = [critic.name for critic in critics]
    trained += list(config.reward.chosen) if hasattr(config, "reward") else []
    return RewardHackingGuard(guard, guarded_metrics(validator.rewards, trained, guard))


def make_auto_compile(config: TrainConfig, policy: Policy) -> AutoCompile | None:
    """What decides whether blocks are compiled, for `rollout.compile: auto` on a GPU."""
    return (
        AutoCompile(policy) if config.rollout_config.compile == "auto" and policy.model.device.type == "cuda" else None
    )


def offload_critics(config: TrainConfig, critics: Iterable[Reward]) -> None:
    """Keep critics on the CPU while they are not used, if the run's idle networks are offloaded."""
    for critic in critics if config.offload_idle else ():
        offload_reward(critic)
