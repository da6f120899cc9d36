"""The pins, and the commands that make an environment from them."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("liveavatar", "inference", "webui", "app.py")
FOLDERS = [
    *(
        f"liveavatar/{path.name}"
        for path in (ROOT / "liveavatar").iterdir()
        if path.suffix != ".toml"
    ),
    *PRODUCT[1:],
]
# Distributions whose import name is another one.
IMPORT_NAMES = {
    "PyYAML": "yaml",
    "nvidia-ml-py": "pynvml",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pytest-timeout": "pytest_timeout",
    "python-multipart": "python_multipart",
}
# Pins of packages that others need: held distribution, who needs it.
HELD = {
    "gradio_client": "gradio",
    "httpx": "gradio",
    "huggingface_hub": "transformers",
    "websockets": "gradio_client",
}
# Drivers that SQLAlchemy imports by the name in a URL.
DRIVERS = {"psycopg", "psycopg-binary"}
# Development tools that are started, not imported, and what moto's server needs.
STARTED = {"mypy", "pytest-timeout", "pytest-xdist", "ruff", "Flask", "flask-cors"}
COMMANDS = [
    *(f"scripts/{name}" for name in ("run", "generate", "test", "lint", "bench", "lock", "audit")),
    ".ci/run",
]
COMMANDS += ["run_4gpu_tpp.sh", "guardian.sh", "monitor_gpu.sh"]


def pins(name: str) -> dict[str, str]:
    """Distribution and version for every line of a requirement file; fails at another form."""
    found = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "-r ")):
            match = re.fullmatch(r"([A-Za-z0-9_-]+)==(\d[\w.]*)", line)
            assert match, f"{name}: expected DISTRIBUTION==VERSION, got {line!r}"
            found[match[1]] = match[2]
    return found


RUNTIME, DEVELOPMENT = pins("requirements.txt"), pins("requirements-dev.txt")
EXTRA = pins("requirements-ray.txt")
STORAGE = pins("requirements-s3.txt")  # what fsspec loads by the beginning of a URL
ALL = RUNTIME | EXTRA | STORAGE | DEVELOPMENT


def spelled(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_constraints_hold_every_pin_and_all_that_comes_along(python: str) -> None:
    held = {spelled(name): to for name, to in pins(f"constraints/python{python}.txt").items()}
    pinned = {spelled(name): to for name, to in ALL.items() if name != "torch"}
    assert pinned.items() <= held.items(), "run scripts/lock after changing a pin"
    assert len(held) > 2 * len(pinned)


def import_name(distribution: str) -> str:
    return IMPORT_NAMES.get(distribution, distribution)


def sources(place: str) -> list[Path]:
    """A file, or all files of a folder."""
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported(*places: str) -> set[str]:
    """First part of every module that the files in these places import."""
    names = set()
    for path in (path for place in places for path in sources(place)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names


def ours() -> set[str]:
    return {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}


def test_every_runtime_pin_is_imported_by_the_product() -> None:
    used = imported(*PRODUCT)
    assert [name for name in RUNTIME if import_name(name) not in used | set(HELD)] == []


def test_every_pin_of_the_extra_is_imported_by_the_cluster_alone() -> None:
    extra = {import_name(name) for name in EXTRA.keys() - DRIVERS}
    assert extra <= imported("liveavatar/cluster")
    assert not extra & imported(*(place for place in FOLDERS if place != "liveavatar/cluster"))


def test_every_import_of_the_product_is_pinned() -> None:
    pinned = {import_name(name) for name in (*RUNTIME, *EXTRA)}
    assert imported(*PRODUCT) - set(sys.stdlib_module_names) - ours() - pinned == set()


def test_every_import_of_the_tests_is_pinned() -> None:
    pinned = {import_name(name) for name in ALL}
    assert imported("tests") - set(sys.stdlib_module_names) - ours() - pinned == set()


def test_every_development_pin_is_used() -> None:
    used = imported("tests")
    assert [n for n in DEVELOPMENT if import_name(n) not in used and n not in STARTED] == []


@pytest.mark.parametrize(("held", "by"), HELD.items())
def test_a_held_pin_is_needed_by_another_one(held: str, by: str) -> None:
    assert held in RUNTIME
    wanted = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in requires(by) or []}
    assert held in wanted


@pytest.mark.parametrize("name", ALL)
def test_what_is_installed_is_what_is_pinned(name: str) -> None:
    """The suite speaks for the pins only if it runs on them; +cpu and the like do not count."""
    assert version(name).split("+")[0] == ALL[name]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_can_be_executed_and_stop_at_errors(command: str) -> None:
    path = ROOT / command
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True, timeout=PATIENCE_S)


def test_continuous_integration_ends_in_the_command_of_the_readme() -> None:
    assert "\nscripts/test " in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\nscripts/test </dev/null || status=$?\n" in (ROOT / ".ci/run").read_text()


def test_licence_is_the_one_that_is_stated() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def write_wheel(folder: Path, number: str) -> None:
    """Write `tiny`, a package that knows its version."""
    information = f"tiny-{number}.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"tiny-{number}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", f"number = {number!r}\n")
        metadata = f"Metadata-Version: 2.1\nName: tiny\nVersion: {number}\n"
        wheel.writestr(f"{information}/METADATA", metadata)
        wheel.writestr(
            f"{information}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{information}/RECORD", "")


def require_tiny(checkout: Path, pin: str = "") -> None:
    lines = [
        "--no-index",
        f"--find-links {shlex.quote(str(checkout / 'wheels'))}",
        f"tiny{pin}",
    ]
    (checkout / "requirements.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of a program that prints its arguments and the version of `tiny`."""
    root = tmp_path_factory.mktemp("house") / "a checkout"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "app.py").write_text("import sys, tiny\nprint(tiny.number, *sys.argv[1:], sep='|')\n")
    write_wheel(root / "wheels", "1.0")
    write_wheel(root / "wheels", "2.0")
    require_tiny(root, "==1.0")
    return root


