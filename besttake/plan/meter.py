"""Meter of running code: FLOPs, seconds on a card, and memory by owner, for each phase.

It is a dispatch mode that sees every operation. A result counts as memory until its storage is freed. An operation's
time is that of its FLOPs or of its memory traffic, whichever is longer (a roofline model).
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
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from besttake.models.lora import adapter_layers
from besttake.models.quantization import plain_tensors
from besttake.plan.cards import Card
from besttake.plan.rates import NARROW, Rates, by_width, rates_of, uniform

aten = torch.ops.aten

UNCLAIMED = "activations"
"""Owner of all memory that is not claimed: intermediate results."""


@dataclass
class Phase:
    """Cost of a part of a step.

    Attributes:
        flops: floating-point operations; a multiply-add counts as two.
        seconds: time on the card.
        peak: peak memory in bytes.
        owners: the peak memory by owner.
    """

    name: str
    flops: float = 0.0
    seconds: float = 0.0
    peak: int = 0
    owners: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Throughput:
    """Assumed speed of a card.

    Attributes:
        efficiency: fraction of the published FLOP/s that is reached; None = as measured, by family of operation.
    """

    card: Card
    efficiency: float | None = None

    @functools.cached_property
    def rates(self) -> Rates:
        """The fractions of the published rates that are reached."""
        return rates_of(self.card) if self.efficiency is None else uniform(self.efficiency)

    def seconds(self, func: Any, like: Tensor, flops: float, nbytes: float) -> float:
        """Time of an operation.

        Args:
            like: its result; of attention, with the channels of a head last.
        """
        name, rates = str(func), self.rates
        narrow = "layer_norm" in name and like.shape[-1] <= NARROW
        memory = nbytes / (self.card.bandwidth * 1e12 * (rates.narrow_norm if narrow else rates.bandwidth))
        arithmetic = flops / self.flops_per_second(name, like) if flops else 0.0
        return max(memory, arithmetic) * rates.gaps

    def flops_per_second(self, name: str, like: Tensor) -> float:
        """FLOP/s of the operations of a name."""
        card, rates, single = self.card, self.rates, like.dtype == torch.float32
        if "convolution" in name:
            rate = card.tensor32 * rates.convolution32 if single else card.half * rates.convolution
        elif single:
            rate = card.single * rates.linear32
        elif "attention" in name:
            widths = rates.attention_backward if "backward" in name else rates.attention
            rate = card.half * by_width(widths, like.shape[-1])
        else:
            rate = card.half * rates.linear
        return rate * 1e12


class Meter(TorchDispatchMode):
    """Context in which every operation on `device` is measured."""

    def __init__(self, device: torch.device, throughput: Throughput):
        super().__init__()
        self.device, self.throughput = device, throughput
        self.phases: dict[str, Phase] = {}
        self.live: Counter[str] = Counter()
        self._held: dict[int, _Allocation] = {}
        self._within = [Phase("")]
        self._free_work: Callable[[Any], bool] = lambda func: False

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Context whose operations count towards this phase, not towards an enclosing one."""
        with self._into(self.phases.setdefault(name, Phase(name))) as phase:
            yield phase

    def reset(self) -> None:
        """Clear the phases measured so far; allocated memory stays allocated."""
        self.phases.clear()

    def claim(self, owner: str, tensors: Iterable[Tensor]) -> None:
        """Assign the memory of these tensors to `owner`."""
        for tensor in filter(self._is_on_device, itertools.chain.from_iterable(map(plain_tensors, tensors))):
            self._track(tensor)
            held = self._held[tensor.untyped_storage()._cdata]
            self.live[held.owner] -= held.size
            self.live[owner] += held.size
            held.owner = owner

    def memoize(
        self,
        work: Callable[..., Any],
        phase: str = "",
        key: Callable[..., Any] | None = None,
    ) -> Callable[..., Any]:
        """Memoize `work`: of calls with equal shapes only the first is run, and its cost charged for the others.

        Calls with gradients enabled are always run.

        Args:
            phase: phase that the work counts towards; by default the current one.
            key: what the cost of a call depends on; by default all its arguments.
        """
        seen: dict[Any, tuple[Phase, Counter[str], Any]] = {}

        @functools.wraps(work)
        def replayed(*args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                return work(*args, **kwargs)
            with self.phase(phase) if phase else nullcontext():
                leaves, structure = tree_flatten(key(*args, **kwargs) if key else (args, kwargs))
                found = str(structure), *map(_key, leaves)
                if found in seen:
                    cost, extra, out = seen[found]
                    now = self.live.copy()
                    now.update(extra)
                    self._charge(cost, now)
                    with self._into(Phase("")):  # already charged
                        out = tree_map_only(_TensorSpec, _TensorSpec.reset, out)
                    self._update_peak(self.live)
                    return out
                before = self.live.copy()
                with self._into(Phase(self._within[-1].name)) as cost:
                    out = work(*args, **kwargs)
                extra = cost.owners.copy()
                extra.subtract(before)
                seen[found] = cost, extra, tree_map_only(Tensor, _spec, out)
                self._charge(cost, cost.owners)
                return out

        return replayed

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Context whose operations count towards no phase."""
        with self._into(Phase("")):
            yield

    @contextmanager
    def without(self, free: Callable[[Any], bool]) -> Iterator[None]:
        """Context in which some operations take no time: those for which `free` is true."""
        before, self._free_work = self._free_work, free
        try:
            yield
        finally:
            self._free_work = before

    @contextmanager
    def free_after_last_saved(self) -> Iterator[None]:
        """Context whose operations after the last tensor saved for backward are free.

        There the recomputed forward of a checkpointed block stops.
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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and skipping costs more than measuring

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is QUERY and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if not PLAIN.issuperset(types):  # a quantized weight, whose inner operations are dispatched here next
            return NotImplemented
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if self._is_on_device(leaf)]
        if results and not func.is_view:
            if not self._free_work(func):
                self._work(func, args, kwargs, out, results)
            for result in results:
                self._track(result)
        return out

    @contextmanager
    def _into(self, phase: Phase) -> Iterator[Phase]:
        self._within.append(phase)
        self._update_peak(self.live)
        try:
            yield phase
        finally:
            self._within.pop()

    def _charge(self, cost: Phase, fullest: Counter[str]) -> None:
        """Add a separately measured cost, with this memory at its peak."""
        phase = self._within[-1]
        phase.flops, phase.seconds = phase.flops + cost.flops, phase.seconds + cost.seconds
        self._update_peak(fullest)

    def _update_peak(self, owners: Counter[str]) -> None:
        phase, total = self._within[-1], owners.total()
        if total > phase.peak:
            phase.peak, phase.owners = total, owners.copy()

    def _work(self, func: Any, args: Any, kwargs: Any, out: Any, results: Sequence[Tensor]) -> None:
        formula = FORMULAS.get(func._overloadpacket)
        flops = formula(*args, **kwargs, out_val=out) if formula else 0
        nbytes = sum(leaf.nbytes for leaf in (*tree_leaves((args, kwargs)), *results) if self._is_on_device(leaf))
        phase = self._within[-1]
        phase.flops += flops
        phase.seconds += self.throughput.seconds(func, results[0], flops, nbytes)

    def _is_on_device(self, leaf: Any) -> bool:
        device = leaf.fake_device if isinstance(leaf, FakeTensor) else getattr(leaf, "device", None)
        return device == self.device and isinstance(leaf, Tensor) and not hasattr(leaf, "__tensor_flatten__")

    def _track(self, tensor: Tensor) -> None:
        """Count a tensor's memory until its storage is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held[key] = _Allocation(UNCLAIMED, size, weakref.ref(storage, lambda _: self._free(key)))
            self.live[UNCLAIMED] += size
            self._update_peak(self.live)

    def _free(self, key: int) -> None:
        held = self._held.pop(key)
        self.live[held.owner] -= held.size


@dataclass
class _Allocation:
    owner: str
    size: int
    until: weakref.ref


@dataclass(frozen=True)
class _TensorSpec:
    """The properties of a tensor that a cost depends on."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def reset(self) -> Tensor:
        return torch.ones(self.shape, dtype=self.dtype, device=self.device)


