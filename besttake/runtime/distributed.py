"""Many processes as one: each runs the same lines, works on its share of the rows, and hears what the others found.

`torchrun` and `accelerate launch` start the processes; one alone is a group of one, in which nothing here does
anything. Rows (the takes of a rollout, the clips of a loss) are shared out evenly, and what a process found of its own
is gathered, so that everything after it is the same on every process. Where rows do not come out even, the last is
done again and left out: every process makes as many passes through the network as every other, which it must where the
weights are sharded.
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
    """How the processes share the work. Each has its own takes and clips; this is what they have together."""

    shard: int = 1
    """Processes that hold one copy of the weights between them (FSDP2); 1 = each holds all of them."""
    context: int = 1
    """Processes that have each clip together, a stretch of its tokens each, for clips too long for one (Wan alone)."""
    timeout: float = 10.0
    """Minutes that a process waits for the others before it gives up."""

    def __post_init__(self):
        require(self.shard >= 1, "shard", self.shard, "1 or more")
        require(self.context >= 1, "context", self.context, "1 or more")
        require(self.timeout > 0, "timeout", self.timeout, "minutes, more than 0")


EVALUATION_PARALLEL = ParallelConfig(timeout=24 * 60)
"""Every process has a whole model, and waits for the others as long as a whole share of an evaluation may take."""


@dataclass(frozen=True)
class Group:
    """The processes, as one of them sees them.

    Attributes:
        rank, size: the number of this process, from 0, and how many there are.
        words: a group for what the processes tell each other, apart from that of tensors: the two cannot be mixed up
            when one process fails where the others do not.
        last_words: the same for when a process has failed or is to end, and others may wait for it in `words`.
        copies: a mesh of (copies of the weights, processes that hold one between them).
        clips: a mesh of (shares of the rows, 1, processes that have one together).
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
    """Another process has failed; the message says which, and how."""


def init_processes(config: ParallelConfig, device: str) -> None:
    """Become one of the processes that the launcher has started, unless this is done already.

    Raises:
        ValueError: their number is no multiple of `config.shard` and `config.context`.
    """
    global _group
    size = int(os.environ.get("WORLD_SIZE", "1"))
    for name, some in (("shard", config.shard), ("context", config.context)):
        if size % some:
            there = "is 1 process" if size == 1 else f"are {size} processes"
            raise ValueError(
                f"parallel.{name} is {some}, but there {there}: start a multiple of {some} "
                f"(torchrun --nproc-per-node {some} -m besttake train ...), or set it to 1"
            )
    if size == 1 or (_group and _group.config == config):
        return
    wait = timedelta(minutes=config.timeout)
    if not dist.is_initialized():
        if on_gpu := device.startswith("cuda"):
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=wait)
    words, last_words = (dist.new_group(backend="gloo", timeout=wait) for _ in range(2))
    _group = make_group(config, torch.device(device).type, words, last_words)
    if not is_main():
        logging.getLogger("besttake").setLevel(logging.ERROR)  # what process 0 says is enough


