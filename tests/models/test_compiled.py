"""Compiled blocks give what the plain ones give. Traced only: making machine code of them takes minutes."""

import pytest
import torch
from torch._dynamo.utils import counters

from besttake.algorithms.errors import denoising_errors
from besttake.models.compiled import compile_blocks
from besttake.models.policy import Policy, PolicyConfig
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.sampling.step_cache import CacheConfig


def work(policy, cache):
    """Samples, and a loss's gradients."""
    config = RolloutConfig(steps=6, guidance=1.0, cache=cache)
    latents = generate(policy, ["a red ball", "a blue ball"], config, decode=False).latents
    clips, condition = latents.view(1, 2, *latents.shape[1:]), policy.model.encode_prompts(["a red ball"])
    errors = denoising_errors(policy, clips, condition, torch.tensor([0.5]), torch.ones_like(latents[:1]))
    errors.policy.sum().backward()
    gradients = [weight.grad.clone() for weight in policy.trainable.values()]
    policy.model.denoiser.zero_grad()
    return [latents, errors.policy.detach(), errors.reference, *gradients]


@pytest.mark.parametrize("cache", [CacheConfig(), CacheConfig("first-block")])
def test_sampling_merged_and_both_sides_of_a_loss(cogvideox, cache):
    policy = Policy(cogvideox, PolicyConfig(rank=2))
    for weight in policy.trainable.values():
        weight.data += 0.05 * torch.randn_like(weight)
    plain = work(policy, cache)
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(cogvideox.denoiser, backend="eager")
    for before, after in zip(plain, work(policy, cache), strict=True):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)
    assert counters["stats"]["unique_graphs"] > 0
