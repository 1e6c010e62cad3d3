"""Weights sharded over processes by FSDP2, and tokens of clips split over processes by diffusers.

With LoRA the frozen base is sharded, and the small adapters are replicated; with full fine-tuning everything is
sharded. A sharded tensor is a `DTensor`, whose local part belongs to this process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ContextParallelConfig
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from besttake.models import Size, VideoModel
from besttake.models.quantization import blocks
from besttake.runtime.distributed import context_mesh, local_mesh, shard_mesh


def shard(denoiser: nn.Module, whole: Iterable[nn.Parameter] = ()) -> None:
    """Shard a denoiser (both experts, if there are two) if `parallel.shard` is set.

    Each block's weights are gathered when it is run and freed after it; gradients are summed, not averaged.

    Args:
        whole: parameters that are replicated instead.
    """
    mesh = shard_mesh()
    if mesh is None:
        return
    for part in experts_of(denoiser):
        for module in (*blocks(part), part):
            # weights kept gathered after a forward pass would be stale after a refresh or an EMA update
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=set(whole))
        for module in part.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo, for one, cannot scale on the way


def split_tokens(denoiser: nn.Module) -> None:
    """Context parallelism: each of `parallel.context` processes runs a denoiser on a part of a clip's tokens.

    In attention, each has some heads of all tokens instead (Ulysses, arXiv 2309.14509).
    """
    mesh = context_mesh()
    if mesh is None:
        return
    for part in experts_of(denoiser):
        part.enable_parallelism(config=ContextParallelConfig(ulysses_degree=mesh["ulysses"].size(), mesh=mesh))


def check_tokens(model: VideoModel, sizes: Iterable[Size]) -> None:
    """ValueError unless clips of such sizes can be split among `parallel.context` processes."""
    mesh = context_mesh()
    if mesh is None:
        return
    among, heads = mesh["ulysses"].size(), getattr(model.pipeline.transformer.config, "num_attention_heads", 1)
    if not torch.accelerator.device_count():
        raise ValueError(f"parallel.context is {among}, but diffusers splits tokens on GPUs only; set it to 1")
    if heads % among:
        raise ValueError(f"parallel.context is {among}, but {model.source} has {heads} attention heads; set a divisor")
    for size in sizes:
        tokens = model.tokens(*size)
        if tokens is None:
            raise ValueError(
                f"parallel.context is {among}, but {model.source} does not support it (Wan models do); set it to 1"
            )
        if tokens % among:
            raise ValueError(
                f"parallel.context is {among}, but {size[0]} frames of {size[1]} x {size[2]} are {tokens} tokens; "
                "set a divisor, or another size"
            )


def offload_blocks(denoiser: nn.Module, device: str, whole: Iterable[nn.Parameter]) -> None:
    """Keep a denoiser's blocks on the CPU, and move each to the device when it is run, forward and backward.

    This uses FSDP2 with a single process and CPU offloading.

    Args:
        whole: parameters that stay on the device.
    """
    mesh, kept = local_mesh(device), set(whole)
    policy = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
    for part in experts_of(denoiser):
        for block in blocks(part):
            fully_shard(block, mesh=mesh, ignored_params=kept, offload_policy=policy, reshard_after_forward=True)


@contextmanager
def reshard_after_recompute(denoiser: nn.Module) -> Iterator[None]:
    """Context in which a block's weights are freed after its forward pass, even within a backward pass.

    FSDP2 treats such a forward pass as the recomputation of a checkpointed block, and keeps the weights for it.
    """
    hooks = [
        block.register_forward_hook(lambda block, *_: block.reshard())
        for block in denoiser.modules()
        if isinstance(block, FSDPModule)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def reset_after_failure(denoiser: nn.Module) -> None:
    """Reset offloaded blocks after a forward or backward pass that has failed."""
    for block in denoiser.modules():
        if isinstance(block, FSDPModule) and block._get_fsdp_state()._is_root:  # True once it has been run
            block.reset_iter_state()


def experts_of(denoiser: Any) -> list[Any]:
    """The networks of a denoiser: one, or two experts."""
    return list(denoiser.values()) if isinstance(denoiser, nn.ModuleDict) else [denoiser]


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def find_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with an infinity or NaN in this process's part; None if there is none.

    One reduction and one transfer from the device: the maximum norm of all is finite only if every element is.
    """
    own = {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}
    own = {name: tensor.detach() for name, tensor in own.items() if tensor.is_floating_point() and tensor.numel()}
    if nn.utils.get_total_norm(own.values(), math.inf).isfinite():
        return None
    return next(name for name, tensor in own.items() if not tensor.isfinite().all())


def gather_weights(denoiser: Any) -> Any:
    """A copy of a sharded denoiser with its full weights on process 0's CPU, none on the others; otherwise itself."""
    if not any(is_sharded(weight) for weight in denoiser.parameters()):
        return denoiser
    weights = get_model_state_dict(denoiser, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    plain: Any = next(cls for cls in type(denoiser).__mro__ if not issubclass(cls, FSDPModule))
    with torch.device("meta"):
        shell = plain.from_config(denoiser.config)
    if weights:
        shell.load_state_dict(weights, assign=True)
    return shell
