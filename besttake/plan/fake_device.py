"""A fake graphics card: the library's own code runs on it with tensors that take no memory.

Every tensor is fake (PyTorch's `FakeTensorMode`): it has a shape, a dtype and a device, but no values. Small tensors
keep their values nevertheless, since samplers look up timesteps and text encoders look up padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

CARD = torch.device("cpu", 1)
"""The fake card: a second CPU device. It needs no driver, and differs from the host's device."""

SMALL = 2**15
"""Tensors of up to so many elements keep their values."""

aten = torch.ops.aten
DATA_DEPENDENT = {aten.nonzero.default, aten._local_scalar_dense.default, aten.masked_select.default}
"""Operations whose result, or its shape, depends on the values."""

NEVER_COMPUTED = {aten.convolution.default, aten.native_group_norm.default}
"""Operations whose values are never needed, and whose real kernels give other memory layouts than the fake ones."""


@contextmanager
def fake_device() -> Iterator[None]:
    """Context in which tensors take no memory and CARD exists."""
    fakes = _Fakes(allow_non_fake_inputs=True)
    with (
        fakes,
        _SmallTensorValues(fakes),
        patch.object(FakeTensor, "data", property(Tensor.data.__get__, _set_data)),  # type: ignore[attr-defined]
        patch.object(FakeTensor, "numpy", _zeros),
        patch.object(torch, "tensor", _tensor),
    ):
        yield


real_device = _disable_current_modes
"""Context in which tensors are real, within `fake_device`."""


def known_values(tensor: Tensor) -> Tensor | None:
    """The values of a tensor, on the CPU, if they are known."""
    if isinstance(tensor, FakeTensor):
        held = getattr(tensor, "held", None)
        return held and held.numbers
    return tensor if tensor.numel() <= SMALL else None


@dataclass
class _Values:
    """The values of a small fake tensor, stored as its attribute `held`."""

    numbers: Tensor

    def __deepcopy__(self, memo: dict) -> _Values:
        with real_device():
            return _Values(self.numbers.clone())


class _Fakes(FakeTensorMode):
    """`FakeTensorMode` in which modules can be moved and copied."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        # Its memo holds weak references to tensors, which make `module.to` fail.
        self.fake_tensor_converter.set_tensor_memo = lambda tensor, fake: None  # type: ignore[method-assign, assignment]

    def __deepcopy__(self, memo: dict) -> _Fakes:
        return self  # a copied tensor keeps its mode


def _set_data(tensor: Any, other: Tensor) -> None:
    """`tensor.data = other`, which also changes the device and the values of a fake tensor."""
    Tensor.data.__set__(tensor, other)  # type: ignore[attr-defined]
    if isinstance(other, FakeTensor):
        tensor.fake_device, tensor.held = other.fake_device, getattr(other, "held", None)


def _zeros(tensor: FakeTensor) -> Any:
    """`tensor.numpy()` of a fake tensor: zeros."""
    with real_device():
        return torch.zeros(tensor.shape, dtype=tensor.dtype).numpy()


def _tensor(data: Any, *, device: Any = None, _make: Any = torch.tensor, **kwargs: Any) -> Tensor:
    """`torch.tensor`, which can also create tensors on CARD."""
    if device != CARD:
        return _make(data, device=device, **kwargs)
    on_cpu = _make(data, device="cpu", **kwargs)
    return torch.empty(on_cpu.shape, dtype=on_cpu.dtype, device=CARD).copy_(on_cpu)


class _SmallTensorValues(TorchDispatchMode):
    """Also runs small operations on known values for real, so that the result's values are known."""

    def __init__(self, fakes: FakeTensorMode):
        super().__init__()
        self.fakes = fakes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and skipping costs more than the rest of the dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # a query of the device
            return func(*args, **kwargs)
        if func is aten.index.Tensor:
            args = args[0], [place for index in args[1] for place in self._places(index)]
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for leaf in leaves:
            if isinstance(leaf, FakeTensor):
                leaf.constant = None  # PyTorch's own note of a single number, which would stay on the host
        numbers = [known_values(leaf) for leaf in leaves]
        computable = func not in NEVER_COMPUTED and all(number is not None for number in numbers)
        if func in DATA_DEPENDENT:
            return self._shaped(func, args, kwargs, leaves, computable)
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, FakeTensor)]
        touched = results or (leaves if func._schema.is_mutable else [])  # in-place operations on lists return nothing
        if touched and computable and all(leaf.numel() <= SMALL for leaf in touched):
            real = [leaf for leaf in tree_leaves(_compute(func, args, kwargs)) if isinstance(leaf, Tensor)]
            for result, number in zip(results, real, strict=True):
                result.held = _Values(number)  # type: ignore[attr-defined]
        elif func._schema.is_mutable:
            for leaf in touched:
                leaf.held = None  # type: ignore[attr-defined]
        return out

    def _shaped(self, func: Any, args: Any, kwargs: Any, leaves: list[Tensor], computable: bool) -> Any:
        if not computable:
            raise NotImplementedError(f"{func} needs values, which are unknown on a fake device")
        real = _compute(func, args, kwargs)
        return self._fake(real, leaves[0].device) if isinstance(real, Tensor) else real

    def _places(self, index: Any) -> list[Any]:
        """An index; a mask with known values as the indices where it is true."""
        if not isinstance(index, Tensor) or index.dtype != torch.bool or (mask := known_values(index)) is None:
            return [index]
        with unset_fake_temporarily():
            places = mask.nonzero().unbind(1)
        return [self._fake(place, index.device) for place in places]

    def _fake(self, real: Tensor, device: torch.device) -> Tensor:
        with self.fakes:
            fake = torch.empty(real.shape, dtype=real.dtype, device=device)
        fake.held = _Values(real)  # type: ignore[attr-defined]
        return fake


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    """The real result of an operation on known values, on the CPU."""
    args, kwargs = tree_map_only(Tensor, known_values, (args, kwargs))
    kwargs = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}
    with unset_fake_temporarily():
        return func(*args, **kwargs)
