"""Strengthen what speech does in a trained demo: `python -m training.amplify_speech FOLDER FACTOR`.

A network in doubt draws every mouth too narrow. What each injection of speech adds is its output
matrix times what it attended to, so that mouths open wider by a factor on that matrix, at the same
moments: `benchmarks.quality` tells which factor brings the amplitude to that of drawings.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

_OUTPUT = re.compile(r"audio_injector\.injector\.\d+\.o\.(weight|bias)")


def amplify(folder: Path, factor: float) -> int:
    """Multiply the output matrices of a checkpoint's speech injections, in place; their number."""
    count = 0
    for path in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        tensors = load_file(path)
        chosen = [name for name in tensors if _OUTPUT.fullmatch(name)]
        tensors |= {name: (tensors[name].float() * factor).to(tensors[name]) for name in chosen}
        save_file(tensors, path)
        count += len(chosen)
    return count


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="checkpoint")
    parser.add_argument("factor", type=float)
    options = parser.parse_args()
    count = amplify(options.folder, options.factor)
    sys.stdout.write(f"{options.folder}: {count} tensors of speech injections x {options.factor}\n")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