def find_adapter(network: nn.Module) -> BaseTunerLayer | None:
    """A layer with LoRA adapters of a network, if there is one; looked up once, when they have been added."""
    if network not in ADAPTERS:
        ADAPTERS[network] = next(iter(adapter_layers(network)), None)
    return ADAPTERS[network]


def active(layer: BaseTunerLayer | None) -> Any:
    """The active adapter of a layer."""
    return layer and (str(layer._active_adapter), layer._disable_adapters)


def _spec(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return _TensorSpec(tuple(leaf.shape), leaf.dtype, leaf.device)
    if isinstance(leaf, nn.Module):
        return id(leaf), active(find_adapter(leaf))
    return type(leaf) if isinstance(leaf, str | torch.Generator) else leaf


def _key(leaf: Any) -> Any:
    """What a cost depends on, hashable."""
    spec = _spec(leaf)
    return spec if isinstance(spec, _TensorSpec | tuple | type) else str(spec)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


FORMULAS: dict[Any, Callable[..., float]] = {
    **flop_registry,
    aten.addmm_: flop_registry[aten.addmm],
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""FLOP formulas of PyTorch, and of what it lacks: its fused CPU attention, and `addmm` in place."""

ADAPTERS: weakref.WeakKeyDictionary[nn.Module, BaseTunerLayer | None] = weakref.WeakKeyDictionary()

QUERY = torch.ops.prim.device.default
"""What `tensor.device` calls: half of all operations, and answered at once."""

PLAIN = {Tensor, nn.Parameter, nn.Buffer, FakeTensor}
