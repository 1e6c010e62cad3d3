"""Attention backends: one setting for every network, tried on its own calls. On a CPU, with PyTorch's kernels."""

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName

from besttake.models import load_model
from besttake.models.attention import (
    EXACT,
    Call,
    attention,
    attention_of,
    check_name,
    choose,
    missing,
    record_calls,
    set_attention,
    try_backend,
)
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.world.build import FAMILIES

REGISTRY = attention_dispatch._AttentionBackendRegistry
OTHER = "_native_math"
"""A backend that any machine has, other than the one that PyTorch takes."""


@pytest.fixture
def wrong(monkeypatch):
    """A backend that scales its output."""

    def backend(**arguments):
        return 1.1 * REGISTRY._backends[AttentionBackendName.NATIVE](**arguments)

    monkeypatch.setitem(REGISTRY._backends, AttentionBackendName.XFORMERS, backend)
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_XFORMERS_ATTN", True)
    return "xformers"


@pytest.fixture(params=FAMILIES)
def case(request, model_folder):
    """A model, and a pass of its network."""
    model = load_model(str(model_folder(request.param)))
    x_t, condition = (
        torch.randn(2, *model.latent_shape(*model.default_size())),
        model.encode_prompts(["a ball", "a box"]),
    )
    return model, lambda: model.predict(model.denoiser, x_t, torch.full((2,), 0.5), condition)


def test_a_backend_is_set_for_every_attention_layer(case):
    model, run = case
    with torch.no_grad():
        before = run()
        set_attention(model.denoiser, OTHER)
        assert attention_of(model.denoiser) == OTHER
        assert not record_calls([], run)  # none calls PyTorch's own choice
        torch.testing.assert_close(run(), before, rtol=1e-4, atol=1e-5)
        set_attention(model.denoiser, "native")
        assert len(record_calls([], run)) >= 1
        assert torch.equal(run(), before)


def test_the_fastest_right_one_is_chosen(case, monkeypatch):
    (model, run), taken = case, {"native": 3.0, OTHER: 1.0, "_native_efficient": 2.0}
    names = []
    monkeypatch.setattr("besttake.models.attention._seconds", lambda work: work() is None or taken[names[-1]])
    tried = try_backend

    def noted(name, calls):
        names.append(name)
        return tried(name, calls)

    monkeypatch.setattr("besttake.models.attention.try_backend", noted)
    assert choose([model.denoiser], "auto", run, exact=("native", OTHER)) == OTHER
    taken[OTHER] = 9.0
    assert choose([model.denoiser], "auto", run, exact=("native", OTHER)) == "native"


def test_a_wrong_one_is_never_chosen_and_refused_by_name(case, wrong, monkeypatch):
    model, run = case
    monkeypatch.setattr("besttake.models.attention._seconds", lambda work: work() is None or 0.0)
    assert choose([model.denoiser], "auto", run, exact=(wrong, "native")) == "native"
    with pytest.raises(ValueError, match=r"attention is 'xformers', which cannot be used here: it differs by 0.1 from"):
        choose([model.denoiser], wrong, run)


def test_one_that_refuses_these_calls_says_why(case):
    model, run = case
    with pytest.raises(ValueError, match="'_native_cudnn', which cannot be used here: Query, key, and value"):
        choose([model.denoiser], "_native_cudnn", run)  # these are float32


def test_masks_and_gradients_are_compared():
    mask = torch.tensor([True] * 5 + [False] * 3).view(1, 1, 1, 8)
    q, k, v = torch.randn(3, 2, 8, 4, 16)
    attend = attention_dispatch.dispatch_attention_fn
    (call,) = record_calls([], lambda: attend(q, k, v, attn_mask=mask, backend=AttentionBackendName.NATIVE))
    assert torch.equal(call.arguments["attn_mask"], mask)
    out, *gradients = call.results(OTHER)
    assert out.shape == q.shape
    assert [x.shape for x in gradients] == [q.shape] * 3
    assert not gradients[1][:, 5:].any()  # keys that are masked
    assert not try_backend(OTHER, [call]).fault
    half = Call((q.bfloat16(), k.bfloat16(), v.bfloat16()), call.arguments)
    assert "`attn_mask` is not supported" in try_backend("_native_flash", [half]).fault


def test_names_that_are_unknown_not_installed_or_approximate_are_refused():
    with pytest.raises(ValueError, match="there is no attention backend 'fast'; expected auto or one of"):
        check_name("fast")
    with pytest.raises(ValueError, match="approximate, and training needs an exact one; for rollouts alone, set"):
        check_name("sage")
    absent = next(name for name in EXACT if missing(name))
    with pytest.raises(ValueError, match=f"'{absent}' cannot be used: .* installed: native"):
        check_name(absent)
    check_name("native")


def test_a_rollout_may_have_another_one(model_folder):
    model = load_model(str(model_folder("tiny-wan")))
    config, seen = RolloutConfig(steps=2, guidance=1.0, attention=OTHER), []
    plain = generate(model, ["a red ball"], RolloutConfig(steps=2, guidance=1.0), decode=False).latents
    model.denoiser.register_forward_hook(lambda *_: seen.append(attention_of(model.denoiser)))
    other = generate(model, ["a red ball"], config, decode=False).latents
    assert seen == [OTHER, OTHER]
    assert attention_of(model.denoiser) == "native"
    torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-4)


def test_the_former_one_is_restored_after_an_error(model_folder):
    model = load_model(str(model_folder("tiny-wan")))
    with pytest.raises(KeyError), attention([model.denoiser], OTHER):
        raise KeyError
    assert attention_of(model.denoiser) == "native"
