"""Distributed execution: every process runs the same program on its shard of the rows, and results are gathered.

`torchrun` and `accelerate launch` start the processes; in a single process the functions here do nothing. Rows (the
videos of a rollout, the clips of a loss) are split evenly, and each process's results are gathered, so that all later
computation is the same on every process. If the rows do not divide evenly, the last one is computed repeatedly and the
copies dropped: every process needs the same number of forward passes when the weights are sharded.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from besttake.runtime.configuration import require

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class ParallelConfig:
    """Parallelism beyond data parallelism, by which each process works on its own rows."""

    shard: int = 1
    """Processes over which the weights are sharded (FSDP2); 1 = no sharding."""
    context: int = 1
    """Processes over which the tokens of each clip are split (context parallelism), for long clips (Wan only)."""
    timeout: float = 10.0
    """Minutes to wait for the other processes before giving up."""

    def __post_init__(self):
        require(self.shard >= 1, "shard", self.shard, "1 or more")
        require(self.context >= 1, "context", self.context, "1 or more")
        require(self.timeout > 0, "timeout", self.timeout, "minutes, more than 0")


EVALUATION_PARALLEL = ParallelConfig(timeout=24 * 60)
"""For evaluation: no sharding, and a timeout as long as one process's part of an evaluation may take."""


@dataclass(frozen=True)
class Group:
    """The process groups of this process.

    Attributes:
        rank, size: the rank of this process and the number of processes.
        control_group: group for control messages, separate from that of tensors, so that they are not mixed up if only
            one process fails.
        failure_group: group used when a process has failed or is ending, while others may be waiting in
            `control_group`.
        copies: mesh (replicas of the weights, shards of one replica).
        clips: mesh (row shards, 1, context-parallel processes of one row shard).
    """

    config: ParallelConfig
    rank: int
    size: int
    control_group: dist.ProcessGroup
    failure_group: dist.ProcessGroup
    copies: DeviceMesh
    clips: DeviceMesh


_group: Group | None = None


class OtherProcessError(RuntimeError):
    """Another process has failed; the message says which one and why."""


def init_processes(config: ParallelConfig, device: str) -> None:
    """Initialise the process group of the launcher's processes, unless it is initialised already.

    Raises:
        ValueError: the number of processes is no multiple of `config.shard` and `config.context`.
    """
    global _group
    size = int(os.environ.get("WORLD_SIZE", "1"))
    for name, some in (("shard", config.shard), ("context", config.context)):
        if size % some:
            processes = "is 1 process" if size == 1 else f"are {size} processes"
            raise ValueError(
                f"parallel.{name} is {some}, but there {processes}: start a multiple of {some} "
                f"(torchrun --nproc-per-node {some} -m besttake train ...), or set it to 1"
            )
    if size == 1 or (_group and _group.config == config):
        return
    wait = timedelta(minutes=config.timeout)
    if not dist.is_initialized():
        if on_gpu := device.startswith("cuda"):
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=wait)
    control, failure = (dist.new_group(backend="gloo", timeout=wait) for _ in range(2))
    _group = make_group(config, torch.device(device).type, control, failure)
    if not is_main():
        logging.getLogger("besttake").setLevel(logging.ERROR)  # only process 0 logs


