"""The durable record of one video, and the only changes of state it may make.

    queued ──claim──▶ running ──▶ done | failed | cancelled
      │  ◀──requeue──┘
      └──▶ cancelled | failed

Pure values; `store.py` keeps them. No torch: web server and supervisor share this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from liveavatar.config import SamplingConfig
from liveavatar.errors import JobError
from liveavatar.media.notes import Note

MAX_TRIES = 3
"""How often in a row a job may be started without making a new frame."""


class JobState(str, Enum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        """Whether nothing will happen to the job any more."""
        return not ALLOWED_CHANGES[self]


ALLOWED_CHANGES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.DONE, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.DONE: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


def check_change(old: JobState, new: JobState) -> None:
    """Raise JobError unless a job may go from `old` to `new`."""
    if new not in ALLOWED_CHANGES[old]:
        allowed = ", ".join(sorted(state.value for state in ALLOWED_CHANGES[old])) or "nothing"
        raise JobError(
            f"a job that is {old.value} cannot become {new.value}; it can become {allowed}"
        )


def states_before(new: JobState) -> frozenset[JobState]:
    """The states from which a job may become `new`."""
    return frozenset(old for old, following in ALLOWED_CHANGES.items() if new in following)


@dataclass(frozen=True)
class JobSpec:
    """What was asked for, checked; it changes only when a smaller video is made instead.

    Attributes:
        owner: whose job it is: a digest of the browser's cookie.
        title: for lists and downloads, one line.
        prompt: checked prompt.
        tier: name of the resolution tier.
        width, height: of the video, pixels.
        sampling: clips, frames per clip, steps, seed, when to decode.
        total_frames: frames the finished video will have.
        portrait_name, speech_name: files in the job's folder, the original bytes.
        notes: findings about the inputs.
        idempotency_key: an owner's key under which a second submission finds this job; or None.
    """

    owner: str
    title: str
    prompt: str
    tier: str
    width: int
    height: int
    sampling: SamplingConfig
    total_frames: int
    portrait_name: str
    speech_name: str
    notes: tuple[Note, ...] = ()
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Job:
    """One job as the store holds it. Times are UTC epoch seconds.

    Attributes:
        id: 128 random bits in hex; whoever knows it may see and cancel the job.
        number: position in the order of submission, unique, rising.
        share_token: whoever knows it may only watch.
        spec: what was asked for.
        state: where it is in its life.
        stage: "preparing", "rendering" or "finishing" while it runs, else empty.
        frames: frames in its growing file.
        attempt: how often it was claimed; claims of earlier attempts change nothing any more.
        faults: how often it ended its worker group by itself.
        take: which growing file it is at: a rising number means that the video began anew.
        error: why it failed, one line; else None.
        restart_note: why it was started again, one line; else None.
        fps: frames per second measured lately, None before there are any.
        first_frame_s: seconds from the claim to the first frame, None before it.
        created_at, started_at, finished_at: None for what did not happen yet.
        cancel_requested: somebody asked to cancel it while it runs.
        queue_order: the smallest is claimed first; see `fair_share.py`.
        cost_s: GPU seconds it was expected to take when it was submitted.
    """

    id: str
    number: int
    share_token: str
    spec: JobSpec
    state: JobState
    stage: str
    frames: int
    attempt: int
    take: int
    faults: int
    error: str | None
    restart_note: str | None
    fps: float | None
    first_frame_s: float | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    cancel_requested: bool
    queue_order: float
    cost_s: float


@dataclass(frozen=True)
class Claim:
    """A worker's hold on one attempt at a job; it fences off workers that lost theirs.

    Attributes:
        job_id: which job.
        attempt: which attempt; the store refuses changes by any other.
    """

    job_id: str
    attempt: int
