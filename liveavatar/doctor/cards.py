"""The NVIDIA cards of this machine as the driver describes them, without torch and without CUDA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

_Value = TypeVar("_Value")

# Bits of the clock event reasons that mean a card is held back by heat or power supply.
_HELD_BACK = {
    0x08: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}


class DriverError(Exception):
    """The driver is there and does not answer; says why, in NVML's words."""


@dataclass(frozen=True)
class Card:
    """One card. None where the driver does not tell.

    Attributes:
        index: place in nvidia-smi's order, which is that of the bus.
        name: product name.
        total_bytes, free_bytes: of its memory.
        temperature_c, slowdown_c: now, and where it begins to protect itself; degrees Celsius.
        link: PCIe generation and width (lanes) now; idle cards lower the generation.
        widest_link: the most that card and slot can do.
        held_back: why its clocks are lowered by heat or power supply, if they are.
        uncorrected_errors: memory errors since the driver was loaded.
        rows_failed: memory that is worn out and could not be replaced.
        num_programs: programs that compute on it now.
    """

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    temperature_c: int | None
    slowdown_c: int | None
    link: tuple[int, int] | None
    widest_link: tuple[int, int] | None
    held_back: tuple[str, ...]
    uncorrected_errors: int | None
    rows_failed: bool
    num_programs: int


@dataclass(frozen=True)
class Cards:
    """All cards.

    Attributes:
        cards: in nvidia-smi's order.
        driver: version, such as "535.104.05".
        cuda: the newest CUDA the driver serves, (major, minor).
        strangers: pairs of indices that cannot read each other's memory.
    """

    cards: tuple[Card, ...]
    driver: str
    cuda: tuple[int, int]
    strangers: tuple[tuple[int, int], ...]


def read_cards(nvml: Any = None) -> Cards | None:
    """Ask the driver; None where there is none.

    Args:
        nvml: a module with the functions of `pynvml`, which is taken by default.

    Raises:
        DriverError: there is a driver, but it does not work.
        ImportError: `pynvml` is not installed.
    """
    if nvml is None:
        import pynvml  # here, so that the doctor runs where packages are missing

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        absent = (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED)
        if error.value in absent:
            return None
        raise DriverError(str(error)) from None
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        version = nvml.nvmlSystemGetCudaDriverVersion_v2()
        return Cards(
            cards=tuple(_card(nvml, index, handle) for index, handle in enumerate(handles)),
            driver=_text(nvml.nvmlSystemGetDriverVersion()),
            cuda=(version // 1000, version % 1000 // 10),
            strangers=_strangers(nvml, handles),
        )
    except nvml.NVMLError as error:
        raise DriverError(str(error)) from None
    finally:
        nvml.nvmlShutdown()


def _card(nvml: Any, index: int, handle: Any) -> Card:
    def told(call: Callable[..., _Value], *arguments: object) -> _Value | None:
        try:
            return call(handle, *arguments)
        except nvml.NVMLError:  # older and smaller cards do not tell everything
            return None

    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    reasons = told(nvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
    rows = told(nvml.nvmlDeviceGetRemappedRows)  # corrected, uncorrected, pending, failed
    return Card(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total_bytes=memory.total,
        free_bytes=memory.free,
        temperature_c=told(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        slowdown_c=told(
            nvml.nvmlDeviceGetTemperatureThreshold, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        ),
        link=_both(
            told(nvml.nvmlDeviceGetCurrPcieLinkGeneration),
            told(nvml.nvmlDeviceGetCurrPcieLinkWidth),
        ),
        widest_link=_both(
            told(nvml.nvmlDeviceGetMaxPcieLinkGeneration),
            told(nvml.nvmlDeviceGetMaxPcieLinkWidth),
        ),
        held_back=tuple(reason for bit, reason in _HELD_BACK.items() if reasons & bit),
        uncorrected_errors=told(
            nvml.nvmlDeviceGetTotalEccErrors,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        ),
        rows_failed=bool(rows and rows[3]),
        num_programs=len(told(nvml.nvmlDeviceGetComputeRunningProcesses) or ()),
    )


def _strangers(nvml: Any, handles: list[Any]) -> tuple[tuple[int, int], ...]:
    def are_peers(one: Any, other: Any) -> bool:
        try:
            status = nvml.nvmlDeviceGetP2PStatus(one, other, nvml.NVML_P2P_CAPS_INDEX_READ)
        except nvml.NVMLError:
            return False
        return bool(status == nvml.NVML_P2P_STATUS_OK)

    count = len(handles)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    return tuple(pair for pair in pairs if not are_peers(handles[pair[0]], handles[pair[1]]))


def _both(generation: int | None, width: int | None) -> tuple[int, int] | None:
    return None if generation is None or width is None else (generation, width)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
