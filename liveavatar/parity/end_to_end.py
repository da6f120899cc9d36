"""Fixture of a whole rollout: pixels, features, text rows and noise in, latents and frames out."""

from collections.abc import Iterator

import torch

from liveavatar.conditioning import Conditions, mix_features
from liveavatar.model.vae_encoding import encode_still
from liveavatar.parity.fixture import Check, Fixture, skipped
from liveavatar.parity.networks import (
    stated_schedule,
    transformer_config,
    transformer_parts,
    vae_halves,
)
from liveavatar.single_device import Draws, Models, VideoDecoder, generate_latents
from liveavatar.timeline import Timeline


@torch.no_grad()
def check_e2e(fixture: Fixture) -> Iterator[Check]:
    """Run the pipelined semantics of `single_device` from the recorded draws."""
    config, schedule = transformer_config(fixture.config), stated_schedule(fixture)
    inputs, outputs = fixture.inputs(), fixture.outputs()
    weights = fixture.files(fixture.spec["weights"]["dit"])
    encoder, decoder = vae_halves(fixture.files(fixture.spec["weights"]["vae"]), fixture.spec)
    models = Models(
        *transformer_parts(weights, config),
        decoder,
    )
    portrait = inputs["ref_pixels"][0, :, 0]
    conditions = Conditions(
        encode_still(encoder, portrait, 1),
        encode_still(encoder, portrait, fixture.config["motion_frames"]),
        inputs["context"],
        mix_features(inputs["audio_features"][0], models.embedder.audio_encoder.mixing_weights()),
    )
    for name, ours in (
        ("ref_latents", conditions.reference_CFHW),
        ("motion_latents", conditions.motion_CFHW),
    ):
        yield fixture.compare(name, ours[None], outputs[name], "latents")
    window, clips = fixture.config["ring_blocks"], fixture.config["clips"]
    frames_per_block = conditions.speech_AV.shape[1] // (window * clips)
    timeline = Timeline(
        num_frames=window * clips * frames_per_block,
        num_blocks=window * clips,
        window_blocks=window,
        refresh_block=window if clips > 1 else None,
        clip_frames=window * frames_per_block,
    )
    # Noise is stored per clip, (clips, C, 3 * window, H, W).
    per_block = [block for clip in inputs["noise"] for block in clip.chunk(window, dim=1)]
    distances = fixture.spec["relative_dist"]
    draws = Draws(per_block.__getitem__, lambda block, step: distances[block][step])
    latents = list(generate_latents(models, conditions, timeline, schedule, draws))
    yield fixture.compare("latents", torch.cat(latents, dim=1), outputs["latents"], "latents")
    portrait_HWC = torch.zeros(*portrait.shape[1:], 3, dtype=torch.uint8)
    video = VideoDecoder(decoder, conditions.motion_CFHW, portrait_HWC, timeline.num_frames)
    decoded = torch.cat([video.pixels(latent) for latent in latents], dim=1)
    frames = decoded.clamp(-1, 1)
    stride = fixture.config.get("frame_stride", 1)
    yield fixture.compare("frames", frames[..., ::stride, ::stride], outputs["frames"], "frames")
    for name, ours in (
        ("frame_mean", frames.mean(dim=(0, 2, 3))),
        ("frame_std", frames.std(dim=(0, 2, 3))),
    ):
        yield fixture.compare(name, ours, outputs[name], "frames")
    for name in outputs:
        if name.startswith("single_device."):
            remark = "the reference's other variant: 5-frame reference, 365-frame motion"
            yield skipped(f"{fixture.name}/{name}", remark)
