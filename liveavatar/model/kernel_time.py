"""How long a kernel takes, by the clock of the GPU that runs it."""

from collections.abc import Callable

import torch

_CALLS = 4
_ROUNDS = 3


def milliseconds(run: Callable[[], object]) -> float:
    """Milliseconds of a call, the best of a few rounds, each of several calls in a row.

    In a row, since the host is then ahead of the GPU, as it is when a forward is replayed.
    """
    run()
    best = float("inf")
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(_CALLS):
            run()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / _CALLS)
    return best
