"""Memory of this process: how much it is, and what was freed really given back."""

import ctypes
import gc
import re
from pathlib import Path

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


def resident_bytes() -> tuple[int, int]:
    """Memory of this process that is in RAM, now and at most; Linux."""
    status = Path("/proc/self/status").read_text()
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE))
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024
