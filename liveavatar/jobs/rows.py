"""Jobs to rows of the table and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from liveavatar.config import SamplingConfig
from liveavatar.jobs.job import Job, JobSpec, JobState
from liveavatar.media.notes import Note


def columns_of(spec: JobSpec) -> dict[str, Any]:
    """The columns that say what was asked for."""
    document = asdict(spec)
    for column in ("owner", "tier", "idempotency_key"):
        del document[column]
    return {
        "owner": spec.owner,
        "tier": spec.tier,
        "idempotency_key": spec.idempotency_key,
        "pixels": spec.width * spec.height,
        "spec": document,
    }


def job_of(row: sa.Row[Any]) -> Job:
    """The job of a whole row."""
    document = dict(row.spec)
    spec = JobSpec(
        **(
            document
            | {
                "owner": row.owner,
                "tier": row.tier,
                "idempotency_key": row.idempotency_key,
                "sampling": SamplingConfig(**document["sampling"]),
                "notes": tuple(Note(**note) for note in document["notes"]),
            }
        )
    )
    return Job(
        id=row.id,
        number=row.number,
        share_token=row.share_token,
        spec=spec,
        state=JobState(row.state),
        stage=row.stage,
        frames=row.frames,
        attempt=row.attempt,
        take=row.take,
        faults=row.faults,
        error=row.error,
        restart_note=row.restart_note,
        fps=row.fps,
        first_frame_s=row.first_frame_s,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        cancel_requested=row.cancel_requested,
        queue_order=row.queue_order,
        cost_s=row.cost_s,
    )
