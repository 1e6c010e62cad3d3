"""A frozen base in fewer bits, LoRA on top of it: the linear layers of the blocks, weights only, by torchao.

What is computed stays in the dtype the model was read in. int8 has one scale a row, as has fp8 (e4m3); nf4 is QLoRA's
(Dettmers et al. 2023, arXiv 2305.14314). `docs/benchmarks.md` tells how far a forward pass is off, and takes longer.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

Quantization = Literal["none", "int8", "fp8", "nf4"]
"""How a frozen denoiser's weights are held: 2, 1, 1 and about a half byte each where the model is read in bfloat16."""

NF4_BLOCKS = 64, 256
"""Weights to a scale, and scales to a scale of theirs, in nf4: a layer of another number of weights stays as it is."""


def blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a denoiser, in order: where nearly all of its weights and activations are."""
    return [block for child in network.children() if isinstance(child, nn.ModuleList) for block in child]


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """A tensor, or the plain ones that a quantized or a sharded one is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in plain_tensors(getattr(tensor, name))]


def quantize(network: Any, kind: Quantization, device: str) -> Any:
    """A frozen network read on the CPU, brought to its device in fewer bits layer by layer: it is never whole there.

    Raises:
        ValueError: torchao is not installed, or cannot on this device.
    """
    try:
        for block in blocks(network):
            for layer in block.modules():
                if type(layer) is nn.Linear:
                    _shrink(layer.to(device), kind)
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"weights cannot be held as {kind} on {device} ({error}); pip install 'besttake[quantize]', "
            "or choose another of int8, fp8 and nf4"
        ) from error
    return network.to(device)


def _shrink(layer: nn.Linear, kind: str) -> None:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_, to_nf4

    if kind != "nf4":
        quantize_(layer, Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig())
    elif layer.weight.numel() % math.prod(NF4_BLOCKS) == 0:
        layer.weight = nn.Parameter(to_nf4(layer.weight.detach(), *NF4_BLOCKS), requires_grad=False)
