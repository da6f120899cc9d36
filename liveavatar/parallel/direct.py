"""Tensors of a link straight from rank to rank, by point-to-point calls of torch.distributed.

NCCL between GPUs, which leaves host memory out; gloo between CPU processes, the same code. A link's
messages and their headers stay on its socket: a dead neighbour is noticed there, and control never
waits for a GPU.

Every link has a process group of its own two ranks, used by one thread at each end, because calls
of one group are done in order on both sides and calls of two are not. A transfer starts when its
tensors are computed *and* the receiver said that its buffers stand ready, so that no kernel on a
GPU ever waits for a neighbour that is busy: links cannot block each other, whatever their order.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from liveavatar.errors import DeadlineError, EngineError
from liveavatar.parallel.group import Meeting, join
from liveavatar.parallel.host_copy import use_own_stream
from liveavatar.parallel.links import stage_links
from liveavatar.parallel.transfer import Link, Receiver, Sender

logger = logging.getLogger(__name__)

_POLL_S = 0.0002
_LAST_BYTES_S = 1.0
_TRIAL_S = 60.0
_TRIAL_VALUES = 2**17
_LIBRARY_MARGIN_S = 60.0


class DirectRoute:
    """The way of a link's tensors: a process group of its two ranks.

    Args:
        handle: the group, of NCCL or gloo.
        peer: the other rank.
        connection: socket of the link, which breaks when that rank ends.
        timeout_s: longest time for one tensor.
    """

    def __init__(
        self, handle: dist.ProcessGroup, peer: int, connection: socket.socket, timeout_s: float
    ) -> None:
        self._handle = handle
        self._peer = peer
        self._timeout_s = timeout_s
        self._can_poll = dist.get_backend(handle) == "nccl"
        self._line = select.poll()
        self._line.register(connection, select.POLLRDHUP)

    def send(self, tensor: Tensor) -> None:
        """Send a contiguous tensor whose values are there; returns when they have left.

        Raises:
            ConnectionError: the other rank is gone.
            DeadlineError: it did not take the tensor in time.
        """
        if tensor.numel():
            self._run(dist.isend, _as_bytes(tensor))

    def receive(self, tensor: Tensor) -> None:
        """Fill a contiguous tensor; returns when its values are there. Errors as `send`."""
        if tensor.numel():
            self._run(dist.irecv, _as_bytes(tensor))

    def _run(self, call: Any, flat: Tensor) -> None:
        deadline = time.monotonic() + self._timeout_s
        try:
            work = call(flat, self._peer, group=self._handle)
            if self._can_poll:
                self._wait(work, deadline)
                work.wait()
            else:
                work.wait(timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            if time.monotonic() >= deadline:
                raise DeadlineError(f"no tensor in {self._timeout_s:.0f} s") from error
            raise ConnectionError(" ".join(str(error).split())[:200]) from error

    def _wait(self, work: dist.Work, deadline: float) -> None:
        """Wait for a GPU, which does not notice that the other rank is gone."""
        is_cut = False
        while not work.is_completed():
            now = time.monotonic()
            if not is_cut and self._line.poll(0):
                # Closed in good order, the last values may still be on their way.
                is_cut, deadline = True, min(deadline, now + _LAST_BYTES_S)
            if now > deadline:
                if is_cut:
                    raise ConnectionError("the other end closed the link")
                raise DeadlineError(f"no tensor in {self._timeout_s:.0f} s")
            time.sleep(_POLL_S)


def open_routes(
    meeting: Meeting,
    senders: Mapping[str, Sender],
    receivers: Mapping[str, Receiver],
    device: torch.device,
    *,
    required: bool,
) -> str:
    """Give the links between transformer ranks direct routes; each of these ranks calls it once.

    One tensor goes over every link first, since libraries connect only then. Unless it got through
    on all of them, all stay on their sockets.

    Args:
        meeting: how the ranks find each other.
        senders: this rank's ends of its links, by name; nothing was sent yet.
        receivers: likewise.
        device: of this rank.
        required: whether it is an error when a route does not work.

    Returns:
        What tensors go by from now on: "nccl", "gloo" or "sockets".

    Raises:
        EngineError: the ranks did not find each other, a route hangs, or fails and is required.
    """
    timeout = timedelta(seconds=meeting.timeout_s + _LIBRARY_MARGIN_S)
    join(meeting)
    routes: dict[str, DirectRoute] = {}
    mine: list[Link] = []
    try:
        for link in _between_stages(meeting):
            # Every rank makes every group, in one order: that is how torch names them.
            handle = dist.new_group([link.source, link.target], timeout=timeout)
            end = senders.get(link.name) or receivers.get(link.name)
            if end is not None:
                peer = link.target if link.source == meeting.rank else link.source
                routes[link.name] = DirectRoute(handle, peer, end.socket, meeting.timeout_s)
                mine.append(link)
        reason = _try_out(meeting.rank, mine, routes, device)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
    for link in mine:  # before any neighbour may know that all is well, and send
        if link.name in receivers:
            receivers[link.name].route = routes[link.name]
    reasons = _agree(meeting, reason)
    if any(reasons):
        failed = next(f"rank {rank}: {said}" for rank, said in enumerate(reasons) if said)
        if required:
            raise EngineError(f"transport: direct transfers do not work; {failed}")
        logger.warning("tensors go through host memory, direct transfers do not work: %s", failed)
        return "sockets"
    for link in mine:
        if link.name in senders:
            senders[link.name].route = routes[link.name]
    return meeting.backend


def _between_stages(meeting: Meeting) -> list[Link]:
    """Links that carry activations; those of the media rank carry little."""
    mesh = meeting.mesh
    inner = range(mesh.num_dit_ranks)
    return [link for link in stage_links(mesh) if link.source in inner and link.target in inner]


def _try_out(
    rank: int, links: Sequence[Link], routes: Mapping[str, DirectRoute], device: torch.device
) -> str:
    """Send a tensor over each link, in an order common to all ranks; returns what failed, or ''.

    Raises:
        EngineError: the library hangs.
    """
    reasons: list[str] = []

    def run() -> None:
        try:
            use_own_stream(device)
            pattern = torch.arange(_TRIAL_VALUES, device=device)
            for link in links:
                if link.source == rank:
                    routes[link.name].send(pattern)
                    continue
                received = torch.zeros_like(pattern)
                routes[link.name].receive(received)
                if not torch.equal(received, pattern):  # seen of cards without peer access
                    raise EngineError(f"what rank {link.source} sent arrived damaged")
            reasons.append("")
        except DeadlineError:
            return  # a GPU that hangs: this process cannot go on without its library
        except Exception as error:  # noqa: BLE001 - told to all ranks, which decide together
            reasons.append(str(error) or repr(error))

    thread = threading.Thread(target=run, name="try routes", daemon=True)
    thread.start()
    thread.join(_TRIAL_S)
    if not reasons:
        raise EngineError(
            f"rank {rank}: no tensor got through to its neighbours in {_TRIAL_S:.0f} s; "
            "python -m liveavatar.doctor tells more, NCCL_P2P_DISABLE=1 may help"
        )
    return reasons[0]


def _agree(meeting: Meeting, reason: str) -> list[str]:
    """Tell all ranks what failed here, and hear what failed there."""
    num_ranks = meeting.mesh.num_dit_ranks
    try:
        store = FileStore(str(meeting.folder / "routes"), num_ranks)
        store.set_timeout(timedelta(seconds=_TRIAL_S + meeting.timeout_s))
        store.set(str(meeting.rank), reason)
        return [store.get(str(rank)).decode() for rank in range(num_ranks)]
    except RuntimeError as error:
        raise EngineError(f"rank {meeting.rank} cannot agree with the others: {error}") from error


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)
