"""Memory that was freed, really given back."""

import ctypes
import gc

import torch


def release_freed_memory() -> None:
    """Give freed host and GPU memory back to the system.

    The C library keeps what is freed for later, so that after encoding a long recording a process
    would stay large for the whole video. Does nothing for the host where the library cannot.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
