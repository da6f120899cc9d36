"""Transformer ranks in processes of their own, and this process as their media rank."""

from __future__ import annotations

import itertools
import multiprocessing
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from liveavatar.conditioning import Conditions
from liveavatar.config import FRAMES_PER_BLOCK, TransformerConfig
from liveavatar.model.denoiser import TokenGrid
from liveavatar.model.transformer import ConditionEmbedder, Transformer
from liveavatar.parallel.activity import Activity
from liveavatar.parallel.conductor import serve
from liveavatar.parallel.direct import open_routes
from liveavatar.parallel.fsdp import shard_weights
from liveavatar.parallel.group import Meeting, open_groups
from liveavatar.parallel.links import links_of_rank, stage_links
from liveavatar.parallel.mesh import Mesh
from liveavatar.parallel.messages import (
    BlockSpeech,
    FinishedBlock,
    JobCancel,
    JobEnd,
    JobOpen,
    Shutdown,
)
from liveavatar.parallel.sequence_parallel import apply_sequence_parallel
from liveavatar.parallel.split import split_layers
from liveavatar.parallel.stage import Stage, StagePlan
from liveavatar.parallel.tensor_parallel import apply_tensor_parallel
from liveavatar.parallel.transfer import Receiver, Sender, connect
from liveavatar.parallel.wavefront import Pipeline
from liveavatar.random_checkpoint import TINY
from liveavatar.resume_points import PointPlan
from liveavatar.sampling import make_schedule
from liveavatar.single_device import generate_latents, seeded_draws
from liveavatar.timeline import Timeline
from tests.patience import PATIENCE_S
from tests.unit import tiny

CPU = torch.device("cpu")
WAIT_S = PATIENCE_S
SPARE_BLOCKS = 2


@dataclass(frozen=True)
class Layout:
    """Transformer ranks of a test, and the network on them."""

    mesh: Mesh
    config: TransformerConfig = TINY
    dtype: torch.dtype = torch.float32
    sharded: bool = False
    direct: bool = False


@dataclass
class Case:
    """One video: its size in latent rows and columns, its length and its steps."""

    number: int
    side: tuple[int, int] = (8, 8)
    num_blocks: int = 9
    window: int = 2
    num_steps: int = 4
    layout: Layout = field(default_factory=lambda: Layout(Mesh()))
    made: list[Tensor] = field(default_factory=list)
    speech_sent: int = 0
    ended: bool = False
    first_block: int = 0
    points: PointPlan | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        self.speech_sent = self.first_block

    @property
    def video(self) -> int:
        """What inputs and random numbers come from: cases of one video share it."""
        return self.number if self.seed is None else self.seed

    @property
    def conditions(self) -> Conditions:
        """Random inputs, others for every video."""
        (rows, columns), dtype = self.side, self.layout.dtype
        return Conditions(
            tiny.seeded(16, 1, rows, columns, seed=10 * self.video + 1).to(dtype),
            tiny.seeded(16, 19, rows, columns, seed=10 * self.video + 2).to(dtype),
            tiny.seeded(5 + self.video % 3, TINY.text_dim, seed=10 * self.video + 3).to(dtype),
            tiny.seeded(
                TINY.audio_dim, self.num_blocks * FRAMES_PER_BLOCK, seed=10 * self.video + 4
            ),
        )

    @property
    def timeline(self) -> Timeline:
        """Whole blocks; refreshed where there is a second clip."""
        return Timeline(
            num_frames=self.num_blocks * FRAMES_PER_BLOCK,
            num_blocks=self.num_blocks,
            window_blocks=self.window,
            refresh_block=self.window if self.num_blocks > self.window else None,
            clip_frames=self.window * FRAMES_PER_BLOCK,
        )

    def alone(self) -> Iterator[Tensor]:
        """The latents that one device makes, one by one."""
        draws = seeded_draws(self.video, self.conditions.reference_CFHW)
        schedule = make_schedule(self.num_steps)
        models = tiny.models(self.layout.config, self.layout.dtype)
        return generate_latents(models, self.conditions, self.timeline, schedule, draws)

    def largest_error(self) -> float:
        """Largest difference to what one device makes, of all blocks; they have to be there."""
        assert len(self.made) == self.num_blocks
        pairs = zip(self.made, self.alone(), strict=True)
        return max(float((ours.float() - alone.float()).abs().max()) for ours, alone in pairs)

    def is_bitwise(self) -> bool:
        """Whether the blocks made so far, in order, have the bits that one device makes."""
        alone = itertools.islice(self.alone(), self.first_block, None)
        return bool(self.made) and all(map(torch.equal, self.made, alone))

    def is_made_bitwise(self) -> bool:
        """Whether all blocks were made, with the bits that one device makes."""
        return len(self.made) == self.num_blocks - self.first_block and self.is_bitwise()


def rank_main(folder: Path, rank: int, layout: Layout) -> None:
    """Run one transformer rank; the target of its process."""
    torch.set_num_threads(1)
    mesh = layout.mesh
    plan = StagePlan(mesh, rank, WAIT_S)
    layers = split_layers([1.0] * layout.config.num_layers, mesh.num_stages)
    transformer = tiny.stage(layers[plan.place.stage], layout.config, layout.dtype)
    ends = connect(folder, rank, stage_links(mesh), CPU, WAIT_S)
    meeting = Meeting(folder, rank, mesh, "gloo", WAIT_S)
    groups = open_groups(meeting)
    if layout.direct:
        assert open_routes(meeting, *ends, CPU, required=True) == "gloo"
    whole = held(transformer)
    for layer in transformer.stack:
        apply_tensor_parallel(layer, groups.tensor)
        if layout.sharded:
            shard_weights(layer, groups.sequence)
    apply_sequence_parallel(transformer, groups.sequence)
    serve_rank(transformer, plan, *ends)
    shares = mesh.tp_degree * (mesh.sp_degree if layout.sharded else 1)
    assert held(transformer) < 1.1 * whole / shares  # vectors and the modulation stay whole


