"""Settings: good ones are kept, every bad one is one line that names the field."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from liveavatar.config import (
    ParallelConfig,
    SamplingConfig,
    TransformerConfig,
    check_visible_devices,
    launched_ranks,
)
from liveavatar.errors import ConfigError
from tests.patience import PATIENCE_S

# A config.json in the form of the 14B release, keys that only matter in training included.
PUBLISHED: dict[str, Any] = {
    "_class_name": "WanModel_S2V",
    "_diffusers_version": "0.33.1",
    "adain_mode": "attn_norm",
    "add_last_motion": True,
    "audio_dim": 1024,
    "audio_inject_layers": [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39],
    "cond_dim": 16,
    "dim": 5120,
    "enable_adain": True,
    "enable_framepack": True,
    "enable_motioner": False,
    "enable_tsm": False,
    "eps": 1e-06,
    "ffn_dim": 13824,
    "framepack_drop_mode": "padd",
    "freq_dim": 256,
    "in_dim": 16,
    "model_type": "s2v",
    "num_audio_token": 4,
    "num_heads": 40,
    "num_layers": 40,
    "out_dim": 16,
    "text_len": 512,
    "zero_init": True,
    "zero_timestep": True,
}


def message_of(kind: type, **fields: Any) -> str:
    """The error of a bad value, checked to be one line."""
    with pytest.raises(ConfigError) as caught:
        kind(**fields)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_published_config_is_the_default_shape() -> None:
    assert TransformerConfig.from_dict(PUBLISHED) == TransformerConfig()
    assert TransformerConfig().head_dim == 128


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, bad) for name in ("dim", "ffn_dim", "num_layers") for bad in (0, -1, "8", 1.5)),
        ("text_len", None),
        ("audio_dim", 0),
        ("in_dim", -16),
        ("num_heads", 7),  # does not divide 5120
        ("num_heads", 5120),  # heads of one channel cannot be rotated
        ("audio_inject_layers", (4, 0)),
        ("audio_inject_layers", (0, 0)),
        ("audio_inject_layers", (0, 40)),
        ("audio_inject_layers", (-1,)),
        ("audio_inject_layers", ("0",)),
        ("patch_size", (1, 4, 4)),
        ("patch_size", (2, 2)),
    ],
)
def test_a_bad_transformer_field_is_one_line_that_names_it(name: str, value: Any) -> None:
    assert name in message_of(TransformerConfig, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio_inject_layers", 5),
        ("audio_inject_layers", None),
        ("audio_inject_layers", ([1],)),
        ("patch_size", 3),
        ("zip_frame_buckets", (1, 2)),
        ("zip_frame_buckets", (1, 3, 15)),  # not whole when packed by 2 and by 4
        ("eps", "1e-6"),
        ("eps", -1.0),
        ("freq_dim", 255),  # half of the waves are cosines
        ("out_dim", 8),  # the velocity is added to a sample of 16 channels
        ("num_layers", True),
        ("num_layers", 3_000_000),  # built layer by layer: without a limit, for ever
    ],
)
def test_every_bad_transformer_field_is_one_line_that_names_it(name: str, value: Any) -> None:
    assert name in message_of(TransformerConfig, **{"audio_inject_layers": (), name: value})


@pytest.mark.parametrize(
    ("field", "value"), [("shift", "3"), ("shift", None), ("online_decode", "False")]
)
def test_a_sampling_field_of_another_type_is_one_line_that_names_it(field: str, value: Any) -> None:
    assert field in message_of(SamplingConfig, **{field: value})


@pytest.mark.parametrize("listed", ["²,1", "9" * 5000 + ",1"])
def test_odd_device_numbers_never_crash(listed: str) -> None:
    with pytest.raises(ConfigError, match=r"\ACUDA_VISIBLE_DEVICES: [^\n]*\Z"):
        check_visible_devices({"CUDA_VISIBLE_DEVICES": listed})


def test_a_config_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"\A[^\n]*JSON[^\n]*\Z"):
        TransformerConfig.from_file(path)


def test_a_width_that_is_no_multiple_of_four_is_refused() -> None:
    assert "dim" in message_of(TransformerConfig, dim=6, num_heads=1, audio_inject_layers=())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "t2v"),
        ("adain_mode", "norm"),
        ("enable_adain", False),
        ("enable_framepack", False),
        ("enable_motioner", True),
        ("enable_tsm", True),
        ("framepack_drop_mode", "drop"),
        ("zero_timestep", False),
        ("qk_norm", False),
        ("cross_attn_norm", False),
    ],
)
def test_a_config_of_another_network_is_refused_by_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"\A{key}: [^\n]*got {value!r}[^\n]*\Z"):
        TransformerConfig.from_dict({**PUBLISHED, key: value})


def test_a_config_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**PUBLISHED, "num_layers": 41}))
    assert TransformerConfig.from_file(path).num_layers == 41


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1, 2]", b"\xff\xfe", b"3"])
def test_a_bad_config_file_is_one_line_that_names_it(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"\A{re.escape(str(path))}: [^\n]*JSON[^\n]*\Z"):
        TransformerConfig.from_file(path)


@pytest.mark.parametrize(
    ("infer_frames", "below", "above"),
    [(30, 28, 32), (13, 12, 16), (15, 12, 16), (49, 48, 52), (10, 12, 16), (1, 12, 16)],
)
def test_bad_infer_frames_name_the_nearest_two_that_work(
    infer_frames: int, below: int, above: int
) -> None:
    message = message_of(SamplingConfig, infer_frames=infer_frames)
    assert message.startswith("infer_frames: ")
    assert message.endswith(f"the nearest that work are {below} and {above}")
    SamplingConfig(infer_frames=below)
    SamplingConfig(infer_frames=above)


def test_infer_frames_work_exactly_for_multiples_of_four_from_twelve() -> None:
    for frames in range(1, 200):
        if frames >= 12 and frames % 4 == 0:
            assert SamplingConfig(infer_frames=frames).window_blocks == frames // 12
        else:
            named = re.findall(r"\d+", message_of(SamplingConfig, infer_frames=frames))[-2:]
            for offered in map(int, named):
                SamplingConfig(infer_frames=offered)


def test_the_window_of_32_frames_is_two_blocks() -> None:
    assert SamplingConfig(infer_frames=32).window_blocks == 2


@pytest.mark.parametrize(
    ("field", "name", "bad"),
    [
        ("num_steps", "sample_steps", (0, 51, -1, 2.0, "4", None, True)),
        ("num_clip", "num_clip", (0, 100_001, 1.5, "1", None, True)),
        ("seed", "base_seed", (-1, 2**63, 0.5, "420", None, False)),
        ("infer_frames", "infer_frames", (0, -48, 4801, 10**30, 48.0, "48", None)),
        ("shift", "shift", (0, -1.0, 101, float("nan"), float("inf"))),
    ],
)
def test_a_bad_sampling_field_is_one_line_that_names_its_flag(
    field: str, name: str, bad: tuple[Any, ...]
) -> None:
    for value in bad:
        assert message_of(SamplingConfig, **{field: value}).startswith(f"{name}: ")


def test_the_ends_of_every_sampling_range_work() -> None:
    SamplingConfig(num_steps=1, infer_frames=12, num_clip=1, seed=0, shift=0.01)
    SamplingConfig(num_steps=50, infer_frames=4800, num_clip=100_000, seed=2**63 - 1, shift=100)


def test_ulysses_size_must_equal_the_number_of_transformer_gpus() -> None:
    for count in range(1, 9):
        assert ParallelConfig(count, count).num_gpus_dit == count
    message = message_of(ParallelConfig, num_gpus_dit=3, ulysses_size=2)
    assert message.startswith("ulysses_size: expected 3, got 2")


@pytest.mark.parametrize("bad", [0, -1, 65, 1.0, "3", None, True])
def test_a_bad_number_of_gpus_is_one_line_that_names_it(bad: Any) -> None:
    assert "num_gpus_dit" in message_of(ParallelConfig, num_gpus_dit=bad, ulysses_size=1)
    assert "ulysses_size" in message_of(ParallelConfig, num_gpus_dit=1, ulysses_size=bad)


@pytest.mark.parametrize("listed", [None, "", "0", "0,1,2,3", " 2 , 5 ", "-1", "GPU-b,GPU-a"])
def test_ascending_or_unordered_devices_are_fine(listed: str | None) -> None:
    check_visible_devices({} if listed is None else {"CUDA_VISIBLE_DEVICES": listed})


def test_devices_out_of_order_are_refused_with_the_right_order() -> None:
    generator = random.Random(1)
    for _ in range(100):
        numbers = generator.sample(range(16), generator.randint(2, 8))
        listed = ",".join(map(str, numbers))
        if numbers == sorted(numbers):
            check_visible_devices({"CUDA_VISIBLE_DEVICES": listed})
            continue
        with pytest.raises(ConfigError, match=r"\ACUDA_VISIBLE_DEVICES: [^\n]*\Z") as caught:
            check_visible_devices({"CUDA_VISIBLE_DEVICES": listed})
        assert repr(",".join(map(str, sorted(numbers)))) in str(caught.value)


def test_a_device_listed_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="set it to '0,1'"):
        check_visible_devices({"CUDA_VISIBLE_DEVICES": "0,1,1"})


def test_settings_requests_and_timelines_load_without_torch() -> None:
    code = (
        "import sys, liveavatar.config, liveavatar.request, liveavatar.timeline\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, timeout=PATIENCE_S).returncode
        == 0
    )


@pytest.mark.parametrize(("stated", "ranks"), [({}, 1), ({"WORLD_SIZE": "4"}, 4)])
def test_the_number_of_launched_ranks_is_read(stated: dict[str, str], ranks: int) -> None:
    assert launched_ranks(stated) == ranks


@pytest.mark.parametrize("stated", ["", "0", "-1", "two", "²", "9" * 5000])
def test_a_number_of_ranks_that_is_none_is_one_line(stated: str) -> None:
    with pytest.raises(ConfigError, match=r"\AWORLD_SIZE: [^\n]*\Z"):
        launched_ranks({"WORLD_SIZE": stated})


def test_ranks_on_several_machines_are_refused() -> None:
    with pytest.raises(ConfigError, match="on one machine, got 8, 4 of them here"):
        launched_ranks({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"})
