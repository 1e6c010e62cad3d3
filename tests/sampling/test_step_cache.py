"""Step caches are for rollouts alone."""

import pytest
import torch

from besttake.models.policy import Policy, PolicyConfig
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.sampling.step_cache import CacheConfig, step_cache

CACHE = CacheConfig("taylorseer", every=4)


def sample(model, cache, **settings):
    config = RolloutConfig(**{"steps": 12, "guidance": 1.0} | settings, cache=cache)
    return generate(model, ["a red ball", "a blue ball"], config, decode=False).latents


@pytest.mark.parametrize("batch", [2, 16])
def test_a_cache_changes_samples_a_little_and_every_sample_begins_without(model, batch):
    plain, cached = (sample(model, config, guidance=2.0, batch=batch) for config in (CacheConfig(), CACHE))
    assert 0 < (plain - cached).square().mean() < 0.5 * plain.var()
    assert torch.equal(sample(model, CACHE, guidance=2.0, batch=batch), cached)
    assert torch.equal(sample(model, CacheConfig(), guidance=2.0, batch=batch), plain)


def test_no_training_forward_meets_a_cache(cogvideox):
    policy = Policy(cogvideox, PolicyConfig(rank=2))
    x_t, t = torch.randn(1, *cogvideox.latent_shape(*cogvideox.default_size())), torch.tensor([0.5])
    condition = cogvideox.encode_prompts(["a red ball"])
    before = policy.predict(x_t, t, condition), policy.reference.predict(x_t, t, condition)
    sample(policy, CACHE)
    for _ in range(3):  # a cache that is left on would answer the second with the first
        assert torch.equal(policy.predict(2 * x_t, t, condition), policy.reference.predict(2 * x_t, t, condition))
        assert torch.equal(policy.predict(x_t, t, condition), before[0])
        assert torch.equal(policy.reference.predict(x_t, t, condition), before[1])


def test_a_cache_is_gone_after_an_error(cogvideox):
    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), step_cache([cogvideox.denoiser], CACHE, fail) as predict:
        predict("conditional", torch.zeros(1), torch.zeros(1), {})
    assert not cogvideox.denoiser.is_cache_enabled


def test_a_network_without_caches_is_refused():
    with pytest.raises(ValueError, match=r"Linear does not support step caches; set rollout\.cache\.name to none"):
        step_cache([torch.nn.Linear(1, 1)], CACHE, print).__enter__()


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="every is 1; expected 2 or more"):
        CacheConfig("taylorseer", every=1)
