"""A worker group made for a measurement, its jobs, and all that it said, with the time of it."""

from __future__ import annotations

import argparse
import json
import sys
import time
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import numpy as np
import pynvml

from liveavatar.config import FPS, SPEECH_RATE_HZ, SamplingConfig, TransformerConfig
from liveavatar.engine.group import WorkerGroup
from liveavatar.engine.layout import group_spec
from liveavatar.engine.machine import host_memory_bytes
from liveavatar.engine.messages import (
    Event,
    Finished,
    GroupSpec,
    Progress,
    RandomWeights,
    Ready,
    Refused,
    RenderJob,
    Transport,
)
from liveavatar.errors import ConfigError, DeadlineError, EngineError
from liveavatar.media.speech import load_speech
from liveavatar.plan.layout import GIB, LayoutPlan, Machine, plan_layout
from liveavatar.plan.precision import Precision, parse_precision
from liveavatar.plan.shapes import (
    Network,
    SpeechEncoderShape,
    TextEncoderShape,
    VAEShape,
    read_network,
)
from liveavatar.plan.sharing import ALONE, Sharing
from liveavatar.request import parse_size
from liveavatar.timeline import make_timeline

Report = dict[str, Any]
"""Settings, environment and figures of a measurement, or its failure."""

PROMPT = "A young woman talks to the camera and smiles, in a bright studio room"
START_LIMIT_S, JOB_LIMIT_S = 300.0, 300.0

TINY = Network(
    TransformerConfig(
        dim=64,
        ffn_dim=128,
        num_heads=2,
        num_layers=4,
        audio_inject_layers=(0, 2),
        audio_dim=64,
        num_audio_states=3,
        text_len=64,
        text_dim=32,
    ),
    VAEShape(dim=4, num_res_blocks=1),
    TextEncoderShape(256, 32, 32, 4, 48, 2),
    SpeechEncoderShape(64, 128, 2, (24,) * 7, position_kernel=16, position_groups=4),
)
"""A network of the same kind that a CPU runs in no time."""

RANDOM = {"tiny": TINY, "14b": Network()}


@dataclass(frozen=True)
class Setup:
    """What is run.

    Attributes:
        weights: checkpoint folder, or random weights.
        network: its shapes.
        size_hw: height and width of the video, pixels.
        sampling: steps, window, clips.
        devices: of each rank, the media rank last.
        memory_bytes: that each rank may take of its GPU, or the host's.
        out: folder for the inputs and the videos.
        sharded: in place of stages, all layers on every rank, their weights and tokens shared out.
        transport: way of the tensors between stages, see `GroupSpec`.
        precision: what to run in; None for what the plan chooses.
    """

    weights: Path | RandomWeights
    network: Network
    size_hw: tuple[int, int]
    sampling: SamplingConfig
    devices: tuple[str, ...]
    memory_bytes: int
    out: Path
    sharded: bool = False
    transport: Transport = "auto"
    precision: Precision | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether the ranks are on GPUs."""
        return self.devices[0] != "cpu"

    @property
    def speech_s(self) -> float:
        """Seconds of speech of each job: as long as all clips."""
        return self.sampling.num_clip * self.sampling.infer_frames / FPS

    def plan(self) -> LayoutPlan:
        """What memory each rank is expected to need."""
        num_ranks = len(self.devices) - 1
        sharing = Sharing(sp_degree=num_ranks, sharded=True) if self.sharded else ALONE
        if not self.on_gpu:
            stages = num_ranks // sharing.size
            machine = Machine(0, self.memory_bytes, stages_on_cpu=stages, sharing=sharing)
        elif len(set(self.devices)) == num_ranks:  # the media rank beside the last stage
            machine = Machine(num_ranks, self.memory_bytes, share_media=True, sharing=sharing)
        else:
            machine = Machine(num_ranks + 1, self.memory_bytes, sharing=sharing)
        return plan_layout(self.network, self.size_hw, self.sampling, machine, self.precision)

    def spec(self, plan: LayoutPlan) -> GroupSpec:
        """The group, with its ranks where they were asked for."""
        spec = group_spec(self.weights, None, plan)
        return replace(spec, devices=self.devices, transport=self.transport)


def first_layers(config: TransformerConfig, count: int) -> TransformerConfig:
    """The shape of a transformer that ends with its layer `count` - 1."""
    kept = tuple(layer for layer in config.audio_inject_layers if layer < count)
    return replace(config, num_layers=count, audio_inject_layers=kept)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a `Setup` but for the size."""
    add = parser.add_argument
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--ckpt_dir", type=Path, help="checkpoint folder")
    weights.add_argument("--random", choices=sorted(RANDOM), default="tiny", help="random weights")
    add("--devices", default="cpu,cpu,cpu", help='of each rank, the media rank last: "cuda:0,..."')
    add("--memory_gib", type=float, default=22.15, help="that a rank may take of its GPU")
    add("--layers", type=int, help="of random weights, only so many; all by default")
    add("--fsdp", action="store_true", help="shard weights and tokens in place of stages")
    add("--transport", choices=get_args(Transport), default="auto", help="between stages")
    add("--precision", help='such as "fp8+8-bit"; what the plan chooses by default')
    add("--infer_frames", type=int, default=48)
    add("--sample_steps", type=int, default=4)
    add("--clips", type=int, default=2)
    add("--out", type=Path, required=True, help="folder for videos and results")


