"""`rollout.compile: auto`: what is decided, by the time of a pass and how many there are."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from besttake.models.compiled import compile_blocks, is_compiled
from besttake.models.policy import Policy, PolicyConfig
from besttake.training.compilation import GAIN, KINDS, SECONDS, AutoCompile


@pytest.fixture
def policy(cogvideox, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(
        "besttake.training.compilation.compile_blocks", lambda part: compile_blocks(part, backend=CompileCounter())
    )
    return Policy(cogvideox, PolicyConfig(rank=2))


def predict(policy, times):
    x_t = torch.randn(1, *policy.model.latent_shape(*policy.model.default_size()))
    condition = policy.model.encode_prompts(["a red ball"])
    with torch.no_grad():
        for _ in range(times):
            policy.predict(x_t, torch.tensor([0.5]), condition)


def clock(*seconds):
    """Made-up times of the passes that are timed: two plain ones, the first compiled one, another."""
    left = list(seconds)

    def seconds_of(work):
        work()
        return left.pop(0)

    return seconds_of


def decided(policy, steps, *seconds):
    auto = AutoCompile(policy, clock(*seconds))
    predict(policy, 3)  # a validation before the first step, which does not count
    auto.begin_step()
    predict(policy, 10)
    auto.decide(steps)
    assert policy.on_predict is None
    return is_compiled(policy.model.denoiser)


def test_a_long_run_is_compiled(policy, caplog):
    with caplog.at_level("INFO", "besttake"):
        assert decided(policy, 1000, 2.0, 1.0, 15.0, 0.8)
    assert "a pass takes 0.800 s compiled and 1.000 s plain" in caplog.text
    assert "would save 2000 s of 10000 passes" in caplog.text


def test_a_short_one_is_not_and_nothing_is_tried(policy, caplog):
    shortest = KINDS * SECONDS / GAIN / 10  # steps of ten passes of a second
    with caplog.at_level("INFO", "besttake"):
        assert not decided(policy, 0.99 * shortest, 1.0, 1.0)
    assert "too few to pay for it" in caplog.text


@pytest.mark.parametrize(("first", "compiled"), [(15.0, 1.1), (2000.0, 0.8)], ids=["slower", "takes too long"])
def test_what_does_not_pay_is_undone(policy, caplog, first, compiled):
    with caplog.at_level("INFO", "besttake"):
        assert not decided(policy, 1000, 1.0, 1.0, first, compiled)
    assert "blocks are not compiled: a pass takes" in caplog.text


def test_blocks_that_are_compiled_already_stay_as_they_are(policy):
    compile_blocks(policy.model.denoiser, backend=CompileCounter())
    assert decided(policy, 1000)
