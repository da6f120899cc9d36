"""Bytes of a pipeline stage: weights, caches, what waits, and the peak inside a layer.

Weights and caches are exact. Activations count the tensors that are alive at once in the eager
code of `model/transformer.py`, as it stands; they are checked against the tensors of a run on the
CPU. On a GPU kernels may take workspaces of their own; `docs/benchmarks.md` compares.
"""

import math
from dataclasses import dataclass

from liveavatar.config import LATENT_FRAMES_PER_BLOCK, SamplingConfig, TransformerConfig
from liveavatar.parallel.wavefront import Pipeline
from liveavatar.plan.precision import FLOAT32_BYTES, Precision
from liveavatar.plan.sharing import ALONE, Sharing

PIXELS_PER_TOKEN = 16
"""Pixels of a token along each side: the autoencoder's 8, and patches of 2 x 2."""

SPARE_BLOCKS = 2
"""Blocks whose speech waits at a stage beyond those in flight, as the media rank sends it."""

_GATHERED_LAYERS = 2
_QUEUED_MESSAGES = 3  # a link's depth of 2, and one that was read and finds no room
_SCALE_BYTES = 4  # of a row of an e4m3 matrix
_RECORDED_LAYER_BYTES = 320 * 2**10  # some 30 kernels; measured: 8 graphs of 40 layers, 100 MiB
_ROUNDING_BYTES = 5  # per value that is rounded to e4m3: its scaled float32, and the result


@dataclass(frozen=True)
class Tokens:
    """Token counts of a job.

    Attributes:
        frame: of one latent frame; the reference has as many.
        motion: of the packed past.
        window_blocks: blocks in a ring.
    """

    frame: int
    motion: int
    window_blocks: int

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return LATENT_FRAMES_PER_BLOCK * self.frame

    @property
    def condition(self) -> int:
        """Tokens of the condition: reference and motion."""
        return self.frame + self.motion

    @property
    def ring(self) -> int:
        """Tokens of a full ring."""
        return self.window_blocks * self.block


