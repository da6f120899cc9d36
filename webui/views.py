"""Jobs as the browser sees them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from liveavatar.config import FPS
from liveavatar.jobs.forecast import Outlook
from liveavatar.jobs.job import Job, JobState
from liveavatar.jobs.spool import Made
from webui.schemas import GroupView, JobView, NoteView, SharedJobView, WaitedForView
from webui.settings import Features


def job_view(job: Job, made: Made, outlook: Outlook | None, features: Features) -> JobView:
    """Everything about a job, for whoever may cancel it.

    Args:
        job: the job.
        made: which files it has.
        outlook: what it may expect, None when it is not queued.
        features: what may be done here.
    """
    notes = [NoteView(**asdict(note)) for note in job.spec.notes]
    if job.restart_note is not None and not job.state.has_ended:
        anew = job.take > 1
        how = "Started again from the beginning" if anew else "Interrupted, and gone on with"
        message = f"{how}: {job.restart_note}."
        code = "restarted" if anew else "resumed"
        notes.append(NoteView(field="job", code=code, message=message))
    return JobView(
        **_progress(job, outlook),
        id=job.id,
        title=job.spec.title,
        prompt=job.spec.prompt,
        tier=job.spec.tier,
        width=job.spec.width,
        height=job.spec.height,
        started_at=job.started_at,
        finished_at=job.finished_at,
        notes=notes,
        error=job.error,
        seed=job.spec.sampling.seed,
        live_url=f"/live/{job.id}.mp4",
        video_url=f"/media/{job.id}.mp4" if made.video else None,
        download_url=f"/media/{job.id}.mp4?download=1" if made.video else None,
        thumbnail_url=f"/thumbnails/{job.id}.jpg" if made.thumbnail else None,
        poster_url=f"/posters/{job.id}.jpg" if made.poster else None,
        share_url=f"/s/{job.share_token}" if features.share else None,
        can_cancel=not job.state.has_ended and not job.cancel_requested,
    )


def shared_view(
    job: Job, made: Made, outlook: Outlook | None, features: Features, group: GroupView | None
) -> SharedJobView:
    """What somebody with the link may know.

    Args:
        job: as the rest, see `job_view`.
        made: which files it has.
        outlook: what it may expect.
        features: what may be done here.
        group: what it waits for, None when it is not queued.
    """
    base = f"/s/{job.share_token}"
    waits = WaitedForView(state=group.state, load_percent=group.load_percent) if group else None
    return SharedJobView(
        **_progress(job, outlook),
        title=job.spec.title,
        tier=job.spec.tier,
        width=job.spec.width,
        height=job.spec.height,
        live_url=f"{base}/live.mp4",
        video_url=f"{base}/video.mp4" if made.video else None,
        download_url=f"{base}/video.mp4?download=1" if made.video and features.download else None,
        thumbnail_url=f"{base}/thumbnail.jpg" if made.thumbnail else None,
        poster_url=f"{base}/poster.jpg" if made.poster else None,
        group=waits,
    )


def download_name(job: Job) -> str:
    """A file name made of the title: letters, digits, dashes."""
    words = "".join(char if char.isalnum() else " " for char in job.spec.title).split()
    return f"{'-'.join(words)[:60] or 'avatar'}.mp4"


def _progress(job: Job, outlook: Outlook | None) -> dict[str, Any]:
    left = job.spec.total_frames - job.frames
    eta_s = outlook.starts_in_s if outlook else None
    if job.state is JobState.RUNNING and job.fps:
        eta_s = left / job.fps
    return {
        "state": job.state.value,
        "position": outlook.position if outlook else None,
        "stage": job.stage if outlook is None or outlook.is_makeable else "no group",
        "frames": job.frames,
        "total_frames": job.spec.total_frames,
        "fps_measured": job.fps,
        "realtime_factor": job.fps / FPS if job.fps else None,
        "eta_s": eta_s,
        "attempt": job.take,
        "created_at": job.created_at,
    }
