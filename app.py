"""The web application: upload a portrait and a speech, watch it talk.

python app.py [--model demo|DIR] [--port 7860] [--fake]
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from liveavatar.engine.fake import FakeGroup
from liveavatar.engine.supervisor import Supervisor
from liveavatar.errors import LiveAvatarError
from liveavatar.jobs.spool import Spool
from liveavatar.jobs.store import JobStore, sqlite_url
from webui.mounting import mount_page
from webui.offers import ServedModel
from webui.server import create_app
from webui.service import Service
from webui.settings import DEMO_TIERS, ServerSettings


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(prog="app.py", allow_abbrev=False)
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=7860)
    add("--data-dir", type=Path, default=Path("data"))
    add("--fake", action="store_true", help="a test picture in place of a model")
    return parser


def serve(options: argparse.Namespace) -> None:
    """Serve until stopped."""
    spool = Spool(options.data_dir)
    store = JobStore(sqlite_url(spool.root / "jobs.db"))
    settings = ServerSettings(tiers=DEMO_TIERS)
    service = Service(store, spool, settings, ServedModel("test picture", is_demo=True))
    app = create_app(service, Supervisor(store, spool, FakeGroup), mount_page)
    uvicorn.run(app, host=options.host, port=options.port, timeout_graceful_shutdown=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        serve(build_parser().parse_args(arguments))
    except LiveAvatarError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
