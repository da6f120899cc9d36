"""A render that was killed goes on in its file, to the frames it would have had."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from liveavatar.config import FRAMES_PER_BLOCK
from liveavatar.engine.group import WorkerGroup
from liveavatar.engine.messages import Finished, RenderJob
from liveavatar.errors import WorkerDiedError
from liveavatar.media.live_file import complete_length, measure_live_file
from liveavatar.random_checkpoint import write_checkpoint
from liveavatar.resume_points import whole_points
from liveavatar.timeline import make_timeline
from tests.distributed.rendering import (
    Studio,
    outcome,
    running,
    spec,
    started,
    until_it_ends,
    wait_for_frames,
)
from tests.unit.mp4_material import decode_audio, decode_video

SECONDS = 8.0
PARTS = [f"rank-{rank}" for rank in range(3)]
POINT = 10  # blocks between points: two stages, two steps, windows of two


@dataclass
class Killed:
    """What a killed group left, the group that came after it, and a video that was never killed."""

    job: RenderJob
    group: WorkerGroup
    whole: RenderJob

    def copy(self, name: str) -> RenderJob:
        """The same left-overs as files of another job."""
        self.job = replace(self.job, number=self.job.number + 1)
        live = self.job.live_path.with_name(f"{name}.live.mp4")
        shutil.copyfile(self.job.live_path, live)
        folder = live.with_name(f"{name}.resume")
        assert self.job.resume_folder is not None
        shutil.copytree(self.job.resume_folder, folder)
        return replace(self.job, live_path=live, resume_folder=folder, resumes=True)


def long_enough(studio: Studio, **changed: object) -> RenderJob:
    job = studio.job(5.0)
    timeline = make_timeline(job.sampling, int(SECONDS * 16_000))
    return replace(job, timeline=timeline, **changed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    checkpoint = tmp_path_factory.mktemp("tiny")
    write_checkpoint(checkpoint)
    studio = Studio(tmp_path_factory.mktemp("studio"))
    folder = studio.folder / "killed.resume"
    folder.mkdir()
    job = long_enough(studio, resume_folder=folder)
    with running(started(spec(checkpoint))) as group:
        group.submit(job)
        wait_for_frames(group, job.number, (POINT + 3) * FRAMES_PER_BLOCK)
        os.kill(group.pids()[1], signal.SIGKILL)
        with pytest.raises(WorkerDiedError):
            until_it_ends(group)
    with job.live_path.open("ab") as file:
        file.write(b"\0\0\1\0moof and no more")  # as the encoder may leave it
    with running(started(spec(checkpoint))) as group:
        whole = long_enough(studio)
        group.submit(whole)
        assert isinstance(outcome(group, whole.number), Finished)
        yield Killed(replace(job, number=100), group, whole)


def points_of(job: RenderJob) -> list[int]:
    assert job.resume_folder is not None
    (folder,) = job.resume_folder.iterdir()
    return whole_points(folder, PARTS)


def pictures(job: RenderJob) -> np.ndarray:
    return np.stack([frame.to_ndarray(format="rgb24") for frame in decode_video(job.live_path)])


def assert_it_is_the_whole_video(job: RenderJob, killed: Killed) -> None:
    before = killed.job.live_path.read_bytes()[: complete_length(killed.job.live_path)]
    assert job.live_path.read_bytes().startswith(before)
    extent = measure_live_file(job.live_path)
    assert extent.num_bytes == job.live_path.stat().st_size
    ours, uninterrupted = pictures(job), pictures(killed.whole)
    assert len(ours) == job.timeline.num_frames
    # Latents are the same bits; an encoder that begins anew codes its first second in its own way,
    # and these pictures are as hard to code as noise.
    difference = np.abs(ours.astype(int) - uninterrupted).mean(axis=(1, 2, 3))
    cut = measure_live_file(killed.job.live_path).num_frames
    assert not difference[:cut].any()
    assert not difference[cut + 25 :].any()
    assert difference.max() < 12
    sound, heard = decode_audio(job.live_path), decode_audio(killed.whole.live_path)
    assert len(sound) == len(heard)
    assert np.abs(sound - heard).max() < 0.05 * np.abs(heard).max()


def test_it_goes_on_from_the_newest_point_and_makes_only_the_blocks_behind_it(
    killed: Killed,
) -> None:
    job = killed.copy("from-a-point")
    assert points_of(job)[0] == POINT
    killed.group.submit(job)
    assert outcome(killed.group, job.number) == Finished(job.number, 200, cancelled=False)
    assert_it_is_the_whole_video(job, killed)


@pytest.mark.parametrize("loss", ["a rank's file", "a flipped bit", "everything"])
def test_without_a_whole_point_every_block_is_made_again_and_none_is_shown_twice(
    killed: Killed, loss: str
) -> None:
    job = killed.copy(loss.replace(" ", "-"))
    assert job.resume_folder is not None
    if loss == "everything":
        shutil.rmtree(job.resume_folder)
    for file in job.resume_folder.glob("*/*.rank-1.*"):
        if loss == "a flipped bit":
            damaged = bytearray(file.read_bytes())
            damaged[-5] ^= 1
            file.write_bytes(damaged)
        else:
            file.unlink()
    assert loss == "everything" or not points_of(job)
    killed.group.submit(job)
    assert outcome(killed.group, job.number) == Finished(job.number, 200, cancelled=False)
    assert_it_is_the_whole_video(job, killed)


def test_a_file_that_lacks_only_its_end_gets_it(killed: Killed) -> None:
    job = killed.copy("no-end")
    shutil.copyfile(killed.whole.live_path, job.live_path)
    whole = job.live_path.read_bytes()
    extent = measure_live_file(job.live_path)
    os.truncate(job.live_path, extent.num_bytes - 1)  # the last fragment is sound alone
    assert measure_live_file(job.live_path).num_frames == job.timeline.num_frames
    killed.group.submit(job)
    assert outcome(killed.group, job.number) == Finished(job.number, 200, cancelled=False)
    assert abs(job.live_path.stat().st_size - len(whole)) < 2000
    assert len(decode_audio(job.live_path)) == len(decode_audio(killed.whole.live_path))
