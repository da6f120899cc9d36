"""Bodies of requests and answers, and which error answers with which status.

Times are seconds: points in time are UTC epoch seconds, spans are seconds.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from liveavatar.errors import (
    ConfigError,
    EngineError,
    JobError,
    LiveAvatarError,
    MediaError,
    QueueFullError,
    RequestError,
    SpoolUnavailableError,
    StoreUnavailableError,
    UnknownJobError,
)

FIELDS = (
    "portrait",
    "speech",
    "prompt",
    "tier",
    "size",
    "num_clip",
    "infer_frames",
    "sample_steps",
    "seed",
    "online_decode",
    "title",
    "idempotency_key",
)


class ErrorBody(BaseModel):
    """What is wrong, and with which field of the form."""

    field: str | None = Field(description="field of the form, or null")
    message: str = Field(description="one line: what was expected, what came, what to change")


class ErrorAnswer(BaseModel):
    """Every refusal."""

    error: ErrorBody


class ErrorsAnswer(BaseModel):
    """A refusal on the page, which shows everything that is wrong at once."""

    errors: list[ErrorBody]


class NoteView(BaseModel):
    """A finding about an input that does not stop the work."""

    field: str
    code: str
    message: str


class PortraitFacts(BaseModel):
    """Size of a portrait, pixels, upright."""

    width: int
    height: int


class SpeechFacts(BaseModel):
    """Length of a speech."""

    duration_s: float


class TierCost(BaseModel):
    """Memory that a video takes on this machine; null where nothing is planned."""

    fits: bool
    reason: str = Field(description="why it does or does not fit")
    memory_gib: float | None = Field(description="need of the fullest device, null when unknown")
    available_gib: float | None


class InspectView(BaseModel):
    """What would be said about these inputs."""

    notes: list[NoteView]
    errors: list[ErrorBody]
    portrait: PortraitFacts | None = None
    speech: SpeechFacts | None = None
    cost: TierCost | None = None


class JobView(BaseModel):
    """A job as its owner sees it."""

    id: str
    title: str
    prompt: str
    tier: str
    width: int
    height: int
    state: str = Field(description="queued, running, done, failed or cancelled")
    position: int | None = Field(description="place in the queue from 1, null when not queued")
    stage: str = Field(
        description="preparing, rendering or finishing while it runs; "
        "'no group' while it waits and no group that takes jobs can make it; else empty"
    )
    frames: int
    total_frames: int
    fps_measured: float | None
    realtime_factor: float | None = Field(description="1 is as fast as it plays")
    eta_s: float | None = Field(
        description="seconds until it ends while it runs, until it begins while it waits; or null"
    )
    attempt: int = Field(description="a rising number means that the live video began anew")
    created_at: float
    started_at: float | None
    finished_at: float | None
    notes: list[NoteView]
    error: str | None
    seed: int
    live_url: str
    video_url: str | None
    download_url: str | None
    thumbnail_url: str | None = Field(description="a picture of the video, once there is one")
    poster_url: str | None = Field(description="a picture of the portrait")
    share_url: str | None
    can_cancel: bool


class WaitedForView(BaseModel):
    """The worker group that a waiting video is for."""

    state: str = Field(description="as of `/api/group`")
    load_percent: int


class SharedJobView(BaseModel):
    """A job as anybody with its link sees it."""

    title: str
    tier: str
    width: int
    height: int
    state: str
    position: int | None
    stage: str
    frames: int
    total_frames: int
    fps_measured: float | None
    realtime_factor: float | None
    eta_s: float | None = Field(
        description="seconds until it ends while it runs, until it begins while it waits; or null"
    )
    attempt: int
    created_at: float
    live_url: str
    video_url: str | None
    download_url: str | None
    thumbnail_url: str | None = Field(description="a picture of the video, once there is one")
    poster_url: str | None = Field(description="a picture of the portrait")
    group: WaitedForView | None = Field(description="while the video waits for it, else null")


class TierDefaults(BaseModel):
    """Sampling of a tier when nothing else is asked for."""

    num_clip: int
    infer_frames: int
    sample_steps: int
    online_decode: bool


class TierView(TierCost):
    """A resolution tier and what it costs on this machine."""

    name: str
    size: str = Field(description='area as "W*H"; the portrait sets the shape')
    width: int
    height: int
    first_frame_s: float | None = Field(description="measured lately, null without a measurement")
    fps: float | None
    defaults: TierDefaults


class ModelView(BaseModel):
    """What runs here."""

    name: str
    is_demo: bool
    is_random: bool


class ConfigView(BaseModel):
    """What this server offers."""

    version: str
    model: ModelView
    tiers: list[TierView]
    limits: dict[str, int]
    features: dict[str, bool]
    languages: list[str]


class CeilingView(BaseModel):
    """The largest tier that is made for now."""

    tier: str
    reason: str
    since: float


class CeilingWish(BaseModel):
    """What an operator asks for."""

    tier: str | None = Field(None, description="null for one below the largest that is made now")
    reason: str = Field("the operator asked for it", min_length=1, max_length=200)


class OneGroupView(BaseModel):
    """One of the worker groups."""

    number: int
    node: str = Field(description="name of its machine, empty while it waits for one")
    state: str = Field(description="as of all groups, or waiting: no machine has room for it yet")
    load_percent: int = 0
    message: str = ""
    restarts: int = 0
    num_jobs: int = 0


class NodeView(BaseModel):
    """A machine of a cluster."""

    name: str
    alive: bool
    cpus: float
    gpus: float


class GroupView(BaseModel):
    """The worker groups as one. Groups, machines, ranks, jobs, errors only for the operator."""

    state: str = Field(
        description="starting, loading, ready, draining, restarting, failed or stopped; of several "
        "groups that of the one that is furthest"
    )
    load_percent: int
    message: str
    queue_length: int
    ceiling: CeilingView | None = Field(None, description="null when every tier is made")
    num_groups: int = 0
    groups: list[OneGroupView] | None = None
    nodes: list[NodeView] | None = None
    ranks: list[dict[str, Any]] | None = None
    jobs: list[JobView] | None = None
    errors: list[dict[str, Any]] | None = None
    restarts: int | None = None


class HealthView(BaseModel):
    """For probes: status is "ok" when jobs are taken and rendered, else "degraded".

    Where logging in is asked for, the rest is left out for who has not.
    """

    status: str
    group: str | None = None
    ranks: list[dict[str, Any]] | None = None
    queue_length: int | None = None


# The first line that an error is an instance of counts.
_STATUS: tuple[tuple[type[LiveAvatarError], int], ...] = (
    (UnknownJobError, 404),
    (QueueFullError, 429),
    (StoreUnavailableError, 503),
    (SpoolUnavailableError, 507),
    (JobError, 409),
    (RequestError, 422),
    (MediaError, 422),
    (ConfigError, 422),
    (EngineError, 503),
)


class RefusalError(LiveAvatarError):
    """A request that is refused with a status of its own.

    Attributes:
        status: HTTP status.
        field: field of the form it is about, or None.
    """

    def __init__(self, status: int, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.field = field


def status_of(error: LiveAvatarError) -> int:
    """HTTP status for an error."""
    if isinstance(error, RefusalError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def describe(error: LiveAvatarError) -> ErrorBody:
    """Message of an error, and the field that its first word names."""
    message = " ".join(str(error).split())
    if isinstance(error, RefusalError):
        return ErrorBody(field=error.field, message=message)
    word = message.replace("base_seed", "seed", 1).split(":")[0].split(" ")[0]
    return ErrorBody(field=word if word in FIELDS else None, message=message)
