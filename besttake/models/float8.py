"""Rollouts in float8: a frozen network's linear layers multiply in e4m3, with a scale for each row.

An approximation that is about twice as fast in its matrix products on cards with float8 units (Ada, Hopper and newer);
LoRA matrices, attention, norms and all layers outside the blocks stay as they are. For rollouts only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from besttake.models.quantization import blocks

MULTIPLE = 16
"""Rows and columns of a float8 product must be multiples of it; other layers are left as they are."""

CAPABILITY = 8, 9
"""Compute capability of the first cards with float8 units."""


@contextmanager
def float8_layers(denoisers: Collection[Any], enabled: bool = True) -> Iterator[None]:
    """Context in which the linear layers of the denoisers' blocks compute in float8.

    Raises:
        ValueError: torchao is not installed, the card has no float8 units, or the network is not in bfloat16.
    """
    layers = [layer for denoiser in denoisers for layer in _layers(denoiser)] if enabled else []
    if enabled:
        _check(layers)
    kept = [layer.weight for layer in layers]
    try:
        for layer in layers:
            layer.weight = nn.Parameter(_float8(layer.weight.detach()), requires_grad=False)
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight = weight


def _layers(denoiser: Any) -> list[nn.Linear]:
    return [
        module
        for block in blocks(denoiser)
        for name, module in block.named_modules()
        if type(module) is nn.Linear
        and ".lora_" not in name
        and not any(side % MULTIPLE for side in module.weight.shape)
    ]


def _check(layers: list[nn.Linear]) -> None:
    kinds = {(type(layer.weight.data), layer.weight.dtype) for layer in layers}
    if kinds != {(torch.Tensor, torch.bfloat16)}:
        raise ValueError(
            "rollout.fp8 needs plain weights in bfloat16: set dtype to bfloat16, without quantize or sharding"
        )
    if layers[0].weight.is_cuda and torch.cuda.get_device_capability(layers[0].weight.device) < CAPABILITY:
        raise ValueError(
            f"rollout.fp8 needs a card of compute capability {'.'.join(map(str, CAPABILITY))} or newer (Ada, Hopper), "
            f"and {torch.cuda.get_device_name(layers[0].weight.device)} is older; leave it out"
        )
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise ValueError("rollout.fp8 needs torchao: pip install 'besttake[quantize]'") from error


def _float8(weight: torch.Tensor) -> torch.Tensor:
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization import Float8Tensor, PerRow
    from torchao.quantization.quantize_.common.kernel_preference import KernelPreference
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import QuantizeTensorToFloat8Kwargs

    how: dict[str, Any] = {
        "granularity": PerRow(),
        "mm_config": Float8MMConfig(use_fast_accum=True),
        "kernel_preference": KernelPreference.TORCH,
    }
    activations = QuantizeTensorToFloat8Kwargs(torch.float8_e4m3fn, **how)
    return Float8Tensor.from_hp(weight, torch.float8_e4m3fn, act_quant_kwargs=activations, **how)
