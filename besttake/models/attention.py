"""Attention backends of diffusers: which are installed, whether they are right for a network's calls, and how fast.

All networks call attention through diffusers' dispatcher, so that one backend can be set for all of them. An exact
backend differs from PyTorch's by rounding only. Approximate ones (SageAttention quantizes queries and keys) are never
chosen automatically.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    _check_attention_backend_requirements,
    _maybe_download_kernel_for_backend,
    dispatch_attention_fn,
)
from torch import Tensor

from besttake.runtime.distributed import context_mesh
from besttake.runtime.memory import free_memory, out_of_memory

log = logging.getLogger(__name__)

NATIVE = AttentionBackendName.NATIVE.value

EXACT = (
    *(NATIVE, "_native_cudnn", "_native_flash", "_native_efficient"),
    *("_flash_3", "flash", "_flash_varlen_3", "flash_varlen", "xformers"),
)
"""Backends that `auto` tries where they are installed."""

KEPT = ("attn_mask", "is_causal", "scale", "enable_gqa")
"""Arguments of attention, besides queries, keys and values, that matter to its result."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2**-8, torch.bfloat16: 2**-6}
"""Largest relative difference from PyTorch's attention: a few units of the dtype's rounding."""


@dataclass(frozen=True)
class Call:
    """A call of attention: queries, keys and values `b tokens heads channels`, and its other arguments."""

    tensors: tuple[Tensor, Tensor, Tensor]
    arguments: dict[str, Any]

    def run(self, backend: str) -> Tensor:
        name = AttentionBackendName(backend)
        arguments = dict(zip(("query", "key", "value"), self.tensors, strict=True)) | self.arguments
        for check in _AttentionBackendRegistry._constraints[name]:
            check(**arguments)
        return dispatch_attention_fn(**arguments, backend=name)

    def results(self, backend: str) -> list[Tensor]:
        """The output, and the gradients of queries, keys and values."""
        with torch.enable_grad():
            q, k, v = (tensor.detach().requires_grad_() for tensor in self.tensors)
            out = Call((q, k, v), self.arguments).run(backend)
            return [out.detach(), *torch.autograd.grad(out, (q, k, v), self.tensors[0].detach())]


@dataclass(frozen=True)
class Trial:
    """How a backend did on a network's calls.

    Attributes:
        seconds: of all calls, once forward and once forward and backward.
        difference: the largest relative difference of an output or a gradient from PyTorch's attention.
        fault: why it cannot be used; "" if it can.
    """

    backend: str
    seconds: float = float("inf")
    difference: float = 0.0
    fault: str = ""


def is_approximate(backend: str) -> bool:
    """Whether a backend's results differ from PyTorch's by more than rounding."""
    return "sage" in backend


def check_name(backend: str, approximate: bool = False) -> None:
    """ValueError unless there is such a backend and it is installed.

    Args:
        approximate: whether it may be an approximate one.
    """
    known = sorted(name.value for name in _AttentionBackendRegistry.list_backends())
    if backend not in known:
        raise ValueError(f"there is no attention backend '{backend}'; expected auto or one of {', '.join(known)}")
    if is_approximate(backend) and not approximate:
        raise ValueError(
            f"the attention backend '{backend}' is approximate, and training needs an exact one; "
            "for rollouts alone, set rollout.attention"
        )
    if fault := missing(backend):
        installed = ", ".join(name for name in EXACT if not missing(name))
        raise ValueError(f"the attention backend '{backend}' cannot be used: {fault}; installed: {installed}")


def check_splits(backend: str, processes: int) -> None:
    """ValueError if the tokens of a clip are split over processes (`parallel.context`) and a backend cannot do that."""
    if processes > 1 and not splits(backend):
        raise ValueError(
            f"the attention backend '{backend}' does not work with parallel.context: {processes}; expected one of "
            f"{', '.join(sorted(_AttentionBackendRegistry._supports_context_parallel))}"
        )


def splits(backend: str) -> bool:
    """Whether a backend works if the tokens of a clip are split over processes."""
    return backend in _AttentionBackendRegistry._supports_context_parallel


def exact_backends() -> list[str]:
    """The backends that `auto` tries, of this process group."""
    return [name for name in EXACT if context_mesh() is None or splits(name)]


def missing(backend: str) -> str:
    """Why a backend cannot be used on this machine; "" if it can."""
    try:
        _check_attention_backend_requirements(AttentionBackendName(backend))
        _maybe_download_kernel_for_backend(AttentionBackendName(backend))
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        return str(error).splitlines()[0]
    return ""


