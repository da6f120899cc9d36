"""Points on disk: whole or not there, two of each part; a video goes on from them bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference.resuming import LonePoints
from liveavatar.errors import CheckpointError
from liveavatar.resume_points import read_part, whole_points, write_part
from liveavatar.single_device import RenderOptions, VideoDecoder, generate_latents, render
from tests.distributed.rendering import wait_until
from tests.unit import tiny

PARTS = ["a", "b"]


def tensors(seed: int) -> dict[str, torch.Tensor]:
    return {"x": tiny.seeded(3, 4, seed=seed), "y": torch.arange(5, dtype=torch.int8)}


def test_a_point_counts_when_all_its_parts_are_there(tmp_path: Path) -> None:
    assert write_part(tmp_path, "a", 8, tensors(1))
    assert whole_points(tmp_path, PARTS) == []
    assert write_part(tmp_path, "b", 8, tensors(2))
    assert write_part(tmp_path, "a", 16, tensors(3))
    assert whole_points(tmp_path, PARTS) == [8]
    read = read_part(tmp_path, "b", 8)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors(2).items())


def test_each_part_keeps_its_two_newest_files(tmp_path: Path) -> None:
    for block in (8, 16, 24, 32):
        assert write_part(tmp_path, "a", block, tensors(block))
    assert write_part(tmp_path, "b", 16, tensors(0))
    assert whole_points(tmp_path, ["a"]) == [32, 24]
    assert whole_points(tmp_path, ["b"]) == [16]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "grown"])
def test_a_damaged_file_is_none(tmp_path: Path, damage: str) -> None:
    write_part(tmp_path, "a", 8, tensors(1))
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    flipped = bytes([*data[:-1], data[-1] ^ 1])
    damaged = {"cut": data[:-1], "flipped": flipped, "empty": b"", "grown": bytes(data) + b"0"}
    file.write_bytes(damaged[damage])
    assert whole_points(tmp_path, ["a"]) == []
    with pytest.raises(CheckpointError, match=r"^resume point 8 of a is missing or damaged$"):
        read_part(tmp_path, "a", 8)
    assert not file.exists()


def test_a_folder_that_takes_no_file_costs_the_point_only(tmp_path: Path) -> None:
    assert not write_part(tmp_path / "gone", "a", 8, tensors(1))
    assert whole_points(tmp_path / "gone", ["a"]) == []


@pytest.mark.parametrize("num_frames", [8 * 12, 16 * 12 + 5])
def test_a_lone_video_goes_on_bitwise_behind_the_newest_point_within_its_file(
    tmp_path: Path, num_frames: int
) -> None:
    job = tiny.job(19)  # with a refresh behind block 1
    options = RenderOptions(job.schedule, job.draws)
    portrait = torch.zeros(tiny.PIXEL_SIDE, tiny.PIXEL_SIDE, 3, dtype=torch.uint8)
    points = LonePoints(tmp_path, 0, job.timeline.window_blocks)
    inputs = (tiny.models(), job.conditions, portrait, job.timeline)
    whole = torch.cat(list(render(*inputs, RenderOptions(job.schedule, job.draws, points=points))))
    assert torch.equal(whole, torch.cat(list(render(*inputs, options))))
    wait_until(lambda: whole_points(tmp_path, ["alone"]) == [16, 8], "both points are written")
    points.close()
    again = LonePoints(tmp_path, num_frames, job.timeline.window_blocks)
    assert again.first_block == num_frames // 96 * 8
    rest = render(*inputs, RenderOptions(job.schedule, job.draws, points=again))
    assert torch.equal(torch.cat(list(rest)), whole[again.first_block * 12 :])
    again.close()


def test_a_point_of_another_video_is_refused(tmp_path: Path) -> None:
    job, other = tiny.job(9), tiny.job(9, window=4)
    points = LonePoints(tmp_path, 0, job.timeline.window_blocks)
    decoder = VideoDecoder(
        tiny.models().decoder, job.conditions.motion_CFHW, torch.zeros(64, 64, 3), 108
    )
    points.restore_decoder(decoder)
    work = (tiny.models(), job.conditions, job.timeline, job.schedule, job.draws)
    assert len(list(generate_latents(*work, points))) == 9
    wait_until(lambda: whole_points(tmp_path, ["alone"]) == [8], "the point is written")
    again = LonePoints(tmp_path, 96, other.timeline.window_blocks)
    with pytest.raises(CheckpointError, match="is of another video"):
        again.restore_rings(tiny.denoiser(other))
    for one in (points, again):
        one.close()
