"""The scripts of the tutorial, run as they are; a stand-in for nvidia-smi without a card."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.e2e.command import ROOT, describe
from tests.patience import PATIENCE_S
from tests.web.live_server import Installation, serve
from webui.operator import operator_token
from webui.server import Access

PRINTS_WHAT_IT_GETS = """
import json, os, sys
names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "MASTER_PORT", "NCCL_P2P_DISABLE")
print(json.dumps({"arguments": sys.argv[1:], **{name: os.environ[name] for name in names}}))
"""


def run(command: list[object], **environment: object) -> subprocess.CompletedProcess[str]:
    """Run a script; what it started ends with it, also when it is not done in time."""
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"not done in time: {process.communicate()[1]}")
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is the one the tests run in, with nothing left to install."""
    root = tmp_path / "a checkout"
    (root / "scripts").mkdir(parents=True)
    for name in ("run_4gpu_tpp.sh", "scripts/venv.sh"):
        shutil.copy(ROOT / name, root / name)
    (root / "requirements.txt").write_text("")
    (root / ".venv/bin").mkdir(parents=True)
    python = root / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    version = ".".join(map(str, sys.version_info[:2]))
    (root / ".venv/requirements.txt.stamp").write_text(f"Python {version}\n")
    return root


def test_the_four_card_script_gives_every_option(checkout: Path, cli: ModuleType) -> None:
    (checkout / "inference").mkdir()
    (checkout / "inference/inference_tpp.py").write_text(PRINTS_WHAT_IT_GETS)
    done = run([checkout / "run_4gpu_tpp.sh", "--prompt", "last words"], SIZE="384*256")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["CUDA_VISIBLE_DEVICES"] == os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert (got["CUDA_DEVICE_ORDER"], got["MASTER_PORT"]) == ("PCI_BUS_ID", "29103")
    parser = cli.build_parser()
    options = parser.parse_args(got["arguments"])  # the command knows them all
    assert (options.prompt, options.size) == ("last words", "384*256")
    assert options.num_gpus_dit == options.ulysses_size == 3
    assert (options.offload_model, options.tpp_mode, options.resume) == (False, True, True)
    known = {action.option_strings[0] for action in parser._actions if action.option_strings}
    optional = {"--batch", "--mesh", "-h"}  # other ways to say the same
    assert known - optional == {word for word in got["arguments"] if word.startswith("--")}


def test_the_four_card_script_makes_a_video_where_there_is_no_card(
    checkout: Path, tiny: Path, tmp_path: Path
) -> None:
    (checkout / "inference").symlink_to(ROOT / "inference")
    (checkout / "examples").symlink_to(ROOT / "examples")
    output = tmp_path / "out.mp4"
    variables = {"CKPT_DIR": tiny, "LORA_PATH_DMD": "", "SIZE": "64*64", "NUM_CLIP": 1}
    variables["NUM_GPUS_DIT"] = 1  # two ranks in place of four, to save time
    command = [ROOT / "guardian.sh", checkout / "run_4gpu_tpp.sh"]
    done = run(command, SAVE_FILE=output, INFER_FRAMES=12, SAMPLE_STEPS=2, **variables)
    assert done.returncode == 0, done.stderr
    assert describe(output)["frames"] == 12


# --- guardian.sh ---------------------------------------------------------------------------------


def fails_until(tmp_path: Path, run_number: int, status: int) -> list[object]:
    """A command that ends with `status` until its run of that number, and counts its runs."""
    script = tmp_path / "command"
    script.write_text(
        f'#!/bin/sh\necho run >>"{tmp_path}/runs"\n'
        f'[ "$(wc -l <"{tmp_path}/runs")" -ge {run_number} ] || exit {status}\n'
    )
    script.chmod(0o755)
    return [ROOT / "guardian.sh", script]


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text().splitlines())


def test_the_guardian_restarts_until_success(tmp_path: Path) -> None:
    done = run(fails_until(tmp_path, 3, 1), PAUSE_S=0.05)
    assert (done.returncode, runs(tmp_path)) == (0, 3)
    assert "ended with status 1; restart 2 in 0.05 s" in done.stderr


