"""Resume points on disk: what a killed render goes on from, written so that half a point is none.

A point says that blocks 0..n-1 are finished. Each part of what makes a video (every rank of a
worker group, or the one process that does it alone) writes a file of its own:

    <folder>/<n>.<part>.<checksum>.safetensors

A file appears whole, under a name that holds the checksum of its bytes; a point counts when the
files of all parts are there and have their checksums. Each part keeps its two newest files, since
the stages are ahead of the decoder.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from liveavatar.errors import CheckpointError

_NAME = re.compile(r"(\d+)\.([a-z0-9-]+)\.([0-9a-f]{8})\.safetensors")
_KEPT = 2
_CLOSE_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PointPlan:
    """Where and how often a job's points are written.

    Attributes:
        folder: of this job under this layout of ranks; made by who opens the job.
        every: blocks from one point to the next, a multiple of the window's.
    """

    folder: Path
    every: int

    def is_due(self, num_blocks: int) -> bool:
        """Whether there is a point behind so many finished blocks."""
        return num_blocks % self.every == 0


class PointWriter:
    """Writes one part of a job's points in a thread, so that no block waits for the disk.

    Points are an insurance: one that comes while the last is still being written is left out, and a
    disk that takes no more costs a warning, not the video.

    Args:
        plan: where.
        part: whose, such as "rank-0".
    """

    def __init__(self, plan: PointPlan, part: str) -> None:
        self._plan = plan
        self._part = part
        self._queue: queue.SimpleQueue[tuple[int, Mapping[str, Tensor]] | None] = (
            queue.SimpleQueue()
        )
        self._writing = threading.Semaphore()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"points of {part}", daemon=True)
        self._thread.start()

    def offer(self, block: int, tensors: Mapping[str, Tensor]) -> None:
        """Hand over a point's tensors, on the CPU and not to be changed any more."""
        if self._writing.acquire(blocking=False):
            self._queue.put((block, tensors))
        else:
            logger.warning("resume point %d is left out: the disk is slower than the video", block)

    def close(self) -> None:
        """The video is over; waits for the file that is being written, for some seconds at most."""
        self._closed.set()
        self._queue.put(None)
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while (given := self._queue.get()) is not None and not self._closed.is_set():
            write_part(self._plan.folder, self._part, *given)
            self._writing.release()


def write_part(folder: Path, part: str, block: int, tensors: Mapping[str, Tensor]) -> bool:
    """Write one part of the point behind `block` blocks and forget older ones but one.

    Returns:
        Whether it is there; a disk that takes it not is only logged.
    """
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    unfinished = folder / f".{part}.unfinished"
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(folder / f"{block}.{part}.{zlib.crc32(data):08x}.safetensors")
        mine = sorted(found for found in _files(folder) if found[1] == part)
        for _, _, path in mine[:-_KEPT]:
            path.unlink(missing_ok=True)
    except OSError as error:
        if folder.exists():  # else the video is over
            logger.warning("no resume point behind block %d: %s", block, error.strerror)
        return False
    return True


def whole_points(folder: Path, parts: Collection[str]) -> list[int]:
    """The points of which every part's file is whole, newest first; reads all their bytes."""
    found: dict[int, dict[str, Path]] = {}
    for block, part, path in _files(folder):
        found.setdefault(block, {})[part] = path
    return [
        block
        for block, files in sorted(found.items(), reverse=True)
        if files.keys() >= set(parts) and all(_has_its_checksum(files[part]) for part in parts)
    ]


def read_part(folder: Path, part: str, block: int) -> dict[str, Tensor]:
    """Read one part of a point; the tensors lie on the CPU.

    Raises:
        CheckpointError: it is not there or damaged; a damaged one is removed.
    """
    for found, whose, path in _files(folder):
        if (found, whose) != (block, part):
            continue
        if _has_its_checksum(path):
            try:
                tensors: dict[str, Tensor] = safetensors.torch.load(path.read_bytes())
                return tensors
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"resume point '{path.name}': {error}") from error
        path.unlink(missing_ok=True)
    raise CheckpointError(f"resume point {block} of {part} is missing or damaged")


def _files(folder: Path) -> list[tuple[int, str, Path]]:
    """Block, part and path of each file."""
    try:
        paths = list(folder.iterdir())
    except OSError:
        return []
    named = [(_NAME.fullmatch(path.name), path) for path in paths]
    return [(int(name[1]), name[2], path) for name, path in named if name is not None]


def _has_its_checksum(path: Path) -> bool:
    name = _NAME.fullmatch(path.name)
    try:
        return name is not None and zlib.crc32(path.read_bytes()) == int(name[3], 16)
    except OSError:
        return False
