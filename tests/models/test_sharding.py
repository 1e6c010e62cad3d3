"""What of sharding one process can show; several are in tests/runtime/test_distributed.py."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from besttake.models import load_model, sharding
from besttake.models.sharding import (
    check_tokens,
    experts_of,
    find_non_finite,
    full_tensor,
    gather_weights,
    offload_blocks,
    reshard_after_recompute,
)


def test_the_networks_of_a_denoiser():
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert experts_of(one) == [one]
    assert experts_of(nn.ModuleDict({"transformer": one, "transformer_2": other})) == [one, other]


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -float("inf")])
def test_the_first_tensor_that_is_not_finite_is_named(fault):
    tensors = {"whole": torch.tensor([7]), "none": torch.empty(0), "fine": torch.ones(3), "half": torch.ones(2).half()}
    assert find_non_finite(tensors) is None
    tensors |= {"bad": torch.tensor([[1.0, fault]]), "worse": torch.tensor(fault)}
    assert find_non_finite(tensors) == "bad"


def test_weights_that_are_whole_stay_what_they_are():
    network = nn.Linear(2, 2)
    assert gather_weights(network) is network
    assert full_tensor(network.weight) is network.weight


@pytest.mark.parametrize(
    ("gpus", "heads", "size", "message"),
    [
        (0, 4, (5, 16, 16), "on GPUs only; set it to 1"),
        (2, 3, (5, 16, 16), "has 3 attention heads; set a divisor"),
        (2, 4, (5, 8, 24), "are 3 tokens; set a divisor, or another size"),
        (2, 4, (1, 1, 1), "does not support it"),
        (2, 4, (5, 16, 16), None),
    ],
)
def test_sizes_that_cannot_be_split_are_refused(monkeypatch, gpus, heads, size, message):
    mesh = {"ulysses": SimpleNamespace(size=lambda: 2)}
    monkeypatch.setattr(sharding, "context_mesh", lambda: mesh)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
    config = SimpleNamespace(num_attention_heads=heads)
    model = SimpleNamespace(
        source="tiny",
        pipeline=SimpleNamespace(transformer=SimpleNamespace(config=config)),
        tokens=lambda frames, height, width: None if frames == 1 else height * width // 64,
    )
    if message is None:
        check_tokens(model, [size])
        return
    with pytest.raises(ValueError, match=message):
        check_tokens(model, [size])


def test_blocks_on_the_cpu_make_the_same_to_the_bit(model_folder):
    outputs, gradients = [], []
    for offload in (False, True):
        model = load_model(str(model_folder("tiny-wan")))
        network = model.denoiser
        whole = [network.proj_out.weight.requires_grad_()]
        if offload:
            offload_blocks(network, "cpu", whole)
        condition = model.encode_prompts(["a red ball"])
        shape = model.latent_shape(*model.default_size())
        latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        with reshard_after_recompute(network):
            output = model.predict(network, latents, torch.tensor([0.5]), condition)
        output.square().mean().backward()
        outputs.append(output.detach())
        gradients.append(whole[0].grad)
    assert torch.equal(*outputs)
    assert torch.equal(*gradients)