def test_the_guardian_pauses_for_30_seconds(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    sleep = tmp_path / "bin/sleep"
    sleep.write_text(f'#!/bin/sh\necho "$1" >>"{tmp_path}/pauses"\n')
    sleep.chmod(0o755)
    done = run(fails_until(tmp_path, 3, 1), PATH=f"{sleep.parent}:{os.environ['PATH']}")
    assert (done.returncode, runs(tmp_path)) == (0, 3)
    assert (tmp_path / "pauses").read_text() == "30\n30\n"


def test_the_guardian_does_not_repeat_what_cannot_work(tmp_path: Path) -> None:
    done = run(fails_until(tmp_path, 9, 2), PAUSE_S=0.05)
    assert (done.returncode, runs(tmp_path)) == (2, 1)
    (tmp_path / "runs").unlink()
    done = run(fails_until(tmp_path, 9, 7), PAUSE_S=0.05, MOST_RESTARTS=2)
    assert (done.returncode, runs(tmp_path)) == (7, 3)
    assert "giving up" in done.stderr
    assert run([ROOT / "guardian.sh"]).returncode == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_guardian_passes_on_what_stops_it(tmp_path: Path, number: int) -> None:
    script = tmp_path / "command"
    script.write_text(
        f'#!/bin/sh\ntrap \'touch "{tmp_path}/told"; exit 130\' TERM\ntouch "{tmp_path}/started"\n'
        "while true; do sleep 0.02; done\n"
    )
    script.chmod(0o755)
    # Where the tests run in the background, SIGINT is ignored, and a shell cannot take that back.
    process = subprocess.Popen(
        [ROOT / "guardian.sh", script],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + PATIENCE_S
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    assert (tmp_path / "told").exists()


# --- monitor_gpu.sh ------------------------------------------------------------------------------


@pytest.fixture
def four_cards(tmp_path: Path) -> str:
    """A PATH whose nvidia-smi tells of four cards, one of them nearly full."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvidia-smi"
    lines = [
        f"{index}, {used}, 24564, 5{index}, 97" for index, used in enumerate((18, 9, 3, 22100))
    ]
    program.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_the_monitor_warns_of_a_full_card_and_lowers_the_tier(
    four_cards: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    installation = Installation(data, access=Access(token=operator_token(tmp_path)))
    with serve(installation) as server:
        variables = {"PATH": four_cards, "INTERVAL_S": 0.05, "SERVER": server}
        untold = run([ROOT / "monitor_gpu.sh", 1], TOKEN_FILE=tmp_path / "none", **variables)
        assert "warning: no tier lowered: [Errno 2] No such file" in untold.stderr
        assert installation.store.ceiling() is None
        variables["TOKEN_FILE"] = tmp_path / "operator.token"
        done = run([ROOT / "monitor_gpu.sh", 2], **variables)
        ceiling = installation.store.ceiling()
    assert ceiling is not None
    assert (ceiling.tier, ceiling.reason) == ("balanced", "gpu 3 holds 22100 MB, more than 21000")
    assert done.returncode == 0, done.stderr
    assert re.search(r"gpu 3 \[#{26} {4}\]  22100 of 24564 MB   53 C   97 %", done.stdout)
    assert re.search(r"server ok, group \w+, 0 queued", done.stdout)
    warnings = done.stderr.splitlines()
    assert len(warnings) == 3  # one a round
    assert warnings[1] == "the next videos are made at tier balanced at most"
    assert "gpu 3 holds 22100 MB, more than 21000" in warnings[0]


def test_the_monitor_needs_a_driver_but_no_server(four_cards: str, tmp_path: Path) -> None:
    environment = {"PATH": four_cards, "SERVER": "http://127.0.0.1:9", "THRESHOLD_MB": 23000}
    done = run([ROOT / "monitor_gpu.sh", 1], **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "does not answer" in done.stdout
    (tmp_path / "none").mkdir()
    (tmp_path / "none/bash").symlink_to("/bin/bash")
    bare = run(["/bin/bash", ROOT / "monitor_gpu.sh", 1], PATH=tmp_path / "none")
    assert bare.returncode == 2
    assert "expected nvidia-smi" in bare.stderr


def test_the_static_folder_of_the_tutorial_is_ours() -> None:
    assert (ROOT / "webui/static").resolve() == (ROOT / "static").resolve()
