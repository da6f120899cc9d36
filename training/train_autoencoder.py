"""Train the demo's video autoencoder: first on stills, then on clips.

Shapes: B clips, T frames, H, W; video (B, T, H, W, 3) in [-1, 1].
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from liveavatar.model.vae import Decoder, Encoder, VAEConfig
from training.autoencoder_init import initialise
from training.captured import Captured
from training.checkpoint_writer import write_autoencoder
from training.clips import focus_weights
from training.differentiable_vae import moments, reconstruct
from training.drawing import Drawn
from training.muon import Adam, Average, Muon

_LOG = logging.getLogger("autoencoder")
_WARM_UP_STEPS = 100
_STILLS, _SHORT, _LONG = (32, 1), (8, 9), (3, 25)
_NATURAL_SHARE = 7
STILL_SHARE = 0.35


class AutoencoderTrainer:
    """Both halves, their optimisers, their average, and everything there is to look at.

    Args:
        halves: encoder and decoder on the training device, from `new_autoencoder` or of an
            earlier run.
        drawn: clips of at least 25 frames.
        still_share: part of the time that is spent on stills.
    """

    def __init__(
        self, halves: tuple[Encoder, Decoder], drawn: Drawn, still_share: float = STILL_SHARE
    ) -> None:
        self.encoder, self.decoder = halves
        self.still_share = still_share
        self.device = device = self.encoder.conv1.weight.device
        self.frames = drawn.frames.to(device)
        size = (drawn.frames.shape[3], drawn.frames.shape[2])
        self.weights = focus_weights(drawn.focus.to(device), 1.0, size)
        self.natural = torch.cat([natural_pictures(16, 25, size[0], device) for _ in range(8)])
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        matrices = [p for p in parameters if p.ndim > 3 and p.shape[0] > 3]
        known = {id(p) for p in matrices}
        self.muon = Muon(matrices, lr=5e-3)
        self.adam = Adam([p for p in parameters if id(p) not in known], lr=1e-3)
        self.average = Average(parameters, 0.99)
        self.parameters = parameters

    def step(self, video: Tensor, weights: Tensor, size: Tensor) -> Tensor:
        """Make one update of relative `size`; returns the loss."""
        on_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu):
            loss = loss_of(self.encoder, self.decoder, video, weights)
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        self.muon.step(size)
        self.adam.step(size)
        return loss.detach()

    def batch(self, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Random clips (B, T, ...) and weights (B, 1, H, W, 1); one in seven is no portrait."""
        count, length = shape
        chosen = torch.randint(len(self.frames), (count,), device=self.device)
        start = int(torch.randint(self.frames.shape[1] - length + 1, (1,)))
        video = self.frames[chosen, start : start + length].float() / 127.5 - 1
        weights = self.weights[chosen][:, None, :, :, None]
        others = max(1, count // _NATURAL_SHARE)
        picked = torch.randint(len(self.natural), (others,), device=self.device)
        video[:others] = self.natural[picked, :length].float() / 127.5 - 1
        weights = torch.cat([torch.ones_like(weights[:others]), weights[others:]])
        return video, weights

    def run(self, seconds: float, max_steps: int = 10**9) -> None:
        """Train for a time: stills, then clips of 9 and of 25 frames."""
        nothing = torch.zeros((), device=self.device)
        if self.still_share > 0:
            still = Captured(self.step, (*self.batch(_STILLS), nothing))
            self._phase("stills", seconds * self.still_share, lambda _: (still, _STILLS), max_steps)
        moving = [Captured(self.step, (*self.batch(s), nothing)) for s in (_SHORT, _LONG)]
        shapes = (_SHORT, _SHORT, _LONG)
        self._phase(
            "clips",
            seconds * (1 - self.still_share),
            lambda number: (moving[shapes[number % 3] == _LONG], shapes[number % 3]),
            max_steps,
        )

    def _phase(
        self,
        name: str,
        seconds: float,
        choose: Callable[[int], tuple[Captured, tuple[int, int]]],
        max_steps: int,
    ) -> None:
        started, number = time.monotonic(), 0
        while (spent := time.monotonic() - started) < seconds and number < max_steps:
            share = max(spent / seconds, number / max_steps)
            size = min(1.0, (number + 1) / _WARM_UP_STEPS) * min(1.0, (1 - share) / 0.75)
            captured, shape = choose(number)
            loss = captured(*self.batch(shape), torch.full((), max(size, 0.02), device=self.device))
            if number % 4 == 0:
                self.average.update()
            if number % 200 == 0:
                _LOG.info("%s step %d %.0f s loss %.4f", name, number, spent, loss.item())
            number += 1
        _LOG.info("%s: %d steps in %.0f s", name, number, time.monotonic() - started)

    def save(self, out: Path) -> None:
        """Write the averaged weights, with the latents they make brought to the published scale."""
        self.average.swap()
        with torch.no_grad():
            sample = self.frames[:64, :25].float() / 127.5 - 1
            means = [moments(self.encoder, part)[..., :16] for part in sample.split(8)]
        write_autoencoder(out, self.encoder, self.decoder, torch.cat(means).flatten(0, 3))
        self.average.swap()

    @torch.no_grad()
    def report(self) -> tuple[float, float]:
        """Reconstruction of clips in decibels: whole, and around mouth and eyes."""
        self.average.swap()
        video = self.frames[:32, :25].float() / 127.5 - 1
        weights = self.weights[:32][:, None, :, :, None]
        squares = []
        for part in video.split(4):
            means = moments(self.encoder, part)[..., :16]
            squares.append((reconstruct(self.decoder, means) - part) ** 2)
        error = torch.cat(squares)
        near = (weights > 2.5).float().expand_as(error)
        whole, focus = error.mean(), (error * near).sum() / near.sum()
        decibels = [10 * float(torch.log10(4 / value)) for value in (whole, focus)]
        _LOG.info("reconstruction %.1f dB, mouth and eyes %.1f dB", *decibels)
        self.average.swap()
        return decibels[0], decibels[1]


def new_autoencoder(config: VAEConfig, device: torch.device) -> tuple[Encoder, Decoder]:
    """Make both halves with weights to start from."""
    encoder, decoder = Encoder(config), Decoder(config)
    initialise(encoder, decoder)
    return encoder.to(device), decoder.to(device)


def loss_of(encoder: Encoder, decoder: Decoder, video: Tensor, weights: Tensor) -> Tensor:
    """Reconstruction loss of clips with weights (B, 1, H, W, 1)."""
    mean, log_variance = moments(encoder, video).float().chunk(2, dim=-1)
    log_variance = log_variance.clamp(-20, 5)
    noisy = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    decoded = reconstruct(decoder, noisy.to(video.dtype)).float()
    off = decoded - video
    loss = (off.abs() * weights).mean()
    down = off.diff(dim=2).abs() * weights[:, :, 1:]
    right = off.diff(dim=3).abs() * weights[..., 1:, :]
    loss = loss + 0.5 * (down.mean() + right.mean())
    flat = off.flatten(0, 1).permute(0, 3, 1, 2)
    for scale in (2, 4, 8):
        loss = loss + 0.5 * F.avg_pool2d(flat, scale).abs().mean()
    if video.shape[1] > 1:
        loss = loss + 0.3 * (off.diff(dim=1).abs() * weights).mean()
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return loss + 3e-4 * divergence


def natural_pictures(count: int, frames: int, size: int, device: torch.device) -> Tensor:
    """Coloured 1/f noise with soft boxes, slowly moving: (count, frames, size, size, 3) uint8.

    Keeps photos recognisable although no photo is ever used.
    """
    wide = size + 32
    frequency = torch.fft.fftfreq(wide, device=device)
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt().clamp(min=1 / wide)
    spectrum = torch.fft.fft2(torch.randn(count, 3, wide, wide, device=device)) / radius
    noise = torch.fft.ifft2(spectrum).real
    noise = noise / noise.std((-2, -1), keepdim=True)
    picture = torch.tanh(0.7 * noise.mean(1, keepdim=True) + 0.45 * noise)
    for _ in range(6):
        mask = _soft_boxes(count, wide, device)
        colour = torch.rand(count, 3, 1, 1, device=device) * 2 - 1
        picture = picture + (colour - picture) * mask * 0.8
    places = [(16 + min(t, 15), 8 + min(t, 15) // 2) for t in range(frames)]
    shown = [picture[..., y : y + size, x : x + size] for y, x in places]
    video = torch.stack(shown, dim=1).permute(0, 1, 3, 4, 2)
    return ((video.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)


def _soft_boxes(count: int, size: int, device: torch.device) -> Tensor:
    grid = torch.arange(size, device=device)
    centre = torch.rand(count, 2, device=device) * size
    half = 8 + 30 * torch.rand(count, 2, device=device)
    rows, columns = (
        torch.sigmoid((half[:, axis, None] - (grid - centre[:, axis, None]).abs()) * 1.5)
        for axis in (0, 1)
    )
    return (rows[:, :, None] * columns[:, None, :])[:, None]
