"""What `--resume` goes on from: the growing file beside the output, and a folder of resume points.

The folder is named by a digest of the request, so that another request under the same name of
output begins anew instead of going on with somebody else's video. No torch here.
"""

from __future__ import annotations

import glob
import hashlib
import shutil
from pathlib import Path

from inference.video_job import VideoJob
from liveavatar.media.live_file import measure_live_file
from liveavatar.media.spoken_video import can_resume


class Leftovers:
    """What a killed command left beside its output, and where this one leaves the same.

    Args:
        job: what is to be made; its inputs are still there.

    Attributes:
        frames: frames of this very video that are there already; 0 when it begins anew.
    """

    def __init__(self, job: VideoJob) -> None:
        self._output: Path = job.options.save_file
        self._root = self._output.with_suffix(".resume")
        self._live = job.live_path
        self.folder = self._root / request_key(job)
        height, width = job.portrait_HWC.shape[:2]
        self.frames = 0
        if job.options.resume and self.folder.is_dir() and can_resume(self._live, width, height):
            self.frames = measure_live_file(self._live).num_frames

    def begin(self) -> None:
        """Make the folder; what is not gone on with is removed."""
        if not self.frames:
            shutil.rmtree(self._root, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_parts(self._output)

    def remove(self) -> None:
        """The video is made, or nothing is to be left of it."""
        self._live.unlink(missing_ok=True)
        shutil.rmtree(self._root, ignore_errors=True)


def remove_parts(path: Path) -> None:
    """Remove what was written beside a file by a command that was killed before it had its name."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink(missing_ok=True)


def request_key(job: VideoJob) -> str:
    """Digest of all that the frames depend on; the inputs of the job are still there."""
    assert job.inputs is not None
    digest = hashlib.sha256(repr((job.sampling, job.timeline, job.inputs.prompt)).encode())
    digest.update(repr((job.options.ckpt_dir.resolve(), job.options.lora_path_dmd)).encode())
    digest.update(job.portrait_HWC.tobytes())
    digest.update(job.inputs.speech.samples.tobytes())
    return digest.hexdigest()[:16]
