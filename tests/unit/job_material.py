"""Jobs for tests: what somebody asked for, and a store and a spool of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from liveavatar.config import SamplingConfig
from liveavatar.jobs.job import JobSpec
from liveavatar.jobs.queue_limits import QueueLimits
from liveavatar.jobs.store import JobStore, sqlite_url
from liveavatar.media.notes import Note

LIMITS = QueueLimits(per_owner=100, in_all=1000)


def spec(**changed: Any) -> JobSpec:
    given: dict[str, Any] = {
        "owner": "ann",
        "title": "Hello",
        "prompt": "A woman talks",
        "tier": "fast",
        "width": 64,
        "height": 64,
        "sampling": SamplingConfig(num_clip=2, seed=5),
        "total_frames": 24,
        "portrait_name": "portrait.png",
        "speech_name": "speech.wav",
        "notes": (Note("portrait", "no_face", "No face was found."),),
    }
    return JobSpec(**(given | changed))


def new_store(folder: Path) -> JobStore:
    return JobStore(sqlite_url(folder / "jobs.db"))