def make_group(config: ParallelConfig, kind: str, words: dist.ProcessGroup, last_words: dist.ProcessGroup) -> Group:
    """The processes that there are, on devices of a kind."""
    rank, size = dist.get_rank(), dist.get_world_size()
    copies = init_device_mesh(kind, (size // config.shard, config.shard), mesh_dim_names=("replicate", "shard"))
    clips = init_device_mesh(
        kind, (size // config.context, 1, config.context), mesh_dim_names=("rows", "ring", "ulysses")
    )  # the last two are diffusers' names
    return Group(config, rank, size, words, last_words, copies, clips)


def end_processes() -> None:
    """Be a process alone again, once all have come to this line."""
    global _group
    if _group:
        barrier()
        _group = None
        dist.destroy_process_group()


def is_main() -> bool:
    """Whether this is the process that writes the run's files and speaks for all: process 0."""
    return _group is None or _group.rank == 0


def control_group() -> dist.ProcessGroup | None:
    """The group for what is no tensor of the work."""
    return _group.control_group if _group else None


def is_single_process() -> bool:
    """Whether there is no other process, which would have to do whatever this one does."""
    return _group is None


def shard_mesh() -> DeviceMesh | None:
    """The mesh over which weights are sharded; None if every process holds all of them."""
    return _group.copies if _group and _group.config.shard > 1 else None


def local_mesh(device: str) -> DeviceMesh:
    """A mesh of this process and no other."""
    if _group is None and not dist.is_initialized():
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return _group.copies["shard"] if _group else init_device_mesh(torch.device(device).type, (1,))


def context_mesh() -> DeviceMesh | None:
    """The mesh over which a clip's tokens are split, as diffusers takes it; None if every process has whole clips."""
    return _group.clips["ring", "ulysses"] if _group and _group.config.context > 1 else None


# Rows ----------------------------------------------------------------------------------------------------------------


def shard_rows(rows: int) -> list[int]:
    """The rows that are this process's: a stretch of them, in which the last of all may come more than once."""
    if _group is None:
        return list(range(rows))
    mine, shares = _row_shard()
    each = -(-rows // shares)
    return [min(row, rows - 1) for row in range(mine * each, (mine + 1) * each)]


def own_rows(rows: int) -> list[int]:
    """The rows that are this process's and no other's; there may be none."""
    mine, shares = _row_shard() if _group else (0, 1)
    each = -(-rows // shares)
    return list(range(rows))[mine * each : (mine + 1) * each]


def shard_items(items: Sequence[T]) -> list[T]:
    """Of several processes, this one's share of items that one of them makes and all find on disk; by itself, none."""
    return [] if _group is None else [items[i] for i in dict.fromkeys(shard_rows(len(items)))]


def divides_evenly(rows: int) -> bool:
    """Whether every process has as many of these rows as any other."""
    return _group is None or rows % _row_shard()[1] == 0


def all_gather_rows(own: Tensor, rows: int) -> Tensor:
    """All `rows`, on every process, of what each has of its `share`; a gradient flows to the own ones alone."""
    if _group is None:
        return own
    mine, shares = _row_shard()
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(shares)]
    dist.all_gather(parts, own.detach().contiguous(), group=_group.clips.get_group("rows"))
    parts[mine] = own
    return torch.cat(parts)[:rows]


def any_process(true: Tensor) -> bool:
    """Whether it is true for one of the processes that have to run the same networks; by itself, whether it is true."""
    if shard_mesh() is None:
        return bool(true)
    found = true.to(torch.int)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def backward(loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Add the gradient of a loss of gathered rows to `parameters`, the same on every process.

    Each process has the gradient by its own rows, or its own tokens of them, and their sum is that of the loss. It is
    summed here, once for all rows, rather than by DDP's hooks, which take one backward pass for each forward pass.
    Sharded parameters were summed by FSDP2 on the way.
    """
    if _group is None:
        loss.backward()
        return
    whole = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if not is_main():
        for parameter in whole:
            parameter.grad = None  # the sum of earlier losses, which counts once
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


# Words ---------------------------------------------------------------------------------------------------------------


def barrier() -> None:
    """Wait until every process is here."""
    _all_gather(None)


@contextmanager
def failure_group(said: Any, seconds: float = 10.0) -> Iterator[bool]:
    """Within this context processes speak apart from what they may have been saying: one has failed, or is to end.

    Yields whether every process comes to this line, within so many seconds, and says the same.
    """
    global _group
    if _group is None:
        yield True
        return
    group = _group
    try:
        dist.monitored_barrier(group.failure_group, timedelta(seconds=seconds), wait_all_ranks=True)
        _group = replace(group, control_group=group.failure_group)
        agreed = len({repr(told) for told in _all_gather(said)}) == 1
    except RuntimeError:
        agreed = False
    try:
        yield agreed
    finally:
        _group = group


@contextmanager
def raise_on_all() -> Iterator[None]:
    """What every process does by itself, a critic asked, say: where it fails for one, it fails for all.

    Raises:
        OtherProcessError: on the processes that were well.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    heard = _all_gather(failure and f"{type(failure).__name__}: {failure}")
    if failure:
        raise failure
    for number, complaint in enumerate(heard):
        if complaint:
            raise OtherProcessError(f"process {number} has failed, so all stop: {complaint}")


def broadcast_from_main(make: Callable[[], T]) -> T:
    """What process 0 makes, on every process; where it fails there, it fails on all."""
    made = None
    with raise_on_all():
        if is_main():
            made = make()
    return _all_gather(made)[0]


def broadcast_tensor_from_main(make: Callable[[], Tensor | None]) -> Tensor | None:
    """As `led`, of a tensor, on the CPU of every process; or None."""
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
    """Within this context a process works by itself: it shares nothing out, and waits for no other."""
    global _group
    group, _group = _group, None
    try:
        yield
    finally:
        _group = group


def all_gather_dict(own: Mapping[K, T]) -> dict[K, T]:
    """What each process has found of its own, by a name or number for it, as one dict on every process."""
    return {name: value for found in _all_gather(dict(own)) for name, value in found.items()}


def check_equal(said: Mapping[str, Any], place: int = 0) -> None:
    """ValueError on every process unless all say the same; it names the processes that differ, and in what.

    Args:
        said: what is said, by a name for it.
        place: only processes of the same place have to agree.
    """
    heard = _all_gather((place, dict(said)))
    first = dict(reversed(heard))
    for name in said:
        others = [number for number, (where, told) in enumerate(heard) if told.get(name) != first[where].get(name)]
        if others:
            where, told = heard[others[0]]
            raise ValueError(
                f"the processes do not agree on {name}: it is {first[where].get(name)!r} on process "
                f"{heard.index((where, first[where]))}, {told.get(name)!r} on {', '.join(map(str, others))}"
            )


def check_equal_items(what: str, items: Iterable[str]) -> None:
    """ValueError on every process unless all have the same items in the same order; it names the first that differs.

    Args:
        what: the items, in a word.
        items: what each of them is, with everything that must be the same.
    """
    if _group is None:
        return
    told = list(items)
    hashes = _all_gather(hashlib.sha256(repr(told).encode()).hexdigest())
    others = [number for number, hash in enumerate(hashes) if hash != hashes[0]]
    if not others:
        return
    heard = _all_gather(told if _group.rank in (0, others[0]) else None)
    pairs = enumerate(itertools.zip_longest(heard[0], heard[others[0]], fillvalue="missing"), start=1)
    place, (first, other) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
    raise ValueError(
        f"the processes do not agree on {what}: number {place} is {first} on process 0, {other} on "
        f"{', '.join(map(str, others))}"
    )


def all_reduce_counts(counts: Mapping[str, float]) -> dict[str, float]:
    """Numbers that each process has counted, summed over all."""
    heard = _all_gather(counts)
    return {name: sum(told[name] for told in heard) for name in counts}


def weight_shard() -> int:
    """Which part of the weights this process holds; processes of the same place hold the same."""
    return _group.rank % _group.config.shard if _group else 0


def bit_checksum(tensors: Sequence[Tensor]) -> str:
    """A few characters that two sets of tensors share only if they are equal, as far as sums of their bits tell.

    They are of whole numbers, and so exact: the last bit of one weight among many counts, and NaN is equal to itself.
    """
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    sums = [int(tensor.detach().float().contiguous().view(torch.int32).sum()) for tensor in own]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:8]


def describe_lost_process(error: BaseException) -> str | None:
    """What to say of an error, if it is that another process is gone or silent."""
    message = str(error).lower()
    signs = ("gloo", "nccl", "connection", "socket", "broken pipe", "timed out", "timeout")
    if _group is None or not any(sign in message for sign in signs):
        return None
    return (
        f"process {_group.rank} has lost the others: one of them has died, or has said nothing for "
        f"{_group.config.timeout:g} minutes (parallel.timeout); its own words, or the launcher's, tell more\n"
        f"({str(error).splitlines()[0]})"
    )


def _row_shard() -> tuple[int, int]:
    """Which of the shares of the rows is this process's, and how many there are."""
    assert _group
    return _group.rank // _group.config.context, _group.size // _group.config.context


def _all_gather(said: Any) -> list[Any]:
    """What every process says, by its number."""
    if _group is None:
        return [said]
    heard: list[Any] = [None] * _group.size
    dist.all_gather_object(heard, said, group=_group.control_group)
    return heard
