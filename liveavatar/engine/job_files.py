"""From a claimed job to what the group renders, and from its growing file to the finished one."""

from __future__ import annotations

import shutil

from liveavatar.config import FPS, SPEECH_RATE_HZ
from liveavatar.engine.messages import RenderJob
from liveavatar.jobs.job import JobSpec
from liveavatar.jobs.spool import JobFolder
from liveavatar.media.ingest import ingest
from liveavatar.media.portrait import crop_to_size
from liveavatar.media.remux import remux_to_progressive
from liveavatar.media.spoken_video import can_resume
from liveavatar.media.thumbnail import write_thumbnail
from liveavatar.timeline import make_timeline


def prepare_render_job(number: int, spec: JobSpec, folder: JobFolder) -> RenderJob:
    """Decode a job's inputs; what an earlier attempt made is gone on with, or else removed.

    Args:
        number: the group's number for it.
        spec: what was asked for.
        folder: its files.

    Raises:
        MediaError: an input cannot be read any more.
    """
    resumes = can_resume(folder.live, spec.width, spec.height)
    if not resumes:
        folder.clear_results()
    folder.resume.mkdir(exist_ok=True)
    speech_path = folder.file(spec.speech_name)
    inputs = ingest(
        folder.file(spec.portrait_name),
        speech_path,
        spec.prompt,
        num_clip=spec.sampling.num_clip,
        infer_frames=spec.sampling.infer_frames,
    )
    # A smaller tier may have longer clips; the video stays as long as it was going to be.
    num_samples = min(len(inputs.speech.samples), spec.total_frames * SPEECH_RATE_HZ // FPS)
    return RenderJob(
        number=number,
        portrait_HWC=crop_to_size(inputs.portrait.rgb, (spec.height, spec.width)),
        speech_N=inputs.speech.samples,
        soundtrack=speech_path,
        mix=inputs.speech.mix,
        prompt=inputs.prompt,
        timeline=make_timeline(spec.sampling, num_samples),
        sampling=spec.sampling,
        live_path=folder.live,
        resume_folder=folder.resume,
        resumes=resumes,
    )


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
