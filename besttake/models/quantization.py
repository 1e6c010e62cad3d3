"""Weight-only quantization, by torchao, of the linear layers in the blocks of a frozen base below a LoRA.

Activations keep the model's dtype. int8 and fp8 (e4m3) have one scale per row; nf4 is QLoRA's (Dettmers et al. 2023,
arXiv 2305.14314). `docs/benchmarks.md` has the errors and the slow-down of a forward pass.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

Quantization = Literal["none", "int8", "fp8", "nf4"]
"""Quantization of a frozen denoiser: 2 (bfloat16), 1, 1 and about 0.5 bytes per weight."""

NF4_BLOCKS = 64, 256
"""nf4's weights per scale, and scales per second-level scale; layers that are no multiple are not quantized."""


def blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a denoiser, in order."""
    return [block for child in network.children() if isinstance(child, nn.ModuleList) for block in child]


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a quantized or sharded tensor consists of, or the tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in plain_tensors(getattr(tensor, name))]


def quantize(network: Any, kind: Quantization, device: str) -> Any:
    """Quantize a frozen network on the CPU and move it to its device, layer by layer.

    Raises:
        ValueError: torchao is not installed, or does not support this on the device.
    """
    try:
        for block in blocks(network):
            for layer in block.modules():
                if type(layer) is nn.Linear:
                    _quantize_layer(layer.to(device), kind)
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"quantize is {kind}, which fails on {device} ({error}); pip install 'besttake[quantize]', "
            "or choose another of int8, fp8 and nf4"
        ) from error
    return network.to(device)


def _quantize_layer(layer: nn.Linear, kind: str) -> None:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_, to_nf4

    if kind != "nf4":
        quantize_(layer, Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig())
    elif layer.weight.numel() % math.prod(NF4_BLOCKS) == 0:
        layer.weight = nn.Parameter(to_nf4(layer.weight.detach(), *NF4_BLOCKS), requires_grad=False)
