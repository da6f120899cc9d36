"""Times and limits of a supervisor."""

from __future__ import annotations

from dataclasses import dataclass

from liveavatar.jobs.ability import EVERYTHING, Ability


@dataclass(frozen=True)
class SupervisorSettings:
    """Times are in seconds.

    Attributes:
        jobs_at_once: jobs handed to the group: one renders, the next one is prepared.
        prepare_ahead_s: the next one is claimed when what is at hand takes so long at most, so
            that it does not wait behind a long one while another group is free.
        ability: which videos the group can make.
        lease_s: how long a claim holds without being renewed.
        first_backoff_s: wait before the first restart; it doubles with every failure in a row.
        longest_backoff_s: the longest such wait.
        healthy_after_s: a group that served so long failed for a new reason.
        failures_until_failed: failures in a row after which the state says so.
        status_s: how often the group's state is written.
        progress_s: how often progress is written, at most.
        free_disk_bytes: with less room on the disk of the data folder no job is begun.
        memory_threshold_bytes: of a card or a rank; see `MemoryGuard`.
    """

    jobs_at_once: int = 2
    prepare_ahead_s: float = 30.0
    ability: Ability = EVERYTHING
    lease_s: float = 30.0
    first_backoff_s: float = 1.0
    longest_backoff_s: float = 60.0
    healthy_after_s: float = 60.0
    failures_until_failed: int = 5
    status_s: float = 1.0
    progress_s: float = 0.2
    free_disk_bytes: int = 0
    memory_threshold_bytes: int = 0


DEFAULT_SETTINGS = SupervisorSettings()
