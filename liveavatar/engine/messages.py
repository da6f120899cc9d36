"""What the supervisor and the ranks say to each other; small frozen values, sent over pipes.

supervisor -> media rank    Submit, Cancel
supervisor -> every rank    Stop
rank -> supervisor          Ready, Progress, Finished, Refused, Failed
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from liveavatar.config import SamplingConfig
from liveavatar.media.sound_mix import Mix
from liveavatar.timeline import Timeline


@dataclass(frozen=True)
class GroupSpec:
    """What a worker group is built from; the same value in every rank.

    Attributes:
        checkpoint: folder of the weights.
        adapter: adapter file or folder, or None.
        stages: layers of each pipeline stage; stage k is rank k, the media rank is the last.
        devices: device of each rank, such as "cpu" or "cuda:2".
        dtype: of large matrices, "float32" or "bfloat16".
        threads: CPU threads of each rank.
        folder: private to the group; its sockets lie there while it starts.
        timeout_s: longest wait of a rank for a neighbour while work is under way.
    """

    checkpoint: Path
    adapter: Path | None
    stages: tuple[range, ...]
    devices: tuple[str, ...]
    dtype: str
    threads: int
    folder: Path
    timeout_s: float = 120.0

    @property
    def media_rank(self) -> int:
        """Rank that encodes and decodes."""
        return len(self.stages)

    @property
    def world_size(self) -> int:
        """All ranks."""
        return len(self.stages) + 1


@dataclass(frozen=True, eq=False)
class RenderJob:
    """One video to make, its inputs decoded and checked.

    Attributes:
        number: unique in the group, rising.
        portrait_HWC: uint8 RGB, of the video's size.
        speech_N: float32 mono at 16 kHz.
        soundtrack: file whose sound goes into the video.
        mix: how that file was turned to speech; the soundtrack is made the same way.
        prompt: checked prompt.
        timeline: blocks and frames.
        sampling: steps, seed, when to decode.
        live_path: growing file to write.
    """

    number: int
    portrait_HWC: npt.NDArray[np.uint8]
    speech_N: npt.NDArray[np.float32]
    soundtrack: Path
    mix: Mix
    prompt: str
    timeline: Timeline
    sampling: SamplingConfig
    live_path: Path


@dataclass(frozen=True, eq=False)
class Submit:
    """Render this job after those submitted before it."""

    job: RenderJob


@dataclass(frozen=True)
class Cancel:
    """Stop this job at once; the blocks that are finished stay in its file."""

    number: int


@dataclass(frozen=True)
class Stop:
    """Finish the jobs at hand, then end."""


@dataclass(frozen=True)
class Ready:
    """A rank has loaded its part and is connected."""

    rank: int
    seconds: float


@dataclass(frozen=True)
class Progress:
    """So many frames of a job are in its file."""

    number: int
    frames: int


@dataclass(frozen=True)
class Finished:
    """A job's file is complete, or, when cancelled, as complete as it will be."""

    number: int
    frames: int
    cancelled: bool


@dataclass(frozen=True)
class Refused:
    """A job could not be done for a reason of its own; the group goes on."""

    number: int
    reason: str


@dataclass(frozen=True)
class Failed:
    """A rank ends because of an error; the group has to end with it."""

    rank: int
    reason: str
    trace: str
