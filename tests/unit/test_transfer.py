"""Links between ranks that are threads here: what arrives, in which order, and how they end."""

from __future__ import annotations

import gc
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from liveavatar.errors import DeadlineError, EngineError, WorkerDiedError
from liveavatar.parallel.transfer import Link, Receiver, Sender, connect
from tests.patience import PATIENCE_S

CPU = torch.device("cpu")
WAIT_S = PATIENCE_S
BIG = torch.zeros(1_000_000)  # far more than a socket holds by itself

Ends = tuple[dict[str, Sender], dict[str, Receiver]]
Connect = Callable[..., list[Ends]]


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Connect]:
    """Connect some ranks, each in a thread; closed at the end."""
    made: list[Ends] = []

    def connect_all(*links: Link) -> list[Ends]:
        ranks = range(1 + max(max(link.source, link.target) for link in links))
        with ThreadPoolExecutor(len(ranks)) as pool:
            calls = [pool.submit(connect, tmp_path, r, links, CPU, WAIT_S) for r in ranks]
        made.extend(call.result() for call in calls)
        return made

    yield connect_all
    for senders, receivers in made:
        for sender in senders.values():
            sender.close(timeout_s=0.1)
        for receiver in receivers.values():
            receiver.close()


@pytest.fixture
def ends(joined: Connect) -> tuple[Sender, Receiver]:
    """Both ends of a link from rank 3 to rank 5 that holds two messages."""
    ranks = joined(Link("words", 3, 5))
    return ranks[3][0]["words"], ranks[5][1]["words"]


def until_it_raises(action: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        action()
        time.sleep(0.01)


def link_threads() -> set[str]:
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if name.startswith(("send ", "receive "))}


# What arrives.


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4, 5),
        torch.randn(2, 3).bfloat16(),
        torch.randn(7).half(),
        torch.randn(5, 2).double(),
        torch.randn(4).to(torch.float8_e4m3fn),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.arange(-5, 5),
        torch.arange(9, dtype=torch.uint8).reshape(3, 3),
        torch.tensor([True, False, True]),
        torch.tensor(3.5),
        torch.tensor(7, dtype=torch.int16),
        torch.zeros(0),
        torch.zeros(3, 0, 4, dtype=torch.bfloat16),
        torch.randn(6, 4).T,
        torch.randn(8, 8)[::2, 1:5],
        torch.randn(3, 1).expand(3, 100),
        torch.tensor([float("nan"), float("inf"), -0.0]),
        torch.nn.Parameter(torch.randn(3)),
    ],
    ids=lambda tensor: f"{str(tensor.dtype)[6:]}{list(tensor.shape)}",
)
def test_any_tensor_arrives_as_it_was(ends: tuple[Sender, Receiver], tensor: torch.Tensor) -> None:
    sender, receiver = ends
    sender.send("this", tensor, timeout_s=WAIT_S)
    packet = receiver.receive(WAIT_S)
    (arrived,) = packet.tensors
    assert packet.message == "this"
    assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
    as_bytes = [t.detach().resolve_conj().contiguous().flatten() for t in (arrived, tensor)]
    left, right = (t.view(torch.uint8) for t in as_bytes)
    assert torch.equal(left, right)


def test_messages_and_their_tensors_keep_their_order(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends

    def send_all() -> None:
        for number in range(300):
            tensors = [torch.full((number % 7, 50), number + i) for i in range(number % 4)]
            sender.send(number, *tensors, timeout_s=WAIT_S)

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send_all)
        for number in range(300):
            packet = receiver.receive(WAIT_S)
            assert packet.message == number
            assert len(packet.tensors) == number % 4
            assert all((t == number + i).all() for i, t in enumerate(packet.tensors))
        sent.result()


