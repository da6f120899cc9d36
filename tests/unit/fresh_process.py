"""How much memory a piece of code takes, measured in a process of its own."""

import subprocess
import sys

from tests.patience import PATIENCE_S

_PROGRAM = """
def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

{before}
start = peak_kib()
{measured}
print(peak_kib() - start)
"""


def memory_growth_mib(before: str, measured: str) -> float:
    """Run `before`, then `measured`, in a new interpreter; return how much the peak grew, MiB.

    The kernel's mark for the address space is read, as `ru_maxrss` begins with that of the parent.
    """
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(before=before, measured=measured)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return int(result.stdout) / 1024
