"""The plan of small models against what running them takes, followed operation by operation."""

import gc
import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from besttake.algorithms.errors import sampled_errors
from besttake.algorithms.losses import dpo
from besttake.algorithms.onlinevpo import Config
from besttake.models import load_model
from besttake.models.policy import Policy, PolicyConfig
from besttake.plan.cards import CARDS
from besttake.plan.meter import Meter, Throughput
from besttake.plan.steps import measure
from besttake.rewards.panel import RewardConfig
from besttake.sampling import rollout
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.training.config import adamw
from tests.peak import Peak
from tests.tiny.opensora import TINY

THROUGHPUT = Throughput(CARDS["H100"], 0.5)
ROLLOUT = RolloutConfig(steps=2, guidance=3.0, batch=3)
SHORT = RolloutConfig(steps=2, guidance=1.0, batch=3)


def recipe(model: str, **policy) -> Config:
    reward = RewardConfig(name="motion-smoothness")
    config = Config(model=model, prompts_per_step=2, candidates=2, rollout=ROLLOUT, reward=reward)
    monitor, evaluation = replace(config.validation, every=0), replace(config.evaluation, count=2, rollout=ROLLOUT)
    return replace(config, policy=PolicyConfig(**policy), validation=monitor, evaluation=evaluation)


def a_step(policy: Policy, config: Config):
    """A training step on clips of nothing, as `train` takes it."""
    model = policy.model
    clips = torch.zeros(config.prompts_per_step, 2, *model.latent_shape(*config.rollout.size(model)))
    condition = config.rollout.condition(model, ["a red ball", "a blue ball"])
    optimizer = adamw(config.optim, policy.trainable.values())
    errors = sampled_errors(policy, clips, condition, torch.Generator(), timesteps_per_pair=config.timesteps_per_pair)
    dpo(errors, config.beta, config.dpop_weight)[0].mean().backward()
    return optimizer


@pytest.mark.parametrize("name", ["tiny-cogvideox", "tiny-wan"])
def test_arithmetic_of_a_rollout(name, small_model):
    config = recipe(small_model(name))
    phases = measure(config, THROUGHPUT, parts=("step",))
    policy = Policy(load_model(config.model), config.policy)
    arguments = ["a red ball"] * 2, config.rollout
    generate(policy, *arguments, n=1, decode=False)  # the text is embedded
    # attention as plain products, which PyTorch's counter sees
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        generate(policy, *arguments, n=2, decode=False)
    assert phases["sample"].flops == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("policy", [{}, {"gradient_checkpointing": "full"}, {"train": "full"}, {"micro_batch_size": 1}])
def test_a_training_step(policy):
    config = replace(recipe("tiny-cogvideox", **policy), rollout=SHORT)
    planned = measure(config, THROUGHPUT, parts=("step",))["train"]
    real = Policy(load_model("tiny-cogvideox"), config.policy)
    a_step(real, config)
    for parameter in real.trainable.values():
        parameter.grad = None
    lasting = sum(size for owner, size in planned.owners.items() if owner not in ("activations", "gradients"))
    with Peak() as peak:
        a_step(real, config)
    with Meter(torch.device("cpu"), THROUGHPUT) as meter, meter.phase("train") as run:
        a_step(real, config)
    assert planned.flops == pytest.approx(run.flops, rel=0.01)
    assert planned.peak - lasting == pytest.approx(peak.peak, rel=0.05)


def test_a_card_of_several_has_its_share(small_model):
    config = recipe(small_model("tiny-cogvideox"))
    alone, shared = (measure(config, THROUGHPUT, gpus, ("step",)) for gpus in (1, 2))
    for name in ("sample", "decode", "train"):
        assert shared[name].flops == pytest.approx(alone[name].flops / 2, rel=0.01)
    assert shared["train"].peak < alone["train"].peak


def test_sharded_weights_take_their_share(small_model):
    config = recipe(small_model("tiny-cogvideox"), train="full")
    whole = measure(config, THROUGHPUT, 2, ("step",))["train"].owners
    sharded = replace(config, parallel=replace(config.parallel, shard=2))
    parts = measure(sharded, THROUGHPUT, 2, ("step",))["train"].owners
    for owner in ("trained weights", "reference", "optimizer"):
        assert parts[owner] == pytest.approx(whole[owner] / 2, rel=0.02)


def test_blocks_on_the_cpu_leave_the_card(small_model):
    wan = small_model("tiny-wan", layers=5)
    configs = (replace(recipe(wan, offload=off), rollout=SHORT) for off in (False, True))
    owners = [measure(config, THROUGHPUT, parts=("step",))["train"].owners for config in configs]
    assert owners[1]["weights"] < owners[0]["weights"] / 3


def test_networks_that_take_turns_are_off_the_card_while_samples_are_decoded(small_model):
    config = replace(recipe(small_model("tiny-wan")), offload_idle=True)
    phases = measure(config, THROUGHPUT, parts=("step",))
    assert phases["decode"].owners["weights"] == 0
    assert phases["sample"].owners["weights"] == phases["train"].owners["weights"] > 0


def test_the_inputs_of_a_denoiser_that_waits_on_the_cpu_are_on_the_card(tmp_path):
    """Open-Sora's embedding of no caption is a part of its denoiser."""
    tiny = TINY["opensora-1.2"]
    tiny.write(tmp_path / "model")
    rollout = RolloutConfig(2, 3.0, *tiny.size, batch=3)
    config = replace(recipe(str(tmp_path / "model")), dtype="bfloat16", rollout=rollout, offload_idle=True)
    phases = measure(config, THROUGHPUT, parts=("step",))
    assert phases["sample"].flops > 0


def test_a_text_encoder_is_gone_when_its_phase_ends(small_model, monkeypatch):
    """Or a real card's peak of the phase around that, which goes on, would be the encoder's."""
    left, phase_of = [], Meter.phase

    @contextmanager
    def phase(meter, name):
        with phase_of(meter, name) as found:
            yield found
        if "prompts" in {name} - {meter._within[-1].name}:
            left.append(meter.live["text encoder"])

    monkeypatch.setattr(Meter, "phase", phase)
    phases = measure(recipe(small_model("tiny-cogvideox")), THROUGHPUT, parts=("step",))
    assert set(left) == {0}
    assert phases["prompts"].owners["text encoder"] > 0


def test_a_scheduler_and_its_predictions_go_with_its_batch(small_model, monkeypatch):
    made, left = [], []
    step, decode = rollout.SchedulerStep, rollout.decode_latents
    monkeypatch.setattr(rollout, "SchedulerStep", lambda it, rows: made.append(weakref.ref(it)) or step(it, rows))
    monkeypatch.setattr(rollout, "decode_latents", lambda *args: left.extend(it() for it in made) or decode(*args))
    gc.disable()
    try:
        measure(recipe(small_model("tiny-wan")), THROUGHPUT, parts=("step",))
    finally:
        gc.enable()
    assert left == [None] * len(made)
    assert made


def test_a_number_of_cards_that_shards_do_not_divide(small_model):
    config = recipe(small_model("tiny-cogvideox"))
    with pytest.raises(ValueError, match="shard is 2, and gpus 3"):
        measure(replace(config, parallel=replace(config.parallel, shard=2)), THROUGHPUT, 3)
