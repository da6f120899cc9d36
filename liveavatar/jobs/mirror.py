"""What a job's files are called in a storage, and how attempts at a job follow one another there.

    jobs/<job id>/inputs/portrait.<ext>  speech.<ext>  poster.jpg
    jobs/<job id>/<attempt>/begun.json   which take it is of, and what it goes on with
                            live/000000  live/000001 ...   parts of the growing file
                            video.mp4  thumbnail.jpg  failure.log
    points/<job id>/<attempt>/<file>     resume points

Objects cannot be appended to, so the growing file lies there in parts, each of whole segments. And
nobody can keep a machine that was given up from writing, so it writes under its own attempt. The
next one counts the parts that are there once it has its claim, says so in `begun.json`, and only
those are gone on with. A reader that looks up the job's attempt after it has fetched a part knows
that this part was there before any later claim, hence counted (`live_copy.py`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from liveavatar.errors import MediaError, SpoolUnavailableError
from liveavatar.jobs.storage import Storage

logger = logging.getLogger(__name__)

_PARTS_AT_ONCE = 32
_ATTEMPTS_AT_ONCE = 8


@dataclass(frozen=True)
class Begun:
    """How an attempt at a job began.

    Attributes:
        attempt: which one.
        take: the growing file it makes.
        goes_on: attempts whose parts are its file's beginning, and how many of each.
    """

    attempt: int
    take: int
    goes_on: tuple[tuple[int, int], ...] = ()


class Mirror:
    """The jobs' files in a storage.

    Args:
        storage: where.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def put_inputs(self, job_id: str, folder: Path) -> None:
        """Store the files of a job that is about to be submitted."""
        for path in folder.iterdir():
            self.storage.put_file(f"jobs/{job_id}/inputs/{path.name}", path)

    def fetch_inputs(self, job_id: str, names: Iterable[str], folder: Path) -> None:
        """Fetch a job's inputs; MediaError when there is one no more."""
        for name in names:
            if not self.storage.get_file(f"jobs/{job_id}/inputs/{name}", folder / name):
                raise MediaError(f"the {name.partition('.')[0]} is not in the storage any more")

    def begin(self, job_id: str, begun: Begun) -> None:
        """Say how an attempt begins; from now on its parts are what the job's video consists of."""
        text = json.dumps({"take": begun.take, "goes_on": begun.goes_on})
        self.storage.put(f"jobs/{job_id}/{begun.attempt}/begun.json", text.encode("ascii"))

    def begun(self, job_id: str, attempt: int, take: int | None = None) -> Begun | None:
        """How the newest attempt up to this one began, of those at a take, if one is given."""
        for last in range(attempt, 0, -_ATTEMPTS_AT_ONCE):
            attempts = range(last, max(0, last - _ATTEMPTS_AT_ONCE), -1)
            keys = [f"jobs/{job_id}/{number}/begun.json" for number in attempts]
            for number, text in zip(attempts, self.storage.get(keys), strict=True):
                if text is None:
                    continue
                said = json.loads(text)
                if take in (None, said["take"]):
                    goes_on = tuple((int(whose), int(count)) for whose, count in said["goes_on"])
                    return Begun(number, int(said["take"]), goes_on)
        return None

    def put_part(self, job_id: str, attempt: int, number: int, data: bytes) -> None:
        """Store a part of a growing file: whole segments behind those of the parts before."""
        self.storage.put(_part(job_id, attempt, number), data)

    def parts(self, job_id: str, attempt: int, first: int, end: int | None) -> Iterator[bytes]:
        """Yield an attempt's parts from a number on, up to one that is not there, or to `end`.

        What there is at once is fetched together, more and more of it at a time.
        """
        at_once = 1
        while end is None or first < end:
            numbers = range(first, first + at_once if end is None else min(end, first + at_once))
            for data in self.storage.get([_part(job_id, attempt, number) for number in numbers]):
                if data is None:
                    return
                yield data
            first, at_once = numbers.stop, min(2 * at_once, _PARTS_AT_ONCE)

    def fetch_live(self, job_id: str, last: Begun, path: Path) -> Begun:
        """Write what there is of an attempt's growing file; returns an attempt that goes on so.

        Its number is the next one; the caller may have another.
        """
        counts = []
        with path.open("wb") as file:
            for attempt, end in (*last.goes_on, (last.attempt, None)):
                count = 0
                for count, data in enumerate(self.parts(job_id, attempt, 0, end), start=1):  # noqa: B007
                    file.write(data)
                counts.append((attempt, count))
                if end is not None and count < end:
                    logger.error("job %s: parts of its video are lost; it goes on before", job_id)
                    break
        return Begun(last.attempt + 1, last.take, tuple(counts))

    def put_point(self, job_id: str, attempt: int, name: str, path: Path) -> None:
        """Store a file of a resume point; FileNotFoundError when it is gone meanwhile."""
        self.storage.put_file(f"points/{job_id}/{attempt}/{name}", path)

    def remove_point(self, job_id: str, attempt: int, name: str) -> None:
        """Remove one that newer ones have replaced."""
        self.storage.remove(f"points/{job_id}/{attempt}/{name}")

    def fetch_points(self, job_id: str, attempts: Iterable[int], folder: Path) -> None:
        """Fetch all files of resume points that these attempts left; later ones' count."""
        for attempt in attempts:
            for name in self.storage.sizes(f"points/{job_id}/{attempt}"):
                self.storage.get_file(f"points/{job_id}/{attempt}/{name}", folder / name)

    def remove_points(self, job_id: str, attempt: int) -> None:
        """Remove the resume points of a job's attempts up to this one."""
        for known in self.storage.folders(f"points/{job_id}"):
            if int(known) <= attempt:
                self.storage.remove(f"points/{job_id}/{known}")

    def remove_all_points(self, job_id: str) -> None:
        """Remove the resume points of a job that has ended."""
        self.storage.remove(f"points/{job_id}")

    def with_points(self) -> set[str]:
        """Ids of the jobs that have resume points."""
        return self.storage.folders("points")

    def put_result(self, job_id: str, attempt: int, path: Path) -> None:
        """Store a finished file of an attempt under its name, if there is one."""
        with suppress(FileNotFoundError):
            self.storage.put_file(f"jobs/{job_id}/{attempt}/{path.name}", path)

    def fetch_result(self, job_id: str, attempt: int, path: Path) -> bool:
        """Fetch a finished file of an attempt by its name; returns whether there is one."""
        return self.storage.get_file(f"jobs/{job_id}/{attempt}/{path.name}", path)

    def has_result(self, job_id: str, attempt: int, names: Iterable[str]) -> list[bool]:
        """Which finished files an attempt has."""
        return self.storage.exist([f"jobs/{job_id}/{attempt}/{name}" for name in names])

    def jobs(self) -> set[str]:
        """Ids of the jobs that have files here."""
        return self.storage.folders("jobs")

    def job_bytes(self) -> dict[str, int]:
        """Bytes of each job's files, by its id."""
        sums: dict[str, int] = {}
        for folder in ("jobs", "points"):
            for key, size in self.storage.sizes(folder).items():
                job_id = key.partition("/")[0]
                sums[job_id] = sums.get(job_id, 0) + size
        return sums

    def remove(self, job_id: str) -> None:
        """Remove all of a job; what cannot be removed now is found by who sweeps."""
        with suppress(SpoolUnavailableError):
            self.storage.remove(f"jobs/{job_id}")
            self.remove_all_points(job_id)


def open_mirror(url: str) -> Mirror:
    """The files in the storage behind a URL; ConfigError when it cannot be used."""
    storage = Storage(url)
    storage.check()
    return Mirror(storage)


def _part(job_id: str, attempt: int, number: int) -> str:
    return f"jobs/{job_id}/{attempt}/live/{number:06d}"
