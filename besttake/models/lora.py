"""LoRA on a denoiser: two adapters on one base, `policy` and `reference`, of which one is active at a time.

The matrices are float32, which is what the optimizer, the EMA and the checkpoints see. On a base in bfloat16 they are
rounded to its dtype in each forward pass, so that a layer computes in one dtype: PEFT instead computes the adapter, and
everything between its two matrices, in float32, which costs a quarter of a forward pass of Wan 2.1 1.3B.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from types import MethodType
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from besttake.models import VideoModel


def forward(layer: Any, x: Tensor) -> Tensor:
    """A layer with its active adapters: `W x + scale * B A x`, all in the dtype of `W x`.

    The scale is multiplied into B, and the sum is a part of the last product; in place, where there are no gradients.
    """
    if layer.merged and layer._disable_adapters:
        layer.unmerge()
    result = layer.base_layer(x)
    for adapter in () if layer.merged or layer._disable_adapters else layer.active_adapters:
        if adapter not in layer.lora_A:
            continue
        down, up = layer.lora_A[adapter].weight.to(result.dtype), layer.lora_B[adapter].weight
        up = (up * layer.scaling[adapter]).to(result.dtype)
        inner = nn.functional.linear(x.to(result.dtype), down)
        add = torch.addmm if torch.is_grad_enabled() else Tensor.addmm_
        result = add(result.view(-1, len(up)), inner.view(-1, len(down)), up.t()).view_as(result)
    return result


def add_adapters(model: VideoModel, rank: int, alpha: float) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Add equal adapters `policy` and `reference`, initially without effect; their weights, by the same names.

    Raises:
        ValueError: the model has no layers of the names in its `lora_targets`.
    """
    denoiser = model.denoiser
    scale: Any = alpha  # PEFT takes fractions, though its annotation does not
    lora = LoraConfig(r=rank, lora_alpha=scale, target_modules=list(model.lora_targets))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # two adapters are intended
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated")  # it cannot be merged, and is not
        for adapter, part in itertools.product(("reference", "policy"), model.denoisers.values()):
            part.add_adapter(copy.deepcopy(lora), adapter_name=adapter)
    named = dict(denoiser.named_parameters())
    policy, reference = (
        {n.replace(f".{adapter}.", "."): p for n, p in named.items() if f".{adapter}." in n}
        for adapter in ("policy", "reference")
    )
    if not reference:
        raise ValueError(
            f"{model.source} has no modules named {', '.join(model.lora_targets)} to adapt; mend `lora_targets`"
        )
    denoiser.requires_grad_(False)
    for weight in (*policy.values(), *reference.values()):
        weight.data = weight.data.to(model.device, torch.float32)
    for name, weight in policy.items():
        reference[name].copy_(weight)
        weight.requires_grad_(True)
    if model.pipeline.transformer.dtype != torch.float32:
        compute_in_base_dtype(denoiser)
    activate(denoiser, "policy")
    return policy, reference


def compute_in_base_dtype(denoiser: nn.Module) -> None:
    """Have adapters of linear layers compute by `forward`, not by PEFT's."""
    for layer in adapter_layers(denoiser):
        if isinstance(layer, Linear):
            vars(layer)["forward"] = MethodType(forward, layer)  # blocks still share what is compiled


def compute_as_peft(denoiser: nn.Module) -> None:
    """Have adapters compute as PEFT does, in the dtype of their matrices: for tests and benchmarks."""
    for layer in adapter_layers(denoiser):
        vars(layer).pop("forward", None)


def adapter_layers(denoiser: nn.Module) -> list[BaseTunerLayer]:
    """The layers that have adapters."""
    return [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]


def activate(denoiser: nn.Module, adapter: str) -> None:
    """Activate one adapter ("" = none). Unlike PEFT's `set_adapter`, this leaves `requires_grad` alone."""
    for layer in adapter_layers(denoiser):
        layer._active_adapter, layer._disable_adapters = [adapter or "policy"], not adapter
