"""Weights that several processes hold between them: FSDP2, block by block.

With LoRA the frozen base is sharded, and the adapters, which are small, stay whole on every process; with full
fine-tuning everything is. A tensor that is sharded is a `DTensor`, whose own part is this process's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from besttake.distributed import sharding
from besttake.models.quantization import blocks


def shard(denoiser: nn.Module, whole: Iterable[nn.Parameter] = ()) -> None:
    """Shard a denoiser (of two experts, both) if `parallel.shard` asks for it.

    Each block's weights come together when it is run and go again after it; gradients are summed, not averaged.

    Args:
        whole: parameters that stay whole on every process.
    """
    mesh = sharding()
    if mesh is None:
        return
    for part in denoiser.values() if isinstance(denoiser, nn.ModuleDict) else [denoiser]:
        for module in (*blocks(part), part):
            # kept together after a forward pass, weights would be those of before the next refresh, or average
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=set(whole))
        for module in part.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo, for one, cannot scale on the way


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def in_full(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def unsharded(denoiser: Any) -> Any:
    """A denoiser whose weights are whole, on the CPU of process 0; on the others they are missing. Else the same."""
    if not any(is_sharded(weight) for weight in denoiser.parameters()):
        return denoiser
    weights = get_model_state_dict(denoiser, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    plain: Any = next(cls for cls in type(denoiser).__mro__ if not issubclass(cls, FSDPModule))
    with torch.device("meta"):
        shell = plain.from_config(denoiser.config)
    if weights:
        shell.load_state_dict(weights, assign=True)
    return shell
