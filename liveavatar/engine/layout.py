"""Which rank goes where: from a checkpoint and a machine to the worker group that is started.

No torch here: the web server decides with it too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from liveavatar.config import FRAMES_PER_BLOCK, SamplingConfig
from liveavatar.engine.messages import GroupSpec, RandomWeights
from liveavatar.plan.layout import LayoutPlan, Machine
from liveavatar.plan.several import Video, largest_plan
from liveavatar.plan.shapes import read_network

_MOST_WARM_UP_BLOCKS = 8


def choose_layout(
    checkpoint: Path, adapter: Path | None, videos: Sequence[Video], machine: Machine
) -> GroupSpec:
    """Lay out a group that makes all of `videos` that fit.

    On GPUs each stage has a card of its own, and the media rank too unless `machine` says that it
    shares the last stage's. On a CPU all ranks share the cores.

    Args:
        checkpoint: folder of the weights.
        adapter: adapter file or folder, or None.
        videos: what the group is to make, at least one.
        machine: what it runs on; see `machine`.

    Raises:
        ConfigError: none of the videos fits; says what is short.
        CheckpointError: the checkpoint's shapes cannot be read.
    """
    network = read_network(checkpoint)
    plan = largest_plan(network, videos, machine)
    spec = group_spec(checkpoint, adapter, plan)
    if machine.num_gpus:
        return spec
    # A CPU's kernels are chosen by shape, and a large block takes long: the size that is asked for
    # by those who want to see something soon.
    quickest = min(videos, key=lambda video: video.size_hw[0] * video.size_hw[1])
    return replace(spec, warm_up_hw=quickest.size_hw)


def group_spec(
    checkpoint: Path | RandomWeights, adapter: Path | None, plan: LayoutPlan
) -> GroupSpec:
    """The group that a plan describes."""
    machine, num_ranks = plan.machine, len(plan.ranks)
    on_gpu = machine.num_gpus > 0
    devices = tuple(f"cuda:{index}" if on_gpu else "cpu" for index in machine.devices)
    return GroupSpec(
        checkpoint=checkpoint,
        adapter=adapter,
        stages=plan.stages,
        devices=devices,
        precision=plan.precision,
        threads=_threads(num_ranks),
        folder=Path(),
        memory_limits=_memory_limits(plan) if on_gpu else (),
        weight_bytes=tuple(rank.weights + rank.encoders for rank in plan.ranks),
        jobs_at_once=max(1, plan.jobs_at_once),
        warm_up_hw=plan.size_hw,
        warm_up_sampling=_warm_up_sampling(plan),
        tp_degree=machine.sharing.tp_degree,
        sp_degree=machine.sharing.sp_degree,
        sharded=machine.sharing.sharded,
    )


def _warm_up_sampling(plan: LayoutPlan) -> SamplingConfig:
    """One block, which is all that a CPU is slow with at first; on GPUs all that is recorded.

    A window and one more block show a stage every phase of a job, see `parallel/recorded.py`.
    """
    one_block = SamplingConfig(num_steps=2, infer_frames=FRAMES_PER_BLOCK)
    if not plan.machine.num_gpus or plan.sampling.window_blocks > _MOST_WARM_UP_BLOCKS:
        return one_block
    return replace(plan.sampling, num_clip=2)


def _threads(num_ranks: int) -> int:
    """CPU threads of each rank: twice its share of the cores, since ranks wait for each other.

    On two cores a stage and the media rank with two threads each, which wait without spinning, make
    1.6 times the frames per second of one thread each (`docs/benchmarks.md`).
    """
    cores = num_cores()
    return max(1, min(cores, 2 * cores // num_ranks))


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def _memory_limits(plan: LayoutPlan) -> tuple[int, ...]:
    """What torch may hold in each rank: its card, or its share of one by what it needs."""
    devices = plan.machine.devices
    limits = []
    for device, rank in zip(devices, plan.ranks, strict=True):
        beside = sum(
            each.beside_torch for each, on in zip(plan.ranks, devices, strict=True) if on == device
        )
        share = rank.total / plan.chosen.device_bytes[device]
        limits.append(int((plan.machine.memory_bytes - beside) * share))
    return tuple(limits)
