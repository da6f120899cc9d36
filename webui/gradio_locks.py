"""Two patches of Gradio 4.25.0 at its choke points, for what a gate cannot see.

They go when Gradio is 5 or later: there, files and addresses from outside are checked.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gradio
from gradio import processing_utils, route_utils

from liveavatar.errors import ConfigError, MediaError

_VERSION = "4.25.0"


def lock_gradio(folder: Path) -> None:
    """Keep Gradio's files in a folder of our own, emptied first, and from fetching addresses.

    Args:
        folder: where uploads go; made anew.

    Raises:
        ConfigError: another release of Gradio is installed than these patches were made for.
    """
    if gradio.__version__ != _VERSION:
        raise ConfigError(f"gradio: expected {_VERSION}, got {gradio.__version__}; install the pin")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    # An upload that is broken off stays where this puts it, and goes at the next start.
    route_utils.NamedTemporaryFile = functools.partial(tempfile.NamedTemporaryFile, dir=folder)
    processing_utils.save_url_to_cache = _refuse_address


def _refuse_address(url: str, cache_dir: str) -> Any:
    raise MediaError(f"an address is given where a file is expected: {url[:60]} ({cache_dir})")
