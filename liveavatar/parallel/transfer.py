"""Messages with tensors from one rank to another, with deadlines.

A **link** goes one way between two ranks of one machine. Its two ends are a `Sender` and a
`Receiver`, each with a thread of its own, so that a stage computes while its last result leaves and
its next input arrives. A message is a small typed value; its tensors follow it as raw bytes through
the same local socket, by way of pinned host memory where they live on a GPU, or by a direct route
where the link has one (see `direct`). A closed socket is how a rank learns at once that its
neighbour died.

Nothing here listens on a network: the sockets are files in a private folder of the group.
"""

from __future__ import annotations

import pickle
import queue
import socket
import struct
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from liveavatar.errors import DeadlineError, EngineError, WorkerDiedError
from liveavatar.parallel.host_copy import (
    Departure,
    give_to_compute,
    host_buffer,
    to_device,
    use_own_stream,
)

_HEADER = struct.Struct("<Q")
_POLL_S = 0.2
_READY = b"!"


@dataclass(frozen=True)
class Link:
    """One direction between two ranks.

    Attributes:
        name: unique in the group.
        source: sending rank.
        target: receiving rank.
        depth: messages that may wait at the receiving end; the sender then waits.
    """

    name: str
    source: int
    target: int
    depth: int = 2


@dataclass(frozen=True)
class Packet:
    """A message and the tensors that came with it."""

    message: Any
    tensors: tuple[Tensor, ...]


class Route(Protocol):
    """A way of a link's tensors beside its socket; both return when the values are there."""

    def send(self, tensor: Tensor) -> None:
        """Send a contiguous tensor that is computed."""

    def receive(self, tensor: Tensor) -> None:
        """Fill a contiguous tensor."""


@dataclass(frozen=True)
class _Outgoing:
    """A message that waits to be sent: its header, the tensors that follow, and which way."""

    header: bytes
    departures: list[Departure]
    route: Route | None


