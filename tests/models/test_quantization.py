"""A base in fewer bits: small in memory, close in what it predicts, and a LoRA on it trains, saves and loads."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from besttake.algorithms import sft
from besttake.evaluation.before_after import trained_model
from besttake.models import load_model
from besttake.models.policy import Policy, PolicyConfig, weights_hash
from besttake.models.quantization import blocks, quantize
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.training.config import OptimConfig, adamw
from besttake.training.validation import ValidationConfig
from tests.tiny.wan import transformer

KINDS = {"int8": (1, 0.02), "fp8": (1, 0.05), "nf4": (0.5, 0.12)}
"""Bytes of a weight, and how far a forward pass may be off."""
kinds = pytest.mark.parametrize("kind", KINDS)


def linear_bytes(network):
    """Bytes of the linear layers' weights in the blocks; a quantized tensor is a few plain ones."""
    layers = [m for block in blocks(network) for m in block.modules() if isinstance(m, nn.Linear)]
    assert layers
    return sum(size_of(layer.weight) for layer in layers)


def size_of(weight):
    if hasattr(weight, "__tensor_flatten__"):
        return sum(getattr(weight, name).nbytes for name in weight.__tensor_flatten__()[0])
    return weight.nbytes


@kinds
def test_the_blocks_weights_are_small_and_what_they_predict_is_close(kind):
    """At a width that nf4's groups of weights divide, as they do those of real models."""
    share, tolerance = KINDS[kind]
    whole = transformer(num_attention_heads=4, attention_head_dim=64, ffn_dim=512).bfloat16().eval()
    small = quantize(copy.deepcopy(whole), kind, "cpu")
    assert linear_bytes(small) < linear_bytes(whole) / 2 * share * 1.1
    generator = torch.Generator().manual_seed(0)
    x_t, text = (torch.randn(*s, generator=generator).bfloat16() for s in ((2, 4, 3, 8, 8), (2, 7, 32)))
    inputs = x_t, torch.tensor([300.0, 900.0]), text
    expected, found = (network(*inputs, return_dict=False)[0].float() for network in (whole, small))
    assert 0 < (found - expected).norm() / expected.norm() < tolerance


@kinds
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_lora_on_it_has_gradients_and_the_base_none(model_folder, family, kind, checkpointing):
    model = load_model(str(model_folder(family)), torch.bfloat16, bits=kind)
    before = weights_hash(model.denoiser)
    policy = Policy(model, PolicyConfig(rank=2, gradient_checkpointing=checkpointing))
    x_t = torch.randn(2, *model.latent_shape(*model.default_size()))
    inputs = x_t, torch.tensor([0.3, 0.9]), model.encode_prompts(["a red ball", "a blue ball"])
    assert torch.equal(policy.predict(*inputs), policy.reference.predict(*inputs))
    policy.predict(*inputs).float().square().mean().backward()
    assert all(weight.grad.any() for name, weight in policy.trainable.items() if "lora_B" in name)
    others = [p for name, p in model.denoiser.named_parameters() if ".policy." not in name]
    assert all(parameter.grad is None for parameter in others)
    assert weights_hash(load_model(str(model_folder(family)), torch.bfloat16, bits=kind).denoiser) == before


@kinds
def test_a_run_on_it_resumes_and_its_adapter_loads(tmp_path, model_folder, material, kind):
    config = sft.Config(
        model=str(model_folder("tiny-cogvideox")),
        data=str(material / "clips"),
        out=tmp_path / "run",
        dtype="bfloat16",
        quantize=kind,
        steps=3,
        save_every=2,
        clips_per_step=2,
        policy=PolicyConfig(rank=2),
        optim=OptimConfig(lr=1e-2, warmup_steps=1, use_8bit_adam=True),
        validation=ValidationConfig(every=0),
    )
    whole = sft.train(config)
    parts = replace(config, out=tmp_path / "parts")
    sft.train(replace(parts, steps=2))
    resumed = sft.train(parts)
    for name, weight in whole.policy.trainable.items():
        assert torch.equal(weight, resumed.policy.trainable[name]), name
    prompts, rollout = ["a red ball"], RolloutConfig(steps=2)
    ours = generate(whole.policy, prompts, rollout, decode=False).latents
    loaded = generate(trained_model(whole.folder), prompts, rollout, decode=False).latents
    torch.testing.assert_close(loaded, ours, rtol=1e-2, atol=1e-2)


def test_weights_in_few_bits_cannot_be_trained():
    with pytest.raises(ValueError, match="quantize is int8"):
        sft.Config(quantize="int8", policy=PolicyConfig(train="full"))


def test_eight_bit_moments_take_a_quarter_of_the_memory():
    taken = {}
    for eight_bit in (False, True):
        parameter = nn.Parameter(torch.randn(1 << 16))
        optimizer = adamw(OptimConfig(use_8bit_adam=eight_bit), [parameter])
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        taken[eight_bit] = sum(v.nbytes for v in optimizer.state[parameter].values() if isinstance(v, torch.Tensor))
    assert taken[True] < taken[False] / 3.5