def count_tokens(
    config: TransformerConfig, size_hw: tuple[int, int], sampling: SamplingConfig
) -> Tokens:
    """Count the tokens of a job of `size_hw` = (height, width) pixels."""
    rows, columns = size_hw[0] // PIXELS_PER_TOKEN, size_hw[1] // PIXELS_PER_TOKEN
    motion = sum(
        (frames // packed) * (rows // packed) * (columns // packed)
        for frames, packed in zip(config.zip_frame_buckets, (1, 2, 4), strict=True)
    )
    return Tokens(rows * columns, motion, sampling.window_blocks)


# --- Weights -------------------------------------------------------------------------------------


def _linear(inputs: int, outputs: int, value_bytes: int) -> int:
    return (inputs + 1) * outputs * value_bytes


def _layer_linear(inputs: int, outputs: int, precision: Precision) -> int:
    """A matrix that fp8 quantises; its bias stays as it is."""
    scale = _SCALE_BYTES if precision.quantises_weights else 0
    weight = inputs * outputs * precision.matrix_bytes
    return weight + outputs * (precision.value_bytes + scale)


def _cross_attention(dim: int, own: int, precision: Precision) -> int:
    norms = 2 * own * precision.value_bytes
    matrices = ((dim, own), (dim, 2 * own), (own, dim))
    return norms + sum(_layer_linear(*shape, precision) for shape in matrices)


def layer_weights(
    config: TransformerConfig, precision: Precision, *, injects: bool, tp_degree: int = 1
) -> int:
    """Bytes of a rank's part of one layer; `injects` adds the audio injection behind it."""
    dim, own, inner = config.dim, config.dim // tp_degree, config.ffn_dim // tp_degree
    modulation = 6 * dim * FLOAT32_BYTES
    norms = (2 * own + 2 * dim) * precision.value_bytes  # of query and key; norm3 with its bias
    matrices = ((dim, 3 * own), (own, dim), (dim, inner), (inner, dim))
    total = modulation + norms + sum(_layer_linear(*shape, precision) for shape in matrices)
    total += _cross_attention(dim, own, precision)
    if injects:
        total += _cross_attention(dim, own, precision) + _layer_linear(dim, 2 * own, precision)
    return total


def embedder_weights(config: TransformerConfig, precision: Precision) -> int:
    """Bytes of patch, pose and motion embedding, in front of layer 0."""
    patch = math.prod(config.patch_size)
    inputs = [config.in_dim * patch, config.cond_dim * patch]
    inputs += [config.in_dim * patch * packed**3 for packed in (1, 2, 4)]
    matrices = sum(_linear(width, config.dim, precision.value_bytes) for width in inputs)
    return matrices + 3 * config.dim * precision.value_bytes


def head_weights(config: TransformerConfig) -> int:
    """Bytes of the head, float32, behind the last layer."""
    outputs = math.prod(config.patch_size) * config.out_dim
    return 2 * config.dim * FLOAT32_BYTES + _linear(config.dim, outputs, FLOAT32_BYTES)


def _each_layer(
    config: TransformerConfig, layers: range, precision: Precision, tp_degree: int = 1
) -> list[int]:
    inject = config.audio_inject_layers
    return [
        layer_weights(config, precision, injects=layer in inject, tp_degree=tp_degree)
        for layer in layers
    ]


def layer_weights_of(config: TransformerConfig, layers: range, precision: Precision) -> int:
    """Bytes of whole layers together, without embedder and head."""
    return sum(_each_layer(config, layers, precision))


def stage_weights(
    config: TransformerConfig, layers: range, precision: Precision, sharing: Sharing = ALONE
) -> int:
    """Bytes of a rank's weights of a range of layers, with embedder and head where they belong.

    Sharded, they are its part of all layers, and two layers that are gathered: the one at work and
    the next, which comes meanwhile.
    """
    each = _each_layer(config, layers, precision, sharing.tp_degree)
    total = sum(each)
    if sharing.sharded:
        total = math.ceil(total / sharing.sp_degree) + _GATHERED_LAYERS * max(each)
    if 0 in layers:
        total += embedder_weights(config, precision)
    if config.num_layers - 1 in layers:
        total += head_weights(config)
    return total


def shelf_weights(config: TransformerConfig, precision: Precision) -> int:
    """Bytes on the device of all layers that wait in host memory: two of the largest, the ends.

    See `liveavatar.model.layer_shelf`, whose alignment is left out.
    """
    injects = bool(config.audio_inject_layers)
    rooms = 2 * layer_weights(config, precision, injects=injects)
    return rooms + embedder_weights(config, precision) + head_weights(config)


def condition_embedder_weights(config: TransformerConfig, precision: Precision) -> int:
    """Bytes of the embedding of time and speech, float32, and of text, on the media rank."""
    dim, narrow = config.dim, config.dim // 4
    wide = _linear(config.freq_dim, dim, 1) + _linear(dim, dim, 1) + _linear(dim, 6 * dim, 1)
    convolutions = (
        (config.audio_dim, narrow * config.num_audio_token),
        (config.audio_dim, narrow),
        (narrow, dim // 2),
        (dim // 2, dim),
    )
    wide += sum(_linear(3 * inputs, outputs, 1) for inputs, outputs in convolutions)
    wide += _linear(dim, dim, 1) + config.num_audio_states + dim
    text = _linear(config.text_dim, dim, 1) + _linear(dim, dim, 1)
    return wide * FLOAT32_BYTES + text * precision.value_bytes


# --- What a job keeps ----------------------------------------------------------------------------


def ring_values(config: TransformerConfig, tokens: Tokens, sampling: SamplingConfig) -> int:
    """Numbers in the rings of one layer: keys and values of every denoise step's window."""
    return sampling.num_steps * tokens.ring * 2 * config.dim


def condition_bytes(
    config: TransformerConfig, tokens: Tokens, sampling: SamplingConfig, precision: Precision
) -> int:
    """Bytes of the condition's keys and values of one layer, in all copies there are at most.

    A second version is stored from the refresh after the first clip on. Unless windows are brought
    back from 8 bits, there is a copy in front of every step's ring besides; in e4m3 that copy is,
    and what is stored is not.
    """
    values = tokens.condition * 2 * config.dim
    versions = 2 if sampling.num_clip > 1 else 1
    copy = precision.cache_bytes(values, config.head_dim)
    if precision.quantises_cache:
        return versions * copy
    stored = values * precision.value_bytes
    return versions * stored + sampling.num_steps * copy


def ring_rooms(config: TransformerConfig, tokens: Tokens, precision: Precision) -> int:
    """Bytes on the device of rings that wait in host memory: windows of two layers.

    See `liveavatar.model.ring_shelf`.
    """
    values = (tokens.condition + tokens.ring) * 2 * config.dim
    return 2 * precision.cache_bytes(values, config.head_dim)


def shelved_ring_bytes(
    config: TransformerConfig, tokens: Tokens, sampling: SamplingConfig, precision: Precision
) -> int:
    """Bytes of all layers' rings in host memory, and of the versions of their conditions."""
    versions = 2 if sampling.num_clip > 1 else 1
    values = ring_values(config, tokens, sampling)
    values += versions * tokens.condition * 2 * config.dim
    return config.num_layers * precision.cache_bytes(values, config.head_dim)


def workspace_bytes(config: TransformerConfig, tokens: Tokens, precision: Precision) -> int:
    """Bytes of the one window that a job brings back from 8 bits at a time."""
    if not precision.quantises_cache:
        return 0
    return (tokens.condition + tokens.ring) * 2 * config.dim * precision.value_bytes


def text_bytes(config: TransformerConfig, precision: Precision) -> int:
    """Bytes of the prompt's keys and values of one layer."""
    return 2 * config.text_len * config.dim * precision.value_bytes


def modulation_bytes(config: TransformerConfig, sampling: SamplingConfig) -> int:
    """Bytes of one layer's modulation of every timestep, float32."""
    return (sampling.num_steps + 1) * 6 * config.dim * FLOAT32_BYTES


def speech_bytes(config: TransformerConfig, precision: Precision) -> int:
    """Bytes of one block's speech for one injection layer: shift, scale, keys, what each tells."""
    tokens = config.num_audio_token + 1
    vectors = LATENT_FRAMES_PER_BLOCK * (2 + tokens + tokens * config.num_heads)
    return vectors * config.dim * precision.value_bytes


def rotation_bytes(config: TransformerConfig, num_tokens: int) -> int:
    """Bytes of cosines and sines of so many tokens, float32."""
    return num_tokens * config.head_dim * FLOAT32_BYTES


def in_flight_bytes(
    config: TransformerConfig,
    layers: range,
    tokens: Tokens,
    pipeline: Pipeline,
    precision: Precision,
) -> int:
    """Bytes a job has on a stage for begun blocks: speech, positions, samples, messages."""
    injections = sum(layer in config.audio_inject_layers for layer in layers)
    flying = pipeline.blocks_in_flight
    speech = (flying + SPARE_BLOCKS) * injections * speech_bytes(config, precision)
    total = speech + flying * rotation_bytes(config, tokens.block)
    if 0 in layers:
        frame = config.in_dim * 4 * tokens.frame * precision.value_bytes  # latent, 2 x 2 a token
        condition_frames = 1 + sum(config.zip_frame_buckets)
        # A block's sample, and its velocity while it waits.
        return total + (condition_frames + 2 * flying * LATENT_FRAMES_PER_BLOCK) * frame
    longest = max(tokens.block, tokens.condition)
    return total + _QUEUED_MESSAGES * longest * config.dim * precision.value_bytes


# --- Activations ---------------------------------------------------------------------------------


def _rms_norm(value: int) -> int:
    """Bytes per element inside `RMSNorm`, its input not counted."""
    widened = 0 if value == FLOAT32_BYTES else FLOAT32_BYTES
    rounded = 0 if value == FLOAT32_BYTES else value
    return widened + max(FLOAT32_BYTES + rounded, 2 * value)


def _project(value: int, num_heads: int) -> float:
    """Bytes per element while query, key and value are made and turned."""
    widened = 0 if value == FLOAT32_BYTES else FLOAT32_BYTES
    norms = 5 * value + _rms_norm(value)  # input, fused product, query; the key's norm is at work
    # Input, fused product, query and key; turned pairs in float32, and two tables for all heads.
    turning = 6 * value + widened + 8 + 2 * FLOAT32_BYTES / num_heads
    return max(norms, turning)


def _finish(precision: Precision, ffn_ratio: float) -> float:
    """Bytes per element behind the attention; the float32 stream stays alive all through."""
    wide, value = FLOAT32_BYTES, precision.value_bytes
    cross = wide + 2 * value + _rms_norm(value)
    inner = value + (_ROUNDING_BYTES if precision.quantises_weights else value)
    widening = wide + value + inner * ffn_ratio
    narrowing = wide + value + value * ffn_ratio + 2 * wide
    return max(cross, widening, narrowing)


def layer_peak(
    config: TransformerConfig, num_tokens: int, precision: Precision, *, injects: bool
) -> int:
    """Peak bytes of one layer's forward on a block of so many tokens.

    Beside the work itself the stage's input, the layer's input, and until the layer ends its query
    and attention output are alive.
    """
    value = precision.value_bytes
    held = 2 * value
    kept = 2 * value
    peak = max(
        _project(value, config.num_heads), kept + _finish(precision, config.ffn_dim / config.dim)
    )
    if injects:
        # The norm's float32 result lives on; the layer's own result is a third stream.
        peak = max(peak, kept + value + FLOAT32_BYTES + 2 * value + _rms_norm(value))
    return math.ceil((held + peak) * num_tokens * config.dim)


def prefill_peak(config: TransformerConfig, num_tokens: int, precision: Precision) -> int:
    """Peak bytes of one layer's prefill of so many condition tokens; the turned key lives on."""
    value = precision.value_bytes
    finish = 7 * value + _finish(precision, config.ffn_dim / config.dim)
    return math.ceil(
        (2 * value + max(_project(value, config.num_heads), finish)) * num_tokens * config.dim
    )


def recording_bytes(
    config: TransformerConfig,
    layers: range,
    tokens: Tokens,
    sampling: SamplingConfig,
    precision: Precision,
) -> int:
    """Bytes of a job's recorded forwards: what their kernels work in, input, result, the graphs.

    The pool that they work in is theirs alone, whatever else runs on the stage.
    """
    injects = any(layer in config.audio_inject_layers for layer in layers)
    work = layer_peak(config, tokens.block, precision, injects=injects)
    ends = 2 * tokens.block * config.dim * precision.value_bytes
    phases = sampling.num_steps * (tokens.window_blocks + (sampling.num_clip > 1))
    return work + ends + phases * len(layers) * _RECORDED_LAYER_BYTES


def activation_bytes(
    config: TransformerConfig,
    layers: range,
    tokens: Tokens,
    precision: Precision,
    sharing: Sharing = ALONE,
) -> int:
    """Peak bytes of a rank while it runs its tokens of a block or of the condition.

    An upper bound under tensor parallelism, where a rank has only some of the widths in between.
    """
    injects = any(layer in config.audio_inject_layers for layer in layers)
    return max(
        layer_peak(config, sharing.tokens(tokens.block), precision, injects=injects),
        prefill_peak(config, sharing.tokens(tokens.condition), precision),
    )
