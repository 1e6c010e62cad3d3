"""Cache of block costs: of a network's equal blocks only the first is run, so that a plan takes seconds.

It applies to forward passes without gradients, to checkpointed blocks (which are recomputed one by one in the backward
pass, so that only their inputs are saved), and to the micro-batches of a split backward. All trained blocks are run in
a full fine-tune under autocast, and, if gradients are needed, with sharded or offloaded weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from besttake.models.checkpointing import LEVELS, GradientCheckpointing, is_attention, keep_attention, keep_inputs
from besttake.models.policy import Policy
from besttake.models.quantization import blocks
from besttake.models.sharding import is_sharded
from besttake.models.split_backward import recompute
from besttake.plan.meter import Meter, active, find_adapter


def reuse_equal_blocks(meter: Meter, network: Any) -> Callable[[GradientCheckpointing], None]:
    """Patch a network so that of equal blocks only the first is run.

    Returns:
        A function that sets the network's gradient checkpointing.
    """
    forward, backward = meter.memoize(_forward), meter.memoize(partial(_backward, meter))
    attention = meter.memoize(partial(_kept_attention, meter))
    found = {module: Block(module) for module in blocks(network)}

    def run(block: Block, *args: Any, **kwargs: Any) -> Any:
        return block(*args, **kwargs) if block.trained and _casting() else forward(block, *args, **kwargs)

    def checkpoint_one(selective: bool, module: nn.Module, *args: Any) -> Any:
        """The checkpointing function that diffusers calls instead of a block."""
        block = found.get(module)
        if block is None or block.sharded or _casting():
            return keep_attention(module, *args) if selective else keep_inputs(module, *args)
        leaves, spec = tree_flatten(args)
        how = Checkpointing(block, spec, len(leaves), forward, backward, attention if selective else None)
        return _Checkpointed.apply(how, *leaves, *block.trained)

    for module, block in found.items():
        vars(module)["forward"] = partial(run, block)

    def set_level(level: GradientCheckpointing) -> None:
        if level == "none":
            network.disable_gradient_checkpointing()
        else:
            network.enable_gradient_checkpointing(partial(checkpoint_one, level == "selective"))

    return set_level


def cached_recompute(meter: Meter, policy: Policy) -> Callable[..., None]:
    """A replacement for `split_backward.recompute` that runs only the first of equal micro-batches."""
    if any(is_sharded(weight) for weight in policy.model.denoiser.parameters()):
        return recompute
    # the level as a number: the words of a key, which are prompts, do not count
    return meter.memoize(recompute, key=lambda policy, *rest: (LEVELS.index(policy.gradient_checkpointing), *rest))


class Block:
    """A block whose `repr` contains everything that its cost depends on."""

    def __init__(self, module: nn.Module):
        self._run = module.forward
        weights = dict(module.named_parameters())
        kind = type(module).__name__, [(name, w.shape, w.dtype, w.requires_grad) for name, w in weights.items()]
        self._kind, self._adapter = repr(kind), find_adapter(module)
        self.trained = [weight for weight in weights.values() if weight.requires_grad]
        self.sharded = any(map(is_sharded, weights.values()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)

    def __repr__(self) -> str:
        return f"{self._kind} {active(self._adapter)}"


@dataclass(frozen=True)
class Checkpointing:
    """How a block is checkpointed.

    Attributes:
        spec, count: structure and number of the leaves of its inputs.
        forward, backward: run it and back-propagate through it, memoized.
        kept: the outputs of its attention, where they are kept.
    """

    block: Block
    spec: TreeSpec
    count: int
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    kept: Callable[..., list[Tensor]] | None


class _Checkpointed(torch.autograd.Function):
    """A checkpointed block: only its inputs, and perhaps attention's outputs, are saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, how: Checkpointing, *inputs: Any) -> Any:
        ctx.how, leaves = how, inputs[: how.count]
        args = tree_unflatten(leaves, how.spec)
        ctx.kept = how.kept(how.block, *args) if how.kept else []
        ctx.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*(leaf for leaf in leaves if isinstance(leaf, Tensor)))
        ctx.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        return how.forward(how.block, *args)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        how = ctx.how
        leaves = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            leaves[place] = tensor
        wanted = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        return None, *how.backward(how.block, how.spec, leaves, wanted, upstream, bool(how.kept))


def _forward(block: Block, *args: Any, **kwargs: Any) -> Any:
    return block(*args, **kwargs)


def _backward(
    meter: Meter,
    block: Block,
    spec: TreeSpec,
    leaves: list[Any],
    wanted: list[int],
    upstream: Sequence[Tensor],
    attention_is_kept: bool,
) -> list[Any]:
    """Gradients of a block's inputs, where wanted, and of its trained weights."""
    leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    inputs = [*(leaves[place].requires_grad_() for place in wanted), *block.trained]
    kept = meter.without(is_attention) if attention_is_kept else nullcontext()
    with torch.enable_grad(), meter.free_after_last_saved(), kept:
        out = block(*tree_unflatten(leaves, spec))
    outs = zip([out] if isinstance(out, Tensor) else out, upstream, strict=True)
    edges, upstream = zip(*((get_gradient_edge(x), grad) for x, grad in outs if x.requires_grad), strict=True)
    del out, outs
    found = torch.autograd.grad(edges, inputs, upstream, allow_unused=True)
    gradients = dict(zip(wanted, found, strict=False))
    return [*(gradients.get(place) for place in range(len(leaves))), *found[len(wanted) :]]


def _kept_attention(meter: Meter, block: Block, *args: Any) -> list[Tensor]:
    """Tensors like the outputs of a block's attention."""
    outputs = AttentionOutputs()
    with meter.uncounted(), outputs:
        block(*args)
    return outputs.found


class AttentionOutputs(TorchDispatchMode):
    """Collects the outputs of attention kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if is_attention(func):
            self.found += [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        return out


def _casting() -> bool:
    """Whether autocast is on (a full fine-tune): its cache of cast trained weights lasts for the pass of all blocks."""
    return torch.is_autocast_enabled("cpu")
