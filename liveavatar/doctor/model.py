"""Checks of the checkpoint and its adapter."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from liveavatar.doctor.child import ROOT, Outcome, Program
from liveavatar.doctor.finding import Finding, fail, ok, skip, warn

DEMO = Path("ckpt/demo")
PUBLISHED = Path("ckpt/Wan2.2-S2V-14B")
ADAPTER = Path("ckpt/LiveAvatar")
PUBLISHED_LAYERS = 40
DEADLINE_S = 120.0

FETCH = (
    "python -m liveavatar.download fetches Wan-AI/Wan2.2-S2V-14B and its adapter into ckpt/; or "
    "name the folders with --model and --lora_path_dmd"
)


def find_model(asked: str | None, root: Path = ROOT) -> Path | None:
    """The checkpoint folder that is meant: the one asked for, else the largest that is there."""
    if asked is not None:
        return root / DEMO if asked == "demo" else Path(asked)
    return next((root / name for name in (PUBLISHED, DEMO) if (root / name).is_dir()), None)


def find_adapter(asked: Path | None, model: Path | None, root: Path = ROOT) -> Path | None:
    """The adapter that is meant; by default the published one, if the model is the published."""
    if asked is not None:
        return asked
    is_published = model is not None and model.resolve() == (root / PUBLISHED).resolve()
    return root / ADAPTER if is_published and (root / ADAPTER).exists() else None


def check_folder(model: Path | None) -> Iterator[Finding]:
    """What keeps a checkpoint from being opened: there is none, or it is half downloaded."""
    if model is None:
        yield warn("checkpoint", f"none in {ROOT / 'ckpt'}", FETCH)
        return
    partial = sorted(p.name for p in model.rglob("*") if p.name.endswith((".part", ".incomplete")))
    if partial:
        yield fail(
            "checkpoint",
            f"{model}: {partial[0]} and {len(partial) - 1} more are half downloaded",
            "run the download again until it ends; it goes on where it stopped",
        )


def opener(model: Path, adapter: Path | None) -> Program:
    """The program that opens a checkpoint with the engine's own readers."""
    paths = [str(path.absolute()) for path in (model, adapter) if path is not None]
    return Program("liveavatar.doctor.open_model", paths, DEADLINE_S)


def judge(opened: Outcome, model: Path, adapter: Path | None) -> Iterator[Finding]:
    """What to say of a checkpoint that `liveavatar.doctor.open_model` opened."""
    facts = opened.answer
    if facts is None:
        why = f"not read in {DEADLINE_S:.0f} s" if opened.timed_out else opened.last_error
        yield fail("checkpoint", f"{model}: {why}", "see the lines 'packages' and 'torch'")
    elif facts["problem"]:
        yield fail("checkpoint", facts["problem"], _cure(facts["problem"]))
    else:
        shape = f"{facts['layers']} layers of width {facts['dim']}, {facts['tensors']} tensors"
        yield ok("checkpoint", f"{model}: complete, {shape}")
        yield _judge_adapter(facts, adapter)


def _cure(problem: str) -> str:
    if "expected a checkpoint folder" in problem:
        return FETCH
    if "git-lfs pointer" in problem:
        return "git lfs install && git lfs pull, in the checkpoint folder"
    return "fetch the file it names again; --hashes FILE finds the damaged ones"


def _judge_adapter(facts: Mapping[str, Any], adapter: Path | None) -> Finding:
    if adapter is None and facts["layers"] == PUBLISHED_LAYERS:
        return warn(
            "adapter",
            "none for the 14B network, which shows noise in 4 steps without it",
            "python -m liveavatar.download --only adapter, or name it with --lora_path_dmd",
        )
    if adapter is None:
        return skip("adapter", "none was named")
    if facts["adapter_problem"]:
        return fail(
            "adapter",
            facts["adapter_problem"],
            "use the adapter made for this checkpoint; the demo needs none",
        )
    return ok("adapter", f"{adapter}: every pair matches")


def check_hashes(folder: Path | None, listed: Path | None) -> Iterator[Finding]:
    """Compare files with a list as `sha256sum` writes it; reads every byte, so only on demand."""
    if listed is None:
        return
    if folder is None:
        yield skip("hashes", "no checkpoint to compare")
        return
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        yield fail("hashes", f"{listed}: {error}", "name a file as 'sha256sum FILE...' writes it")
        return
    wanted = [
        match.groups() for line in lines if (match := re.match(r"([0-9a-f]{64}) [ *](.+)", line))
    ]
    if not wanted:
        yield fail("hashes", f"{listed} lists none", "name a file as 'sha256sum FILE...' writes it")
        return
    bad = [name for digest, name in wanted if _sha256(folder / name) != digest]
    if bad:
        yield fail(
            "hashes",
            f"{len(bad)} of {len(wanted)} files are missing or damaged: {', '.join(bad[:3])}",
            "fetch these files again",
        )
    else:
        yield ok("hashes", f"all {len(wanted)} files are as listed")


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while part := file.read(2**20):
                digest.update(part)
            return digest.hexdigest()
    except OSError:
        return None
