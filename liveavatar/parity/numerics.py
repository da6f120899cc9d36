"""Fixtures without a network: positions, schedule, motion packing, adapter, fp8, portrait crop."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from liveavatar.media.portrait import crop_to_size, fit_size
from liveavatar.model.fp8 import Fp8Linear, quantise
from liveavatar.model.lora import Adapter
from liveavatar.model.motion import FramePacker
from liveavatar.model.rope import (
    axis_widths,
    block_positions,
    condition_positions,
    motion_positions,
    reference_frame,
    rotate,
    rotation_at,
)
from liveavatar.model.weights import fill, stored_names
from liveavatar.parity.fixture import Check, Fixture, Tolerance, compare, equal
from liveavatar.parity.networks import transformer_config
from liveavatar.sampling import euler_step, make_schedule

EXACT = Tolerance(max_abs=0.0)


def check_rope(fixture: Fixture) -> Iterator[Check]:
    """Positions, tables and one application."""
    data, config = fixture.outputs("data.safetensors"), fixture.config
    head_dim, theta = config["head_dim"], config["theta"]
    rows, columns = config["latent_hw"][0] // 2, config["latent_hw"][1] // 2
    yield equal(f"{fixture.name}/axis_dims", list(axis_widths(head_dim)), config["axis_dims"])
    for name in [name.removesuffix(".pos") for name in data if name.endswith(".pos")]:
        frame = int(re.search(r"\.f(\d+)", name)[1])  # type: ignore[index]
        if name.startswith("noisy"):
            frames = len(data[f"{name}.pos"]) // (rows * columns)
            positions = block_positions(frame, frames, rows, columns)
        else:
            distance = int(re.search(r"\.rd(\d+)", name)[1])  # type: ignore[index]
            positions = condition_positions(reference_frame(frame, distance), rows, columns)
        rotation = rotation_at(positions, head_dim, theta=theta)
        recorded = {part: data[f"{name}.{part}"] for part in ("pos", "cos", "sin")}
        ours = {
            "pos": torch.from_numpy(positions).int(),
            "cos": rotation.cos_LR.half(),
            "sin": rotation.sin_LR.half(),
        }
        for part, tensor in ours.items():
            yield compare(f"{fixture.name}/{name}.{part}", tensor, recorded[part], EXACT)
    if "apply.x" in data:
        stated = re.search(r"at frame (\d+)", fixture.spec["outputs"].get("apply.x/apply.y", ""))
        frame = int(stated[1]) if stated else 12
        frames = len(data["apply.x"][0]) // (rows * columns)
        positions = block_positions(frame, frames, rows, columns)
        turned = rotate(data["apply.x"][0], rotation_at(positions, head_dim, theta=theta))
        yield fixture.compare("apply.y", turned[None], data["apply.y"], "apply.y")


def check_scheduler(fixture: Fixture) -> Iterator[Check]:
    """Noise levels, and one Euler update per level in two precisions."""
    data = fixture.outputs("data.safetensors")
    for count in sorted(map(int, fixture.spec["schedules"])):
        schedule = make_schedule(count, float(fixture.spec["shift"]))
        sigmas = torch.tensor(schedule.sigmas, dtype=torch.float64)
        timesteps = torch.tensor(schedule.timesteps, dtype=torch.float64)
        stated = fixture.spec["schedules"][str(count)]
        for name, ours in (("sigmas", sigmas), ("timesteps", timesteps)):
            listed = torch.tensor(stated[name], dtype=torch.float64)
            yield fixture.compare(f"{name}{count} (stated)", ours, listed, name)
            yield fixture.compare(f"{name}{count}", ours, data[f"{name}{count}"], name)
        sample, velocity = data[f"x{count}"], data[f"v{count}"]
        for step in range(count):
            name = f"euler{count}.{step}"
            ours = euler_step(sample, velocity, schedule, step)
            yield fixture.compare(f"{name}.f32", ours, data[f"{name}.f32"], "f32")
            ours = euler_step(sample.bfloat16(), velocity.bfloat16(), schedule, step)
            yield fixture.compare(f"{name}.bf16", ours, data[f"{name}.bf16"], "bf16")


def check_motioner(fixture: Fixture) -> Iterator[Check]:
    """Packed motion tokens and their rotary tables, for several lengths of motion."""
    config, inputs, outputs = fixture.config, fixture.inputs(), fixture.outputs()
    shape = transformer_config({**config, "zip_frame_buckets": config["buckets"]})
    with torch.device("meta"):
        packer = FramePacker(shape, torch.float32)
    fill(packer, fixture.files(), lambda name: stored_names(f"embedder.frame_packer.{name}", shape))
    rows, columns = config["latent_hw"][0] // 2, config["latent_hw"][1] // 2
    positions = motion_positions(rows, columns, shape.zip_frame_buckets)
    rotation = rotation_at(positions, shape.head_dim)
    for case in config["cases"]:
        with torch.no_grad():
            tokens = packer(inputs[f"motion{case}"][0])[None]
        yield fixture.compare(f"tokens{case}", tokens, outputs[f"tokens{case}"])
        for part, table in (("cos", rotation.cos_LR), ("sin", rotation.sin_LR)):
            name = f"{part}{case}"
            yield compare(f"{fixture.name}/{name}", table.half(), outputs[name], EXACT)


def check_lora(fixture: Fixture) -> Iterator[Check]:
    """Merge of every adapter file of the folder into the base, in float32 and bfloat16."""
    base = fixture.files("base.safetensors")
    scale, targets = float(fixture.config["scaling"]), fixture.config["targets"]
    for path in sorted(Path(fixture.path).glob("lora*.safetensors")):
        adapter = Adapter(fixture.files(path.name), targets, scale)
        for dtype in (torch.float32, torch.bfloat16):
            key = f"merged_{str(dtype).removeprefix('torch.')}"
            recorded = fixture.outputs(f"{key}.safetensors")
            for name in base.names():
                ours = adapter.apply(name, base.read(name, dtype=dtype))
                label = f"{path.stem}.{key}.{name}"
                yield fixture.compare(label, ours, recorded[name], key)


def check_fp8_linear(fixture: Fixture) -> Iterator[Check]:
    """Quantised weight and activation bytes, their scales, and the product."""
    data = fixture.outputs("data.safetensors")
    for name in ("weight", "x", "small"):
        ours = quantise(data[name].flatten(0, -2))
        recorded = data[f"{name}_fp8"]
        same = ours.values.view(torch.uint8).int(), recorded.view(torch.uint8).int()
        yield compare(f"{fixture.name}/{name}_fp8", *same, EXACT)
        scale = data[f"{name}_scale"]
        yield fixture.compare(f"{name}_scale", ours.scale, scale.reshape(1), "scales")
    linear = torch.nn.Linear(data["weight"].shape[1], data["weight"].shape[0], dtype=torch.bfloat16)
    linear.load_state_dict({"weight": data["weight"], "bias": data["bias"]})
    with torch.no_grad():
        product = Fp8Linear(linear, quantise)(data["x"])
    yield fixture.compare("y", product, data["y"], "y")


def check_image_prep(fixture: Fixture) -> Iterator[Check]:
    """Output sizes of many pictures, and the crop of a few."""
    data = fixture.outputs("data.safetensors")
    for row in fixture.spec["size_table"]:
        listed = list(fit_size(tuple(row["image_hw"]), row["area"]))
        label = f"{fixture.name}/size {row['image_hw']} area {row['area']}"
        yield equal(label, listed, row["size_hw"])
    # The stated tolerance is in words: one level, and that on one value in a hundred.
    tolerance = Tolerance(max_abs=1, differing_share=0.01)
    for index, case in enumerate(fixture.spec["cases"]):
        size = fit_size(tuple(case["image_hw"]), case["area"])
        yield equal(f"{fixture.name}/size of image{index}", list(size), case["size_hw"])
        cropped = crop_to_size(data[f"image{index}"].numpy(), size)
        ours = torch.from_numpy(np.array(cropped))
        name = f"cropped{index}"
        yield compare(f"{fixture.name}/{name}", ours, data[name], tolerance)