def make_group(config: ParallelConfig, kind: str, control: dist.ProcessGroup, failure: dist.ProcessGroup) -> Group:
    """The process groups and meshes for devices of a kind."""
    rank, size = dist.get_rank(), dist.get_world_size()
    copies = init_device_mesh(kind, (size // config.shard, config.shard), mesh_dim_names=("replicate", "shard"))
    clips = init_device_mesh(
        kind, (size // config.context, 1, config.context), mesh_dim_names=("rows", "ring", "ulysses")
    )  # the last two are diffusers' names
    return Group(config, rank, size, control, failure, copies, clips)


def end_processes() -> None:
    """Destroy the process group after a barrier."""
    global _group
    if _group:
        barrier()
        _group = None
        dist.destroy_process_group()


def is_main() -> bool:
    """Whether this is process 0, which writes the run's files and logs."""
    return _group is None or _group.rank == 0


def control_group() -> dist.ProcessGroup | None:
    """The group for control messages; None in a single process."""
    return _group.control_group if _group else None


def is_single_process() -> bool:
    """Whether there is only one process."""
    return _group is None


def shard_mesh() -> DeviceMesh | None:
    """The mesh over which weights are sharded; None without sharding."""
    return _group.copies if _group and _group.config.shard > 1 else None


def local_mesh(device: str) -> DeviceMesh:
    """A mesh of this process only."""
    if _group is None and not dist.is_initialized():
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return _group.copies["shard"] if _group else init_device_mesh(torch.device(device).type, (1,))


def context_mesh() -> DeviceMesh | None:
    """The context-parallel mesh in diffusers' format; None without context parallelism."""
    return _group.clips["ring", "ulysses"] if _group and _group.config.context > 1 else None


# Rows ----------------------------------------------------------------------------------------------------------------


def shard_rows(rows: int) -> list[int]:
    """The consecutive rows of this process; the last of all rows may be repeated, so that shards have equal length."""
    if _group is None:
        return list(range(rows))
    shard, shards = _row_shard()
    each = -(-rows // shards)
    return [min(row, rows - 1) for row in range(shard * each, (shard + 1) * each)]


def own_rows(rows: int) -> list[int]:
    """The consecutive rows of this process without repetition; possibly none."""
    shard, shards = _row_shard() if _group else (0, 1)
    each = -(-rows // shards)
    return list(range(rows))[shard * each : (shard + 1) * each]


def shard_items(items: Sequence[T]) -> list[T]:
    """This process's part of items that one process makes and all others read from disk; empty in a single process."""
    return [] if _group is None else [items[i] for i in dict.fromkeys(shard_rows(len(items)))]


def divides_evenly(rows: int) -> bool:
    """Whether the rows divide evenly among the processes."""
    return _group is None or rows % _row_shard()[1] == 0


def all_gather_rows(own: Tensor, rows: int) -> Tensor:
    """Gather each process's `shard_rows` into all `rows` on every process; the gradient flows to the own rows only."""
    if _group is None:
        return own
    shard, shards = _row_shard()
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(shards)]
    dist.all_gather(parts, own.detach().contiguous(), group=_group.clips.get_group("rows"))
    parts[shard] = own
    return torch.cat(parts)[:rows]


def any_process(true: Tensor) -> bool:
    """Whether it is true on any process if the weights are sharded; otherwise whether it is true here."""
    if shard_mesh() is None:
        return bool(true)
    found = true.to(torch.int)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def backward(loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Backpropagate a loss of gathered rows, adding the same gradient to `parameters` on every process.

    Each process computes the gradient of its own rows (or tokens); their sum is the gradient of the loss. It is reduced
    here once for all rows, since DDP's hooks need one backward pass per forward pass. FSDP2 reduces the gradients of
    sharded parameters itself.
    """
    if _group is None:
        loss.backward()
        return
    whole = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if not is_main():
        for parameter in whole:
            parameter.grad = None  # the sum of earlier losses must count only once
    loss.backward()
    used = torch.tensor([parameter.grad is not None for parameter in whole], dtype=torch.int)
    dist.all_reduce(used, dist.ReduceOp.MAX)
    sums = []
    for parameter, anywhere in zip(whole, used.tolist(), strict=True):
        if anywhere:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            sums.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in sums:
        work.wait()


# Control messages -----------------------------------------------------------------------------------------------------


def barrier() -> None:
    """Wait for all processes."""
    _all_gather(None)


@contextmanager
def failure_group(value: Any, seconds: float = 10.0) -> Iterator[bool]:
    """Context in which control messages use the failure group: a process has failed or is ending.

    Yields whether all processes enter within `seconds` with an equal `value`.
    """
    global _group
    if _group is None:
        yield True
        return
    group = _group
    try:
        dist.monitored_barrier(group.failure_group, timedelta(seconds=seconds), wait_all_ranks=True)
        _group = replace(group, control_group=group.failure_group)
        agreed = len({repr(given) for given in _all_gather(value)}) == 1
    except RuntimeError:
        agreed = False
    try:
        yield agreed
    finally:
        _group = group


@contextmanager
def raise_on_all() -> Iterator[None]:
    """Context in which an error on one process, such as of a critic, is raised on all.

    Raises:
        OtherProcessError: on the processes without an error of their own.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    gathered = _all_gather(failure and f"{type(failure).__name__}: {failure}")
    if failure:
        raise failure
    for number, complaint in enumerate(gathered):
        if complaint:
            raise OtherProcessError(f"process {number} failed: {complaint}")


def broadcast_from_main(make: Callable[[], T]) -> T:
    """Call `make` on process 0 and return the result on every process; an error is raised on all."""
    made = None
    with raise_on_all():
        if is_main():
            made = make()
    return _all_gather(made)[0]


def broadcast_tensor_from_main(make: Callable[[], Tensor | None]) -> Tensor | None:
    """Like `broadcast_from_main` for a tensor or None; the result is on the CPU."""
    made = None
    with raise_on_all():
        if is_main():
            made = make()
    if _group is None or (about := _all_gather(None if made is None else (made.shape, made.dtype))[0]) is None:
        return made
    shape, dtype = about
    made = torch.empty(shape, dtype=dtype) if made is None else made.detach().cpu().contiguous()
    dist.broadcast(made.flatten().view(torch.uint8), 0, group=_group.control_group)
    return made


@contextmanager
def single_process() -> Iterator[None]:
    """Context in which this process acts as a single process, without communication."""
    global _group
    group, _group = _group, None
    try:
        yield
    finally:
        _group = group


def all_gather_dict(own: Mapping[K, T]) -> dict[K, T]:
    """Merge the dicts of all processes into one on every process."""
    return {name: value for found in _all_gather(dict(own)) for name, value in found.items()}


def check_equal(values: Mapping[str, Any], position: int = 0) -> None:
    """ValueError on every process unless the values are equal on all; it names the processes and the difference.

    Args:
        values: values by name.
        position: only processes with the same position are compared.
    """
    gathered = _all_gather((position, dict(values)))
    first = dict(reversed(gathered))
    for name in values:
        others = [
            number for number, (position, given) in enumerate(gathered) if given.get(name) != first[position].get(name)
        ]
        if others:
            position, given = gathered[others[0]]
            raise ValueError(
                f"the processes do not agree on {name}: it is {first[position].get(name)!r} on process "
                f"{gathered.index((position, first[position]))}, {given.get(name)!r} on {', '.join(map(str, others))}"
            )


def check_equal_items(what: str, items: Iterable[str]) -> None:
    """ValueError on every process unless all have the same items in the same order; it names the first difference.

    Args:
        what: what the items are, for the message.
        items: a text for each item with everything that must be equal.
    """
    if _group is None:
        return
    given = list(items)
    hashes = _all_gather(hashlib.sha256(repr(given).encode()).hexdigest())
    others = [number for number, hash in enumerate(hashes) if hash != hashes[0]]
    if not others:
        return
    gathered = _all_gather(given if _group.rank in (0, others[0]) else None)
    pairs = enumerate(itertools.zip_longest(gathered[0], gathered[others[0]], fillvalue="missing"), start=1)
    position, (first, other) = next((position, pair) for position, pair in pairs if pair[0] != pair[1])
    raise ValueError(
        f"the processes do not agree on {what}: number {position} is {first} on process 0, {other} on "
        f"{', '.join(map(str, others))}"
    )


def all_reduce_counts(counts: Mapping[str, float]) -> dict[str, float]:
    """Sum the counts of all processes."""
    gathered = _all_gather(counts)
    return {name: sum(given[name] for given in gathered) for name in counts}


def weight_shard() -> int:
    """The index of this process's weight shard; processes with the same index have the same weights."""
    return _group.rank % _group.config.shard if _group else 0


def bit_checksum(tensors: Sequence[Tensor]) -> str:
    """A short checksum of the bits of tensors.

    It sums integers exactly, so that the last bit of any weight counts, and NaN equals itself.
    """
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    sums = [int(tensor.detach().float().contiguous().view(torch.int32).sum()) for tensor in own]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:8]


def describe_lost_process(error: BaseException) -> str | None:
    """A message for an error caused by a lost or unresponsive process; None for other errors."""
    message = str(error).lower()
    signs = ("gloo", "nccl", "connection", "socket", "broken pipe", "timed out", "timeout")
    if _group is None or not any(sign in message for sign in signs):
        return None
    return (
        f"process {_group.rank} lost the connection to the others: one of them died, or did not respond for "
        f"{_group.config.timeout:g} minutes (parallel.timeout); see its own output or the launcher's\n"
        f"({str(error).splitlines()[0]})"
    )


def _row_shard() -> tuple[int, int]:
    """The index of this process's row shard, and the number of row shards."""
    assert _group
    return _group.rank // _group.config.context, _group.size // _group.config.context


def _all_gather(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    if _group is None:
        return [value]
    gathered: list[Any] = [None] * _group.size
    dist.all_gather_object(gathered, value, group=_group.control_group)
    return gathered
