"""What a measurement was taken on; every benchmark reports it."""

import subprocess
from pathlib import Path

import torch


def describe_environment(device: torch.device) -> dict[str, str]:
    """Commit, device name, torch and CUDA versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = torch.backends.cpu.get_cpu_capability() + " CPU"
    return {
        "commit": _commit(),
        "device": name,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
    }


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
