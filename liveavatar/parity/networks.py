"""Fixtures of one network each: transformer layer, transformer, speech, text, autoencoder."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from liveavatar.conditioning import mix_features
from liveavatar.config import FRAMES_PER_BLOCK, TransformerConfig
from liveavatar.model.attention import KeyValue
from liveavatar.model.audio_encoder import (
    features_per_video_frame,
    hidden_states,
    normalise_waveform,
    num_clips,
    num_resampled,
    resample_to_30hz,
    video_frame_rows,
)
from liveavatar.model.audio_encoder import stored_name as stored_wav2vec_name
from liveavatar.model.audio_injection import AudioEncoder
from liveavatar.model.checkpoint_files import TensorFiles, load_into
from liveavatar.model.denoiser import Denoiser, Item, TokenGrid
from liveavatar.model.kv_cache import CacheShape, ExactCache
from liveavatar.model.rope import Rotation
from liveavatar.model.text_encoder import encode_ids, encoder_config
from liveavatar.model.text_encoder import stored_name as stored_text_name
from liveavatar.model.transformer import ConditionEmbedder, Layer, Transformer
from liveavatar.model.vae import Decoder, Encoder, VAEConfig
from liveavatar.model.vae_encoding import encode
from liveavatar.model.vae_stream import decode, decode_step, new_decoder_state
from liveavatar.model.weights import fill, stored_names
from liveavatar.parity.fixture import Check, Fixture, equal, skipped
from liveavatar.parity.taps import Taps
from liveavatar.sampling import Schedule, euler_step


def transformer_config(stated: Mapping[str, Any]) -> TransformerConfig:
    """Shape of the network a fixture was recorded with; sizes it leaves out do not matter to it."""
    known = {field.name for field in fields(TransformerConfig)}
    chosen = {key: value for key, value in stated.items() if key in known}
    chosen.setdefault("num_layers", 1)
    chosen.setdefault("audio_inject_layers", [])
    chosen.setdefault("num_heads", 1)
    chosen["num_audio_states"] = stated.get("wav2vec_layers", stated.get("layers", 25))
    return TransformerConfig.from_dict(chosen)


def transformer_parts(
    files: TensorFiles, config: TransformerConfig
) -> tuple[Transformer, ConditionEmbedder]:
    """Build a recorded transformer and its condition embedder in float32."""
    with torch.device("meta"):
        transformer, embedder = Transformer(config), ConditionEmbedder(config)
    for part in (transformer, embedder):
        fill(part, files, partial(stored_names, config=config))
    return transformer.eval(), embedder.eval()


def stated_schedule(fixture: Fixture) -> Schedule:
    """Noise levels the fixture was recorded with."""
    return Schedule(tuple(fixture.spec["sigmas"]), tuple(fixture.spec["timesteps"]))


@torch.no_grad()
def check_dit_block(fixture: Fixture) -> Iterator[Check]:
    """One layer: ring filling, ring rolling, condition prefill."""
    config = transformer_config(fixture.config)
    inputs, outputs = fixture.inputs(), fixture.outputs()
    with torch.device("meta"):
        layer = Layer(config, torch.float32, injects=False)

    def names(name: str) -> tuple[str, ...]:
        return tuple(n.removeprefix("blocks.0.") for n in stored_names(f"layers.0.{name}", config))

    fill(layer, fixture.files(), names)
    text = layer.cross_attn.project_context(inputs["context"][0])
    blocks = fixture.config["ring_blocks"]
    # Both denoise cases begin with every slot of the recorded ring in place; "fill" has one block
    # behind it, "roll" has overwritten the oldest slot once before.
    for case, block_index in (("fill", 1), ("roll", blocks + 1)):
        cache = _recorded_cache(fixture, inputs, config)
        cache.use_condition(0, 0)
        rows_T = torch.empty(cache.shape.block_tokens, dtype=torch.int64)
        cache.shape.put_rows(block_index, rows_T)
        phase = cache.shape.phase(0, block_index, 0)
        view = cache.open(phase, rows_T, _rotation(inputs, f"{case}.cond_"))
        # The fixture gives each of the latent frames a timestep of its own.
        per_frame = inputs[f"{case}.e"][0, :, :, 0].transpose(0, 1)
        per_token = per_frame.repeat_interleave(fixture.config["tokens_per_frame"], dim=1)
        modulation = layer.modulation[:, None] + per_token
        rotation = _rotation(inputs, f"{case}.")
        hidden = layer(inputs[f"{case}.x"][0], modulation, text, rotation, view, None)
        ring = slice(cache.shape.condition_tokens, None)
        yield fixture.compare(f"{case}.y", hidden[None], outputs[f"{case}.y"])
        for part, buffer in (("k", cache.key_SKNH), ("v", cache.value_SKNH)):
            name = f"{case}.ring_{part}"
            yield fixture.compare(name, buffer[:1, ring], outputs[name])
    modulation = layer.modulation + inputs["sink.e"][0, 0, :, 1]
    hidden, stored = layer.prefill(
        inputs["sink.x"][0], modulation, text, _rotation(inputs, "sink.")
    )
    yield fixture.compare("sink.y", hidden[None], outputs["sink.y"])
    yield fixture.compare("sink.cond_k", stored.key_KNH[None], outputs["sink.cond_k"])
    yield fixture.compare("sink.cond_v", stored.value_KNH[None], outputs["sink.cond_v"])


def _rotation(inputs: Mapping[str, Tensor], prefix: str) -> Rotation:
    return Rotation(inputs[f"{prefix}cos"], inputs[f"{prefix}sin"])


def _recorded_cache(
    fixture: Fixture, inputs: Mapping[str, Tensor], config: TransformerConfig
) -> ExactCache:
    stated = fixture.config
    shape = CacheShape(
        num_steps=1,
        condition_tokens=stated["cond_tokens"],
        reference_tokens=stated["cond_tokens"],
        block_tokens=stated["tokens_per_frame"] * stated["frames"],
        window_blocks=stated["ring_blocks"],
    )
    cache = ExactCache(shape, config.num_heads, config.head_dim, dtype=torch.float32, device="cpu")
    cache.key_SKNH[0, shape.condition_tokens :] = inputs["ring.k"][0]
    cache.value_SKNH[0, shape.condition_tokens :] = inputs["ring.v"][0]
    nothing = torch.zeros(0, config.head_dim // 2)
    condition = KeyValue(inputs["ring.cond_k"][0], inputs["ring.cond_v"][0])
    cache.store_condition(0, condition, Rotation(nothing, nothing))
    return cache


@torch.no_grad()
def check_dit_full(fixture: Fixture) -> Iterator[Check]:
    """Prefill, then every block through every step, with taps inside some forwards."""
    config, schedule = transformer_config(fixture.config), stated_schedule(fixture)
    inputs, outputs = fixture.inputs(), fixture.outputs()
    files = fixture.files()
    transformer, embedder = transformer_parts(files, config)
    time, text = embedder.embed_time(schedule.timesteps), embedder.embed_text(inputs["context"])
    reference, motion = inputs["ref_latents"][0], inputs["motion_latents"][0]
    grid = TokenGrid.of_latent(reference)
    denoiser = Denoiser(transformer, time, text, grid, fixture.config["ring_blocks"])
    stored: dict[int, KeyValue] = {}
    condition_CD = transformer.embed_condition(reference, motion)
    denoiser.prefill(condition_CD, 0, watch=stored.__setitem__)
    for layer, condition in stored.items():
        for part, ours in (("k", condition.key_KNH), ("v", condition.value_KNH)):
            name = f"sink.cond_{part}.{layer}"
            yield fixture.compare(name, ours[None], outputs[name])
    speech = mix_features(inputs["audio_features"][0], embedder.audio_encoder.mixing_weights())
    taps = Taps(fixture, denoiser, time, text)
    for block, sample in enumerate(inputs["noise"]):
        heard = speech[:, block * FRAMES_PER_BLOCK : (block + 1) * FRAMES_PER_BLOCK]
        audio = embedder.audio_encoder.encode_block(heard)
        denoiser.hear(block, audio)
        for step in range(schedule.num_steps):
            item = Item(block, step, 0, fixture.spec["relative_dist"][block][step])
            with taps.recording(item, audio):
                hidden = transformer.embed_block(sample, inputs["cond_latents"][block])
                velocity = denoiser.head(denoiser.forward(hidden, item), step)
            name = f"velocity[{block},{step}]"
            yield fixture.compare(name, velocity, outputs["velocity"][block, step])
            sample = euler_step(sample, velocity, schedule, step)
        denoiser.finish_block(block)
        yield fixture.compare(f"final_latents[{block}]", sample, outputs["final_latents"][block])
    yield from taps.checks()
    yield from _check_rings(fixture, denoiser, outputs)


def _check_rings(
    fixture: Fixture, denoiser: Denoiser, outputs: Mapping[str, Tensor]
) -> Iterator[Check]:
    for name in [name for name in outputs if name.startswith("ring.")]:
        _, step, part, layer = name.split(".")
        cache = denoiser.caches[int(layer)]
        assert isinstance(cache, ExactCache)
        buffer = cache.key_SKNH if part == "k" else cache.value_SKNH
        ring = buffer[int(step.removeprefix("step")), cache.shape.condition_tokens :]
        yield fixture.compare(name, ring[None], outputs[name])


@torch.no_grad()
def check_audio(fixture: Fixture) -> Iterator[Check]:
    """Causal audio encoder, 50 to 30 to 25 Hz conversion, index table."""
    config = transformer_config(fixture.config)
    inputs, outputs = fixture.inputs(), fixture.outputs()
    with torch.device("meta"):
        encoder = AudioEncoder(
            config.num_audio_states, config.audio_dim, config.dim, config.num_audio_token
        )
    fill(encoder, fixture.files(), lambda name: stored_names(f"audio_encoder.{name}", config))
    for case, encode_features in (("long", encoder), ("block", encoder.encode_block)):
        features = inputs[f"{case}.features"][0]
        audio = encode_features(mix_features(features, encoder.mixing_weights()))
        yield fixture.compare(
            f"{case}.global", audio.global_FD[None, :, None], outputs[f"{case}.global"]
        )
        yield fixture.compare(f"{case}.local", audio.local_FKD[None], outputs[f"{case}.local"])
    clip_frames = fixture.config["clip_frames"]
    for name, stated in fixture.spec["buckets"].items():
        hidden50 = inputs[f"{name}.hidden50"].float()
        hidden30 = resample_to_30hz(hidden50)
        counts = {
            "wav2vec_frames": hidden50.shape[1],
            "frames30": hidden30.shape[1],
            "clips": num_clips(hidden30.shape[1], clip_frames),
        }
        yield equal(f"{fixture.name}/{name}", counts, stated)
        rows = features_per_video_frame(hidden30, counts["clips"] * clip_frames)
        ours = {"hidden30": hidden30, "model_input": rows.transpose(1, 2)[None]}
        for part, tensor in ours.items():
            key = f"{name}.{part}"
            yield fixture.compare(key, tensor, outputs[key], "bucket")
    for row in fixture.spec["index_table"]:
        label = f"{fixture.name}/index_table {row['wav2vec_frames']}"
        yield equal(label, _index_row(row, clip_frames), row)


def _index_row(row: Mapping[str, Any], clip_frames: int) -> dict[str, Any]:
    frames30 = num_resampled(row["wav2vec_frames"])
    clips = num_clips(frames30, clip_frames)
    rows = video_frame_rows(clips * clip_frames)
    return {
        "wav2vec_frames": row["wav2vec_frames"],
        "frames30": frames30,
        "clips": clips,
        "video_frames": len(rows),
        "nonzero_video_frames": int((rows < frames30).sum()),
        "first_indices": rows[: len(row["first_indices"])].tolist(),
        "last_indices": rows[-len(row["last_indices"]) :].tolist(),
    }


def check_wav2vec(fixture: Fixture) -> Iterator[Check]:
    """Waveform normalisation and every hidden state."""
    data = fixture.outputs("data.safetensors")
    # Without masking, which is for training, the model has no mask embedding to fill.
    unmasked = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    config = Wav2Vec2Config(**fixture.config, **unmasked, attn_implementation="sdpa")
    files = fixture.files()
    with torch.device("meta"):
        model = Wav2Vec2Model(config)
    load_into(model, files, lambda name: stored_wav2vec_name(name, files), dtype=torch.float32)
    waveform = normalise_waveform(data["waveform"].flatten().numpy())
    yield fixture.compare("input_values", waveform[None], data["input_values"])
    ours = torch.stack(list(hidden_states(model.eval(), waveform)))
    yield fixture.compare("hidden_states", ours, data["hidden_states"])


def check_t5(fixture: Fixture) -> Iterator[Check]:
    """Text encoder, ids and mask in."""
    data, files = fixture.outputs("data.safetensors"), fixture.files()
    with torch.device("meta"):
        encoder = UMT5EncoderModel(encoder_config(files))
    load_into(encoder, files, stored_text_name, dtype=torch.float32)
    encoder.eval()
    for index, (ids, mask) in enumerate(zip(data["ids"], data["mask"], strict=True)):
        name = f"embeddings{index}"
        ours = encode_ids(encoder, ids[: int(mask.sum())].tolist())
        yield fixture.compare(name, ours, data[name])


def vae_halves(files: TensorFiles, spec: Mapping[str, Any]) -> tuple[Encoder, Decoder]:
    """Build both halves of a recorded autoencoder in float32."""
    config = VAEConfig.from_shapes(
        files.shapes(), tuple(spec["latent_mean"]), tuple(spec["latent_std"])
    )
    with torch.device("meta"):
        encoder, decoder = Encoder(config), Decoder(config)
    load_into(encoder, files, dtype=torch.float32)
    load_into(decoder, files, dtype=torch.float32)
    return encoder.eval(), decoder.eval()


def check_vae(fixture: Fixture) -> Iterator[Check]:
    """Encode, whole decode, decode in chunks."""
    inputs, outputs = fixture.inputs(), fixture.outputs()
    encoder, decoder = vae_halves(fixture.files(), fixture.spec)
    video = next(tensor for name, tensor in inputs.items() if name.startswith("video"))
    for name in [name for name in outputs if name.startswith("encode")]:
        ours = encode(encoder, video[:, : int(name.removeprefix("encode"))])
        yield fixture.compare(name, ours, outputs[name], "float32 tensors")
    latents, whole = inputs["latents"], outputs["decode_batch"]
    ours = decode(decoder, latents)[:, : whole.shape[1]]
    yield fixture.compare("decode_batch", ours, whole, "float32 tensors")
    stride = decoder.config.spatial_stride
    state = new_decoder_state(decoder, latents.shape[2] * stride, latents.shape[3] * stride)
    chunks = torch.split(latents, fixture.config["stream_chunks"], dim=1)
    for index, chunk in enumerate(chunks):
        name = f"decode_stream.chunk{index}"
        frames = decode_step(decoder, chunk, state)
        yield fixture.compare(name, frames, outputs[name], "float16 tensors")
    for name in outputs:
        if not name.startswith(("encode", "decode_batch", "decode_stream.chunk")):
            yield skipped(f"{fixture.name}/{name}", "no rule for this tensor")
