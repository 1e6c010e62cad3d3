"""On a base in bfloat16 the adapters compute in bfloat16, from float32 matrices, as exactly as PEFT does in float32."""

import copy

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from besttake.models import load_model
from besttake.models.lora import adapter_layers, compute_as_peft
from besttake.models.policy import Policy, PolicyConfig
from besttake.models.quantization import blocks

RANK = 4
PROMPTS = ["a red ball", "a blue square"]


def made(folder, dtype=torch.bfloat16):
    """A policy whose adapter does something, and its inputs."""
    model = load_model(str(folder), dtype)
    policy, generator = Policy(model, PolicyConfig(rank=RANK)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.trainable.values():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    x_t = torch.randn(2, *model.latent_shape(*model.default_size()), generator=generator)
    return policy, (x_t, torch.tensor([0.3, 0.8]), model.encode_prompts(PROMPTS))


def gradient(policy, inputs):
    """The prediction, and the gradient of its mean square."""
    prediction = policy.predict(*inputs).float()
    prediction.square().mean().backward()
    found = torch.cat([weight.grad.flatten() for weight in policy.trainable.values()])
    return prediction.detach(), found


@pytest.fixture(params=["tiny-cogvideox", "tiny-wan"])
def folder(request, model_folder):
    return model_folder(request.param)


def far(one, other):
    return float((one - other).norm() / other.norm())


def test_predictions_and_gradients_are_as_exact_as_with_float32_matrices(folder):
    policy, inputs = made(folder)
    exact = gradient(*made(folder, torch.float32))
    ours = gradient(policy, inputs)
    for weight in policy.trainable.values():
        assert weight.dtype == weight.grad.dtype == torch.float32
        weight.grad = None
    compute_as_peft(policy.model.denoiser)
    theirs = gradient(policy, inputs)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        assert far(mine, truth) < 1.25 * far(other, truth) < 0.1  # the error of a base in bfloat16
        assert far(mine, other) < 0.1


def test_equal_weights_predict_the_same_to_the_bit(folder):
    policy, inputs = made(folder)
    policy.reference.refresh()
    with torch.no_grad():
        sampled = policy.predict(*inputs)
    assert torch.equal(policy.predict(*inputs), sampled)
    assert torch.equal(policy.reference.predict(*inputs), sampled)


class Products(TorchDispatchMode):
    """The dtypes of the matrix products with an adapter's matrices."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        product = operation._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        if product and RANK in (*args[-1].shape, *args[-2].shape):
            self.dtypes.add(out.dtype)
        return out


def test_no_product_of_an_adapter_is_in_float32(folder):
    policy, inputs = made(folder)
    with Products() as products, torch.no_grad():
        policy.predict(*inputs)
    assert products.dtypes == {torch.bfloat16}


def test_a_float32_base_computes_as_peft_does(folder):
    policy, _ = made(folder, torch.float32)
    assert not any("forward" in vars(layer) for layer in adapter_layers(policy.model.denoiser))


def test_blocks_share_what_is_compiled(folder):
    """The number of graphs does not grow with the number of blocks, which would end in PyTorch's limit."""
    model = load_model(str(folder), torch.bfloat16)
    (repeated,) = (child for child in model.denoiser.children() if isinstance(child, nn.ModuleList))
    repeated.extend([copy.deepcopy(repeated[0]) for _ in range(3)])
    policy, counter = Policy(model, PolicyConfig(rank=RANK)), CompileCounter()
    torch._dynamo.reset()
    for block in blocks(model.denoiser):
        block.compile(backend=counter)
    x_t = torch.randn(1, *model.latent_shape(*model.default_size()))
    with torch.no_grad():
        policy.predict(x_t, torch.tensor([0.5]), model.encode_prompts(PROMPTS[:1]))
    assert len(blocks(model.denoiser)) == 5
    assert counter.frame_count <= 2


def test_a_layer_that_peft_has_merged_or_disabled_is_the_base_alone(folder):
    policy, inputs = made(folder)
    with torch.no_grad():
        moved = policy.predict(*inputs)
        policy.model.denoiser.fuse_lora(adapter_names=["policy"])
        assert far(policy.predict(*inputs), moved) < 0.1  # and not twice the adapter
        policy.model.denoiser.unfuse_lora()
        assert far(policy.predict(*inputs), moved) < 0.1


def test_a_layer_that_another_adapter_is_on_is_left_to_it(folder):
    model = load_model(str(folder), torch.bfloat16)
    other = "ff.net.2" if "ff.net.2" in dict(blocks(model.denoiser)[0].named_modules()) else "ffn.net.2"
    model.denoiser.add_adapter(LoraConfig(r=2, target_modules=[other]), adapter_name="other")
    policy = Policy(model, PolicyConfig(rank=RANK))
    x_t = torch.randn(1, *model.latent_shape(*model.default_size()))
    assert policy.predict(x_t, torch.tensor([0.5]), model.encode_prompts(PROMPTS[:1])).isfinite().all()
