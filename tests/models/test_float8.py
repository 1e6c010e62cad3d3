"""Rollouts in float8: which layers, how far they are, and that nothing of it is left."""

import pytest
import torch

from besttake.models import load_model
from besttake.models.float8 import float8_layers
from besttake.models.policy import Policy, PolicyConfig
from besttake.sampling.rollout import RolloutConfig, generate

pytest.importorskip("torchao")


@pytest.fixture
def policy(model_folder):
    policy = Policy(load_model(str(model_folder("tiny-cogvideox")), torch.bfloat16), PolicyConfig(rank=2))
    for weight in policy.trainable.values():
        weight.data += 0.05 * torch.randn_like(weight)
    return policy


def weights(model):
    return dict(model.denoiser.named_parameters())


def test_the_base_of_the_blocks_is_in_float8_and_all_is_as_before_afterwards(policy):
    before = weights(policy.model)
    with float8_layers([policy.model.denoiser]):
        changed = {name for name, weight in weights(policy.model).items() if weight is not before[name]}
        assert {type(weights(policy.model)[name].data).__name__ for name in changed} == {"Float8Tensor"}
    assert {name for name in changed if ".to_q.base_layer" in name or ".ff." in name}
    assert not [name for name in changed if "lora_" in name or "blocks." not in name]
    after = weights(policy.model)
    assert all(after[name] is weight for name, weight in before.items())


def test_samples_are_near_those_of_the_network(policy):
    prompts, config = ["a red ball", "a blue ball"], RolloutConfig(steps=4, guidance=1.0)
    plain = generate(policy, prompts, config, decode=False).latents
    near = generate(policy, prompts, RolloutConfig(steps=4, guidance=1.0, fp8=True), decode=False).latents
    assert torch.equal(generate(policy, prompts, config, decode=False).latents, plain)
    assert 1e-4 < (near - plain).norm() / plain.norm() < 0.1


@pytest.mark.parametrize("bits", ["none", "int8"])
def test_weights_that_are_not_in_bfloat16_are_refused(model_folder, bits):
    model = load_model(str(model_folder("tiny-cogvideox")), bits=bits)
    with pytest.raises(ValueError, match=r"rollout.fp8 needs plain weights in bfloat16: set dtype to bfloat16"):
        generate(model, ["a red ball"], RolloutConfig(steps=2, fp8=True))
