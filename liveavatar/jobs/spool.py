"""Files of the jobs: a folder for each, and uploads on their way to become one.

    <data>/jobs/<job id>/portrait.<ext>  speech.<ext>  poster.jpg
                          live.mp4  video.mp4  thumbnail.jpg
                          resume/...  live.<attempt>.mp4, where live.mp4 is a link to the newest
    <data>/uploads/<random>/...

No name in here comes from a user: folders are named by job id, files by their part, and an ending
only by what the file's first bytes say it is.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from liveavatar.errors import JobError, SpoolUnavailableError, UnknownJobError
from liveavatar.jobs.mirror import Mirror
from liveavatar.jobs.storage import patiently
from liveavatar.media.upload import HEAD_BYTES, sniff

_ABANDONED_S = 3600.0
_PATIENCE_S = 10.0
_JOB_ID = re.compile(r"[0-9a-f]{32}")
_DISK_ERRORS = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO)


@dataclass(frozen=True)
class Made:
    """Which pictures and finished files a job has."""

    video: bool
    thumbnail: bool
    poster: bool = True


@dataclass(frozen=True)
class JobFolder:
    """The files of one job; any of them may be missing yet."""

    path: Path

    @property
    def live(self) -> Path:
        """The growing video."""
        return self.path / "live.mp4"

    def live_of(self, attempt: int) -> Path:
        """The growing video of one attempt, where workers of several may be writing at a time."""
        return self.path / f"live.{attempt}.mp4"

    def lead_to(self, attempt: int) -> None:
        """Let `live` be the file of an attempt, unless it is a later one's; OSError.

        Files of earlier attempts are removed, and what was made of them.
        """
        theirs = {path: int(path.name.split(".")[1]) for path in self.path.glob("live.*.mp4")}
        if any(number > attempt for number in theirs.values()):
            return
        link = self.path / f".live.{attempt}"
        link.unlink(missing_ok=True)
        link.symlink_to(self.live_of(attempt).name)
        link.replace(self.live)
        for path in (self.video, self.thumbnail, *(theirs.keys() - {self.live_of(attempt)})):
            path.unlink(missing_ok=True)

    @property
    def video(self) -> Path:
        """The finished video; it appears whole."""
        return self.path / "video.mp4"

    @property
    def thumbnail(self) -> Path:
        """A small JPEG of the video."""
        return self.path / "thumbnail.jpg"

    @property
    def poster(self) -> Path:
        """A small JPEG of the portrait, there from the beginning."""
        return self.path / "poster.jpg"

    @property
    def resume(self) -> Path:
        """Folder of what an interrupted render goes on from."""
        return self.path / "resume"

    @property
    def failure_log(self) -> Path:
        """Last lines of a rank's account of what went wrong; only where something did."""
        return self.path / "failure.log"

    def made(self) -> Made:
        """Which finished files there are."""
        return Made(self.video.exists(), self.thumbnail.exists(), self.poster.exists())

    def file(self, name: str) -> Path:
        """An input, by the name the job holds."""
        return self.path / name

    def clear_results(self) -> None:
        """Remove what an earlier attempt made; who reads it still holds the old file."""
        for path in (self.live, self.video, self.thumbnail, *self.path.glob("live.*.mp4")):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.resume, ignore_errors=True)


