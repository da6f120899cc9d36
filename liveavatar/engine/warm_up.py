"""The first blocks a group makes, before it says that it is ready, so that no user waits for them.

Libraries choose and load their kernels when they are used for the first time, kernels are compiled,
forwards are recorded, and allocators take their memory: the first block through all ranks takes
several times as long as the second.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from liveavatar.config import FPS, FRAMES_PER_BLOCK, SPEECH_RATE_HZ, SamplingConfig
from liveavatar.engine.media_rank import MediaRank
from liveavatar.engine.messages import Finished, GroupSpec, RenderJob
from liveavatar.engine.preparation import Preparation
from liveavatar.errors import EngineError
from liveavatar.media.speech import load_speech
from liveavatar.timeline import make_timeline

NUMBER = 0
"""Of the job; those of users begin at 1."""


def warm_up(media: MediaRank, spec: GroupSpec) -> None:
    """Make a short video in the group of `media`, whose stages have begun to serve.

    Raises:
        EngineError: the block could not be made.
    """
    said: list[object] = []
    jobs = Preparation(said.append)
    jobs.submit(warm_up_job(spec.folder, spec.warm_up_hw, spec.warm_up_sampling))
    jobs.stop()
    media.serve(jobs, said.append)
    if not isinstance(said[-1], Finished):
        raise EngineError(f"the first block could not be made: {said[-1]}")


def warm_up_job(folder: Path, size_hw: tuple[int, int], sampling: SamplingConfig) -> RenderJob:
    """A job of a grey portrait and silence: of a window of blocks and, with two clips, one more.

    Args:
        folder: where its sound and its video go.
        size_hw: height and width of the video.
        sampling: of the video.
    """
    num_blocks = sampling.window_blocks + (sampling.num_clip > 1)
    num_samples = max(1.0, num_blocks * FRAMES_PER_BLOCK / FPS) * SPEECH_RATE_HZ
    sound = folder / "warm_up.wav"
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_RATE_HZ)
        file.writeframes(bytes(2 * round(num_samples)))
    speech = load_speech(sound)
    return RenderJob(
        number=NUMBER,
        portrait_HWC=np.full((*size_hw, 3), 128, np.uint8),
        speech_N=speech.samples,
        soundtrack=sound,
        mix=speech.mix,
        prompt="A person talks to the camera",
        timeline=make_timeline(sampling, len(speech.samples)),
        sampling=sampling,
        live_path=folder / "warm_up.mp4",
    )
