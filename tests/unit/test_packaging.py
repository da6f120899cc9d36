"""Dockerfile, compose.yaml and .dockerignore, as far as they can be checked without an engine."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from liveavatar.config import TransformerConfig
from tests.patience import PATIENCE_S
from tests.web.live_server import Installation, serve

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "USER",
    "VOLUME", "WORKDIR",
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments, continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    return [
        (word, rest)
        for word, _, rest in (line.partition(" ") for line in joined.split("\n"))
        if word
    ]


DOCKERFILE = instructions()
IGNORED = [
    line
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def arguments(name: str) -> list[str]:
    return [rest for word, rest in DOCKERFILE if word == name]


def reaches_the_image(name: str) -> bool:
    """Whether .dockerignore lets a path through: its last line that matches counts."""
    through = True
    parts = name.split("/")
    for line in IGNORED:
        pattern = line.removeprefix("!").removeprefix("**/")
        prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        candidates = prefixes if not line.startswith("**/") else parts
        if any(
            fnmatch.fnmatchcase(c, pattern) and c.count("/") == pattern.count("/")
            for c in candidates
        ):
            through = line.startswith("!")
    return through


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return content


def test_the_dockerfile_has_only_instructions_there_are() -> None:
    assert {word for word, _ in DOCKERFILE} <= KNOWN
    for word in ("ENTRYPOINT", "CMD", "VOLUME"):
        for rest in arguments(word):
            assert all(isinstance(part, str) for part in json.loads(rest)), rest


def test_every_stage_that_is_built_on_is_named() -> None:
    stages = dict(
        re.match(r"(\S+) AS (\w+)", rest).groups()[::-1] for rest in arguments("FROM")[:-1]
    )  # type: ignore[union-attr]
    assert set(stages) == {"gpu", "cpu"}
    assert "cuda" in stages["gpu"]
    assert "cuda" not in stages["cpu"]
    assert arguments("FROM")[-1] == "${BASE}"
    assert arguments("ARG")[0] == "BASE=gpu"
    bases = {
        name: service["build"]["args"]["BASE"] for name, service in compose()["services"].items()
    }
    assert bases == {"gpu": "gpu", "cpu": "cpu"}


def test_every_source_that_is_copied_is_there_and_reaches_the_image() -> None:
    for rest in arguments("COPY"):
        *sources, _ = [word for word in rest.split() if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source == "." or reaches_the_image(source), source


def test_what_the_application_needs_reaches_the_image_and_nothing_else() -> None:
    inside = ["app.py", "webui/server.py", "static/css", "liveavatar/doctor/__main__.py"]
    inside += [
        "examples/maya.png",
        "requirements.txt",
        "scripts/healthcheck.py",
        "ckpt/demo/config.json",
    ]
    assert [name for name in inside if not reaches_the_image(name)] == []
    outside = [".git/config", "tests/conftest.py", "docs/architecture.md", "ckpt/Wan2.2-S2V-14B/x"]
    outside += [
        ".venv/bin/python",
        "data/jobs.db",
        "webui/__pycache__/a.pyc",
        "webui/static/css",
        ".env",
    ]
    assert [name for name in outside if reaches_the_image(name)] == []


def test_every_folder_of_the_product_is_let_through() -> None:
    """A new package that app.py or the command imports must not be forgotten here."""
    imported = set()
    for source in [
        ROOT / "app.py",
        *(ROOT / "inference").glob("*.py"),
        *(ROOT / "webui").glob("*.py"),
    ]:
        imported |= set(re.findall(r"^\s*(?:from|import) (\w+)", source.read_text(), re.MULTILINE))
    ours = {name for name in imported if (ROOT / name).is_dir()}
    assert {"liveavatar", "webui"} <= ours
    assert [name for name in ours if not reaches_the_image(name)] == []


def test_the_container_runs_as_nobody_special_and_keeps_its_data_outside() -> None:
    assert arguments("USER") == ["avatar"]
    words = [word for word, _ in DOCKERFILE]
    assert words.index("USER") < words.index("COPY")
    assert json.loads(arguments("VOLUME")[0]) == ["/data", "/checkpoints"]
    for service in compose()["services"].values():
        assert {volume.split(":")[1] for volume in service["volumes"]} == {"/data", "/checkpoints"}
        assert service["ports"] == ["127.0.0.1:7860:7860"]


def test_the_application_knows_the_options_of_the_container() -> None:
    help_text = subprocess.run(
        [sys.executable, "app.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    ).stdout
    entry = json.loads(arguments("ENTRYPOINT")[0])
    assert entry[:4] == ["tini", "--", "python", "app.py"]
    words = entry[4:] + json.loads(arguments("CMD")[0])
    for service in compose()["services"].values():
        words += service["command"]
    for word in {word for word in words if word.startswith("--")}:
        assert word in help_text, word


def test_the_python_of_the_base_is_one_that_is_supported() -> None:
    """Ubuntu 22.04 has Python 3.10; venv.sh refuses others."""
    assert all("22.04" in base for base in arguments("FROM")[:-1])
    assert 'requires-python = ">=3.10,' in (ROOT / "pyproject.toml").read_text()
    assert TransformerConfig()  # the code that is copied can be imported here


def healthcheck(url: str) -> int:
    (rest,) = arguments("HEALTHCHECK")
    command = json.loads(rest.partition("CMD ")[2])
    assert command[0] == "python"
    done = subprocess.run(
        [sys.executable, *command[1:], url], cwd=ROOT, timeout=PATIENCE_S, env=os.environ
    )
    return done.returncode


def test_the_health_check_of_the_container(tmp_path: Path) -> None:
    with serve(Installation(tmp_path)) as base:
        assert healthcheck(f"{base}/healthz") == 0
        assert healthcheck(f"{base}/nowhere") == 1
    assert healthcheck(f"{base}/healthz") == 1


@pytest.mark.parametrize("service", ["gpu", "cpu"])
def test_the_services_ask_for_what_they_need(service: str) -> None:
    described = compose()["services"][service]
    reserved = described.get("deploy", {}).get("resources", {}).get("reservations", {})
    assert bool(reserved.get("devices")) == (service == "gpu")
    assert described["environment"]["LIVEAVATAR_AUTH"].startswith("${LIVEAVATAR_AUTH:?")
    assert described["profiles"] == [service]