class Spool:
    """The data folder.

    Args:
        root: folder to use; made when it is not there.
        shared: whether other web servers take uploads into the same folder.
        mirror: where the jobs' files are for machines that share no folder; what lies in the folder
            are then copies.

    Raises:
        JobError: it cannot be made or written.
    """

    def __init__(self, root: Path, *, shared: bool = False, mirror: Mirror | None = None) -> None:
        self.root = root
        self.mirror = mirror
        self._shared = shared
        self._jobs, self._uploads = root / "jobs", root / "uploads"
        try:
            for folder in (root, self._jobs, self._uploads):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self._uploads / f".{secrets.token_hex(8)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise JobError(
                f"data folder '{root}' cannot be used: {str(error.strerror).lower()}; "
                "choose another with --data-dir"
            ) from None

    def complaint(self) -> str | None:
        """Why files cannot be written now, a few words; None when they can."""
        if self.mirror is not None and (cause := self.mirror.storage.complaint()) is not None:
            return cause
        folders = (self.root, self._jobs, self._uploads)
        if all(os.access(folder, os.W_OK | os.X_OK) for folder in folders):
            return None
        read_only = os.statvfs(self.root).f_flag & os.ST_RDONLY
        return os.strerror(errno.EROFS if read_only else errno.EACCES).lower()

    def require_writable(self) -> None:
        """Raise SpoolUnavailableError when files cannot be written now."""
        if (cause := self.complaint()) is not None:
            raise _unavailable(cause)

    def job(self, job_id: str) -> JobFolder:
        """The folder of a job, made or not; UnknownJobError when the id is none."""
        if not _JOB_ID.fullmatch(job_id):
            raise UnknownJobError(f"there is no job {job_id[:40]!r}")
        return JobFolder(self._jobs / job_id)

    def new_upload(self) -> Path:
        """Make a private folder for one upload; `adopt` or `discard` it; SpoolUnavailableError."""
        folder = self._uploads / secrets.token_hex(16)
        with writable():
            folder.mkdir(mode=0o700)
        return folder

    def adopt(self, upload: Path, job_id: str) -> JobFolder:
        """Make an upload's folder a job's, in one step; SpoolUnavailableError."""
        folder = self.job(job_id)
        with writable():
            upload.rename(folder.path)
        if (mirror := self.mirror) is not None:
            try:
                patiently(lambda: mirror.put_inputs(job_id, folder.path), _PATIENCE_S)
            except SpoolUnavailableError as error:
                self.remove(job_id)
                raise _unavailable(str(error)) from error
        return folder

    def discard(self, upload: Path) -> None:
        """Remove an upload's folder; does nothing when it is gone."""
        shutil.rmtree(upload, ignore_errors=True)

    def remove(self, job_id: str) -> None:
        """Remove all files of a job; does nothing when they are gone."""
        shutil.rmtree(self.job(job_id).path, ignore_errors=True)
        if self.mirror is not None:
            self.mirror.remove(job_id)

    def job_folders(self) -> Iterator[Path]:
        """All folders of jobs."""
        return self._jobs.iterdir()

    def resumable(self) -> list[str]:
        """Ids of the jobs that have resume points."""
        return [path.parent.name for path in self._jobs.glob("*/resume")]

    def job_bytes(self) -> dict[str, int]:
        """Bytes of each job's files, by its id; what goes away meanwhile counts as nothing."""
        if self.mirror is not None:
            return self.mirror.job_bytes()
        sizes = {}
        for folder in self._jobs.iterdir():
            sizes[folder.name] = 0
            for path in folder.rglob("*"):
                with suppress(OSError):
                    sizes[folder.name] += path.lstat().st_size
        return sizes

    def sweep_uploads(self) -> int:
        """Remove uploads that a stopped server left; returns how many.

        Only for a server that begins: uploads of a running one are among them. What others may be
        taking in is left alone until it is old.
        """
        before = time.time() - (_ABANDONED_S if self._shared else 0)
        left = [path for path in self._uploads.iterdir() if _changed_before(path, before)]
        for folder in left:
            with suppress(OSError):
                shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        return len(left)


def _changed_before(path: Path, when: float) -> bool:
    with suppress(OSError):
        return path.stat().st_mtime <= when
    return False


@contextmanager
def writable() -> Iterator[None]:
    """Tell of a disk that cannot be written by SpoolUnavailableError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise _unavailable(str(error.strerror).lower()) from None


def _unavailable(cause: str) -> SpoolUnavailableError:
    return SpoolUnavailableError(
        f"the server cannot write its files now ({cause}); nothing that was submitted before is "
        "lost, try again later"
    )


def settled_name(part: str, path: Path) -> str:
    """Name for an input in a job's folder: its part, and an ending for what it is.

    Args:
        part: "portrait" or "speech".
        path: the uploaded file.
    """
    with path.open("rb") as file:
        kind = sniff(file.read(HEAD_BYTES))
    return f"{part}.{kind.suffix if kind else 'bin'}"
