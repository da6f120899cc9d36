"""What all ranks need, imported once in the process that they are forked from.

Importing this must leave that process fit for forking: no thread computes, no GPU is opened. The
imports cost seconds, and each rank would pay them again; forked, it begins in a tenth of one and
shares their memory.
"""

import atexit
import os
import shutil
import signal
from multiprocessing import forkserver
from pathlib import Path

# Threads of a rank that waits must leave the cores to the ranks that work, instead of spinning.
# Read by the thread library when torch brings it in.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A library that asks whether there is a GPU must not open it: a fork could not use it any more.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
# A service manager sends SIGTERM to every process; the ranks may still have jobs to finish, and
# this one ends when its owner does.
signal.signal(signal.SIGTERM, signal.SIG_IGN)

from liveavatar.engine import media_rank, preparation, warm_up, worker  # noqa: E402


def _remove_own_folder() -> None:
    """Remove the folder of this process's socket; an owner that was killed could not."""
    address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    if isinstance(address, str) and (folder := Path(address).parent).name.startswith("pymp-"):
        shutil.rmtree(folder, ignore_errors=True)


atexit.register(_remove_own_folder)

__all__ = ["media_rank", "preparation", "warm_up", "worker"]
