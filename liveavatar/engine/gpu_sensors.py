"""How hot and how busy a GPU is, as its driver says; what a driver does not tell is None."""

from __future__ import annotations

from typing import Any

import pynvml


class GpuSensors:
    """The sensors of one GPU.

    A card is found by its identity, not by its number: CUDA counts cards in an order of its own.
    Without a driver, or for a card that it does not know, nothing is told.

    Args:
        uuid: as the driver writes it, such as "GPU-5e1f...".
        driver: module with the functions of `pynvml`.
    """

    def __init__(self, uuid: str, driver: Any = pynvml) -> None:
        self._driver = driver
        self._handle: Any = None
        try:
            driver.nvmlInit()
            self._handle = driver.nvmlDeviceGetHandleByUUID(uuid)
        except driver.NVMLError:
            return

    def read(self) -> tuple[int | None, float | None]:
        """Temperature in °C, and the share of the last moments in which a kernel ran, 0..1."""
        if self._handle is None:
            return None, None
        return self._temperature(), self._busy()

    def _temperature(self) -> int | None:
        try:
            sensor = self._driver.NVML_TEMPERATURE_GPU
            return int(self._driver.nvmlDeviceGetTemperature(self._handle, sensor))
        except self._driver.NVMLError:
            return None

    def _busy(self) -> float | None:
        try:
            return float(self._driver.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100
        except self._driver.NVMLError:  # part of a card that is divided up has no figure
            return None
