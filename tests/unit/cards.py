"""A driver with the functions of pynvml for machines without a card, and cards as it tells them."""

# ruff: noqa: ARG002 - the signatures are those of pynvml

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from liveavatar.doctor.cards import Cards, read_cards

GIB = 2**30


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


@dataclass
class FakeDriver:
    """The part of pynvml that is asked here; every field can be broken."""

    count: int = 4
    name: str = "NVIDIA GeForce RTX 4090"
    driver: str = "535.161.07"
    cuda: int = 12020
    free: int = 23 * GIB
    temperature: int = 41
    busy: int = 0
    width: int = 16
    reasons: int = 0
    ecc: int = 0
    rows: tuple[int, int, int, int] = (0, 0, 0, 0)
    peers: bool = True
    names: list[str] = field(default_factory=list)
    broken: int | None = None
    mute: bool = False
    NVMLError = NVMLError
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_TEMPERATURE_GPU = 0
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    NVML_P2P_CAPS_INDEX_READ = 0
    NVML_P2P_STATUS_OK = 0

    def nvmlInit(self) -> None:
        if self.broken is not None:
            raise NVMLError(self.broken)

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        number = int(uuid.removeprefix("GPU-"))
        if number >= self.count:
            raise NVMLError(6)  # not found
        return number

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return self.driver.encode()

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.names[handle] if self.names else self.name

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=24 * GIB, free=self.free)

    def nvmlDeviceGetP2PStatus(self, one: int, other: int, what: int) -> int:
        return 0 if self.peers else 1

    def _told(self, value: Any) -> Any:
        if self.mute:
            raise NVMLError(3)  # not supported
        return value

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> Any:
        return self._told(self.temperature)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._told(SimpleNamespace(gpu=self.busy, memory=0))

    def nvmlDeviceGetTemperatureThreshold(self, handle: int, which: int) -> Any:
        return self._told(90)

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: int) -> Any:
        return self._told(1)  # idle

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: int) -> Any:
        return self._told(4)

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: int) -> Any:
        return self._told(16 if handle == 0 else self.width)

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: int) -> Any:
        return self._told(16)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> Any:
        return self._told(self.reasons)

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, counter: int) -> Any:
        return self._told(self.ecc)

    def nvmlDeviceGetRemappedRows(self, handle: int) -> Any:
        return self._told(self.rows)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        return self._told([object()])


def cards(**broken: Any) -> Cards:
    """What the doctor reads of a machine with four cards, unless something is broken."""
    found = read_cards(FakeDriver(**broken))
    assert found is not None
    return found
