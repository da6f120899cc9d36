"""The two halves of the autoencoder take turns, in the same memory.

Encoding a portrait and decoding a block work in gigabytes each, for different jobs and in different
threads. A GPU's allocator keeps memory apart by stream, so both are given the stream that decodes:
what one has worked in is there for the other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


class AutoencoderTurn:
    """Taken by whoever starts work of the autoencoder, for as long as that takes to start.

    Args:
        device: of the autoencoder.
    """

    def __init__(self, device: torch.device) -> None:
        self._lock = threading.Lock()
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.default_stream(device) if on_gpu else None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait until nobody has it, and have it inside; on a GPU with the stream that decodes."""
        stream = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with self._lock, stream:
            yield
