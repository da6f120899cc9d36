"""What a card's sensors tell, and that a card which tells nothing disturbs nobody."""

from __future__ import annotations

from liveavatar.engine.gpu_sensors import GpuSensors
from tests.unit.cards import FakeDriver


def test_a_card_is_read_by_its_identity() -> None:
    assert GpuSensors("GPU-2", FakeDriver(temperature=67, busy=93)).read() == (67, 0.93)


def test_what_cannot_be_read_is_left_out() -> None:
    nothing = (None, None)
    assert GpuSensors("GPU-2", FakeDriver(mute=True)).read() == nothing
    assert GpuSensors("GPU-9", FakeDriver()).read() == nothing
    no_library = FakeDriver(broken=FakeDriver.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert GpuSensors("GPU-2", no_library).read() == nothing


def test_a_machine_without_a_driver_says_nothing_through_the_real_library() -> None:
    assert GpuSensors("GPU-00000000-0000-0000-0000-000000000000").read() == (None, None)
