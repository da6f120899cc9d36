"""What a rank says of itself once a second, from a thread of its own: how it is, and that it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from liveavatar.engine.gpu_sensors import GpuSensors
from liveavatar.engine.messages import GroupSpec, Loading, RankStatus
from liveavatar.host_memory import resident_bytes
from liveavatar.parallel.activity import Activity, Spent

EVERY_S = 1.0


class Heartbeat:
    """Reports `Loading` while weights are read, and `RankStatus` all the time.

    Args:
        rank: of this process.
        spec: of its group.
        activity: what the rank does.
        report: tells the owner; must not block for long.
    """

    def __init__(
        self, rank: int, spec: GroupSpec, activity: Activity, report: Callable[[object], None]
    ) -> None:
        self._rank = rank
        self._spec = spec
        self._activity = activity
        self._report = report
        self._device = torch.device(spec.devices[rank])
        self._sensors = _sensors(self._device)
        self._held_before = self._memory()[0]
        self._total_bytes = 0
        self._spent = Spent()
        self._told = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def loading(self) -> None:
        """From now on the rank takes in weights."""
        self._held_before = self._memory()[0]
        self._total_bytes = self._spec.weight_bytes[self._rank] if self._spec.weight_bytes else 0

    def loaded(self) -> None:
        """All weights are there."""
        if total := self._total_bytes:
            self._report(Loading(self._rank, total, total))
        self._total_bytes = 0

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            if total := self._total_bytes:
                held = max(0, self._memory()[0] - self._held_before)
                self._report(Loading(self._rank, min(held, total), total))
            self._report(self._status())
            pause.wait(EVERY_S)

    def _status(self) -> RankStatus:
        now, peak = self._memory()
        card_used, card = _card(self._device)
        spent, before = self._activity.spent(), self._spent
        clock = time.monotonic()
        elapsed_s = max(1e-9, clock - self._told)
        self._spent, self._told = spent, clock
        place = self._spec.mesh.place(self._rank)
        layers = None if place is None else self._spec.stages[place.stage]
        temperature_c, gpu_busy = self._sensors.read() if self._sensors else (None, None)
        return RankStatus(
            rank=self._rank,
            role="media" if place is None else f"stage {place.stage}",
            device=str(self._device),
            layers=None if layers is None else (layers.start, layers.stop - 1),
            memory_bytes=now,
            peak_bytes=peak,
            memory_limit_bytes=self._spec.memory_limit(self._rank),
            busy_share=min(1.0, (spent.computing - before.computing) / elapsed_s),
            item=self._activity.item,
            waiting_share=min(1.0, (spent.waiting - before.waiting) / elapsed_s),
            sending_share=min(1.0, (spent.sending - before.sending) / elapsed_s),
            peak_used_bytes=_peak_used(self._device),
            temperature_c=temperature_c,
            gpu_busy_share=gpu_busy,
            card_used_bytes=card_used,
            card_bytes=card,
        )

    def _memory(self) -> tuple[int, int]:
        """Bytes held now and at most: of the GPU by torch, or resident on the CPU."""
        if self._device.type == "cuda":
            return (
                torch.cuda.memory_reserved(self._device),
                torch.cuda.max_memory_reserved(self._device),
            )
        return resident_bytes()


def _sensors(device: torch.device) -> GpuSensors | None:
    if device.type != "cuda":
        return None
    return GpuSensors(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def _card(device: torch.device) -> tuple[int, int]:
    """Bytes taken of a GPU, by all programs together, and of all of it."""
    if device.type != "cuda":
        return 0, 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


def _peak_used(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
