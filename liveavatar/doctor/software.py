"""Checks of Python, the installed packages and torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from liveavatar.doctor.cards import Cards
from liveavatar.doctor.child import ROOT, Outcome
from liveavatar.doctor.finding import Finding, fail, ok, skip, warn

REQUIREMENTS = ROOT / "requirements.txt"
INSTALL = "pip install -r requirements.txt, or start through scripts/run, which does it"

# What breaks with another release than the pinned one.
MUST_MATCH: Mapping[str, str] = {
    "gradio": "the page is made for this release",
    "gradio_client": "Gradio 4.25 needs the client of its own age",
    "huggingface_hub": "Gradio 4.25 imports what release 1 has not any more",
    "numpy": "Gradio 4.25 needs numpy 1",
    "pillow": "Gradio 4.25 needs Pillow below 11",
    "pydantic": "from 2.11 on /info answers 500 and no button of the page works",
    "starlette": "from 1.0 on the page itself answers 500",
    "websockets": "Gradio 4.25 needs websockets below 12",
}


def check_python(current: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether the interpreter is one that the pins are made for."""
    shown = ".".join(map(str, current))
    if (3, 10) <= current[:2] <= (3, 12):
        return ok("python", shown)
    return fail(
        "python",
        f"{shown}; the pins are for 3.10, 3.11 and 3.12",
        "install one of them and start with PYTHON=python3.11 scripts/run",
    )


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def check_pins(
    requirements: Path = REQUIREMENTS,
    installed: Callable[[str], str | None] = _installed,
) -> Iterator[Finding]:
    """Compare every pin with what is installed; a line per difference, or one for all."""
    try:
        lines = requirements.read_text(encoding="utf-8").splitlines()
    except OSError:
        yield fail("packages", f"{requirements} is missing", "git checkout -- requirements.txt")
        return
    matches = (re.match(r"([\w-]+)==(\S+)", line) for line in lines)
    pins = {match[1]: match[2] for match in matches if match}
    missing = [name for name in pins if installed(name) is None]
    if missing:
        yield fail("packages", f"not installed: {', '.join(missing)}", INSTALL)
    others = 0
    for name, wanted in pins.items():
        found = installed(name)
        if found is None or found.split("+")[0] == wanted:
            continue
        others += 1
        shown = f"{found}, pinned is {wanted}"
        if name in MUST_MATCH:
            yield fail(f"package {name}", f"{shown}: {MUST_MATCH[name]}", INSTALL)
        else:
            yield warn(f"package {name}", f"{shown}, with which the tests ran", INSTALL)
    if not missing and not others:
        gradio = f", gradio {pins['gradio']} among them" if "gradio" in pins else ""
        yield ok("packages", f"all {len(pins)} pins are installed{gradio}")


def check_torch(outcome: Outcome, cards: Cards | None) -> Iterator[Finding]:
    """Whether torch can be imported and reaches the cards.

    Args:
        outcome: of `liveavatar.doctor.torch_facts`.
        cards: None without a driver.
    """
    facts = outcome.answer
    if facts is None:
        why = "it did not finish" if outcome.timed_out else outcome.last_error
        yield fail("torch", f"cannot be imported: {why}", INSTALL)
        return
    shown = f"{facts['torch']}, " + (f"CUDA {facts['cuda']}" if facts["cuda"] else "CPU only")
    if not cards or not cards.cards:
        yield ok("torch", shown)
        return
    if not facts["cuda"]:
        yield fail(
            "torch",
            f"{shown}, although there are cards",
            "pip install --force-reinstall torch from https://download.pytorch.org/whl/ for your "
            "CUDA",
        )
    elif not facts["available"]:
        yield fail(
            "torch",
            f"{shown}, but CUDA does not start: {facts['problem'] or 'no reason given'}",
            "set CUDA_VISIBLE_DEVICES to cards that exist; match driver and torch; after a driver "
            "update reboot",
        )
    elif facts["unsupported"]:
        yield fail(
            "torch",
            f"{shown} has no code for {', '.join(facts['unsupported'])}",
            "leave these cards out with CUDA_VISIBLE_DEVICES, or install a torch build for them",
        )
    else:
        yield ok("torch", f"{shown}, uses {facts['devices']} cards")
        yield _nccl(facts["nccl"])


def _nccl(found: str | None) -> Finding:
    if found is None:
        return skip("nccl", "not in this build of torch; ranks talk through host memory")
    return ok("nccl", found)
