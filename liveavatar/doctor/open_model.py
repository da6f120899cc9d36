"""Open a checkpoint as the engine does, read no weights, and say what it is: a program.

python -m liveavatar.doctor.open_model DIR [ADAPTER]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from liveavatar.errors import LiveAvatarError
from liveavatar.model.checkpoint import Checkpoint, open_checkpoint
from liveavatar.model.lora import open_adapter


def open_model(directory: Path, adapter: Path | None) -> dict[str, Any]:
    """Open both; problems are the reader's own lines, empty when there are none."""
    try:
        checkpoint = open_checkpoint(directory)
    except LiveAvatarError as error:
        return {"problem": str(error)}
    return {
        "problem": "",
        "layers": checkpoint.config.num_layers,
        "dim": checkpoint.config.dim,
        "tensors": len(checkpoint.transformer_files),
        "adapter_problem": "" if adapter is None else _adapter_problem(checkpoint, adapter),
    }


def _adapter_problem(checkpoint: Checkpoint, adapter: Path) -> str:
    try:
        open_adapter(adapter, checkpoint.config)
    except LiveAvatarError as error:
        return str(error)
    return ""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    directory, *rest = (Path(argument) for argument in arguments)
    sys.stdout.write(json.dumps(open_model(directory, rest[0] if rest else None)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
