"""Two patches of Gradio 4.25.0 at its choke points, for what a gate cannot see.

They go when Gradio is 5 or later: there, files and addresses from outside are checked.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import gradio
from gradio import processing_utils
from gradio.blocks import Block

from liveavatar.errors import ConfigError, MediaError

_VERSION = "4.25.0"

# Gradio's classes belong to the whole process, and so does what is locked in them.
_MOVE = Block.move_resource_to_block_cache
_KNOWN: dict[str, tuple[Path, ...]] = {}


def lock_gradio(folder: Path, sources: Sequence[Path]) -> None:
    """Keep Gradio's files in a folder of our own, emptied first, and from fetching anything else.

    Args:
        folder: absolute, where uploads go; made anew.
        sources: folders out of which a function of ours may give a file to the page.

    Raises:
        ConfigError: another release of Gradio is installed than these patches were made for.
    """
    if gradio.__version__ != _VERSION:
        raise ConfigError(f"gradio: expected {_VERSION}, got {gradio.__version__}; install the pin")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    processing_utils.save_url_to_cache = _refuse_address
    Block.move_resource_to_block_cache = _move_known
    _KNOWN[str(folder)] = tuple(root.resolve() for root in (folder, *sources))


def _move_known(block: Block, name: str | Path | None) -> str | None:
    """Take a file only out of folders that are known, wherever links lead."""
    if name is not None:
        path = Path(name).resolve()
        if not any(path.is_relative_to(root) for root in _KNOWN[block.GRADIO_CACHE]):
            raise MediaError("a file is named that was not uploaded here")
    taken: str | None = _MOVE(block, name)
    return taken


def _refuse_address(_url: str, cache_dir: str) -> str:  # noqa: ARG001
    raise MediaError("an address is given where a file is expected")
