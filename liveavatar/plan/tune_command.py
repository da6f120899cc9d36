"""`python -m liveavatar.plan --tune REPORT`: reads what a render measured, prints what to change.

A report is the JSON that `--batch` writes beside every video.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from liveavatar.config import SamplingConfig
from liveavatar.errors import ConfigError
from liveavatar.plan.layout import GIB, Machine
from liveavatar.plan.tuning import Advice, Measured, Proposal

_WHOLE = ("height", "width", "frames", "infer_frames", "num_clip", "sample_steps")


def read_report(path: Path, gpu_memory_bytes: int) -> Measured:
    """Read a report.

    Args:
        path: JSON file.
        gpu_memory_bytes: what each card offers; on the CPU all there is.

    Raises:
        ConfigError: it is none, or was made by something that this cannot tune.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"tune: '{path}' cannot be read: {error}") from None
    if not isinstance(report, dict) or not isinstance(report.get("ranks"), list):
        raise ConfigError(f"tune: '{path}' is no report as --batch writes it beside a video")
    try:
        return _measured(report, gpu_memory_bytes)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"tune: '{path}' is no whole report: {error!r}") from None


def _measured(report: Mapping[str, Any], memory_bytes: int) -> Measured:
    ranks = report["ranks"]
    if not ranks:
        raise ConfigError("tune: the video was made before any rank reported; measure a longer one")
    stages = [rank for rank in ranks if rank["role"] != "media"]
    media = [rank for rank in ranks if rank["role"] == "media"]
    if len(media) != 1 or not stages:
        raise ConfigError("tune: expected reports of stages and of one media rank")
    height, width, frames, infer_frames, num_clip, steps = (int(report[name]) for name in _WHOLE)
    on_gpu = media[0]["device"] != "cpu"
    devices = {rank["device"] for rank in ranks}
    return Measured(
        size_hw=(height, width),
        frames=frames,
        sampling=SamplingConfig(num_steps=steps, infer_frames=infer_frames, num_clip=num_clip),
        seconds=float(report["seconds"]),
        machine=Machine(
            num_gpus=len(devices) if on_gpu else 0,
            memory_bytes=memory_bytes,
            share_media=on_gpu and media[0]["device"] in {rank["device"] for rank in stages},
            stages_on_cpu=len(stages),
        ),
        stage_busy=tuple(float(rank["busy_share"]) for rank in stages),
        media_busy=float(media[0]["busy_share"]),
    )


def as_text(measured: Measured, advice: Advice) -> str:
    """For people."""
    lines = [f"measured: {_settings(measured.sampling)}, {measured.seconds / 60:.1f} min"]
    shares = [f"stage {k} {share:.0%}" for k, share in enumerate(measured.stage_busy)]
    lines.append(f"busy: {', '.join(shares)}, media {measured.media_busy:.0%}")
    if advice.best is None:
        lines.append(f"no change would help: {advice.reason}")
        return "\n".join(lines)
    best = advice.best
    lines.append(f"propose: {_line(best)}")
    lines.append(f"because {advice.reason}")
    lines.append(f"options: {_options(best)}")
    lines += [f"also fits: {_line(other)}" for other in advice.others[:3]]
    lines.append("The minutes are predicted by arithmetic, not measured: run it and compare.")
    return "\n".join(lines)


def as_record(measured: Measured, advice: Advice) -> dict[str, Any]:
    """For programs."""
    return {
        "measured_seconds": measured.seconds,
        "helps": advice.best is not None,
        "reason": advice.reason,
        "proposal": None if advice.best is None else _record(advice.best),
        "others": [_record(other) for other in advice.others],
    }


def _settings(sampling: SamplingConfig) -> str:
    return f"{sampling.num_clip} clips of {sampling.infer_frames} frames"


def _line(proposal: Proposal) -> str:
    stages = "+".join(str(len(part)) for part in proposal.plan.stages)
    largest = proposal.plan.chosen.largest / GIB
    return (
        f"{_settings(proposal.sampling)}, layers {stages}, {proposal.plan.precision}, "
        f"{largest:.1f} GiB on the fullest card: {proposal.seconds / 60:.1f} min"
    )


def _options(proposal: Proposal) -> str:
    sampling, machine = proposal.sampling, proposal.plan.machine
    words = [f"--infer_frames {sampling.infer_frames}", f"--num_clip {sampling.num_clip}"]
    ranks = len(proposal.plan.stages)
    words.append(f"--num_gpus_dit {ranks} --ulysses_size {ranks}")
    if machine.num_gpus > ranks:
        words.append("--enable_vae_parallel")
    return " ".join(words)


def _record(proposal: Proposal) -> dict[str, Any]:
    return {
        "infer_frames": proposal.sampling.infer_frames,
        "num_clip": proposal.sampling.num_clip,
        "stages": [[part.start, part.stop] for part in proposal.plan.stages],
        "share_media": proposal.plan.machine.share_media,
        "precision": asdict(proposal.plan.precision),
        "seconds": round(proposal.seconds, 2),
        "options": _options(proposal),
    }
