"""From a claimed job to what the group renders, and from its growing file to the finished one."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from liveavatar.config import FPS, SPEECH_RATE_HZ
from liveavatar.engine.messages import RenderJob
from liveavatar.errors import LiveAvatarError, MediaError, UnknownJobError
from liveavatar.jobs.job import Job, JobSpec
from liveavatar.jobs.spool import JobFolder, Spool
from liveavatar.jobs.store import JobStore
from liveavatar.media.live_file import complete_length
from liveavatar.media.portrait import crop_to_size, load_portrait
from liveavatar.media.remux import remux_to_progressive
from liveavatar.media.speech import load_speech
from liveavatar.media.spoken_video import frames_to_go_on_from
from liveavatar.media.thumbnail import write_thumbnail
from liveavatar.timeline import make_timeline


class JobFiles:
    """What a supervisor does with the files of the jobs that it holds.

    Args:
        spool: where they are.
        shares: whether a worker of an earlier attempt may still be writing.
    """

    def __init__(self, spool: Spool, *, shares: bool) -> None:
        self._spool = spool
        self._shares = shares

    def prepare(self, number: int, job: Job) -> RenderJob:
        """Decode a claimed job's inputs; see `prepare_render_job`."""
        attempt = job.attempt if self._shares else None
        return prepare_render_job(number, job.spec, self._spool.job(job.id), attempt)

    def show_first_frames(self, job: Job) -> None:
        """Make the thumbnail while the video grows; what fails here is made of the finished one."""
        folder = self._spool.job(job.id)
        with suppress(LiveAvatarError):
            write_thumbnail(folder.live, folder.thumbnail)

    def finish(self, job: Job, frames: int) -> None:
        """Make the file for download and the thumbnail; see `finish_video`."""
        finish_video(self._spool.job(job.id), frames)

    def leave(self, job: Job, *, goes_on: bool) -> None:
        """A job is held no more; somebody may go on with what there is."""


def prepare_render_job(
    number: int, spec: JobSpec, folder: JobFolder, attempt: int | None = None
) -> RenderJob:
    """Decode a job's inputs; what an earlier attempt made is gone on with, or else removed.

    Args:
        number: the group's number for it.
        spec: what was asked for.
        folder: its files.
        attempt: which one this is, where a worker of an earlier one may still be writing: what it
            writes is gone on with in a copy.

    Raises:
        MediaError: an input cannot be read any more, or the disk cannot be written.
    """
    kept_frames = frames_to_go_on_from(folder.live, spec.width, spec.height)
    resumes = kept_frames > 0
    live_path = folder.live
    if attempt is not None:
        live_path = _own_file(folder, attempt, goes_on=resumes)
    elif not resumes:
        folder.clear_results()
    folder.resume.mkdir(exist_ok=True)
    portrait = load_portrait(folder.file(spec.portrait_name))
    speech_path = folder.file(spec.speech_name)
    speech = load_speech(speech_path)
    # A smaller tier may have longer clips; the video stays as long as it was going to be.
    num_samples = min(len(speech.samples), spec.total_frames * SPEECH_RATE_HZ // FPS)
    return RenderJob(
        number=number,
        portrait_HWC=crop_to_size(portrait.rgb, (spec.height, spec.width)),
        speech_N=speech.samples,
        soundtrack=speech_path,
        mix=speech.mix,
        prompt=spec.prompt,
        timeline=make_timeline(spec.sampling, num_samples),
        sampling=spec.sampling,
        live_path=live_path,
        resume_folder=folder.resume,
        resumes=resumes,
        kept_frames=kept_frames,
    )


def _own_file(folder: JobFolder, attempt: int, *, goes_on: bool) -> Path:
    """Give an attempt a growing file that nobody else writes, and lead viewers to it.

    Files of earlier attempts are removed; who still writes or reads one holds it until then.
    """
    own = folder.live_of(attempt)
    try:
        if goes_on:
            shutil.copyfile(folder.live, own)
            os.truncate(own, complete_length(own))
        else:
            shutil.rmtree(folder.resume, ignore_errors=True)
        folder.lead_to(attempt)
    except OSError as error:
        raise MediaError(f"cannot go on with the video: {error.strerror}") from error
    return own


def finish_video(folder: JobFolder, frames: int) -> None:
    """Make the file for download and the thumbnail, if there are frames; remove resume points.

    Raises:
        MediaError: the growing file cannot be read or the disk cannot be written.
    """
    shutil.rmtree(folder.resume, ignore_errors=True)
    if frames:
        remux_to_progressive(folder.live, folder.video)
        if not folder.thumbnail.exists():
            write_thumbnail(folder.video, folder.thumbnail)


def remove_stale_points(store: JobStore, spool: Spool) -> None:
    """Remove resume points of jobs that ended while no supervisor had them, as by a cancel.

    Raises:
        StoreUnavailableError: the database is away.
    """
    for job_id in spool.resumable():
        with suppress(UnknownJobError):
            if store.get(job_id).state.has_ended:
                shutil.rmtree(spool.job(job_id).resume, ignore_errors=True)
