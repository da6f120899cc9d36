"""The check of continued videos sees what a fault could do to them."""

import numpy as np
import pytest

from tests.faults.suite import goes_on

CUT = 40


def video() -> np.ndarray:
    """A patch that moves over noise, (72, 32, 32, 3)."""
    ground = np.random.default_rng(0).integers(60, 190, (32, 32, 3))
    frames = np.repeat(ground[None], 72, axis=0)
    for number, frame in enumerate(frames):
        frame[8:16, number % 24 : number % 24 + 8] += 50
    return frames.astype(np.uint8)


def coded_anew(frames: np.ndarray) -> np.ndarray:
    error = np.random.default_rng(1).integers(-3, 4, frames[CUT:].shape)
    return np.concatenate([frames[:CUT], (frames[CUT:] + error).astype(np.uint8)])


def test_the_same_frames_coded_otherwise_behind_a_cut_go_on() -> None:
    assert goes_on(video(), video())
    assert goes_on(coded_anew(video()), video())


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_frame_lost_or_made_twice_at_the_cut_is_seen(shift: int) -> None:
    moved = np.roll(video(), shift, axis=0)
    ours = coded_anew(np.concatenate([video()[:CUT], moved[CUT:]]))
    assert not goes_on(ours, video())


def test_another_picture_is_seen() -> None:
    ours = video()
    ours[CUT + 3] = 128
    assert not goes_on(ours, video())