def held(transformer: Transformer) -> int:
    """Values of the layers' weights that lie in this process."""
    weights = (weight for layer in transformer.stack for weight in layer.parameters())
    return sum((w.to_local() if isinstance(w, DTensor) else w).numel() for w in weights)


def serve_rank(
    transformer: Transformer,
    plan: StagePlan,
    senders: dict[str, Sender],
    receivers: dict[str, Receiver],
) -> None:
    """Serve until Shutdown, then close the links."""
    links = links_of_rank(plan.mesh, plan.rank, senders, receivers)
    try:
        serve(Stage(transformer, plan, links, Activity(CPU)))
    finally:
        for end in (*senders.values(), *receivers.values()):
            end.close()


class MediaEnd:
    """What the media rank does, with speech no further ahead than it is."""

    def __init__(
        self, layout: Layout, senders: dict[str, Sender], receivers: dict[str, Receiver]
    ) -> None:
        self.layout = layout
        self.ranks = [senders[f"media-{rank}"] for rank in range(len(senders))]
        self.latents = receivers["latents"]
        self.embedder: ConditionEmbedder = tiny.embedder(layout.dtype)
        self.open: dict[int, Case] = {}

    @torch.no_grad()
    def begin(self, case: Case) -> None:
        """Open a job at all ranks and send the speech of its first blocks."""
        schedule, inputs = make_schedule(case.num_steps), case.conditions
        grid = TokenGrid.of_latent(inputs.reference_CFHW)
        message = JobOpen(
            case.number, case.timeline, schedule, grid, case.video, case.first_block, case.points
        )
        time = self.embedder.embed_time(schedule.timesteps)
        tensors = (self.embedder.embed_text(inputs.text_LD), time.head_SD, time.layers_S6D)
        for rank, sender in enumerate(self.ranks):
            first: tuple[Tensor, ...] = ()
            if rank == 0:
                first = (inputs.reference_CFHW, inputs.motion_CFHW)
                if case.first_block:
                    first += (next(case.alone())[:, :1],)
            sender.send(message, *tensors, *first, timeout_s=WAIT_S)
        self.open[case.number] = case
        in_flight = Pipeline(self.layout.mesh.num_stages, case.num_steps).blocks_in_flight
        for _ in range(in_flight + SPARE_BLOCKS):
            self._speak(case)

    def cancel(self, case: Case) -> None:
        """Ask stage 0 to stop a job."""
        self.ranks[0].send(JobCancel(case.number), timeout_s=WAIT_S)

    def take(self) -> Case:
        """Take one message; returns the job it belongs to."""
        packet = self.latents.receive(WAIT_S)
        case = self.open[packet.message.job]
        if isinstance(packet.message, JobEnd):
            case.ended = True
            del self.open[case.number]
            return case
        assert isinstance(packet.message, FinishedBlock)
        assert packet.message.block == case.first_block + len(case.made)
        case.made.append(packet.tensors[0])
        self._speak(case)
        return case

    def render(self, cases: Iterable[Case], at_once: int = 2) -> None:
        """Render jobs in a row, the next ones opened while the first renders."""
        waiting = list(cases)
        while waiting or self.open:
            while waiting and len(self.open) < at_once:
                self.begin(waiting.pop(0))
            self.take()

    def shut_down(self) -> None:
        """End the ranks."""
        for sender in self.ranks:
            sender.send(Shutdown(), timeout_s=WAIT_S)

    @torch.no_grad()
    def _speak(self, case: Case) -> None:
        block = case.speech_sent
        if block >= case.num_blocks:
            return
        heard = slice(block * FRAMES_PER_BLOCK, (block + 1) * FRAMES_PER_BLOCK)
        audio = self.embedder.audio_encoder.encode_block(case.conditions.speech_AV[:, heard])
        for sender in self.ranks:
            sender.send(
                BlockSpeech(case.number, block), audio.local_FKD, audio.global_FD, timeout_s=WAIT_S
            )
        case.speech_sent += 1


@contextmanager
def ranks_of(layout: Layout) -> Iterator[MediaEnd]:
    """Start the ranks in processes; at the end they have to leave by themselves, without error."""
    mesh = layout.mesh
    start = multiprocessing.get_context("forkserver")  # imports once for all ranks
    start.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        processes = [
            start.Process(target=rank_main, args=(folder, rank, layout), daemon=True)
            for rank in range(mesh.num_dit_ranks)
        ]
        for process in processes:
            process.start()
        try:
            ends = connect(folder, mesh.media_rank, stage_links(mesh), CPU, WAIT_S)
            media = MediaEnd(layout, *ends)
            yield media
            media.shut_down()
            for sender in ends[0].values():
                sender.close()
            for process in processes:
                process.join(WAIT_S)
            assert [process.exitcode for process in processes] == [0] * mesh.num_dit_ranks
            for receiver in ends[1].values():
                receiver.close()
        finally:
            for process in processes:
                process.kill()
                process.join()
                process.close()
