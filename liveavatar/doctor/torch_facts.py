"""What torch says of itself: a program, so that the doctor need not import torch.

python -m liveavatar.doctor.torch_facts
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any


def torch_facts() -> dict[str, Any]:
    """Versions of torch, its CUDA and its NCCL, and whether CUDA works; `problem` says why not."""
    torch: Any = importlib.import_module("torch")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    problem = "" if available or not heard else " ".join(str(heard[-1].message).split())
    has_nccl = available and torch.distributed.is_nccl_available()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
        "available": available,
        "problem": problem,
        "devices": torch.cuda.device_count() if available else 0,
        "unsupported": _unsupported(torch) if available else [],
    }


def _unsupported(torch: Any) -> list[str]:
    """Cards for which this build of torch has no code."""
    built = [name.partition("_")[2] for name in torch.cuda.get_arch_list()]
    oldest = min((int(number) for number in built if number.isdecimal()), default=0)
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if 10 * major + minor < oldest:
            names.append(torch.cuda.get_device_name(index))
    return names


def main(_arguments: Sequence[str] = ()) -> int:
    """Run the command; returns its exit status."""
    sys.stdout.write(json.dumps(torch_facts()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