def start(checkout: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [checkout / "scripts/run", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(checkout), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit status, output and errors."""
    output, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output, errors


def run(checkout: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    return finish(start(checkout, *arguments, **environment))


def test_environment_is_made_once_and_follows_its_pins_and_constraints(checkout: Path) -> None:
    # Two first starts at once: one installs, the other waits for it.
    both = [start(checkout, "two words", PYTHON=sys.executable) for _ in range(2)]
    results = [finish(process) for process in both]
    assert [result[:2] for result in results] == [(0, "1.0|two words\n")] * 2, results
    errors = results[0][2] + results[1][2]
    assert errors.count("installing requirements.txt") == 1

    # Neither an index nor the wheels are there any more, and nothing is said.
    (checkout / "wheels").rename(checkout / "away")
    assert run(checkout, PYTHON=sys.executable) == (0, "1.0\n", "")
    assert run(checkout) == (0, "1.0\n", "")

    # A new pin that cannot be had refuses to start, again and again, until it can.
    require_tiny(checkout, "==2.0")
    for _ in range(2):
        status, output, errors = run(checkout)
        assert (status, output) == (2, "")
        assert "run this again" in errors.splitlines()[-1]
    (checkout / "away").rename(checkout / "wheels")
    assert run(checkout)[:2] == (0, "2.0\n")
    assert run(checkout) == (0, "2.0\n", "")

    # Without a pin it is what the constraints of this Python hold it at, and not the newest.
    require_tiny(checkout)
    (checkout / "constraints").mkdir()
    held = checkout / "constraints/python{}.{}.txt".format(*sys.version_info)
    for number in ("1.0", "2.0"):  # a new constraint is noticed
        held.write_text(f"tiny=={number}\n")
        status, output, errors = run(checkout)
        assert (status, output) == (0, f"{number}\n"), errors


def fake_python(folder: Path, name: str, version: tuple[int, int], *, has_venv: bool) -> None:
    """Write a program that answers the two questions put to an interpreter."""
    folder.mkdir(exist_ok=True)
    good = (3, 10) <= version <= (3, 12)
    path = folder / name
    path.write_text(
        "#!/bin/sh\ncase $2 in\n"
        f"*version_info*) echo {version[0]}.{version[1]}; exit {int(not good)};;\n"
        f"*ensurepip*) exit {int(not has_venv)};;\n"
        "esac\nexit 9\n"
    )
    path.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout without .venv, and `bin`, a PATH with the programs the commands use, no Python."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / "bin").mkdir()
    for name in ("bash", "cat", "dirname", "env", "flock", "mv", "rm", "sh"):
        program = shutil.which(name)
        assert program
        (tmp_path / "bin" / name).symlink_to(program)
    return tmp_path


@pytest.mark.parametrize(
    ("pythons", "asked", "message"),
    [
        ({}, "", "expected Python 3.10, 3.11 or 3.12, found none"),
        ({"python3": (3, 13)}, "", "expected Python 3.10, 3.11 or 3.12, found none"),
        ({"python3": (3, 9)}, "python3", "PYTHON: expected the name of a Python 3.10"),
        ({"python3": (3, 11)}, "nonsense", "got 'nonsense'"),
    ],
)
def test_without_a_python_that_fits_one_line_says_so(
    bare: Path, pythons: dict[str, tuple[int, int]], asked: str, message: str
) -> None:
    for name, number in pythons.items():
        fake_python(bare / "bin", name, number, has_venv=True)
    status, output, errors = run(bare, PATH=str(bare / "bin"), PYTHON=asked)
    assert (status, output, len(errors.splitlines())) == (2, "", 1), errors
    assert message in errors


def test_a_python_without_venv_is_passed_over_and_named_if_there_is_no_other(bare: Path) -> None:
    fake_python(bare / "bin", "python3", (3, 11), has_venv=False)
    status, _, errors = run(bare, PATH=str(bare / "bin"))
    assert (status, len(errors.splitlines())) == (2, 1), errors
    assert "python3 lacks the venv module" in errors
    fake_python(bare / "bin", "python3.12", (3, 12), has_venv=True)
    assert "making .venv with python3.12\n" in run(bare, PATH=str(bare / "bin"))[2]


def test_an_unknown_benchmark_is_refused_with_the_names_there_are() -> None:
    done = subprocess.run(
        [ROOT / "scripts/bench", "nonsense"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "got 'nonsense'; there are: " in done.stderr
