"""One line of a batch as a video: checked, found finished or begun, reported when it is made.

A video is finished when its MP4 is there, whole, and the report beside it (`out.json`) carries the
digest of this very request. The report is written first and the MP4 appears at once under its name,
so that a kill between the two leaves a video that counts as not made, never a wrong one.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from inference.batch_lines import Line
from inference.leftovers import Leftovers, remove_parts, request_key
from inference.options import ANY_NUMBER_OF_CLIPS, Settings, check_output
from inference.video_job import VideoJob, read_video
from liveavatar.errors import LiveAvatarError, MediaError, RequestError
from liveavatar.media.remux import count_frames, remux_to_progressive
from liveavatar.plan.layout import Machine
from liveavatar.plan.tiers import Tier

State = Literal["waiting", "kept", "made", "bad", "failed", "stopped"]


@dataclass
class BatchVideo:
    """What is known of one line.

    Attributes:
        number: of the line.
        output: MP4 to write; None where the line could not be read.
        state: "kept" was finished before, "bad" cannot be made, "failed" was not made.
        reason: of a bad or failed one, one line.
        size_hw: height and width of the video.
        frames: of the whole video.
        seconds: it took.
        tries: how often a group ended while it was rendered.
    """

    number: int
    output: Path | None = None
    state: State = "waiting"
    reason: str = ""
    size_hw: tuple[int, int] = (0, 0)
    frames: int = 0
    seconds: float = 0.0
    tries: int = 0
    settings: Settings | None = field(default=None, repr=False)

    @property
    def report_path(self) -> Path:
        """Where the report of this video lies."""
        assert self.output is not None
        return self.output.with_suffix(".json")

    def refuse(self, error: LiveAvatarError) -> None:
        """It cannot be made; keep the first reason in one line."""
        self.state, self.reason = "bad", " ".join(str(error).split())

    def check(self, fits: Callable[[Settings, VideoJob], None]) -> None:
        """Read its inputs, see whether it fits and whether it is finished.

        Raises:
            LiveAvatarError: it cannot be made.
        """
        assert self.settings is not None
        job = read_video(self.settings)
        height, width = job.portrait_HWC.shape[:2]
        self.size_hw, self.frames = (height, width), job.timeline.num_frames
        fits(self.settings, job)
        if self._is_finished(request_key(job)):
            self.state = "kept"
            Leftovers(job).remove()  # of a command that was killed before it did

    def begin(self) -> tuple[VideoJob, Leftovers]:
        """Read the inputs once more and clear away what is not gone on with.

        Raises:
            LiveAvatarError: it cannot be made any more.
        """
        assert self.settings is not None
        job = read_video(self.settings)
        leftovers = Leftovers(job)
        assert self.output is not None
        self.output.unlink(missing_ok=True)
        self.report_path.unlink(missing_ok=True)
        remove_parts(self.report_path)
        leftovers.begin()
        return job, leftovers

    def finish(self, leftovers: Leftovers, record: dict[str, Any]) -> None:
        """Write report and video.

        Raises:
            MediaError: the growing file cannot be read or the disk cannot be written.
        """
        assert self.settings is not None
        assert self.output is not None
        sampling = self.settings.sampling
        height, width = self.size_hw
        report = {
            "request": leftovers.folder.name,
            "tier": self.settings.options.tier,
            "size": str(self.settings.size),
            "width": width,
            "height": height,
            "frames": self.frames,
            "infer_frames": sampling.infer_frames,
            "num_clip": -(-self.frames // sampling.infer_frames),
            "sample_steps": sampling.num_steps,
            "seed": sampling.seed,
            "seconds": round(self.seconds, 3),
        }
        _write_whole(self.report_path, json.dumps(report | record, indent=1) + "\n")
        remux_to_progressive(self.output.with_suffix(".live.mp4"), self.output)
        leftovers.remove()
        self.state = "made"

    def _is_finished(self, key: str) -> bool:
        assert self.output is not None
        try:
            report = json.loads(self.report_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        same = isinstance(report, dict) and report.get("request") == key
        return same and count_frames(self.output) == self.frames


def settings_of(
    line: Line, tiers: tuple[Tier, ...], options: argparse.Namespace, machine: Machine
) -> Settings:
    """What the command line would say for this line.

    Raises:
        LiveAvatarError: the tier is not known, a number is out of range, or the output is no name
            for a video.
    """
    named = {tier.name: tier for tier in tiers}
    if line.tier not in named:
        raise RequestError(f"tier: expected {' or '.join(named)}, got {line.tier[:40]!r}")
    tier = named[line.tier]
    sampling = replace(
        tier.sampling,
        num_clip=ANY_NUMBER_OF_CLIPS if line.clips is None else line.clips,
        seed=options.base_seed if line.seed is None else line.seed,
    )
    check_output(line.output)
    own = {
        "image": line.portrait,
        "audio": line.audio,
        "prompt": line.prompt,
        "tier": tier.name,
        "save_file": line.output,
        "resume": True,
    }
    return Settings(argparse.Namespace(**(vars(options) | own)), tier.size, sampling, machine)


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise MediaError(f"cannot write {path.name}: {error.strerror}") from error


class Stopwatch:
    """Seconds since the last video ended, which is when this one had the group for itself."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        return seconds