def test_a_message_larger_than_any_buffer_arrives_whole(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    large = torch.randint(0, 255, (40_000_000,), dtype=torch.uint8)
    sender.send("large", large, timeout_s=WAIT_S)
    assert torch.equal(receiver.receive(WAIT_S).tensors[0], large)


def test_links_of_a_ring_do_not_mix(joined: Connect) -> None:
    links = [
        Link(f"{source}-{target}", source, target)
        for source in range(4)
        for target in range(4)
        if source != target
    ]
    ranks = joined(*links)
    for link in links:
        ranks[link.source][0][link.name].send(link.name, timeout_s=WAIT_S)
    for link in links:
        assert ranks[link.target][1][link.name].receive(WAIT_S).message == link.name


def test_what_was_handed_over_before_closing_arrives(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    for number in range(3):
        sender.send(number, BIG, timeout_s=WAIT_S)
    with ThreadPoolExecutor(1) as pool:
        closed = pool.submit(sender.close)
        assert [receiver.receive(WAIT_S).message for _ in range(3)] == [0, 1, 2]
        closed.result()
    with pytest.raises(WorkerDiedError):
        receiver.receive(WAIT_S)


# Waiting.


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_a_receiver_that_takes_nothing_makes_the_sender_wait(joined: Connect, depth: int) -> None:
    ranks = joined(Link("words", 0, 1, depth))
    sender, receiver = ranks[0][0]["words"], ranks[1][1]["words"]
    numbers = itertools.count()
    with pytest.raises(DeadlineError, match=r"link words: rank 1 took nothing for 1 s$"):
        until_it_raises(lambda: sender.send(next(numbers), BIG, timeout_s=1.0))
    sent = next(numbers) - 1
    # Besides those that wait at the receiver: two in the sender's queue, one in the hands of each
    # of the two threads.
    assert depth <= sent <= depth + 4
    for number in range(sent):
        assert receiver.receive(WAIT_S).message == number
    sender.send("room again", timeout_s=WAIT_S)
    assert receiver.receive(WAIT_S).message == "room again"


def test_a_receiver_waits_as_long_as_it_was_told(ends: tuple[Sender, Receiver]) -> None:
    _, receiver = ends
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"link words: nothing from rank 3 for 0 s$"):
        receiver.receive(0.3)
    assert time.monotonic() - started >= 0.3


def test_a_look_for_a_message_does_not_wait(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    assert receiver.poll() is None
    sender.send("here", timeout_s=WAIT_S)
    assert receiver.receive(WAIT_S).message == "here"
    assert receiver.poll() is None


# Ranks that die.


def test_the_receiver_learns_that_the_sender_died_after_its_last_message(
    ends: tuple[Sender, Receiver],
) -> None:
    sender, receiver = ends
    sender.send("last words", timeout_s=WAIT_S)
    sender.close()
    assert receiver.receive(WAIT_S).message == "last words"
    with pytest.raises(WorkerDiedError, match=r"^rank 3 is gone \(link words: "):
        receiver.receive(WAIT_S)
    with pytest.raises(WorkerDiedError, match=r"^rank 3 is gone"):
        receiver.poll()


def test_a_sender_that_died_within_a_message_sends_nothing_of_it(
    ends: tuple[Sender, Receiver],
) -> None:
    sender, receiver = ends
    sender.socket.sendall(struct.pack("<Q", 1000) + b"the beginning")
    sender.close()
    with pytest.raises(WorkerDiedError, match=r"^rank 3 is gone"):
        receiver.receive(WAIT_S)


def test_the_sender_learns_that_the_receiver_died(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    receiver.close()
    with pytest.raises(WorkerDiedError, match=r"^rank 5 is gone \(link words: "):
        until_it_raises(lambda: sender.send("anyone?", timeout_s=WAIT_S))


def test_a_sender_that_waits_for_room_learns_that_the_receiver_died(
    ends: tuple[Sender, Receiver],
) -> None:
    sender, receiver = ends
    threading.Timer(0.3, receiver.close).start()
    with pytest.raises(WorkerDiedError, match=r"^rank 5 is gone"):
        until_it_raises(lambda: sender.send("much", BIG, timeout_s=WAIT_S))


def test_closing_a_sender_that_nobody_reads_takes_no_longer_than_it_was_told(
    ends: tuple[Sender, Receiver],
) -> None:
    sender, _ = ends
    with pytest.raises(DeadlineError):
        until_it_raises(lambda: sender.send("much", BIG, timeout_s=0.1))
    started = time.monotonic()
    sender.close(timeout_s=0.3)
    sender.close(timeout_s=0.3)
    assert time.monotonic() - started < WAIT_S


def test_a_message_that_cannot_be_taken_is_not_blamed_on_the_sender(
    ends: tuple[Sender, Receiver],
) -> None:
    sender, receiver = ends
    sender.socket.sendall(struct.pack("<Q", 5) + b"trash")
    with pytest.raises(EngineError, match=r"^rank 5 cannot take a message \(link words: "):
        receiver.receive(WAIT_S)


def test_a_tensor_that_cannot_be_sent_is_refused_to_the_caller(
    ends: tuple[Sender, Receiver],
) -> None:
    sender, receiver = ends
    with pytest.raises(EngineError, match=r"cannot send a tensor on meta; move it to the CPU"):
        sender.send("empty", torch.zeros(3, device="meta"), timeout_s=WAIT_S)
    sender.send("full", torch.ones(3), timeout_s=WAIT_S)
    assert receiver.receive(WAIT_S).message == "full"


# Connecting.


def test_ranks_may_come_in_any_order_and_late(tmp_path: Path) -> None:
    links = [Link("there", 0, 1), Link("back", 1, 0), Link("on", 1, 2)]

    def come(rank: int) -> Ends:
        time.sleep(0.2 * (2 - rank))
        return connect(tmp_path, rank, links, CPU, WAIT_S)

    with ThreadPoolExecutor(3) as pool:
        ranks = list(pool.map(come, range(3)))
    assert [sorted(senders) for senders, _ in ranks] == [["there"], ["back", "on"], []]
    assert [sorted(receivers) for _, receivers in ranks] == [["back"], ["there"], ["on"]]
    assert not list(tmp_path.iterdir())
    for senders, receivers in ranks:
        for end in (*senders.values(), *receivers.values()):
            end.close()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_neighbour_that_does_not_come_is_waited_for_until_the_deadline(
    tmp_path: Path, rank: int
) -> None:
    with pytest.raises(DeadlineError, match=r"link"):
        connect(tmp_path, rank, [Link("words", 0, 1)], CPU, 0.2)
    assert not list(tmp_path.iterdir())
    assert not link_threads()


def test_a_neighbour_that_dies_while_it_connects_is_no_message_of_another_kind(
    tmp_path: Path,
) -> None:
    links = [Link("words", 0, 1)]

    def come_and_die() -> None:
        path, deadline = tmp_path / "rank1.sock", time.monotonic() + WAIT_S
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            while connection.connect_ex(str(path)) and time.monotonic() < deadline:
                time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(come_and_die)
        with pytest.raises(DeadlineError, match=r"^links words were not made in time"):
            connect(tmp_path, 1, links, CPU, WAIT_S)
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_name_is_too_long_for_a_socket_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    with pytest.raises(EngineError, match=r"set TMPDIR to a writable folder with a short path$"):
        connect(folder, 0, [Link("words", 0, 1)], CPU, 0.2)


def test_nothing_stays_open_after_closing(tmp_path: Path) -> None:
    links = [Link("there", 0, 1), Link("back", 1, 0)]

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: time.sleep(0.05), range(2)))
        before = open_files()
        for _ in range(5):
            calls = [pool.submit(connect, tmp_path, r, links, CPU, WAIT_S) for r in range(2)]
            for senders, receivers in [call.result() for call in calls]:
                for end in (*senders.values(), *receivers.values()):
                    end.close()
        after = open_files()
    assert after == before
    deadline = time.monotonic() + WAIT_S
    while link_threads() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not link_threads()
    assert not list(tmp_path.iterdir())
    gc.collect()  # a socket left open would be a ResourceWarning here, which is an error
