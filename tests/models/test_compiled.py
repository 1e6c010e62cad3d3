"""Compiled blocks give what the plain ones give. Traced only: making machine code of them takes minutes."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from besttake.algorithms.errors import denoising_errors
from besttake.models.compiled import compile_blocks, is_compiled, stop_compiling
from besttake.models.policy import Policy, PolicyConfig
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.sampling.step_cache import CacheConfig


@pytest.fixture
def policy(cogvideox):
    """A policy on a network of four blocks."""
    torch._dynamo.reset()
    (repeated,) = (child for child in cogvideox.denoiser.children() if isinstance(child, nn.ModuleList))
    repeated.extend([copy.deepcopy(repeated[-1]) for _ in range(2)])
    policy = Policy(cogvideox, PolicyConfig(rank=2))
    for weight in policy.trainable.values():
        weight.data += 0.05 * torch.randn_like(weight)
    return policy


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


def test_sampling_merged_and_both_sides_of_a_loss(policy):
    cache = CacheConfig("taylorseer")
    plain, counter = work(policy, cache), CompileCounter()
    compile_blocks(policy.model.denoiser, backend=counter)
    for before, after in zip(plain, work(policy, cache), strict=True):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)
    assert counter.frame_count > 0


def test_a_kind_of_pass_is_compiled_once_for_all_blocks(policy):
    """Merged weights are the base alone. The first block passes on no gradient, so that training has two graphs."""
    model, counter = policy.model, CompileCounter()
    policy.set_gradient_checkpointing("full")
    compile_blocks(model.denoiser, backend=counter)
    rows = 8
    condition = model.encode_prompts(["a red ball"] * rows)
    x_t = torch.randn(rows, *model.latent_shape(*model.default_size()))

    def compiled(predict, clips):
        """The graphs that a pass adds."""
        before = counter.frame_count
        found = predict(x_t[:clips], torch.full((clips,), 0.5), {"text": condition["text"][:clips]})
        if found.requires_grad:
            found.sum().backward()
        return counter.frame_count - before

    def merged(*inputs):
        with policy.merged():
            return policy.predict(*inputs)

    with torch.no_grad():
        sampling = [compiled(policy.predict, clips) for clips in (4, 4, 8, 8, 4)]
        assert sampling == [1, 0, 1, 0, 0]  # from the second batch size on they are dynamic
        assert [compiled(merged, clips) for clips in (4, 8)] == [1, 0]
        assert [compiled(policy.reference.predict, clips) for clips in (4, 8)] == [0, 0]
        policy.reference.refresh()
        assert [compiled(policy.reference.predict, clips) for clips in (4, 8)] == [1, 0]
    assert [compiled(policy.predict, 4) for _ in range(2)] == [2, 0]
    with torch.no_grad():
        assert compiled(policy.predict, 4) == 0


def test_one_that_cannot_be_compiled_runs_plain_with_one_warning(policy, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    plain = work(policy, CacheConfig())
    policy.set_gradient_checkpointing("full")
    compile_blocks(policy.model.denoiser, backend=broken)
    assert is_compiled(policy.model.denoiser)
    with caplog.at_level(logging.WARNING, "besttake"):
        for before, after in zip(plain, work(policy, CacheConfig()), strict=True):
            torch.testing.assert_close(after, before)
    said = [record.getMessage() for record in caplog.records if "compiled" in record.getMessage()]
    assert len(said) == 1
    assert "no compiler here" in said[0]
    assert not is_compiled(policy.model.denoiser)


def test_it_can_be_undone(policy):
    policy.set_gradient_checkpointing("selective")
    function, counter = policy.model.denoiser._gradient_checkpointing_func, CompileCounter()
    assert stop_compiling(policy.model.denoiser) is None
    compile_blocks(policy.model.denoiser, backend=counter)
    policy.set_gradient_checkpointing("full")  # compiled anew
    policy.set_gradient_checkpointing("selective")
    assert stop_compiling(policy.model.denoiser) == {"backend": counter}
    assert policy.model.denoiser._gradient_checkpointing_func is function
    work(policy, CacheConfig())
    assert counter.frame_count == 0