class Sender:
    """The sending end of a link; made by `connect`.

    Attributes:
        link: which.
        socket: its connection.
        route: way of the tensors beside the socket; None where they take the socket too.
    """

    def __init__(self, link: Link, connection: socket.socket) -> None:
        self.link = link
        self.socket = connection
        self.route: Route | None = None
        self._queue: queue.Queue[_Outgoing | None] = queue.Queue(maxsize=2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"send {link.name}", daemon=True)
        self._thread.start()

    def send(self, message: object, *tensors: Tensor, timeout_s: float) -> None:
        """Hand over a message; returns when there is room for it, not when it has arrived.

        The tensors must not be written to afterwards.

        Raises:
            WorkerDiedError: the receiving rank is gone.
            DeadlineError: there was no room in time.
        """
        described = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
        route = self.route if tensors else None
        header = pickle.dumps((message, described, route is not None))
        framed = _HEADER.pack(len(header)) + header
        outgoing = _Outgoing(framed, [Departure(tensor) for tensor in tensors], route)
        deadline = time.monotonic() + timeout_s
        while True:
            self._raise_failure()
            try:
                self._queue.put(outgoing, timeout=_POLL_S)
                return
            except queue.Full:
                if time.monotonic() > deadline:
                    raise DeadlineError(
                        f"link {self.link.name}: rank {self.link.target} took nothing for "
                        f"{timeout_s:.0f} s"
                    ) from None

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is waiting, for so long at most, then close; does nothing twice."""
        deadline = time.monotonic() + timeout_s
        if self._thread.is_alive():
            with suppress(queue.Full):
                self._queue.put(None, timeout=timeout_s)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        _hang_up(self.socket)

    def _run(self) -> None:
        try:
            placed = False
            while (outgoing := self._queue.get()) is not None:
                if outgoing.departures and not placed:
                    use_own_stream(outgoing.departures[0].tensor.device)
                    placed = True
                if outgoing.route is None:
                    self._send_by_socket(outgoing)
                else:
                    self._send_directly(outgoing, outgoing.route)
        except Exception as error:  # noqa: BLE001 - raised again where messages are sent
            self._error = error

    def _send_by_socket(self, outgoing: _Outgoing) -> None:
        self.socket.sendall(outgoing.header)
        for departure in outgoing.departures:
            self.socket.sendall(_bytes_of(departure.on_host()))

    def _send_directly(self, outgoing: _Outgoing, route: Route) -> None:
        """Announce tensors when they are computed, and send them when they are awaited."""
        for departure in outgoing.departures:
            departure.wait_until_made()
        self.socket.sendall(outgoing.header)
        _read(self.socket, bytearray(len(_READY)))
        for departure in outgoing.departures:
            route.send(departure.tensor)

    def _raise_failure(self) -> None:
        if isinstance(self._error, (OSError, EOFError)):
            raise WorkerDiedError(
                f"rank {self.link.target} is gone (link {self.link.name}: {self._error})"
            ) from self._error
        if isinstance(self._error, DeadlineError):
            raise DeadlineError(
                f"link {self.link.name} to rank {self.link.target}: {self._error}"
            ) from self._error
        if self._error is not None:
            raise EngineError(
                f"rank {self.link.source} cannot send (link {self.link.name}: {self._error!r})"
            ) from self._error


class Receiver:
    """The receiving end of a link; made by `connect`.

    Attributes:
        link: which.
        socket: its connection.
        route: way of the tensors of messages that say so; set before the first of them.
    """

    def __init__(self, link: Link, connection: socket.socket, device: torch.device) -> None:
        self.link = link
        self.socket = connection
        self.route: Route | None = None
        self._device = device
        self._queue: queue.Queue[Packet] = queue.Queue(maxsize=link.depth)
        self._error: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"receive {link.name}", daemon=True)
        self._thread.start()

    def receive(self, timeout_s: float) -> Packet:
        """Wait for the next message; its tensors are on this rank's device.

        Raises:
            WorkerDiedError: the sending rank is gone and nothing of it is left.
            EngineError: what it sent cannot be taken here, as when memory runs out.
            DeadlineError: nothing came in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            packet = self.poll(min(_POLL_S, max(0.0, deadline - time.monotonic())))
            if packet is not None:
                return packet
            if time.monotonic() >= deadline:
                raise DeadlineError(
                    f"link {self.link.name}: nothing from rank {self.link.source} for "
                    f"{timeout_s:.0f} s"
                )

    def poll(self, wait_s: float = 0.0) -> Packet | None:
        """Take the next message if one comes within `wait_s`; errors as `receive`."""
        try:
            return self._queue.get(timeout=wait_s) if wait_s else self._queue.get_nowait()
        except queue.Empty:
            if self._error is not None and self._queue.empty():
                raise self._failure(self._error) from self._error
            return None

    def close(self) -> None:
        """Close the link; does nothing twice."""
        self._closed.set()
        _hang_up(self.socket)

    def _failure(self, error: BaseException) -> EngineError:
        if isinstance(error, (OSError, EOFError)):
            return WorkerDiedError(
                f"rank {self.link.source} is gone (link {self.link.name}: {error})"
            )
        if isinstance(error, DeadlineError):
            return DeadlineError(f"link {self.link.name} from rank {self.link.source}: {error}")
        return EngineError(
            f"rank {self.link.target} cannot take a message (link {self.link.name}: {error!r})"
        )

    def _run(self) -> None:
        try:
            use_own_stream(self._device)
            while True:
                (size,) = _HEADER.unpack(_read(self.socket, bytearray(_HEADER.size)))
                message, described, directly = pickle.loads(_read(self.socket, bytearray(size)))
                if directly:
                    tensors = self._take_directly(described)
                else:
                    tensors = [self._read_tensor(shape, dtype) for shape, dtype in described]
                packet = Packet(message, tuple(tensors))
                while not self._closed.is_set():
                    with suppress(queue.Full):
                        self._queue.put(packet, timeout=_POLL_S)
                        break
        except Exception as error:  # noqa: BLE001 - raised again where messages are taken
            self._error = error

    def _take_directly(
        self, described: Sequence[tuple[Sequence[int], torch.dtype]]
    ) -> list[Tensor]:
        assert self.route is not None
        tensors = [
            torch.empty(shape, dtype=dtype, device=self._device) for shape, dtype in described
        ]
        self.socket.sendall(_READY)
        for tensor in tensors:
            self.route.receive(tensor)
            give_to_compute(tensor)
        return tensors

    def _read_tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        hosted = host_buffer(shape, dtype, self._device)
        _read(self.socket, _bytes_of(hosted))
        return to_device(hosted, self._device)


