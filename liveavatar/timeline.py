"""How many frames and blocks a video has, and when its conditions are refreshed."""

import math
from dataclasses import dataclass

from liveavatar.config import FPS, FRAMES_PER_BLOCK, SPEECH_RATE_HZ, SamplingConfig

# The first latent of the first block repeats what the decoder was primed with: its first three
# frames are the reference held still, and frame i is the one made for sound i.
HELD_FRAMES = 3


@dataclass(frozen=True)
class Timeline:
    """Frames and blocks of one video.

    Attributes:
        num_frames: frames of the finished video.
        num_blocks: blocks of 12 frames generated; the last one may be trimmed.
        window_blocks: blocks in a KV ring.
        refresh_block: first block that uses the refreshed condition; None when there is no second
            clip.
        clip_frames: frames of one clip.
    """

    num_frames: int
    num_blocks: int
    window_blocks: int
    refresh_block: int | None
    clip_frames: int

    def condition_version(self, block_index: int) -> int:
        """Condition version of a block: 0 before the refresh, 1 from it on."""
        return int(self.refresh_block is not None and block_index >= self.refresh_block)

    def frames_of_block(self, block_index: int) -> int:
        """Frames of a block that belong to the video, 1..12."""
        return min(FRAMES_PER_BLOCK, self.num_frames - block_index * FRAMES_PER_BLOCK)


def make_timeline(sampling: SamplingConfig, num_samples: int) -> Timeline:
    """Lay out the video of `num_samples` of 16 kHz speech.

    The video has min(num_clip * infer_frames, speech * 25) frames; a last frame that the speech
    fills only partly is generated, so that no sound is lost.

    Args:
        sampling: clips, frames per clip.
        num_samples: speech length in samples of 16 kHz, at least 1.
    """
    spoken = max(1, math.ceil(num_samples * FPS / SPEECH_RATE_HZ))
    num_frames = min(sampling.num_clip * sampling.infer_frames, spoken)
    refreshes = num_frames > sampling.infer_frames
    return Timeline(
        num_frames=num_frames,
        num_blocks=math.ceil(num_frames / FRAMES_PER_BLOCK),
        window_blocks=sampling.window_blocks,
        refresh_block=sampling.window_blocks if refreshes else None,
        clip_frames=sampling.infer_frames,
    )
