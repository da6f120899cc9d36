"""What the supervisor and the ranks say to each other; small frozen values, sent over pipes.

supervisor -> media rank    StagesReady, Submit, Cancel, Stop
rank -> supervisor          Loading, Ready, RankStatus, Failed
media rank -> supervisor    Progress, Finished, Refused
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from liveavatar.config import FRAMES_PER_BLOCK, SamplingConfig
from liveavatar.errors import ConfigError
from liveavatar.media.sound_mix import Mix
from liveavatar.parallel.mesh import Mesh
from liveavatar.plan.precision import Precision
from liveavatar.plan.shapes import Network
from liveavatar.timeline import Timeline

Transport = Literal["auto", "direct", "sockets"]


@dataclass(frozen=True)
class RandomWeights:
    """In place of a checkpoint: random weights in these shapes, drawn on the devices."""

    network: Network


@dataclass(frozen=True)
class GroupSpec:
    """What a worker group is built from; the same value in every rank.

    Attributes:
        checkpoint: folder of the weights, or random ones.
        adapter: adapter file or folder, or None.
        stages: layers of each pipeline stage; see `mesh` for the ranks.
        devices: device of each rank, such as "cpu" or "cuda:2".
        precision: of weights, keys and values.
        threads: CPU threads of each rank.
        folder: private to the group; its sockets lie there while it starts.
        timeout_s: longest wait of a rank for a neighbour while work is under way, and of the owner
            for the next block of an open job.
        tp_degree: ranks that share the heads and widths of a stage.
        sp_degree: ranks that share the tokens of a stage.
        sharded: whether those keep only parts of the weights and gather them layer by layer, the
            baseline that stages are compared with.
        silence_s: longest time that a rank says nothing; it speaks every second.
        memory_limits: bytes torch may hold of each rank's GPU; 0, or no entries, for no limit.
        weight_bytes: of each rank's weights, to tell how far loading is; may be empty.
        jobs_at_once: jobs whose caches the stages may hold at the same time, 1 or 2.
        warm_up_hw: height and width of what is made before the group is ready.
        warm_up_sampling: and how it is sampled.
        transport: way of the tensors between stages: "sockets" through host memory; "direct" by
            NCCL, where each stage rank has a GPU of its own, or by gloo on the CPU; "auto" for
            direct by NCCL where that works, else sockets.

    Raises:
        ConfigError: the ranks cannot send directly and have to.
    """

    checkpoint: Path | RandomWeights
    adapter: Path | None
    stages: tuple[range, ...]
    devices: tuple[str, ...]
    precision: Precision
    threads: int
    folder: Path
    timeout_s: float = 120.0
    tp_degree: int = 1
    sp_degree: int = 1
    sharded: bool = False
    silence_s: float = 20.0
    memory_limits: tuple[int, ...] = ()
    weight_bytes: tuple[int, ...] = ()
    jobs_at_once: int = 2
    warm_up_hw: tuple[int, int] = (64, 64)
    warm_up_sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(num_steps=2, infer_frames=FRAMES_PER_BLOCK)
    )
    transport: Transport = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError for a transport that cannot be."""
        if self.transport not in get_args(Transport):
            raise ConfigError(
                f"transport: expected {', '.join(get_args(Transport))}, got {self.transport!r}"
            )
        if self.transport == "direct" and not (self._own_gpus or self._on_cpu):
            raise ConfigError(
                'transport: "direct" needs a GPU of its own for every stage rank, got '
                f'{", ".join(self._stage_devices)}; use "sockets" or "auto"'
            )

    @property
    def mesh(self) -> Mesh:
        """Which rank does what: the stages' ranks, then the media rank."""
        return Mesh(len(self.stages), self.tp_degree, self.sp_degree)

    @property
    def collectives(self) -> str:
        """Library of the transformer ranks: "nccl" if each has a GPU of its own, else "gloo"."""
        return "nccl" if self._own_gpus else "gloo"

    @property
    def sends_directly(self) -> bool:
        """Whether direct routes between transformer ranks are tried."""
        if self.mesh.num_dit_ranks == 1 or self.transport == "sockets":
            return False
        return self.transport == "direct" or self._own_gpus

    @property
    def media_rank(self) -> int:
        """Rank that encodes and decodes."""
        return self.mesh.media_rank

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.mesh.world_size

    def memory_limit(self, rank: int) -> int:
        """Bytes that torch may hold of a rank's GPU; 0 for no limit."""
        return self.memory_limits[rank] if self.memory_limits else 0

    @property
    def _stage_devices(self) -> tuple[str, ...]:
        return self.devices[: self.mesh.num_dit_ranks]

    @property
    def _own_gpus(self) -> bool:
        names = self._stage_devices
        return all(name.startswith("cuda") for name in names) and len(set(names)) == len(names)

    @property
    def _on_cpu(self) -> bool:
        return set(self._stage_devices) == {"cpu"}


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
        resume_folder: where resume points of this very request go; None for none. Whoever made it
            removes it when the video is done.
        resumes: whether `live_path` is a file that `can_resume` accepts and that is to be gone on
            with.
        kept_frames: frames in that file.
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
    resume_folder: Path | None = None
    resumes: bool = False
    kept_frames: int = 0


