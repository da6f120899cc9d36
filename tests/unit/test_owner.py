"""A rank hears its owner or ends."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection

import pytest

from liveavatar.engine.owner import EXIT_DEAF, EXIT_ORPHANED, Owner
from tests.patience import PATIENCE_S


class NotUnderstood:
    """A message that cannot be read where it arrives."""

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("no number",)


def be_a_rank(pipe: Connection) -> None:
    def take(message: object) -> None:
        if message == "refused":
            raise RuntimeError("unexpected message")
        owner.say(message)

    owner = Owner(pipe)
    owner.hear(take)
    time.sleep(PATIENCE_S)


@pytest.mark.parametrize("message", ["refused", NotUnderstood()], ids=["refused", "damaged"])
def test_a_rank_that_cannot_take_what_it_hears_ends(message: object) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    rank = context.Process(target=be_a_rank, args=(theirs,), daemon=True)
    rank.start()
    theirs.close()
    ours.send("heard")
    assert ours.poll(PATIENCE_S)
    assert ours.recv() == "heard"
    ours.send(message)
    rank.join(PATIENCE_S / 2)
    assert rank.exitcode == EXIT_DEAF


def test_a_rank_whose_owner_is_gone_ends() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    rank = context.Process(target=be_a_rank, args=(theirs,), daemon=True)
    rank.start()
    theirs.close()
    ours.close()
    rank.join(PATIENCE_S / 2)
    assert rank.exitcode == EXIT_ORPHANED
