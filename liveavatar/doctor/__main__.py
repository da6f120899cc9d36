"""Look at everything a video needs on this machine, and say what to do where something is wrong.

    python -m liveavatar.doctor [--model demo|DIR] [--lora_path_dmd ADAPTER] [--json]

Exit status: 0 when nothing must be fixed, 1 when something must, 2 for options that cannot be used.
Works without a GPU and without any weights.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from liveavatar.doctor import app, hardware, model, network, page, software
from liveavatar.doctor.cards import Cards, DriverError, read_cards
from liveavatar.doctor.child import ROOT, Outcome, Program, run_programs
from liveavatar.doctor.finding import Finding, fail
from liveavatar.doctor.report import as_json, as_text, count

TORCH_DEADLINE_S = 60.0
SHARED_MEMORY = Path("/dev/shm")


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m liveavatar.doctor",
        description="Check this machine; every line that is not ok says what to do.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", help="'demo' or a checkpoint folder; by default the largest one in ckpt/")
    adapter = "LiveAvatar adapter; ckpt/LiveAvatar for the 14B model"
    add("--lora_path_dmd", "--lora", type=Path, help=adapter)
    add("--hashes", type=Path, help="compare the checkpoint with this list of sha256sum (slow)")
    add("--data-dir", type=Path, default=Path("data"), help="where the application keeps videos")
    add("--host", default="127.0.0.1", help="address of the page")
    add("--port", type=int, default=7860, help="port of the page")
    add("--deadline_s", type=float, help="seconds that an exchange between ranks may take")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def examine(options: argparse.Namespace) -> dict[str, list[Finding]]:
    """Run all checks, slow ones side by side; findings by group, in the order of the report."""
    broken: list[Finding] = []
    cards = None
    try:
        cards = read_cards()
    except ImportError as error:
        broken = [fail("gpus", f"cannot be read: {error}", "pip install -r requirements.txt")]
    except DriverError as error:
        cure = "reboot: after a driver update the loaded one is another; see 'dmesg | grep NVRM'"
        broken = [fail("gpus", f"the NVIDIA driver does not work: {error}", cure)]
    seen = hardware.visible_count(cards)
    folder = model.find_model(options.model)
    adapter = model.find_adapter(options.lora_path_dmd, folder)
    programs = {
        "facts": Program("liveavatar.doctor.torch_facts", [], TORCH_DEADLINE_S),
        "exchange": network.exchange_program(seen, options.deadline_s),
    }
    weights = _safely(lambda: model.check_folder(folder))
    if folder is not None and not weights:
        programs["model"] = model.opener(folder, adapter)
    with ThreadPoolExecutor() as pool:
        served = pool.submit(_safely, lambda: _check_serving(options))
        ended = run_programs(programs)
    if folder is not None and not weights:
        weights = _safely(lambda: model.judge(ended["model"], folder, adapter))
    torch = ended["facts"]
    return {
        "hardware": broken + _safely(lambda: _check_machine(cards, torch, options, broken)),
        "software": _safely(lambda: _check_software(cards, torch)),
        "network": _safely(lambda: _check_network(cards, ended["exchange"], options)),
        "model": weights + _safely(lambda: model.check_hashes(folder, options.hashes)),
        "application": served.result(),
    }


def _check_machine(
    cards: Cards | None, torch: Outcome, options: argparse.Namespace, broken: list[Finding]
) -> Iterable[Finding]:
    if not broken:
        yield from hardware.check_cards(cards)
        yield from hardware.check_driver(cards, (torch.answer or {}).get("cuda"))
    yield from hardware.check_order(cards)
    yield from hardware.check_links(cards)
    num_cards = len(cards.cards) if cards else 0
    yield hardware.check_host_memory(*hardware.host_memory(), num_cards)
    yield hardware.check_shared_memory(SHARED_MEMORY, num_cards)
    yield hardware.check_disk(options.data_dir)


def _check_software(cards: Cards | None, torch: Outcome) -> Iterable[Finding]:
    yield software.check_python()
    yield from software.check_pins()
    yield from software.check_torch(torch, cards)


def _check_network(
    cards: Cards | None, exchange: Outcome, options: argparse.Namespace
) -> Iterable[Finding]:
    yield from network.check_peers(cards)
    seen = hardware.visible_count(cards)
    yield network.judge_exchange(exchange, seen, options.deadline_s)


def _check_serving(options: argparse.Namespace) -> Iterable[Finding]:
    yield from app.check_files(ROOT)
    base = f"http://{options.host}:{options.port}"
    running = page.is_ours(base)
    yield app.check_port(options.host, options.port, is_ours=running)
    if running:
        yield from page.check_page(base)


def _safely(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a group of checks; one that breaks is a finding, and the others go on."""
    found = []
    try:
        for finding in check():
            found.append(finding)
    except Exception as error:  # a doctor must not die of what it looks at
        logging.getLogger(__name__).debug("a check broke", exc_info=True)
        what = f"a check broke: {type(error).__name__}: {error}"
        found.append(fail("doctor", what, "report this line together with the output of --json"))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    started = time.monotonic()
    groups = examine(options)
    if options.json:
        sys.stdout.write(as_json(groups, time.monotonic() - started))
    else:
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        sys.stdout.write(as_text(groups, coloured=coloured))
    return 1 if count(groups, "fail") else 0


if __name__ == "__main__":
    sys.exit(main())