@dataclass(frozen=True, eq=False)
class Submit:
    """Render this job after those submitted before it."""

    job: RenderJob


@dataclass(frozen=True)
class Cancel:
    """Stop this job at once; the blocks that are finished stay in its file."""

    number: int


@dataclass(frozen=True)
class StagesReady:
    """All other ranks are ready; the first block can be made."""


@dataclass(frozen=True)
class Stop:
    """Finish the jobs at hand, then end."""


@dataclass(frozen=True)
class Ready:
    """A rank has loaded its part and is connected; the media rank, when a block came through all.

    Attributes:
        rank: which.
        load_s: seconds from its start until its weights were there.
        ready_s: seconds from its start until now.
        transport: what its tensors go by to and from other stages: "nccl", "gloo" or "sockets".
    """

    rank: int
    load_s: float
    ready_s: float
    transport: str = "sockets"


@dataclass(frozen=True)
class Loading:
    """A rank holds so many of the bytes of its weights."""

    rank: int
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class RankStatus:
    """How a rank is, about once a second.

    Attributes:
        rank: which.
        role: "stage 0", "stage 1", ... or "media".
        device: such as "cpu" or "cuda:2".
        layers: first and last transformer layer it holds, None on the media rank.
        memory_bytes: what it holds now: of its GPU as torch counts, or resident on the CPU.
        peak_bytes: the most it held.
        memory_limit_bytes: what it may hold; 0 where nothing limits it.
        busy_share: share of the time since the last report in which it worked, 0..1.
        item: what it works on, such as "job 3 block 12 step 3"; empty when it waits.
        waiting_share: share of that time in which it waited for another rank.
        sending_share: share of that time in which it could not hand over what it sent.
        peak_used_bytes: the most that was in use of what it held; 0 on the CPU.
        temperature_c: of its GPU; None on the CPU and where the driver does not say.
        gpu_busy_share: share of the last moments in which its GPU ran anything, 0..1, or None.
        card_used_bytes: what the driver says is taken of its GPU, by whomever; 0 on the CPU.
        card_bytes: of its GPU; 0 on the CPU.
    """

    rank: int
    role: str
    device: str
    layers: tuple[int, int] | None
    memory_bytes: int
    peak_bytes: int
    memory_limit_bytes: int
    busy_share: float
    item: str
    waiting_share: float = 0.0
    sending_share: float = 0.0
    peak_used_bytes: int = 0
    temperature_c: int | None = None
    gpu_busy_share: float | None = None
    card_used_bytes: int = 0
    card_bytes: int = 0


Stage = Literal["preparing", "rendering", "finishing"]


@dataclass(frozen=True)
class Progress:
    """So many frames of a job are in its file.

    Attributes:
        number: of the job.
        frames: frames in its file.
        stage: "preparing" while its inputs are encoded, "rendering" while blocks are made,
            "finishing" when all are made and the file is closed.
    """

    number: int
    frames: int
    stage: Stage


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
    """A rank ends because of an error; the group has to end with it.

    Attributes:
        rank: which.
        reason: one line.
        trace: of the error.
        out_of_memory: whether a smaller video might have worked.
        by_its_work: whether its own work failed; else it only lost a neighbour or waited too long.
        job: number of the job it worked on, if it is known.
    """

    rank: int
    reason: str
    trace: str
    out_of_memory: bool = False
    by_its_work: bool = False
    job: int | None = None


Event = Loading | Ready | RankStatus | Progress | Finished | Refused | Failed
"""What `next_event` of a group gives."""
