"""Every prerequisite of the machine broken in turn: the doctor says the right line and the cure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from liveavatar.doctor import hardware, network, software
from liveavatar.doctor.__main__ import _safely
from liveavatar.doctor.cards import DriverError, read_cards
from liveavatar.doctor.child import Outcome, Program, run_child, run_programs
from liveavatar.doctor.finding import Finding, fail, ok
from liveavatar.doctor.report import as_json, as_text
from tests.unit.cards import GIB, FakeDriver, cards

FACTS = {
    "torch": "2.13.0+cu126",
    "cuda": "12.6",
    "nccl": "2.27.3",
    "available": True,
    "problem": "",
    "devices": 4,
    "unsupported": [],
}


def by_status(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.status, []).append(finding)
    return found


def torch_says(**changed: Any) -> Outcome:
    return Outcome(FACTS | changed, "")


def test_a_healthy_machine_has_nothing_to_cure() -> None:
    machine = cards()
    findings = [
        *hardware.check_cards(machine),
        *hardware.check_driver(machine, "12.6"),
        *hardware.check_order(machine, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}),
        *hardware.check_links(machine),
        *network.check_peers(machine, {}),
        *software.check_torch(torch_says(), machine),
    ]
    assert {finding.status for finding in findings} == {"ok"}
    text = as_text({"all": findings}, coloured=False)
    assert "4 x NVIDIA GeForce RTX 4090" in text
    assert "gpu 3" in text
    assert "gpu 1 gen 4 x16" in text
    assert text.endswith("all fine\n")


BROKEN_HARDWARE: dict[str, tuple[Callable[[], Iterable[Finding]], str, str, str]] = {
    "no card seen": (
        lambda: hardware.check_cards(cards(count=0)),
        "fail",
        "sees no card",
        "--gpus all",
    ),
    "worn-out memory": (
        lambda: hardware.check_cards(cards(rows=(0, 0, 0, 1))),
        "fail",
        "worn-out memory",
        "CUDA_VISIBLE_DEVICES",
    ),
    "memory errors": (
        lambda: hardware.check_cards(cards(ecc=7)),
        "fail",
        "7 uncorrected memory errors",
        "reboot",
    ),
    "hot": (lambda: hardware.check_cards(cards(temperature=86)), "warn", "86 °C", "cool it"),
    "throttled": (
        lambda: hardware.check_cards(cards(reasons=0x40)),
        "warn",
        "heat (hardware)",
        "nvidia-smi -pl",
    ),
    "power brake": (
        lambda: hardware.check_cards(cards(reasons=0x80)),
        "warn",
        "power brake",
        "power cables",
    ),
    "card in use": (
        lambda: hardware.check_cards(cards(free=9 * GIB)),
        "warn",
        "9.0 of 24.0 GiB free",
        "end what runs there",
    ),
    "old driver": (
        lambda: hardware.check_driver(cards(driver="535.54.03"), "12.1"),
        "fail",
        "535.54.03",
        "535.104.05",
    ),
    "driver too old for torch": (
        lambda: hardware.check_driver(cards(), "13.0"),
        "fail",
        "torch is built for CUDA 13.0",
        "580.65.06",
    ),
    "descending devices": (
        lambda: hardware.check_order(cards(), {"CUDA_VISIBLE_DEVICES": "3,2,1,0"}),
        "fail",
        "ascending",
        "CUDA_VISIBLE_DEVICES=0,1,2,3",
    ),
    "device that is not there": (
        lambda: hardware.check_order(cards(count=2), {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}),
        "fail",
        "sees 2 cards",
        "leave out 2, 3",
    ),
    "mixed cards": (
        lambda: hardware.check_order(cards(count=2, names=["NVIDIA A10", "NVIDIA L4"]), {}),
        "warn",
        "several kinds",
        "CUDA_DEVICE_ORDER=PCI_BUS_ID",
    ),
    "narrow slots": (
        lambda: hardware.check_links(cards(width=8)),
        "warn",
        "fewer than two cards run at x16",
        "bifurcation",
    ),
    "no host memory": (
        lambda: [hardware.check_host_memory(GIB, 4 * GIB, 0)],
        "fail",
        "1.0 of 4.0 GiB",
        "add memory",
    ),
    "little host memory for cards": (
        lambda: [hardware.check_host_memory(8 * GIB, 16 * GIB, 4)],
        "warn",
        "16 GiB are comfortable",
        "add memory",
    ),
    "no peer access": (
        lambda: network.check_peers(cards(peers=False), {}),
        "warn",
        "none between gpus 0-1, 0-2",
        "NCCL_P2P_DISABLE=1",
    ),
}


@pytest.mark.parametrize(
    ("check", "status", "found", "cure"), BROKEN_HARDWARE.values(), ids=BROKEN_HARDWARE
)
def test_broken_hardware_has_its_line(
    check: Callable[[], Iterable[Finding]], status: str, found: str, cure: str
) -> None:
    bad = [finding for finding in check() if finding.status != "ok"]
    assert bad
    assert {finding.status for finding in bad} == {status}
    assert found in bad[0].found
    assert cure in bad[0].cure


def test_cards_that_tell_little_are_read_all_the_same() -> None:
    machine = cards(mute=True)
    assert machine.cards[0].temperature_c is None
    assert {f.status for f in hardware.check_cards(machine)} == {"ok"}
    assert [f.status for f in hardware.check_links(machine)] == ["skip"]


def test_without_a_driver_there_are_no_cards_and_nothing_fails() -> None:
    assert read_cards(FakeDriver(broken=FakeDriver.NVML_ERROR_LIBRARY_NOT_FOUND)) is None
    findings = [
        *hardware.check_cards(None),
        *hardware.check_driver(None, "12.6"),
        *hardware.check_order(None, {}),
        *hardware.check_links(None),
        *network.check_peers(None, {}),
    ]
    assert {finding.status for finding in findings} == {"skip"}


def test_a_driver_that_does_not_answer_is_not_taken_for_none() -> None:
    with pytest.raises(DriverError, match="18"):
        read_cards(FakeDriver(broken=18))  # driver and library are of different versions


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 4),
        ({"CUDA_VISIBLE_DEVICES": "1,3"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
    ],
)
def test_visible_cards_are_counted(environment: dict[str, str], count: int) -> None:
    assert hardware.visible_count(cards(), environment) == count


def test_memory_of_the_host_is_read_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  2048 kB\nMemFree: 5 kB\nMemAvailable: 1024 kB\n")
    assert hardware.host_memory(tmp_path / "meminfo") == (2**20, 2**21)
    available, total = hardware.host_memory()
    assert 0 < available < total


def test_disk_and_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.check_disk(tmp_path / "not" / "made" / "yet").status in ("ok", "warn")
    blocked = tmp_path / "file"
    blocked.write_text("")
    refused = hardware.check_disk(blocked / "data")
    assert refused.status == "fail"
    assert "--data-dir" in refused.cure
    monkeypatch.setattr(hardware, "DISK_WANTED", 2**60)
    assert "delete old videos" in hardware.check_disk(tmp_path).cure
    monkeypatch.setattr(hardware, "DISK_NEEDED", 2**60)
    assert hardware.check_disk(tmp_path).status == "fail"
    monkeypatch.setattr(hardware, "SHARED_MEMORY_NEEDED", 2**60)
    small = hardware.check_shared_memory(tmp_path, 2)
    assert small.status == "fail"
    assert "--shm-size" in small.cure
    assert hardware.check_shared_memory(tmp_path, 0).status == "warn"
    assert "mount" in hardware.check_shared_memory(tmp_path / "none", 0).cure


# --- Software ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [(3, 9, 2), (3, 13, 0)])
def test_another_python_is_refused(version: tuple[int, ...]) -> None:
    finding = software.check_python(version)
    assert finding.status == "fail"
    assert "PYTHON=python3.11" in finding.cure


def test_pins_are_compared_with_what_is_installed(tmp_path: Path) -> None:
    assert [f.status for f in software.check_pins()] == ["ok"]  # as in this environment
    pins = tmp_path / "requirements.txt"
    pins.write_text("# held\ngradio==4.25.0\nsoxr==1.1.0\ntorch==2.13.0\ntqdm==4.70.1\n")
    there = {"gradio": "4.44.0", "soxr": "1.0.0", "torch": "2.13.0+cu126"}
    missing, gradio, soxr = software.check_pins(pins, there.get)
    assert (missing.status, missing.found) == ("fail", "not installed: tqdm")
    assert (gradio.status, gradio.found.split(":")[0]) == ("fail", "4.44.0, pinned is 4.25.0")
    assert soxr.status == "warn"
    assert "scripts/run" in gradio.cure
    assert "git checkout" in next(iter(software.check_pins(tmp_path / "none"))).cure


BROKEN_TORCH: dict[str, tuple[Outcome, str, str]] = {
    "not installed": (
        Outcome(None, "ModuleNotFoundError: No module named 'torch'"),
        "torch'",
        "pip",
    ),
    "hangs": (Outcome(None, "", timed_out=True), "did not finish", "pip"),
    "without CUDA": (torch_says(cuda=None, available=False), "CPU only", "download.pytorch.org"),
    "CUDA fails": (torch_says(available=False, problem="Error 803"), "Error 803", "reboot"),
    "old card": (torch_says(unsupported=["Tesla K80"]), "no code for Tesla K80", "leave these"),
}


@pytest.mark.parametrize(("outcome", "found", "cure"), BROKEN_TORCH.values(), ids=BROKEN_TORCH)
def test_a_torch_that_cannot_use_the_cards(outcome: Outcome, found: str, cure: str) -> None:
    (finding,) = software.check_torch(outcome, cards())
    assert finding.status == "fail"
    assert found in finding.found
    assert cure in finding.cure


@pytest.fixture(scope="module")
def programs() -> dict[str, Outcome]:
    """Programs that need torch, all at once, as the doctor runs them; and ones that go wrong."""
    return run_programs(
        {
            "facts": Program("liveavatar.doctor.torch_facts", [], 60),
            "exchange": network.exchange_program(0, 60),
            "no time": Program("liveavatar.doctor.collectives", [], 0.01),
            "no program": Program("liveavatar.doctor.finding", [], 20),
            "no such rank": Program("liveavatar.doctor.collectives", ["--ranks", "none"], 20),
        }
    )


def test_torch_of_this_environment_says_what_it_is(programs: dict[str, Outcome]) -> None:
    (finding,) = software.check_torch(programs["facts"], None)
    assert finding.status == "ok"
    assert software._installed("torch") in (finding.found.split(",")[0], None)
    assert by_status(software.check_torch(torch_says(nccl=None), cards()))["skip"][0].name == "nccl"


# --- Tensors between ranks -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        ("RuntimeError: No space left on device: /dev/shm/nccl-x", "--shm-size"),
        ("torch.OutOfMemoryError: CUDA out of memory", "nvidia-smi"),
        ("Duplicate GPU detected : rank 0 and rank 1", "CUDA_VISIBLE_DEVICES"),
        ("Bootstrap : no socket interface found", "NCCL_SOCKET_IFNAME=lo"),
        ("gloo: Name or service not known", "GLOO_SOCKET_IFNAME=lo"),
        ("Call to ibv_open_device failed", "NCCL_IB_DISABLE=1"),
        ("CUDA driver version is insufficient", "'driver'"),
        ("no kernel image is available", "'torch'"),
        ("Cuda failure 'peer access is not supported'", "NCCL_P2P_DISABLE=1"),
        ("RuntimeError: rank 1 got a wrong sum over 4 ranks", "ACS"),
        ("socket: Operation not permitted", "--ipc=host"),
        ("something never seen", "NCCL_DEBUG=INFO"),
    ],
)
def test_known_failures_have_their_cure(words: str, cure: str) -> None:
    assert cure in network.explain(Outcome(None, f"Traceback\n{words}\n"), "nccl")


def test_a_hang_has_the_cure_of_its_backend() -> None:
    hang = Outcome(None, "", timed_out=True)
    assert "NCCL_P2P_DISABLE=1" in network.explain(hang, "nccl")
    assert "GLOO_SOCKET_IFNAME=lo" in network.explain(hang, "gloo")


def test_tensors_are_really_sent_between_processes(programs: dict[str, Outcome]) -> None:
    finding = network.judge_exchange(programs["exchange"], 0)
    assert finding.status == "ok", finding
    assert "2 ranks, send and receive" in finding.found


def test_an_exchange_that_cannot_end_is_killed_and_named(programs: dict[str, Outcome]) -> None:
    finding = network.judge_exchange(programs["no time"], 0, 0.01)
    assert finding.status == "fail"
    assert finding.found == "hangs: not done in 0.01 s"


def test_a_program_that_goes_wrong_does_not_touch_the_others(programs: dict[str, Outcome]) -> None:
    assert "has no attribute 'main'" in programs["no program"].last_error
    assert "invalid int value: 'none'" in programs["no such rank"].last_error


def test_where_torch_cannot_be_imported_every_program_says_so(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    facts = Program("liveavatar.doctor.torch_facts", [], 20)
    outcomes = run_programs({"facts": facts, "other": facts}, {"PYTHONPATH": str(tmp_path)})
    for outcome in outcomes.values():
        (finding,) = software.check_torch(outcome, None)
        assert finding.found == "cannot be imported: ended by SIGSEGV"
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so: cannot open')\n")
    outcome = run_programs({"exchange": network.exchange_program(0)}, {"PYTHONPATH": str(tmp_path)})
    assert "see the line 'torch'" in network.judge_exchange(outcome["exchange"], 0).cure


def test_an_import_of_torch_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("import signal, time\nsignal.alarm(1)\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = run_programs({"exchange": network.exchange_program(0)})["exchange"]
    finding = network.judge_exchange(outcome, 0)
    assert finding.found == "the import of torch takes longer than 60 s"
    assert "see the line 'torch'" in finding.cure


def test_peer_access_can_be_switched_off() -> None:
    (finding,) = network.check_peers(cards(peers=False), {"NCCL_P2P_DISABLE": "1"})
    assert finding.status == "ok"


# --- What holds it together ----------------------------------------------------------------------


def test_bad_news_needs_a_cure_and_good_news_none() -> None:
    with pytest.raises(ValueError, match="cure"):
        fail("disk", "full", "")
    with pytest.raises(ValueError, match="cure"):
        Finding("disk", "ok", "fine", "do something")


def test_a_check_that_breaks_is_a_line_and_the_lines_before_it_stay() -> None:
    def breaks() -> Iterable[Finding]:
        yield ok("one", "fine")
        raise KeyError("gone")

    kept, broken = _safely(breaks)
    assert kept.name == "one"
    assert (broken.status, broken.found) == ("fail", "a check broke: KeyError: 'gone'")


def test_a_program_that_says_nothing_useful_has_no_answer() -> None:
    assert run_child("liveavatar", [], 20).answer is None  # a package without a program
    assert "liveavatar" in run_child("liveavatar", [], 20).last_error


def test_colours_mark_the_status_only() -> None:
    groups = {"hardware": [ok("disk", "fine"), fail("port", "taken", "use another")]}
    plain, coloured = as_text(groups, coloured=False), as_text(groups, coloured=True)
    assert "\x1b[31mfail\x1b[0m" in coloured
    assert "\x1b" not in plain
    assert "-> use another" in plain
    assert plain.endswith("1 to fix, 0 to think about\n")
    assert '"status": "fail"' in as_json(groups, 1.0)
    assert os.linesep not in as_json(groups, 1.0).rstrip("\n")
