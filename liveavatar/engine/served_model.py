"""Which model is served, and the worker group that serves it on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from liveavatar.config import SamplingConfig
from liveavatar.engine.fake import FakeGroup
from liveavatar.engine.group import Group, WorkerGroup
from liveavatar.engine.layout import choose_layout
from liveavatar.engine.machine import detect_machine
from liveavatar.errors import CheckpointError
from liveavatar.jobs.ability import EVERYTHING, Ability
from liveavatar.media.portrait import fit_size
from liveavatar.plan.layout import LayoutPlan, Machine, plan_layout
from liveavatar.plan.precision import Precision
from liveavatar.plan.several import Video, common_precision
from liveavatar.plan.shapes import CONFIG, Network, read_network
from liveavatar.plan.tiers import Tier

DEMO = "demo"

_ROOT = Path(__file__).resolve().parents[2]
_DEMO_FOLDER = _ROOT / "ckpt" / "demo"
_WRITING_S = 300

# The shapes that portraits have: upright, square, lying. Their sizes differ a little in area.
_PORTRAITS_HW = ((1920, 1080), (1024, 1024), (1080, 1920))

Planner = Callable[[tuple[int, int], SamplingConfig], LayoutPlan]
"""Memory of a video of (height, width) in a group that is there for others too."""


@dataclass(frozen=True)
class Served:
    """A model and how its group is made.

    Attributes:
        name: for people.
        is_demo: small enough for a CPU.
        is_random: random weights: it shows noise.
        make: makes the group for videos.
        plan_for: how the group for videos is planned; None where nothing is.
    """

    name: str
    is_demo: bool
    is_random: bool
    make: Callable[[Sequence[Video]], Group]
    plan_for: Callable[[Sequence[Video]], Planner] | None = None

    def group_maker(self, tiers: Sequence[Tier]) -> Callable[[], Group]:
        """Return what starts a group for these tiers, without waiting."""
        return partial(self.make, [video for tier in tiers for video in _videos_of(tier)])

    def planner(self, tiers: Sequence[Tier]) -> Planner | None:
        """Return what plans a video in the group for these tiers; None where nothing is planned."""
        if self.plan_for is None:
            return None
        return self.plan_for([video for tier in tiers for video in _videos_of(tier)])

    def ability(self, tiers: Sequence[Tier]) -> Ability:
        """Which of these tiers fit this machine; all of them: sizes of a user's own too."""
        plan = self.planner(tiers)
        if plan is None:
            return EVERYTHING
        fitting = {
            tier.name
            for tier in tiers
            if all(plan(video.size_hw, video.sampling).fits for video in _videos_of(tier))
        }
        return EVERYTHING if len(fitting) == len(tiers) else Ability(frozenset(fitting))


def _videos_of(tier: Tier) -> list[Video]:
    sizes = (fit_size(portrait_hw, tier.size.area) for portrait_hw in _PORTRAITS_HW)
    return [Video(size_hw, tier.sampling) for size_hw in sizes]


def serve_test_picture() -> Served:
    """A group that draws, in place of a model."""
    return Served("test picture", True, False, lambda _videos: FakeGroup())


def serve_checkpoint(model: str, adapter: Path | None, data_folder: Path) -> Served:
    """A checkpoint on all of this machine.

    Args:
        model: checkpoint folder; "demo" for the bundled one, or where that is missing for a tiny
            one with random weights, which is written into the data folder the first time.
        adapter: adapter file or folder, or None.
        data_folder: where that one is kept.

    Raises:
        CheckpointError: there is no checkpoint at this place.
        ConfigError: CUDA_VISIBLE_DEVICES names a GPU that is not there.
    """
    is_demo = model == DEMO or Path(model).resolve() == _DEMO_FOLDER
    is_random = is_demo and not (_DEMO_FOLDER / CONFIG).is_file()
    folder = _DEMO_FOLDER if is_demo else Path(model)
    if is_random:
        folder = data_folder / "random-checkpoint"
        _write_random(folder)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"model: there is no checkpoint in '{folder}': {CONFIG} is missing; name its folder "
            f'with --model, or use "{DEMO}"'
        )
    machine, network = detect_machine(), read_network(folder)
    return Served(
        name=DEMO if is_demo else folder.resolve().name,
        is_demo=is_demo,
        is_random=is_random,
        make=partial(_make_group, folder, adapter, machine),
        plan_for=partial(_plan_for, network, machine),
    )


def _plan_for(network: Network, machine: Machine, videos: Sequence[Video]) -> Planner:
    precision = common_precision(network, videos, machine)
    return partial(_plan, network, machine, precision)


def _plan(
    network: Network,
    machine: Machine,
    precision: Precision | None,
    size_hw: tuple[int, int],
    sampling: SamplingConfig,
) -> LayoutPlan:
    return plan_layout(network, size_hw, sampling, machine, precision)


def _make_group(
    folder: Path, adapter: Path | None, machine: Machine, videos: Sequence[Video]
) -> Group:
    return WorkerGroup(choose_layout(folder, adapter, videos, machine))


def _write_random(folder: Path) -> None:
    """Write the tiny checkpoint where it is missing, in a process that may load torch."""
    if (folder / CONFIG).is_file():
        return
    command = [sys.executable, "-m", "liveavatar.random_checkpoint", str(folder.resolve())]
    done = subprocess.run(
        command, cwd=_ROOT, capture_output=True, text=True, timeout=_WRITING_S, check=False
    )
    if done.returncode:
        raise CheckpointError(f"model: no random checkpoint could be written: {done.stderr[-300:]}")
