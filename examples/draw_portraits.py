"""Draw the sample portraits: `python examples/draw_portraits.py` rewrites the PNG files here."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":  # called by path, not as a module: the project must be importable
    sys.path.insert(0, str(HERE.parent))

from examples.cartoon.cast import CAST  # noqa: E402
from examples.cartoon.scene import draw_portrait  # noqa: E402


def main() -> None:
    """Draw every person of the cast into `--out`, by default this folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the PNG files")
    folder: Path = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder.mkdir(parents=True, exist_ok=True)
    for person in CAST:
        path = folder / f"{person.name}.png"
        Image.fromarray(draw_portrait(person)).save(path, optimize=True)
        logging.getLogger(__name__).info("%s %d bytes", path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
