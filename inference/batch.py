"""Many videos through one resident group: `--batch jobs.jsonl`.

Every line is checked before the group is started; what is wrong with one is said in one line and
the others go on. A group that dies is started again, and the video that it died of is tried once
more. Running the command again makes what is missing: finished videos are left alone, and a video
that was cut off by a kill is gone on with.

Exit status: 0 when every line has its video; 2 when all that is missing are lines that cannot be
used; 1 when a rank failed, so that running it again may help; 130 when stopped.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from inference.batch_lines import parse_line, read_lines
from inference.batch_video import BatchVideo, Stopwatch, settings_of
from inference.interrupt import StopRequest
from inference.leftovers import Leftovers
from inference.options import Settings, read_machine
from inference.rank_times import RankTimes
from inference.video_job import VideoJob
from liveavatar.config import FPS
from liveavatar.engine.group import Group, WorkerGroup
from liveavatar.engine.layout import choose_layout
from liveavatar.engine.messages import Finished, GroupSpec, Progress, RankStatus, Refused
from liveavatar.errors import ConfigError, EngineError, LiveAvatarError, RequestError
from liveavatar.plan.layout import plan_layout
from liveavatar.plan.several import Video
from liveavatar.plan.shapes import read_network
from liveavatar.plan.tiers import tiers_of

_AT_ONCE = 2  # one is rendered, the next one is encoded
_MOST_TRIES = 2
_OF_ONE_VIDEO = ("image", "audio", "prompt", "save_file", "num_clip")

MakeGroup = Callable[[GroupSpec], Group]


def run_batch(options: argparse.Namespace, make_group: MakeGroup = WorkerGroup) -> int:
    """Make the videos of a file; returns the exit status.

    Raises:
        ConfigError: the options, the file or the checkpoint cannot be used.
        EngineError: the group cannot be started.
    """
    for name in _OF_ONE_VIDEO:
        if getattr(options, name) is not None:
            raise ConfigError(f"{name}: expected in the lines of --batch, not as an option")
    videos = check_lines(options)
    missing = [video for video in videos if video.state == "waiting"]
    try:
        if missing:
            spec = _layout(options, missing)
            with StopRequest() as stop, _progress_bar(videos) as bar:
                _Rendering(missing, spec, make_group, stop, bar).run()
    finally:
        sys.stdout.write(_table(videos))
    states = {video.state for video in videos}
    if "stopped" in states:
        return 130
    return 1 if "failed" in states else 2 if "bad" in states else 0


def check_lines(options: argparse.Namespace) -> list[BatchVideo]:
    """Every line of the file, read and checked; says what is wrong with the bad ones.

    Raises:
        ConfigError: the file, the machine or the checkpoint cannot be used.
    """
    machine, network = read_machine(options), read_network(options.ckpt_dir)
    tiers = tiers_of(network)

    def require_fit(settings: Settings, job: VideoJob) -> None:
        height, width = job.portrait_HWC.shape[:2]
        plan = plan_layout(network, (height, width), _sampled(settings, job).sampling, machine)
        if not plan.fits:
            raise RequestError(f"tier: {settings.options.tier} {plan.verdict}")

    videos, writers = [], dict[Path, int]()
    for number, text in read_lines(options.batch):
        video = BatchVideo(number)
        try:
            line = parse_line(number, text, options.batch)
            other = writers.setdefault(line.output.resolve(), number)
            if other != number:
                raise RequestError(f"output: line {other} writes '{line.output.name}' already")
            video.output = line.output
            video.settings = settings_of(line, tiers, options, machine)
            video.check(require_fit)
        except LiveAvatarError as error:
            video.refuse(error)
            _say(f"line {number}: {video.reason}")
        videos.append(video)
    return videos


def _sampled(settings: Settings, job: VideoJob) -> Video:
    height, width = job.portrait_HWC.shape[:2]
    clips = math.ceil(job.timeline.num_frames / settings.sampling.infer_frames)
    return Video((height, width), replace(settings.sampling, num_clip=clips))


def _layout(options: argparse.Namespace, videos: Sequence[BatchVideo]) -> GroupSpec:
    """A group for the largest of them."""
    wanted = []
    for video in videos:
        assert video.settings is not None
        clips = math.ceil(video.frames / video.settings.sampling.infer_frames)
        wanted.append(Video(video.size_hw, replace(video.settings.sampling, num_clip=clips)))
    return choose_layout(options.ckpt_dir, options.lora_path_dmd, wanted, read_machine(options))


class _Rendering:
    """Videos on their way through groups, in the order of their lines."""

    def __init__(
        self,
        videos: Sequence[BatchVideo],
        spec: GroupSpec,
        make_group: MakeGroup,
        stop: StopRequest,
        bar: tqdm[None],
    ) -> None:
        self._waiting = deque(videos)
        self._spec = spec
        self._make_group = make_group
        self._stop = stop
        self._bar = bar
        self._open: dict[int, tuple[BatchVideo, Leftovers]] = {}
        self._shown: dict[int, int] = {}
        self._times = RankTimes()
        self._was_ready = False

    def run(self) -> None:
        """Make all; EngineError when the group cannot be started."""
        while self._waiting or self._open:
            group = self._make_group(self._spec)
            try:
                self._serve(group)
                group.close()
            except EngineError as error:
                if not self._was_ready:
                    raise
                self._note_death(error)
            finally:
                group.kill()
            if self._stop.asked:
                for video in (*(video for video, _ in self._open.values()), *self._waiting):
                    video.state = "stopped"
                return

    def _serve(self, group: Group) -> None:
        watch = Stopwatch()
        self._was_ready = False
        while self._waiting or self._open:
            while self._waiting and len(self._open) < _AT_ONCE:
                self._submit(group, self._waiting.popleft())
            event = group.next_event(0.2)
            self._was_ready = self._was_ready or group.is_ready
            if isinstance(event, RankStatus) and group.is_ready:  # loading is no time of a video
                self._times.take(event)
            elif isinstance(event, Progress) and event.number in self._open:
                self._show(event.number, event.frames)
            elif isinstance(event, Refused) and event.number in self._open:
                video, leftovers = self._open.pop(event.number)
                leftovers.remove()
                self._fail(video, "bad", event.reason)
                watch.lap()
            elif isinstance(event, Finished) and event.number in self._open:
                self._finish(event, watch.lap())
            if self._stop.asked:
                for number in self._open:
                    group.cancel(number)
                return

    def _submit(self, group: Group, video: BatchVideo) -> None:
        try:
            job, leftovers = video.begin()
        except LiveAvatarError as error:
            self._fail(video, "bad", str(error))
            return
        self._show(video.number, leftovers.frames)
        resumes = leftovers.frames > 0
        group.submit(job.render_job(video.number, leftovers.folder, resumes=resumes))
        self._open[video.number] = (video, leftovers)

    def _finish(self, event: Finished, seconds: float) -> None:
        video, leftovers = self._open.pop(event.number)
        video.seconds = seconds
        try:
            if event.frames != video.frames:
                leftovers.remove()
                raise EngineError(f"expected {video.frames} frames, the group made {event.frames}")
            video.finish(leftovers, {"ranks": self._times.record()})
        except LiveAvatarError as error:
            self._fail(video, "failed", str(error))
        self._times.clear()

    def _note_death(self, error: EngineError) -> None:
        """The first open video is the one that was rendered; it is tried once more."""
        _say(f"the worker group ended: {error}; starting another")
        self._times.clear()
        videos = [video for video, _ in self._open.values()]
        self._open.clear()
        if videos:
            videos[0].tries += 1
            if videos[0].tries >= _MOST_TRIES:
                self._fail(videos.pop(0), "failed", str(error))
        self._waiting.extendleft(reversed(videos))

    def _fail(self, video: BatchVideo, state: str, reason: str) -> None:
        video.state = "bad" if state == "bad" else "failed"
        video.reason = " ".join(reason.split())
        self._bar.clear()
        _say(f"line {video.number}: {video.reason}")

    def _show(self, number: int, frames: int) -> None:
        self._bar.set_postfix_str(f"line {number}", refresh=False)
        self._bar.update(max(0, frames - self._shown.get(number, 0)))
        self._shown[number] = max(frames, self._shown.get(number, 0))


def _progress_bar(videos: Sequence[BatchVideo]) -> tqdm[None]:
    missing = [video for video in videos if video.state == "waiting"]
    total = sum(video.frames for video in missing)
    return tqdm(total=total, unit="frame", desc=f"{len(missing)} videos", smoothing=0.1)


def _table(videos: Sequence[BatchVideo]) -> str:
    """What became of every line, and the counts."""
    rows = [f"{'line':>5}  {'state':<8}{'frames':>8}{'seconds':>9}{'fps':>8}  video"]
    for video in videos:
        made = video.state == "made"
        seconds = f"{video.seconds:.1f}" if made else "-"
        fps = f"{video.frames / video.seconds:.1f}" if made and video.seconds else "-"
        frames = str(video.frames) if video.state in ("made", "kept") else "-"
        what = video.reason or str(video.output)
        rows.append(f"{video.number:>5}  {video.state:<8}{frames:>8}{seconds:>9}{fps:>8}  {what}")
    states = [video.state for video in videos]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    lasts = sum(video.frames for video in videos if video.state in ("made", "kept")) / FPS
    return "\n".join(rows) + f"\n{', '.join(counts)}; {lasts:.1f} s of video\n"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
