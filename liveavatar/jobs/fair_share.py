"""Whose job is next: start-time fair queueing over GPU seconds, as arithmetic.

Every job gets two numbers when it is submitted, on a clock of virtual seconds:

    start  = max(virtual time, finish of its owner's job before)
    finish = start + cost                        cost: GPU seconds it is expected to take
    order  = start + min(cost, HEAD_START_S)     the smallest order is claimed first

An owner who submits much is charged for it in the starts of what follows, so that owners who wait
get equal shares of the GPUs; a short job passes long ones of other owners, by a bounded head start.
The virtual time is the order of the last job that was claimed, and runs by itself at `PACE`.

From this follow (and `tests/unit/test_fair_share.py` holds them):

- Of two owners who both wait, with jobs of at most a and b seconds, neither gets over a + b seconds
  more than the other.
- No starvation: a job at the head of its owner's line is passed by nobody who comes
  HEAD_START_S / PACE seconds after it, however many come.
- One owner's jobs are claimed in the order in which they were submitted.

Source: P. Goyal, H. Vin, H. Cheng, "Start-time fair queueing", SIGCOMM 1996, with the order of
S. Golestani, "A self-clocked fair queueing scheme", INFOCOM 1994, for jobs up to HEAD_START_S.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD_START_S = 600.0
"""A job is taken for one of so many GPU seconds, at most, where another owner's might pass it."""

PACE = 0.1
"""Virtual seconds in a second, at least: with more than 1 / PACE owners waiting for each group,
they are served by the time at which they came rather than by what they had."""

FIRST = 0.0
"""The order of a job that was interrupted: before all that have not begun."""


@dataclass(frozen=True)
class VirtualClock:
    """The virtual time as it was when a job was claimed last.

    Attributes:
        value: virtual seconds.
        at: when that was, UTC epoch seconds.
    """

    value: float = 0.0
    at: float = 0.0

    def read(self, now: float) -> float:
        """The virtual time at `now`; a clock that was set back only stops it."""
        return self.value + PACE * max(0.0, now - self.at)

    def claimed(self, order: float, now: float) -> VirtualClock:
        """The clock after a job of this order was claimed."""
        return VirtualClock(max(self.read(now), order), now)


@dataclass(frozen=True)
class Place:
    """A job's place among the others, virtual seconds; see the top of this file.

    Attributes:
        order: the smallest is claimed first, of equal ones the one submitted first.
        finish: before it no later job of this owner starts.
    """

    order: float
    finish: float


def place_of(virtual_time: float, owner_finish: float, cost_s: float) -> Place:
    """Where a new job goes.

    Args:
        virtual_time: now.
        owner_finish: finish of the owner's job before; anything in the past for one without.
        cost_s: GPU seconds it is expected to take.
    """
    start = max(virtual_time, owner_finish)
    return Place(start + min(cost_s, HEAD_START_S), start + cost_s)