def read_setup(options: argparse.Namespace, size: str) -> Setup:
    """Check the options; raises ConfigError or RequestError with one line."""
    devices = tuple(options.devices.split(","))
    if len(devices) < 2:
        raise ConfigError("devices: expected one per stage and one for the media rank")
    network = RANDOM[options.random] if options.ckpt_dir is None else read_network(options.ckpt_dir)
    if options.layers is not None and options.ckpt_dir is None:
        network = replace(network, transformer=first_layers(network.transformer, options.layers))
    wanted = parse_size(size)
    on_gpu = devices[0] != "cpu"
    options.out.mkdir(parents=True, exist_ok=True)
    return Setup(
        weights=options.ckpt_dir or RandomWeights(network),
        network=network,
        size_hw=(wanted.height, wanted.width),
        sampling=SamplingConfig(
            num_steps=options.sample_steps,
            infer_frames=options.infer_frames,
            num_clip=options.clips,
        ),
        devices=devices,
        memory_bytes=int(options.memory_gib * GIB) if on_gpu else host_memory_bytes(),
        out=options.out,
        sharded=options.fsdp,
        transport=options.transport,
        precision=parse_precision(options.precision) if options.precision else None,
    )


def write_result(folder: Path, report: Report) -> None:
    """Keep a report as a file that has the benchmark's name."""
    (folder / f"{report['benchmark']}.json").write_text(json.dumps(report, indent=2) + "\n")


@dataclass(frozen=True)
class Said:
    """An event and when it came, seconds since the group was made."""

    at_s: float
    event: Event


@dataclass(frozen=True)
class Trace:
    """A whole run.

    Attributes:
        said: all events in order.
        submitted_s: when each job was handed over, by number.
        device_bytes: what the ranks' GPUs held when the last job was done, over what they held
            before; 0 on the CPU.
        failure: why the group ended early; empty if it did not.
    """

    said: tuple[Said, ...]
    submitted_s: dict[int, float]
    device_bytes: int = 0
    failure: str = ""


def make_jobs(setup: Setup, count: int, first: int = 1) -> list[RenderJob]:
    """Jobs as long as all clips: each has a random portrait, speech-like noise and a prompt.

    Args:
        setup: what they are like.
        count: how many.
        first: number of the first one; a group has no two jobs of one number.
    """
    return [_make_job(setup, number) for number in range(first, first + count)]


def repeated(job: RenderJob, number: int) -> RenderJob:
    """The same video once more, under another number."""
    return replace(job, number=number, live_path=job.live_path.with_name(f"{number}.live.mp4"))


def _make_job(setup: Setup, number: int) -> RenderJob:
    sound = setup.out / f"speech-{number}.wav"
    draws = np.random.default_rng(number)
    noise = draws.normal(0, 3000, round(setup.speech_s * SPEECH_RATE_HZ)).clip(-32000, 32000)
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_RATE_HZ)
        file.writeframes(noise.astype("<i2").tobytes())
    speech = load_speech(sound)
    return RenderJob(
        number=number,
        portrait_HWC=draws.integers(0, 255, (*setup.size_hw, 3), np.uint8),
        speech_N=speech.samples,
        soundtrack=sound,
        mix=speech.mix,
        prompt=f"{PROMPT}, take {number}",
        timeline=make_timeline(setup.sampling, len(speech.samples)),
        sampling=setup.sampling,
        live_path=setup.out / f"{number}.live.mp4",
    )


