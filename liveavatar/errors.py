"""The exceptions of the project, one tree.

LiveAvatarError
├── ConfigError            a setting is missing, unknown or out of range
├── RequestError           what a user asked for cannot be done as asked
├── MediaError             a portrait, a sound or a video file cannot be read or written
├── CheckpointError        a weight file is missing, damaged or of another shape
├── JobError               a job cannot make the change of state that was asked
│   ├── UnknownJobError    there is no such job
│   ├── QueueFullError     no more jobs are taken now
│   ├── LeaseLostError     the job was taken from the worker that reports on it
│   ├── StoreUnavailableError  the job database cannot be read or written now
│   └── SpoolUnavailableError  files cannot be written now: disk full or read-only, storage away
└── EngineError            the machinery failed, not the input
    ├── JobFaultError      a rank's work on one job failed
    ├── WorkerDiedError    a rank ended before its work did
    │   └── MemoryShortError   because it needed more memory than it may take
    ├── DeadlineError      a wait ran out of time
    └── StreamClosedError  a stream was used after it was closed

Every message is one line that says what was expected, what came and what to change. Commands print
it and exit with status 2.
"""


class LiveAvatarError(Exception):
    """Root of all errors this project raises on purpose."""


class ConfigError(LiveAvatarError):
    """A setting is missing, unknown or out of range."""


class RequestError(LiveAvatarError):
    """What a user asked for cannot be done as asked."""


class MediaError(LiveAvatarError):
    """A portrait, a sound or a video file cannot be read or written."""


class CheckpointError(LiveAvatarError):
    """A weight file is missing, damaged or of another shape."""


class JobError(LiveAvatarError):
    """A job cannot make the change of state that was asked."""


class UnknownJobError(JobError):
    """There is no such job."""


class QueueFullError(JobError):
    """No more jobs are taken now."""


class LeaseLostError(JobError):
    """The job was taken from the worker that reports on it."""


class StoreUnavailableError(JobError):
    """The job database cannot be read or written now."""


class SpoolUnavailableError(JobError):
    """Files cannot be written now: the disk is full or read-only, or the storage is away."""


class EngineError(LiveAvatarError):
    """The machinery failed, not the input."""


class WorkerDiedError(EngineError):
    """A rank ended before its work did.

    Attributes:
        by_its_work: whether what it worked on ended it, not a signal or a neighbour that is gone.
        job: number of the job it worked on then; None when it is not known.
        log: last lines of its own account; empty when it left none.
    """

    def __init__(
        self, message: str, *, by_its_work: bool = False, job: int | None = None, log: str = ""
    ) -> None:
        super().__init__(message)
        self.by_its_work = by_its_work
        self.job = job
        self.log = log


class JobFaultError(EngineError):
    """A rank's work on one job failed; `job` is its number."""

    def __init__(self, job: int, message: str) -> None:
        super().__init__(message)
        self.job = job


class MemoryShortError(WorkerDiedError):
    """A rank needed more memory than there is, or than it may take."""


class DeadlineError(EngineError):
    """A wait ran out of time."""


class StreamClosedError(EngineError):
    """A stream was used after it was closed."""
