"""The walls between the parts: who may import what, for reading eyes and for the running process.

A new walled folder needs a line in WALLS and a `ruff.toml`; a new leaf a line in LEAVES.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
WEB = ("gradio", "fastapi")
WALLS = {
    "liveavatar": (*WEB, "training"),
    "liveavatar/cluster": (*WEB, "torch"),
    "liveavatar/engine": (*WEB, "ray"),
    "liveavatar/jobs": (*WEB, "torch", "ray"),
    "liveavatar/media": (*WEB, "torch", "ray"),
    "liveavatar/model": (*WEB, "torch.distributed", "ray"),
    "liveavatar/parallel": (*WEB, "ray"),
    "liveavatar/plan": (*WEB, "torch", "ray"),
    "webui": ("torch", "ray", "liveavatar.engine", "liveavatar.cluster"),
}
ENGINE_WITHOUT_TORCH = [
    "fake",
    "group",
    "group_state",
    "held_jobs",
    "identity",
    "messages",
    "mirrored_files",
    "job_files",
    "owner",
    "processes",
    "running_job",
    "sender",
    "supervisor",
]
LEAVES = ["config", "errors", "request", "timeline"]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


WITHOUT_TORCH = [f"liveavatar.{leaf}" for leaf in LEAVES] + sorted(
    module_name(path)
    for folder in ("jobs", "media", "plan")
    for path in (ROOT / "liveavatar" / folder).rglob("*.py")
    if path.stem != "__main__"
)
WITHOUT_TORCH += [f"liveavatar.engine.{name}" for name in ENGINE_WITHOUT_TORCH]


def imported_names(source: str) -> Iterator[str]:
    """Dotted names that a source imports or reads: `torch.nn` for `from torch import nn`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def breaches(source: str, banned: tuple[str, ...]) -> list[str]:
    return [
        name
        for name in imported_names(source)
        if any(name == wall or name.startswith(f"{wall}.") for wall in banned)
    ]


def run_fresh(code: str) -> list[str]:
    """Words that a program prints in a process of its own."""
    command = [sys.executable, "-c", f"import sys\n{code}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed",
        "import torch.distributed.nn as dist",
        "from torch import distributed",
        "from torch.distributed import all_reduce",
        "import torch\ntorch.distributed.barrier()",
        "def late():\n    import torch.distributed as dist",
    ],
)
def test_every_way_to_reach_a_module_is_seen(source: str) -> None:
    assert breaches(source, ("torch.distributed",))
    assert not breaches(source, ("gradio", "distributed", "torch.dist"))


@pytest.mark.parametrize("folder", WALLS)
def test_no_file_names_what_its_folder_bans(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {
        str(path.relative_to(ROOT)): names
        for path in files
        if (names := breaches(path.read_text(encoding="utf-8"), WALLS[folder]))
    }
    assert not found


@pytest.mark.parametrize(
    ("folder", "banned"), [(folder, name) for folder, names in WALLS.items() for name in names]
)
def test_ruff_refuses_what_a_folder_bans(folder: str, banned: str) -> None:
    file = f"{folder}/module.py"
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"]
    done = subprocess.run(
        [*command, "--select", "TID251", "--stdin-filename", file, "-"],
        input=f"import {banned}\n",
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"`{banned}` is banned" in done.stdout


def test_importing_the_package_loads_nothing_else() -> None:
    code = "before = set(sys.modules)\nimport liveavatar\nprint(*set(sys.modules) - before)"
    assert run_fresh(code) == ["liveavatar"]


def test_importing_modules_without_tensors_loads_no_torch() -> None:
    """One after the other in one process: the first that breaks the rule is named."""
    heavy = {"torch", "transformers", "fsspec", *WEB}
    code = f"""
import importlib
for module in {WITHOUT_TORCH}:
    importlib.import_module(module)
    found = {heavy} & {{name.split('.')[0] for name in sys.modules}}
    assert not found, (module, found)
print(*sys.modules)
"""
    assert set(WITHOUT_TORCH) <= set(run_fresh(code))


def test_the_web_application_loads_neither_torch_nor_ray() -> None:
    files = [ROOT / "app.py", *sorted((ROOT / "webui").rglob("*.py"))]
    code = f"import {', '.join(map(module_name, files))}\nprint(*sys.modules)"
    modules = run_fresh(code)
    assert "gradio" in modules
    assert not {"torch", "transformers", "ray", "liveavatar.cluster"} & set(modules)


def test_the_cluster_and_its_groups_load_no_torch() -> None:
    files = (ROOT / "liveavatar" / "cluster").glob("*.py")
    names = ", ".join(map(module_name, files))
    modules = run_fresh(f"import liveavatar.backend, {names}\nprint(*sys.modules)")
    assert "ray" in modules
    assert not {"torch", "transformers", *WEB} & set(modules)


def test_importing_the_whole_engine_loads_no_web_framework() -> None:
    files = (ROOT / "liveavatar").rglob("*.py")
    modules = sorted(module_name(path) for path in files if path.stem != "__main__")
    code = f"import {', '.join(modules)}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    roots = run_fresh(code)
    assert "torch" in roots
    assert not set(WEB) & set(roots)