class Session:
    """A group that stays for several runs, one after the other; leaving it ends the group.

    Args:
        spec: what to start; it begins to start at once.

    Attributes:
        group: its owner's side.
    """

    def __init__(self, spec: GroupSpec) -> None:
        self._devices = spec.devices
        self._bytes_before = _device_bytes(spec.devices)
        self._started = time.monotonic()
        self._at_start: list[Said] = []
        self._failure = ""
        self.group = WorkerGroup(spec)

    def run(self, jobs: Sequence[RenderJob], *, only_begin: bool = False) -> Trace:
        """Hand over jobs once the group is ready, and listen until the last one ends.

        Args:
            jobs: in order.
            only_begin: each is handed over when the one before has ended, and is cancelled at its
                first frame; else all are handed over at once.

        Returns:
            What was said while the group started and during this run. Once the group has failed
            every further run fails at once, for the same reason.
        """
        if self._failure:
            return Trace((), {}, failure=self._failure)
        said, submitted = list(self._at_start), dict[int, float]()

        def all_ended() -> bool:
            ended = {s.event.number for s in said if isinstance(s.event, Finished | Refused)}
            return submitted.keys() <= ended

        try:
            self._listen(said, START_LIMIT_S, lambda: self.group.is_ready)
            self._at_start = self._at_start or list(said)
            for job in jobs:
                submitted[job.number] = time.monotonic() - self._started
                self.group.submit(job)
                if only_begin:
                    self._listen(said, JOB_LIMIT_S, partial(_shows_frames, said, job.number))
                    self.group.cancel(job.number)
                    self._listen(said, JOB_LIMIT_S, all_ended)
            self._listen(said, JOB_LIMIT_S * len(jobs), all_ended)
        except EngineError as error:
            self.group.kill()
            self._failure = str(error)
            return Trace(tuple(said), submitted, failure=self._failure)
        held = _device_bytes(self._devices) - self._bytes_before
        return Trace(tuple(said), submitted, held)

    def _listen(self, said: list[Said], limit_s: float, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + limit_s
        while not done():
            if time.monotonic() > deadline:
                raise DeadlineError(f"the group did not get there in {limit_s:.0f} s")
            event = self.group.next_event(0.2)
            if event is not None:
                said.append(Said(time.monotonic() - self._started, event))
                _tell(said[-1])

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.group.__exit__(kind, error, trace)


def run_jobs(spec: GroupSpec, jobs: Sequence[RenderJob], *, only_begin: bool = False) -> Trace:
    """Start a group for one run, see `Session.run`, and end it."""
    with Session(spec) as session:
        return session.run(jobs, only_begin=only_begin)


def _device_bytes(devices: Sequence[str]) -> int:
    """What programs hold of some GPUs together."""
    numbers = {int(name.removeprefix("cuda:")) for name in devices if name != "cpu"}
    if not numbers:
        return 0
    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in numbers]
        return sum(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles)
    finally:
        pynvml.nvmlShutdown()


def _shows_frames(said: Sequence[Said], number: int) -> bool:
    event = said[-1].event
    return isinstance(event, Progress) and event.number == number and event.frames > 0


def _tell(said: Said) -> None:
    """Say on the error stream how a run goes on, so that one that is cut short is understood."""
    event, words = said.event, ""
    if isinstance(event, Ready):
        words = f"rank {event.rank} is ready, its weights were after {event.load_s:.1f} s"
    elif isinstance(event, Progress):
        words = f"job {event.number} is {event.stage}, {event.frames} frames"
    if words:
        sys.stderr.write(f"{said.at_s:8.2f} s: {words}\n")


@dataclass(frozen=True)
class Start:
    """How a group came to be ready, seconds since it was made.

    Attributes:
        processes_s: until a rank first spoke: libraries are read, processes forked.
        weights_s: until the last rank had its weights, and the ranks their links.
        ready_s: until the first video had come through all ranks.
    """

    processes_s: float
    weights_s: float
    ready_s: float


def start_of(trace: Trace) -> Start:
    """How the group of a run that went well came to be ready."""
    ready = [(s.at_s, s.event) for s in trace.said if isinstance(s.event, Ready)]
    loaded = [at_s - event.ready_s + event.load_s for at_s, event in ready]
    moments = (trace.said[0].at_s, max(loaded), max(at_s for at_s, _ in ready))
    return Start(*(round(moment, 2) for moment in moments))
