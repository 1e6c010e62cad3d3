"""Weights that several processes hold between them, by FSDP2; and the tokens of clips, by diffusers.

With LoRA the frozen base is sharded, and the adapters, which are small, stay whole on every process; with full
fine-tuning everything is. A tensor that is sharded is a `DTensor`, whose own part is this process's.
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
    """Shard a denoiser (of two experts, both) if `parallel.shard` asks for it.

    Each block's weights come together when it is run and go again after it; gradients are summed, not averaged.

    Args:
        whole: parameters that stay whole on every process.
    """
    mesh = shard_mesh()
    if mesh is None:
        return
    for part in experts_of(denoiser):
        for module in (*blocks(part), part):
            # kept together after a forward pass, weights would be those of before the next refresh, or average
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=set(whole))
        for module in part.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo, for one, cannot scale on the way


def split_tokens(denoiser: nn.Module) -> None:
    """Have each of `parallel.context` processes run a denoiser on its stretch of a clip's tokens.

    In attention, each has some of the heads of all tokens instead (Ulysses, arXiv 2309.14509).
    """
    mesh = context_mesh()
    if mesh is None:
        return
    for part in experts_of(denoiser):
        part.enable_parallelism(config=ContextParallelConfig(ulysses_degree=mesh["ulysses"].size(), mesh=mesh))


def check_tokens(model: VideoModel, sizes: Iterable[Size]) -> None:
    """ValueError unless `parallel.context` processes can have clips of such sizes together."""
    mesh = context_mesh()
    if mesh is None:
        return
    among, heads = mesh["ulysses"].size(), getattr(model.pipeline.transformer.config, "num_attention_heads", 1)
    if not torch.accelerator.device_count():
        raise ValueError(f"parallel.context is {among}, and diffusers splits tokens on GPUs only; set it to 1")
    if heads % among:
        raise ValueError(f"parallel.context is {among}, but {model.source} has {heads} attention heads; set a divisor")
    for size in sizes:
        tokens = model.tokens(*size)
        if tokens is None:
            raise ValueError(
                f"parallel.context is {among}, but {model.source} cannot run on a part of a clip's tokens: "
                "Wan's models can; set it to 1"
            )
        if tokens % among:
            raise ValueError(
                f"parallel.context is {among}, but {size[0]} frames of {size[1]} x {size[2]} are {tokens} tokens; "
                "set a divisor, or another size"
            )


def offload_blocks(denoiser: nn.Module, device: str, whole: Iterable[nn.Parameter]) -> None:
    """Keep a denoiser's blocks on the CPU: each comes to the device to be run, forward and backward, and goes again.

    To FSDP2 that is a sharded network whose one process holds its part elsewhere.

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
    """Within this context a block's weights go again when it was run, in a forward pass within a backward one too.

    FSDP2 takes such a pass for that of a checkpointed block, and keeps the weights until the block goes backward.
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
    """Have blocks that the CPU keeps be ready to run again, after a pass that failed half-way."""
    for block in denoiser.modules():
        if isinstance(block, FSDPModule) and block._get_fsdp_state()._is_root:  # one that has been run before
            block.reset_iter_state()


def experts_of(denoiser: Any) -> list[Any]:
    """The networks of a denoiser: of two experts, both."""
    return list(denoiser.values()) if isinstance(denoiser, nn.ModuleDict) else [denoiser]


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def find_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds an infinity or NaN, in what this process has of it; None if all is well.

    One pass, and one word from the device: the largest of all numbers is finite only if all of them are.
    """
    own = {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}
    own = {name: tensor.detach() for name, tensor in own.items() if tensor.is_floating_point() and tensor.numel()}
    if nn.utils.get_total_norm(own.values(), math.inf).isfinite():
        return None
    return next(name for name, tensor in own.items() if not tensor.isfinite().all())


def gather_weights(denoiser: Any) -> Any:
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