def connect(
    folder: Path,
    rank: int,
    links: Sequence[Link],
    device: torch.device,
    timeout_s: float,
) -> tuple[dict[str, Sender], dict[str, Receiver]]:
    """Make this rank's ends of all links; every rank of the group calls it once.

    Args:
        folder: private to the group, the same for all ranks, on this machine.
        rank: this process.
        links: all links of the group, the same list everywhere.
        device: where received tensors go.
        timeout_s: deadline for all neighbours to appear.

    Raises:
        DeadlineError: a neighbour did not appear in time.
        EngineError: the sockets cannot be made in `folder`.
    """
    deadline = time.monotonic() + timeout_s
    senders: dict[str, Sender] = {}
    receivers: dict[str, Receiver] = {}
    path = folder / f"rank{rank}.sock"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            _bind(listener, path)
            listener.listen(len(links) + 1)
            for link in (link for link in links if link.source == rank):
                senders[link.name] = Sender(link, _dial(folder, link, deadline))
            incoming = {link.name: link for link in links if link.target == rank}
            while incoming:
                name, connection = _accept(listener, deadline, incoming)
                receivers[name] = Receiver(incoming.pop(name), connection, device)
    except BaseException:
        for sender in senders.values():
            sender.close()
        for receiver in receivers.values():
            receiver.close()
        raise
    finally:
        path.unlink(missing_ok=True)
    return senders, receivers


def _bind(listener: socket.socket, path: Path) -> None:
    try:
        listener.bind(str(path))
    except OSError as error:
        raise EngineError(
            f"cannot make a local socket {path}: {error}; set TMPDIR to a writable folder with a "
            "short path"
        ) from None


def _dial(folder: Path, link: Link, deadline: float) -> socket.socket:
    """Connect to the target of a link, as soon as it listens, and tell it the link's name."""
    name = link.name.encode()
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(folder / f"rank{link.target}.sock"))
            connection.sendall(_HEADER.pack(len(name)) + name)
            return connection
        except (FileNotFoundError, ConnectionError):
            connection.close()
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"link {link.name}: rank {link.target} did not appear in time"
                ) from None
            time.sleep(0.01)


def _accept(
    listener: socket.socket, deadline: float, expected: Collection[str]
) -> tuple[str, socket.socket]:
    """Wait for one of the expected links; returns its name and connection."""
    connection: socket.socket | None = None
    try:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        connection, _ = listener.accept()
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        (size,) = _HEADER.unpack(_read(connection, bytearray(_HEADER.size)))
        name = bytes(_read(connection, bytearray(size))).decode()
        connection.settimeout(None)
        return name, connection
    except (TimeoutError, EOFError) as error:
        if connection is not None:
            connection.close()
        waited = ", ".join(sorted(expected))
        raise DeadlineError(f"links {waited} were not made in time: {error}") from None


def _hang_up(connection: socket.socket) -> None:
    """Close a socket; a thread that sits in it wakes up."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(flat)  # type: ignore[arg-type]


def _read(connection: socket.socket, into: bytearray | memoryview) -> bytearray | memoryview:
    """Fill a buffer; EOFError when the other end closed."""
    view = memoryview(into)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise EOFError("the other end closed the link")
        view = view[count:]
    return into
