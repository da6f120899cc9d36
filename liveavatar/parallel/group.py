"""Ranks that compute a stage together, and the collectives they do it with.

NCCL where every rank has a GPU of its own; otherwise gloo, through host memory where tensors lie on
a GPU. Ranks find each other through a file in the group's private folder, which may go once
`open_groups` has returned; gloo's connections stay on the loopback interface.

All ranks of a group make the same calls in the same order: what a stage does is decided by the work
that comes down the line, never by when a message of the media rank arrives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import prod
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from liveavatar.errors import DeadlineError, EngineError, WorkerDiedError
from liveavatar.parallel.mesh import Mesh
from liveavatar.plan.transport_memory import MAX_CHANNELS

# Read by the two libraries. NCCL's watchdog would look for the file of the ranks all the time.
_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
_CHANNELS = "NCCL_MAX_CTAS"


class Group:
    """Some ranks; a group of one rank computes alone and sends nothing.

    Args:
        ranks: of the worker group, ascending.
        rank: this process, one of them.
        handle: of torch.distributed; None for a group of one.
    """

    def __init__(
        self, ranks: Sequence[int], rank: int, handle: dist.ProcessGroup | None = None
    ) -> None:
        self.ranks = tuple(ranks)
        self.rank = self.ranks.index(rank)
        self.handle = handle
        self._through_host = handle is not None and dist.get_backend(handle) == "gloo"
        if self.size > 1 and torch.cuda.is_available():
            # Layers are compiled on GPUs, see `model/fusing.py`; collectives stay outside.
            for name in ("sum", "gather", "exchange"):
                setattr(self, name, torch.compiler.disable(getattr(self, name)))

    @property
    def size(self) -> int:
        """Ranks of the group."""
        return len(self.ranks)

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up the tensors of all ranks, of one shape; `tensor` may be overwritten."""
        if self.size == 1:
            return tensor
        total = self._outgoing(tensor)
        self._run(lambda: dist.all_reduce(total, group=self.handle))
        return total.to(tensor.device)

    def gather(self, tensor: Tensor, counts: Sequence[int] | None = None) -> list[Tensor]:
        """Every rank's tensor.

        Args:
            tensor: of one shape on all ranks but for the first axis.
            counts: length of the first axis on each rank; None for the same on all.
        """
        if self.size == 1:
            return [tensor]
        counts = [tensor.shape[0]] * self.size if counts is None else counts
        missing = max(counts) - tensor.shape[0]
        own = self._outgoing(F.pad(tensor, (*[0] * (2 * tensor.ndim - 2), 0, missing)))
        parts = [torch.empty_like(own) for _ in counts]
        self._run(lambda: dist.all_gather(parts, own, group=self.handle))
        return [part[:count].to(tensor.device) for part, count in zip(parts, counts, strict=True)]

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Send a part to every rank and get one from each.

        Args:
            parts: for each rank, this one included, of one dtype.
            shapes: of what each rank sends here.
        """
        if self.size == 1:
            return list(parts)
        outgoing = self._outgoing(torch.cat([part.flatten() for part in parts]))
        sizes = [prod(shape) for shape in shapes]
        incoming = outgoing.new_empty(sum(sizes))
        lengths = [part.numel() for part in parts]
        self._run(
            lambda: dist.all_to_all_single(incoming, outgoing, sizes, lengths, group=self.handle)
        )
        received = incoming.to(parts[0].device).split(sizes)
        return [part.view(*shape) for part, shape in zip(received, shapes, strict=True)]

    def wait_for_all(self) -> None:
        """Return when every rank has called this."""
        device = "cpu" if self._through_host else "cuda"
        self.sum(torch.zeros(1, device=device))

    def _outgoing(self, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        return tensor.cpu() if self._through_host else tensor

    def _run(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:
            self._fail(error)

    def _fail(self, error: RuntimeError) -> NoReturn:
        others = " or ".join(str(r) for index, r in enumerate(self.ranks) if index != self.rank)
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, torch.OutOfMemoryError):
            raise error
        if "timed out" in reason.lower() or "timeout" in reason.lower():
            raise DeadlineError(f"no answer in time from rank {others}: {reason}") from error
        raise WorkerDiedError(f"rank {others} is gone: {reason}") from error


@dataclass(frozen=True)
class StageGroups:
    """The groups that one transformer rank computes in.

    Attributes:
        tensor: ranks that share heads and widths with it.
        sequence: ranks that share tokens with it.
    """

    tensor: Group
    sequence: Group


@dataclass(frozen=True)
class Meeting:
    """How the transformer ranks of a worker group find each other.

    Attributes:
        folder: private to the worker group, the same for all ranks, on this machine.
        rank: this process, a transformer rank.
        mesh: shape of the worker group.
        backend: "nccl", the current CUDA device being this rank's alone, or "gloo".
        timeout_s: longest wait in any call that takes several ranks.
    """

    folder: Path
    rank: int
    mesh: Mesh
    backend: str
    timeout_s: float


def join(meeting: Meeting) -> None:
    """Make the process group of all transformer ranks, unless it is there; all of them call it.

    Raises:
        EngineError: the ranks did not find each other.
    """
    if dist.is_initialized():
        return
    os.environ.update(_ENVIRONMENT)
    if meeting.mesh.num_dit_ranks == meeting.mesh.num_stages:  # tensors are only passed on
        os.environ.setdefault(_CHANNELS, str(MAX_CHANNELS))
    num_ranks = meeting.mesh.num_dit_ranks
    try:
        dist.init_process_group(
            meeting.backend,
            store=FileStore(str(meeting.folder / "ranks"), num_ranks),
            rank=meeting.rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=meeting.timeout_s),
        )
    except RuntimeError as error:
        raise EngineError(f"rank {meeting.rank} cannot join the others: {error}") from error


def open_groups(meeting: Meeting) -> StageGroups:
    """Make this rank's groups; every transformer rank of the worker group calls it once.

    Where every rank has its stage alone, nothing is opened.

    Raises:
        EngineError: the ranks did not find each other.
    """
    rank, mesh = meeting.rank, meeting.mesh
    place = mesh.place(rank)
    assert place is not None
    if mesh.num_dit_ranks == mesh.num_stages:
        return StageGroups(Group((rank,), rank), Group((rank,), rank))
    join(meeting)
    timeout = timedelta(seconds=meeting.timeout_s)
    try:
        tensor, sequence = (
            _open(ranks, rank, timeout) for ranks in (mesh.tp_ranks(place), mesh.sp_ranks(place))
        )
        Group(range(mesh.num_dit_ranks), rank, dist.group.WORLD).wait_for_all()
    except RuntimeError as error:
        raise EngineError(f"rank {rank} cannot join the others: {error}") from error
    return StageGroups(tensor, sequence)


def _open(ranks: Sequence[int], rank: int, timeout: timedelta) -> Group:
    if len(ranks) == 1:
        return Group(ranks, rank)
    handle = dist.new_group(list(ranks), timeout=timeout, use_local_synchronization=True)
    group = Group(ranks, rank, handle)
    group.wait_for_all()  # libraries connect at the first call, when the folder may be gone
    return group
