"""Clips encoded once and kept on the device, and batches of them.

Shapes: M clips of the pool, B of a batch, F latent frames, T video frames, N samples, K cues.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from liveavatar.model.vae import Encoder
from training.clips import focus_weights
from training.differentiable_vae import encode_clips
from training.drawing import Drawn

STILL_FRAMES = 37
"""Frames of the portrait encoded in front of a clip; later ones would give the same latent."""
_ENCODED_TOGETHER = 8
_TYPICAL_DEVIATION = 0.085


@dataclass(frozen=True)
class Batch:
    """Clips, as they are stored or as they are drawn from the pool.

    Attributes:
        reference: (B, C, 1, H, W) latent of the portrait alone.
        motion: (B, C, 10, H, W) latents of the portrait held still.
        latents: (B, C, F, H, W) of the clip.
        sound: (B, N) float.
        targets: (B, T, 3) mouth opening, width, hiss.
        cues: (B, F, K).
        moods: (B,) int64.
        weights: (B, H, W) importance of latent pixels.
    """

    reference: Tensor
    motion: Tensor
    latents: Tensor
    sound: Tensor
    targets: Tensor
    cues: Tensor
    moods: Tensor
    weights: Tensor

    def pick(self, chosen: Tensor) -> Batch:
        """Return some of the clips, in float32."""
        parts = (getattr(self, field.name)[chosen] for field in fields(self))
        return Batch(*(part.float() if part.is_floating_point() else part for part in parts))


@torch.no_grad()
def encode_pool(encoder: Encoder, drawn: Drawn) -> Batch:
    """Encode drawn clips on the encoder's device.

    Args:
        encoder: of the trained autoencoder.
        drawn: clips; their first frame is the portrait.
    """
    device = encoder.conv1.weight.device
    reference, motion, latents = [], [], []
    still = 1 + (STILL_FRAMES - 1) // 4
    for frames in drawn.frames.split(_ENCODED_TOGETHER):
        clip = frames.to(device)
        video = torch.cat([clip[:, :1].expand(-1, STILL_FRAMES, -1, -1, -1), clip], dim=1)
        encoded = encode_clips(encoder, video.float() / 127.5 - 1).half()
        motion.append(encoded[:, :, :still])
        latents.append(encoded[:, :, still:])
        reference.append(encoded[:, :, :1])  # the first latent is of the portrait alone
    height, width = drawn.frames.shape[2:4]
    return Batch(
        torch.cat(reference),
        torch.cat(motion),
        torch.cat(latents),
        drawn.sound.to(device).half(),
        drawn.targets.to(device),
        drawn.cues.to(device),
        drawn.moods.to(device),
        focus_weights(drawn.focus.to(device), 1 / 8, (width // 8, height // 8)),
    )


def roughened(sound_BN: Tensor) -> Tensor:
    """Speech as other microphones and rooms would give it, at about unit variance.

    Level, tilt of the spectrum and noise floor vary; a clip that is all noise is often as loud as
    speech, which is what normalising a silent recording makes of it.
    """
    batch, device = len(sound_BN), sound_BN.device
    tilt = torch.rand(batch, 1, device=device) * 0.4 - 0.2
    sound = sound_BN + tilt * torch.nn.functional.pad(sound_BN[:, :-1], (1, 0))
    deviation = sound.std(1, keepdim=True)
    silent = deviation < 0.01
    wanted = torch.where(torch.rand_like(deviation) < 0.5, 1.0, deviation / _TYPICAL_DEVIATION)
    gain = torch.exp(0.25 * torch.randn_like(deviation)) / (_TYPICAL_DEVIATION * (1 + 0.5 * tilt))
    sound = torch.where(silent, sound / deviation * wanted, sound * gain)
    floor = 10 ** (-(35 + 40 * torch.rand(batch, 1, device=device)) / 20)
    return sound + floor / _TYPICAL_DEVIATION * torch.randn_like(sound)
