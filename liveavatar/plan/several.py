"""One worker group for several videos: its precision, and the video that sets its layout.

A group holds its weights, keys and values in one precision, whatever it makes. A small video may
fit in one in which a large one does not, so the group's is chosen for all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from liveavatar.config import SamplingConfig
from liveavatar.errors import ConfigError
from liveavatar.plan.layout import LayoutPlan, Machine, plan_layout, precisions
from liveavatar.plan.precision import Precision
from liveavatar.plan.shapes import Network


@dataclass(frozen=True)
class Video:
    """What a group has to be able to make: height and width in pixels, and how it is sampled."""

    size_hw: tuple[int, int]
    sampling: SamplingConfig


def common_precision(
    network: Network, videos: Sequence[Video], machine: Machine
) -> Precision | None:
    """The best precision in which all of `videos` fit, or as many as can; None when none does."""
    different, best, most = dict.fromkeys(videos), None, 0
    for precision in precisions(machine):
        fitting = sum(_plan(network, video, machine, precision).fits for video in different)
        if fitting > most:
            best, most = precision, fitting
        if most == len(different):
            break
    return best


def largest_plan(network: Network, videos: Sequence[Video], machine: Machine) -> LayoutPlan:
    """The plan of a group for `videos`: of the one that needs most of those that fit.

    Args:
        network: shapes of all networks.
        videos: what the group is to make, at least one.
        machine: what it runs on.

    Returns:
        That video's plan in the precision for all of them, with as many jobs at once as fit of any.

    Raises:
        ConfigError: none of the videos fits; says what is short.
    """
    precision = common_precision(network, videos, machine)
    plans = [_plan(network, video, machine, precision) for video in dict.fromkeys(videos)]
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        height, width = plans[0].size_hw
        raise ConfigError(f"{width}*{height} {plans[0].verdict}")
    largest = max(fitting, key=lambda plan: plan.chosen.largest)
    return replace(largest, jobs_at_once=min(plan.jobs_at_once for plan in fitting))


def _plan(
    network: Network, video: Video, machine: Machine, precision: Precision | None
) -> LayoutPlan:
    return plan_layout(network, video.size_hw, video.sampling, machine, precision)
