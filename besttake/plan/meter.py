"""What running code costs: floating-point operations, seconds on a card, and memory by owner, phase by phase.

Every operation passes here on its way. Its result is memory from then on until nobody holds it any more; its time is
that of its arithmetic or that of reading and writing its tensors, whichever is longer.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from besttake.models.quantization import plain_tensors
from besttake.plan.cards import Card

aten = torch.ops.aten

REST = "activations"
"""The owner of what nobody has claimed: what a network computes on its way."""


@dataclass
class Phase:
    """A part of a step.

    Attributes:
        name: what it is called.
        flops: floating-point operations, a multiply-add being two.
        seconds: on the card.
        peak: bytes at the fullest moment; `owners` tells whose they were.
    """

    name: str
    flops: float = 0.0
    seconds: float = 0.0
    peak: int = 0
    owners: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Throughput:
    """How fast a card is thought to be.

    Attributes:
        efficiency: share of the published rate that arithmetic reaches.
        bandwidth: share of the published bandwidth that reading and writing reach.
    """

    card: Card
    efficiency: float
    bandwidth: float = 0.8

    def seconds(self, flops: float, nbytes: float, rate: float) -> float:
        """
        Args:
            rate: TFLOP/s, as published.
        """
        arithmetic = flops / (rate * 1e12 * self.efficiency)
        return max(arithmetic, nbytes / (self.card.bandwidth * 1e12 * self.bandwidth))

    def rate(self, func: Any, dtype: torch.dtype) -> float:
        """TFLOP/s, as published, of an operation on tensors of a dtype."""
        if dtype != torch.float32:
            return self.card.half
        return self.card.tensor32 if "convolution" in str(func) else self.card.single


class Meter(TorchDispatchMode):
    """Within this context every operation on `device` is measured."""

    def __init__(self, device: torch.device, pace: Throughput):
        super().__init__()
        self.device, self.pace = device, pace
        self.phases: dict[str, Phase] = {}
        self.live: Counter[str] = Counter()
        self._held: dict[int, _Held] = {}
        self._within = [Phase("")]

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """What happens within counts for this phase, and not for one around it."""
        with self._into(self.phases.setdefault(name, Phase(name))) as phase:
            yield phase

    def again(self) -> None:
        """Forget the phases so far; what is in memory stays."""
        self.phases.clear()

    def claim(self, owner: str, tensors: Iterable[Tensor]) -> None:
        """From now on the memory of these tensors belongs to `owner`."""
        for tensor in filter(self._is_here, itertools.chain.from_iterable(map(plain_tensors, tensors))):
            self._note(tensor)
            held = self._held[tensor.untyped_storage()._cdata]
            self.live[held.owner] -= held.size
            self.live[owner] += held.size
            held.owner = owner

    def once(self, work: Callable[..., Any], phase: str = "") -> Callable[..., Any]:
        """The same function, but of calls that differ in no shape only the first is run; the others cost as much.

        Calls that carry gradients are all run.

        Args:
            phase: what the work counts for; by default what it is called in.
        """
        seen: dict[Any, tuple[Phase, Counter[str], Any]] = {}

        @functools.wraps(work)
        def replayed(*args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                return work(*args, **kwargs)
            with self.phase(phase) if phase else nullcontext():
                key = self._within[-1].name, str(tree_map(_look, (args, kwargs)))
                if key in seen:
                    cost, extra, out = seen[key]
                    now = self.live.copy()
                    now.update(extra)
                    self._charge(cost, now)
                    with self._into(Phase("")):  # writing it is charged already
                        out = tree_map_only(_Look, _Look.again, out)
                    self._mark(self.live)
                    return out
                before = self.live.copy()
                with self._into(Phase(self._within[-1].name)) as cost:
                    out = work(*args, **kwargs)
                extra = cost.owners.copy()
                extra.subtract(before)
                seen[key] = cost, extra, tree_map_only(Tensor, _look, out)
                self._charge(cost, cost.owners)
                return out

        return replayed

    @contextmanager
    def until_saved(self) -> Iterator[None]:
        """What is done within, after the last tensor that is kept for a gradient, costs nothing.

        A checkpointed forward that is run once more stops there.
        """
        phase = self._within[-1]
        cost = phase.flops, phase.seconds

        def kept(tensor: Tensor) -> Tensor:
            nonlocal cost
            cost = phase.flops, phase.seconds
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            yield
        phase.flops, phase.seconds = cost

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not PLAIN.issuperset(types):  # of a quantized weight: what it does to its own parts comes by here next
            return NotImplemented
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if self._is_here(leaf)]
        if results and not func.is_view:
            self._work(func, args, kwargs, out, results)
            for result in results:
                self._note(result)
        return out

    @contextmanager
    def _into(self, phase: Phase) -> Iterator[Phase]:
        self._within.append(phase)
        self._mark(self.live)
        try:
            yield phase
        finally:
            self._within.pop()

    def _charge(self, cost: Phase, fullest: Counter[str]) -> None:
        """Add work that was measured apart, at whose fullest moment memory was this."""
        phase = self._within[-1]
        phase.flops, phase.seconds = phase.flops + cost.flops, phase.seconds + cost.seconds
        self._mark(fullest)

    def _mark(self, owners: Counter[str]) -> None:
        phase, total = self._within[-1], owners.total()
        if total > phase.peak:
            phase.peak, phase.owners = total, owners.copy()

    def _work(self, func: Any, args: Any, kwargs: Any, out: Any, results: Sequence[Tensor]) -> None:
        formula = FORMULAS.get(func._overloadpacket)
        flops = formula(*args, **kwargs, out_val=out) if formula else 0
        nbytes = sum(leaf.nbytes for leaf in (*tree_leaves((args, kwargs)), *results) if self._is_here(leaf))
        phase = self._within[-1]
        phase.flops += flops
        phase.seconds += self.pace.seconds(flops, nbytes, self.pace.rate(func, results[0].dtype))

    def _is_here(self, leaf: Any) -> bool:
        device = leaf.fake_device if isinstance(leaf, FakeTensor) else getattr(leaf, "device", None)
        return device == self.device and isinstance(leaf, Tensor) and not hasattr(leaf, "__tensor_flatten__")

    def _note(self, tensor: Tensor) -> None:
        """Count a tensor's memory until nobody holds it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held[key] = _Held(REST, size, weakref.ref(storage, lambda _: self._free(key)))
            self.live[REST] += size
            self._mark(self.live)

    def _free(self, key: int) -> None:
        held = self._held.pop(key)
        self.live[held.owner] -= held.size


@dataclass
class _Held:
    owner: str
    size: int
    until: weakref.ref


@dataclass(frozen=True)
class _Look:
    """All that a cost depends on of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def again(self) -> Tensor:
        return torch.ones(self.shape, dtype=self.dtype, device=self.device)


def adapter(network: nn.Module) -> Any:
    """Which LoRA is at work in a network, if one is."""
    layer = next((part for part in network.modules() if isinstance(part, BaseTunerLayer)), None)
    return layer and (layer._active_adapter, layer._disable_adapters)


def _look(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return _Look(tuple(leaf.shape), leaf.dtype, leaf.device)
    if isinstance(leaf, nn.Module):
        return id(leaf), adapter(leaf)
    return type(leaf) if isinstance(leaf, str | torch.Generator) else leaf


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


FORMULAS: dict[Any, Callable[..., float]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""PyTorch's own, and those of its fused attention on a CPU, which it leaves out."""

PLAIN = {Tensor, nn.Parameter, nn.Buffer, FakeTensor}