def set_attention(denoiser: Any, backend: str) -> None:
    """Set a denoiser's attention backend."""
    for holder in _holders(denoiser):
        vars(holder)["_attention_backend"] = None if backend == NATIVE else AttentionBackendName(backend)


def attention_of(denoiser: Any) -> str:
    """The backend that is set for a denoiser."""
    name = next((holder._attention_backend for holder in _holders(denoiser)), None)
    return AttentionBackendName(name or NATIVE).value


def _holders(denoiser: Any) -> Iterator[Any]:
    """The modules and attention processors of a denoiser that have an attention backend."""
    found = (part for module in denoiser.modules() for part in (module, getattr(module, "processor", None)))
    return (part for part in found if hasattr(part, "_attention_backend"))


@contextmanager
def attention(denoisers: Collection[Any], backend: str | None) -> Iterator[None]:
    """Context in which denoisers have another attention backend; None = the one that is set."""
    if backend:
        check_name(backend, approximate=True)
        check_splits(backend, 1 if context_mesh() is None else 2)
    before = [attention_of(denoiser) for denoiser in denoisers]
    try:
        for denoiser in denoisers if backend else ():
            set_attention(denoiser, str(backend))
        yield
    finally:
        for denoiser, name in zip(denoisers, before, strict=True) if backend else ():
            set_attention(denoiser, name)


def choose(
    denoisers: Collection[Any], wanted: str, run: Callable[[], object], exact: Collection[str] | None = None
) -> str:
    """The fastest exact backend for a network's calls, or the wanted one.

    Args:
        wanted: auto, or a backend that `check_name` accepts.
        run: a pass of the network, without gradients, whose calls are tried.
        exact: the backends that `auto` tries; by default all that work in this process group.

    Raises:
        ValueError: the wanted backend cannot be used for these calls, or differs from PyTorch's attention.
    """
    exact = exact_backends() if exact is None else exact
    names = [name for name in exact if not missing(name)] if wanted == "auto" else [wanted]
    if names == [NATIVE]:
        return NATIVE
    calls = record_calls(denoisers, run)
    if not calls and wanted != "auto":
        raise ValueError(
            f"attention is '{wanted}', but the model does not use diffusers' attention dispatcher; leave it out"
        )
    trials = [try_backend(name, calls) for name in names]
    if wanted != "auto" and (fault := trials[0].fault):
        raise ValueError(f"attention is '{wanted}', which cannot be used here: {fault}; set another, or auto")
    for trial in trials:
        log.info("attention backend %s: %s", trial.backend, trial.fault or f"{1e3 * trial.seconds:.2f} ms")
    right = [trial for trial in trials if not trial.fault]
    return min(right, key=lambda trial: trial.seconds).backend if right and calls else NATIVE


def record_calls(denoisers: Collection[Any], run: Callable[[], object]) -> list[Call]:
    """The attention calls of a pass, one of each kind (shapes, dtypes and arguments)."""
    calls: dict[str, Call] = {}
    native = _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE]

    def recording(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
        kept = {name: value for name, value in arguments.items() if name in KEPT}
        shapes = [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in (query, key, value, *kept.values())]
        calls.setdefault(repr(shapes), Call((query, key, value), kept))
        return native(query=query, key=key, value=value, **arguments)

    _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE] = recording
    try:
        with torch.no_grad(), attention(denoisers, NATIVE):
            run()
    finally:
        _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE] = native
    return list(calls.values())


def try_backend(backend: str, calls: Collection[Call]) -> Trial:
    """Compare a backend with PyTorch's attention, and time it."""
    difference, seconds = 0.0, 0.0
    for call in calls:
        try:
            found, expected = call.results(backend), call.results(NATIVE)
            difference = max([difference, *map(_relative_difference, found, expected)])
            if not difference <= TOLERANCE[call.tensors[0].dtype]:
                return Trial(backend, difference=difference, fault=f"it differs by {difference:.2g} from PyTorch's")
            seconds += _seconds(partial(call.run, backend)) + _seconds(partial(call.results, backend))
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            if out_of_memory(error):  # which says nothing about the backend
                free_memory(error)
                return Trial(backend)
            return Trial(backend, fault=next(iter(str(error).splitlines()), type(error).__name__))
    return Trial(backend, seconds, difference)


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the expected norm; rows that attend to nothing are left out."""
    found, expected = found.float(), expected.float()
    known = expected.isfinite()
    return float((found - expected)[known].norm() / expected[known].norm().clamp(min=1e-12))


def _seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Shortest of some runs, after one that warms up."""
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:])
