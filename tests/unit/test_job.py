"""The table of state changes, every cell of it."""

from __future__ import annotations

import itertools

import pytest

from liveavatar.errors import JobError
from liveavatar.jobs.job import JobState, check_change, states_before

ALLOWED = {
    ("queued", "running"),
    ("queued", "failed"),
    ("queued", "cancelled"),
    ("running", "queued"),
    ("running", "done"),
    ("running", "failed"),
    ("running", "cancelled"),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(JobState, JobState)))
def test_a_change_of_state_is_allowed_or_refused_with_what_is_allowed(
    old: JobState, new: JobState
) -> None:
    if (old.value, new.value) in ALLOWED:
        check_change(old, new)
        assert old in states_before(new)
        return
    assert old not in states_before(new)
    with pytest.raises(JobError) as caught:
        check_change(old, new)
    expected = sorted(after for before, after in ALLOWED if before == old.value) or ["nothing"]
    assert str(caught.value) == (
        f"a job that is {old.value} cannot become {new.value}; it can become {', '.join(expected)}"
    )


def test_jobs_end_in_three_ways() -> None:
    assert {state.value for state in JobState if state.has_ended} == {"done", "failed", "cancelled"}
