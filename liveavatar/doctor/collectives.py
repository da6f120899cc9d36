"""Ranks that really send tensors around: a program, run by the doctor with a deadline.

    python -m liveavatar.doctor.collectives --ranks 4 --backend nccl

Each rank sends to the next one and receives from the one before, then all of them add up a tensor;
every value is checked. Prints one JSON object with the bandwidths; a rank that fails says why on
stderr, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

GB = 1e9
FLOATS = {"nccl": 2**24, "gloo": 2**19}
"""float32 values per message: 64 MiB between cards, 2 MiB between processes."""
REPEATS = 5


def exchange(rank: int, ranks: int, backend: str) -> dict[str, float]:
    """Run the exchanges of one rank in a process group that is there.

    Returns:
        GB/s that one rank sends while it receives as much, and at which all ranks add up a tensor
        (its bytes over the time).

    Raises:
        RuntimeError: a value arrived that was not sent, or a transfer failed.
    """
    import torch
    from torch import distributed as dist

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    values = torch.full((FLOATS[backend],), float(rank), device=device)
    received = torch.empty_like(values)
    before, after = (rank - 1) % ranks, (rank + 1) % ranks

    def pass_on() -> None:
        pair = [dist.P2POp(dist.isend, values, after), dist.P2POp(dist.irecv, received, before)]
        for work in dist.batch_isend_irecv(pair):
            work.wait()

    total = torch.empty_like(values)

    def add_up() -> None:
        total.copy_(values)
        dist.all_reduce(total)

    sent = _rate(pass_on, values.nbytes, device)
    added = _rate(add_up, values.nbytes, device)
    if not bool((received == before).all()):
        raise RuntimeError(f"rank {rank} received other values than rank {before} sent")
    if not bool((total == ranks * (ranks - 1) / 2).all()):
        raise RuntimeError(f"rank {rank} got a wrong sum over {ranks} ranks")
    return {"send_gb_s": sent, "all_reduce_gb_s": added}


def _rate(transfer: Callable[[], None], num_bytes: int, device: Any) -> float:
    """GB/s of `transfer`, which is run once before, as the first one connects."""
    import torch

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    transfer()
    finish()
    started = time.perf_counter()
    for _ in range(REPEATS):
        transfer()
    finish()
    return REPEATS * num_bytes / (time.perf_counter() - started) / GB


def _run_rank(rank: int, ranks: int, options: argparse.Namespace, pipe: Any) -> None:
    try:
        import torch
        from torch import distributed as dist

        torch.set_num_threads(1)
        if options.backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            options.backend,
            init_method=Path(options.meeting_point).as_uri(),
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=options.deadline_s),
        )
        pipe.send(exchange(rank, ranks, options.backend))
        dist.destroy_process_group()
    except Exception:  # noqa: BLE001  border of the process: whatever it is, the reader gets it
        sys.stderr.write(f"rank {rank}: {traceback.format_exc()}\n")
        sys.stderr.flush()
        os._exit(1)


def run(options: argparse.Namespace) -> int:
    """Start the ranks, wait for them, print what the first one measured; the exit status."""
    # Imported once, before the ranks are forked; CUDA is not touched here, so that they may.
    import torch.distributed  # noqa: F401

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    started = [
        context.Process(target=_run_rank, args=(rank, options.ranks, options, theirs), daemon=True)
        for rank in range(options.ranks)
    ]
    for process in started:
        process.start()
    running = list(started)
    while running:
        wait([process.sentinel for process in running])
        if any(process.exitcode for process in running):
            return 1  # the others, which wait for it, are daemons and end with this process
        running = [process for process in running if process.is_alive()]
    measured = [ours.recv() for _ in started]
    slowest = {key: min(rank[key] for rank in measured) for key in measured[0]}
    sys.stdout.write(json.dumps(slowest) + "\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m liveavatar.doctor.collectives")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--backend", choices=sorted(FLOATS), default="gloo")
    parser.add_argument("--deadline_s", type=float, default=20.0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="liveavatar-doctor-") as folder:
        options.meeting_point = str(Path(folder) / "ranks")
        return run(options)


if __name__ == "__main__":
    sys.exit(main())
