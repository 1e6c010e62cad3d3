"""Step caches are for rollouts alone."""

import pytest
import torch

from besttake.models.policy import Policy, PolicyConfig
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.sampling.step_cache import CacheConfig, step_cache

BOLD = {
    "first-block": CacheConfig("first-block", threshold=10.0),
    "taylorseer": CacheConfig("taylorseer", every=4),
    "pyramid": CacheConfig("pyramid", every=3),
}


def shoot(shooter, cache, **settings):
    config = RolloutConfig(**{"steps": 12, "guidance": 1.0} | settings, cache=cache)
    return generate(shooter, ["a red ball", "a blue ball"], config, decode=False).latents


@pytest.fixture(params=BOLD)
def cache(request):
    return BOLD[request.param]


@pytest.mark.parametrize("batch", [2, 16])
def test_a_cache_changes_takes_a_little_and_every_take_begins_without(model, cache, batch):
    plain, cached = (shoot(model, config, guidance=2.0, batch=batch) for config in (CacheConfig(), cache))
    assert 0 < (plain - cached).square().mean() < 0.5 * plain.var()
    assert torch.equal(shoot(model, cache, guidance=2.0, batch=batch), cached)
    assert torch.equal(shoot(model, CacheConfig(), guidance=2.0, batch=batch), plain)


def test_no_training_forward_meets_a_cache(cogvideox, cache):
    policy = Policy(cogvideox, PolicyConfig(rank=2))
    x_t, t = torch.randn(1, *cogvideox.latent_shape(*cogvideox.default_size())), torch.tensor([0.5])
    told = cogvideox.encode_prompts(["a red ball"])
    before = policy.predict(x_t, t, told), policy.reference.predict(x_t, t, told)
    shoot(policy, cache)
    for _ in range(3):  # a cache that is left on would answer the second with the first
        assert torch.equal(policy.predict(2 * x_t, t, told), policy.reference.predict(2 * x_t, t, told))
        assert torch.equal(policy.predict(x_t, t, told), before[0])
        assert torch.equal(policy.reference.predict(x_t, t, told), before[1])


def test_a_cache_is_gone_after_an_error(cogvideox, cache):
    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), step_cache([cogvideox.denoiser], cache, fail) as ask:
        ask("told", torch.zeros(1), torch.zeros(1), {})
    assert not cogvideox.denoiser.is_cache_enabled


def test_a_network_without_caches_is_refused(cache):
    with pytest.raises(ValueError, match=r"Linear has no step caches; leave rollout\.cache\.name at 'none'"):
        step_cache([torch.nn.Linear(1, 1)], cache, print).__enter__()


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"every": 1}])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValueError, match=r"threshold is 0.0; expected a number above 0|every is 1; expected 2 or more"):
        CacheConfig("first-block", **settings)
