"""`--batch` over a group that draws, as a process that can be killed: FPS OPTIONS..."""

from __future__ import annotations

import sys

from inference.batch import run_batch
from inference.options import build_parser
from liveavatar.engine.fake import FakeGroup, Pace

if __name__ == "__main__":
    pace = Pace(load_s=0.01, prepare_s=0.01, fps=float(sys.argv[1]))
    options = build_parser().parse_args(sys.argv[2:])
    sys.exit(run_batch(options, lambda _spec: FakeGroup(pace)))
