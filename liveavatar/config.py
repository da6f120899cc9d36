"""Settings as frozen dataclasses, each checked when it is made; the only reader of the environment.

Nothing here imports torch: the web server and the planner read the same values.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from liveavatar.errors import ConfigError

FPS = 25
FRAMES_PER_BLOCK = 12
LATENT_FRAMES_PER_BLOCK = 3
SPEECH_RATE_HZ = 16000

_LARGEST_SIZE = 2**20
_MOST_LAYERS = 1000
_MOST_FRAMES = 4800

# Keys of the published config.json that must have these values: other values name other networks.
_FIXED_KEYS: Mapping[str, Any] = {
    "model_type": "s2v",
    "adain_mode": "attn_norm",
    "enable_adain": True,
    "enable_framepack": True,
    "enable_motioner": False,
    "enable_tsm": False,
    "framepack_drop_mode": "padd",
    "zero_timestep": True,
    "qk_norm": True,
    "cross_attn_norm": True,
}


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the S2V diffusion transformer; defaults are Wan2.2-S2V-14B.

    Attributes:
        dim: width D of the residual stream.
        ffn_dim: inner width of the feed-forward layers.
        num_heads: attention heads; the head width is dim / num_heads.
        num_layers: transformer layers.
        audio_inject_layers: layers followed by an audio injection, ascending.
        audio_dim: width of the wav2vec hidden states.
        num_audio_states: wav2vec hidden states that are mixed (its layers + 1).
        num_audio_token: local speech tokens per latent frame, without the padding token.
        text_len: text tokens after padding.
        text_dim: width of the text encoder.
        freq_dim: sinusoids of the timestep.
        in_dim, out_dim, cond_dim: latent channels of the sample, the velocity and the pose.
        patch_size: latent frames, rows and columns of one token.
        zip_frame_buckets: past latent frames kept whole, packed by 2 and packed by 4.
        eps: of all norms but the audio injection's.
    """

    dim: int = 5120
    ffn_dim: int = 13824
    num_heads: int = 40
    num_layers: int = 40
    audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)
    audio_dim: int = 1024
    num_audio_states: int = 25
    num_audio_token: int = 4
    text_len: int = 512
    text_dim: int = 4096
    freq_dim: int = 256
    in_dim: int = 16
    out_dim: int = 16
    cond_dim: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    zip_frame_buckets: tuple[int, int, int] = (1, 2, 16)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        """Raise ConfigError for a shape the network cannot have."""
        for field in fields(self):
            if field.type is int:
                _check_range(field.name, getattr(self, field.name), 1, _LARGEST_SIZE)
        _check_number("eps", self.eps, 1.0)
        _check_range("num_layers", self.num_layers, 1, _MOST_LAYERS)
        _check_sizes("patch_size", self.patch_size, lambda sizes: sizes == (1, 2, 2), "(1, 2, 2)")
        _check_sizes(
            "zip_frame_buckets",
            self.zip_frame_buckets,
            lambda sizes: (
                len(sizes) == 3
                and all(
                    n > 0 and n % packed == 0 for n, packed in zip(sizes, (1, 2, 4), strict=True)
                )
            ),
            "three numbers of frames, whole when packed by 1, 2 and 4",
        )
        _check_sizes(
            "audio_inject_layers",
            self.audio_inject_layers,
            lambda layers: list(layers) == sorted(set(layers) & set(range(self.num_layers))),
            f"ascending layer numbers below {self.num_layers}",
        )
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ConfigError(
                f"num_heads: expected a number that divides dim={self.dim} into even heads, "
                f"got {self.num_heads}"
            )
        if self.dim % 4:
            raise ConfigError(f"dim: expected a multiple of 4, got {self.dim}")
        if self.freq_dim % 2:
            raise ConfigError(f"freq_dim: expected an even number, got {self.freq_dim}")
        if self.out_dim != self.in_dim:
            raise ConfigError(
                f"out_dim: expected in_dim={self.in_dim}, the velocity moves the sample, "
                f"got {self.out_dim}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> "TransformerConfig":
        """Read the fields of a published `config.json`.

        Keys that only matter in training are passed over; a key that asks for a variant of the
        network which is not the published one is an error.

        Raises:
            ConfigError: a value has the wrong type or names another network.
        """
        for key, expected in _FIXED_KEYS.items():
            if published.get(key, expected) != expected:
                raise ConfigError(
                    f"{key}: this network has {expected!r}, got {published[key]!r}; it is another "
                    "variant"
                )
        known = {field.name for field in fields(cls)}
        chosen = {key: value for key, value in published.items() if key in known}
        for key, value in chosen.items():
            if isinstance(value, list):
                chosen[key] = tuple(value)
        return cls(**chosen)

    @classmethod
    def from_file(cls, path: Path) -> "TransformerConfig":
        """Read `config.json`; ConfigError when it is missing or not a JSON object."""
        try:
            published = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: expected a readable JSON file: {error}") from None
        if not isinstance(published, dict):
            raise ConfigError(f"{path}: expected a JSON object, got {type(published).__name__}")
        try:
            return cls.from_dict(published)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


@dataclass(frozen=True)
class SamplingConfig:
    """How a video is sampled.

    Attributes:
        num_steps: denoise steps per block, 1..50.
        infer_frames: frames of one clip, a multiple of 4, at least 12.
        num_clip: clips asked for, at least 1; the speech may end earlier.
        seed: of noise and relative distances, 0 <= seed < 2**63.
        shift: of the noise schedule.
        online_decode: decode each block as it is finished, not a window of blocks at a time.
    """

    num_steps: int = 4
    infer_frames: int = 48
    num_clip: int = 1
    seed: int = 420
    shift: float = 3.0
    online_decode: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for a value out of range."""
        _check_range("sample_steps", self.num_steps, 1, 50)
        _check_range("num_clip", self.num_clip, 1, 100_000)
        _check_range("base_seed", self.seed, 0, 2**63 - 1)
        _check_range("infer_frames", self.infer_frames, -(10**9), 10**9)
        if not FRAMES_PER_BLOCK <= self.infer_frames <= _MOST_FRAMES or self.infer_frames % 4:
            nearest = min(max(self.infer_frames, FRAMES_PER_BLOCK), _MOST_FRAMES - 4) // 4 * 4
            raise ConfigError(
                f"infer_frames: expected a multiple of 4 from {FRAMES_PER_BLOCK} to "
                f"{_MOST_FRAMES}, got {self.infer_frames}; the nearest that work are "
                f"{nearest} and {nearest + 4}"
            )
        _check_number("shift", self.shift, 100.0)
        if not isinstance(self.online_decode, bool):
            raise ConfigError(f"online_decode: expected True or False, got {self.online_decode!r}")

    @property
    def window_blocks(self) -> int:
        """Blocks a KV ring holds, the current one included."""
        return self.infer_frames // FRAMES_PER_BLOCK


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks share the work.

    Attributes:
        num_gpus_dit: ranks that hold transformer layers.
        ulysses_size: width of the transformer group; must equal `num_gpus_dit`.
    """

    num_gpus_dit: int = 1
    ulysses_size: int = 1

    def __post_init__(self) -> None:
        """Raise ConfigError for a group that cannot be built."""
        _check_range("num_gpus_dit", self.num_gpus_dit, 1, 64)
        _check_range("ulysses_size", self.ulysses_size, 1, 64)
        if self.ulysses_size != self.num_gpus_dit:
            raise ConfigError(
                f"ulysses_size: expected {self.num_gpus_dit}, got {self.ulysses_size}; it is the "
                "width of the transformer group and must equal num_gpus_dit"
            )


def check_visible_devices(environment: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError unless CUDA_VISIBLE_DEVICES is absent or lists device numbers in order.

    Ranks take the visible devices in order; another order would put stages on other cards than the
    operator reads in nvidia-smi.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES", "").strip()
    numbers = [part.strip() for part in listed.split(",") if part.strip()]
    if not all(number.isdecimal() and number.isascii() for number in numbers):
        if any(number.startswith(("GPU-", "MIG-", "-")) for number in numbers) or not numbers:
            return  # names of devices and -1 have no order
        raise ConfigError(f"CUDA_VISIBLE_DEVICES: expected device numbers, got {listed[:40]!r}")
    if any(len(number) > 6 for number in numbers):
        raise ConfigError("CUDA_VISIBLE_DEVICES: expected device numbers, got one of many digits")
    if [int(n) for n in numbers] != sorted({int(n) for n in numbers}):
        ordered = ",".join(str(n) for n in sorted({int(n) for n in numbers}))
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES: expected ascending device numbers, got {listed!r}; "
            f"set it to {ordered!r}"
        )


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...] | None:
    """GPUs that CUDA_VISIBLE_DEVICES names, numbers or UUIDs; None when all are visible.

    As CUDA reads it: what follows a name that starts with "-" is not visible.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return None
    names = [name.strip() for name in listed.split(",")]
    end = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
    return tuple(names[:end])


def launched_ranks(environment: Mapping[str, str] = os.environ) -> int:
    """Processes that a launcher such as torchrun started together; 1 without one.

    Raises:
        ConfigError: WORLD_SIZE is not a number of processes, or they are on several machines.
    """
    ranks = _read_count(environment, "WORLD_SIZE", "1")
    here = _read_count(environment, "LOCAL_WORLD_SIZE", str(ranks))
    if ranks < 1 or here != ranks:
        raise ConfigError(
            f"WORLD_SIZE: expected all processes on one machine, got {ranks}, {here} of them here"
        )
    return ranks


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Which of them this process is; ConfigError when RANK is not a number."""
    return _read_count(environment, "RANK", "0")


def _read_count(environment: Mapping[str, str], name: str, missing: str) -> int:
    stated = environment.get(name, missing).strip()
    if not (stated.isascii() and stated.isdecimal() and len(stated) < 6):
        raise ConfigError(f"{name}: expected a number of processes, got {stated[:40]!r}")
    return int(stated)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name}: expected a whole number from {low} to {high}, got {value!r}")


def _check_number(name: str, value: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= high:
        raise ConfigError(f"{name}: expected a number above 0 up to {high:g}, got {value!r}")


def _check_sizes(
    name: str,
    values: tuple[int, ...],
    fits: Callable[[tuple[int, ...]], bool],
    expected: str,
) -> None:
    whole = isinstance(values, tuple) and all(type(value) is int for value in values)
    if not whole or not fits(values):
        raise ConfigError(f"{name}: expected {expected}, got {values!r}")
