"""Commands and messages that the documents quote are those of the code."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from liveavatar.doctor.network import CURES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["docs/operating.md", "docs/troubleshooting.md", "CONTRIBUTING.md", "CHANGELOG.md"]
DOCUMENTS += ["README.md", "README.zh-CN.md", "docs/web.md", "docs/scaling.md", "docs/api.md"]
DOCUMENTS += ["docs/architecture.md", "docs/benchmarks.md", "docs/model-directory.md"]
DOCUMENTS += ["docs/security.md"]
# Programs of the system, which the reader has.
OUTSIDE = {"curl", "docker", "export", "git", "nvidia-smi", "pip", "ray"}
# Programs that import torch, so that the help of each would take seconds.
READ_AS_SOURCE = ("benchmarks.", "training.", "liveavatar.random_checkpoint")
PROGRAMS = {"scripts/run": "app.py", "scripts/generate": "inference/inference_tpp.py"}


def shell_lines(text: str) -> Iterator[str]:
    """Commands in the blocks that are marked as shell or indented, with continued lines joined."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield line.strip()
    joined = text.replace("\\\n", " ")
    yield from re.findall(
        r"^ {4}((?:[A-Z]+=\S+ )*(?:python -m|\./|scripts/).+)$", joined, re.MULTILINE
    )


def commands() -> list[tuple[str, str]]:
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        inline = re.findall(r"`((?:python -m|\./|scripts/)[^`<]+)`", text)
        found += [(name, re.sub(r"[][]", "", line)) for line in (*shell_lines(text), *inline)]
    return list(dict.fromkeys(found))


@cache
def help_of(program: str) -> str:
    """What a program prints for --help; a name with dots is a module."""
    command = [program] if "/" in program or program.endswith(".py") else ["-m", program]
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, f"{program}: {done.stderr}"
    return done.stdout


def path_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


@cache
def source_of(module: str) -> str:
    """The text of a program of ours and of what it imports from its own folder.

    An option that `BooleanOptionalAction` switches off stands there as the one that it switches on.
    """
    text = path_of(module).read_text(encoding="utf-8")
    imported = re.findall(rf"^from ({module.partition('.')[0]}\.\w+) import", text, re.MULTILINE)
    return text + "".join(source_of(name) for name in imported if path_of(name).is_file())


def known_options(words: list[str]) -> str:
    """Text in which the options of a command must be found; fails for a command there is not."""
    first = words[0].removeprefix(".venv/bin/").removeprefix("./")
    if Path(first).name == "python":
        program = words[2] if words[1] == "-m" else words[1]
        from_source = program.startswith(READ_AS_SOURCE)
        return source_of(program) if from_source else help_of(program)
    assert os.access(ROOT / first, os.X_OK), first
    if first in PROGRAMS:
        return help_of(PROGRAMS[first])
    text = (ROOT / first).read_text(encoding="utf-8")
    return text + (help_of("inference/inference_tpp.py") if "run_4gpu" in text else "")


@pytest.mark.parametrize(("document", "line"), commands())
def test_a_command_of_the_documents_is_there_and_knows_its_options(
    document: str, line: str
) -> None:
    words = shlex.split(line, comments=True)
    variables = []
    while re.match(r"[A-Z_0-9]+=", words[0]):
        variables.append(words.pop(0).partition("=")[0])
    if words[0] in OUTSIDE or words[1:3] == ["-m", "pytest"]:
        return
    text = known_options(words)
    for option in [word for word in words[1:] if word.startswith("--")]:
        switched = "BooleanOptionalAction" in text and option.replace("--no-", "--", 1) in text
        assert option in text or switched, f"{document}: {option}"
    for variable in variables:
        assert f"{variable}=" in text, f"{document}: {variable}"


@cache
def literals() -> str:
    """All text in the code that is not computed, docstrings left out."""
    parts = []
    for folder in ("liveavatar", "inference", "webui"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            said = [node for node in nodes if id(node) not in docstrings]
            constants = [node.value for node in said if isinstance(node, ast.Constant)]
            parts += [constant for constant in constants if isinstance(constant, str)]
    return "\n".join(parts)


def quoted_messages() -> list[str]:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    ours, _, theirs = text.partition("## What NCCL and torch say")
    assert theirs
    return re.findall(r"^\| `([^`]+)` \|", ours, re.MULTILINE)


@pytest.mark.parametrize("message", quoted_messages())
def test_a_message_of_the_documents_is_one_that_the_code_says(message: str) -> None:
    assert message in literals()


def test_messages_of_others_are_those_the_doctor_knows() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    theirs = re.findall(r"^\| `([^`]+)` \|", text.partition("## What NCCL")[2], re.MULTILINE)
    assert len(theirs) >= 5
    for message in theirs:
        assert any(re.search(pattern, message, re.IGNORECASE) for pattern, _ in CURES), message


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert ((ROOT / document).parent / target).exists(), target
