"""What this machine offers to a worker group; asked without torch, so that the web server can."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml

from liveavatar.config import visible_gpus
from liveavatar.errors import ConfigError
from liveavatar.plan.layout import Machine
from liveavatar.plan.sharing import ALONE, Sharing

_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def detect_machine() -> Machine:
    """The visible GPUs, or the CPU where there is none.

    Memory is that of the smallest GPU, less what its driver keeps; on the CPU the host's, or what
    the container may use of it.

    Raises:
        ConfigError: CUDA_VISIBLE_DEVICES names a GPU that is not there.
    """
    memories = _gpu_memories()
    return Machine(len(memories), min(memories)) if memories else Machine(0, host_memory_bytes())


def narrowed(
    machine: Machine, num_ranks: int, *, own_media: bool, sharing: Sharing = ALONE
) -> Machine:
    """The part of a machine that so many transformer ranks and a media rank take.

    Args:
        machine: all there is.
        num_ranks: ranks that hold layers.
        own_media: whether the media rank has a GPU of its own.
        sharing: how many of them have a stage together.

    Raises:
        ConfigError: there are fewer GPUs than that.
    """
    machine = replace(machine, sharing=sharing)
    if not machine.num_gpus:
        return replace(machine, stages_on_cpu=num_ranks // sharing.size)
    wanted = num_ranks + own_media
    if wanted > machine.num_gpus:
        raise ConfigError(
            f"num_gpus_dit: {wanted} ranks need as many GPUs, {machine.num_gpus} are visible; use "
            "fewer ranks or widen CUDA_VISIBLE_DEVICES"
        )
    return replace(machine, num_gpus=wanted, share_media=not own_media)


def host_memory_bytes() -> int:
    """Memory of the host, or what the container may use of it."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(physical, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # not in a container, or one without a limit
        return physical


def free_host_bytes() -> int:
    """Memory of the host that can be taken now without swapping, within the container's limit."""
    lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    available = next(line for line in lines if line.startswith("MemAvailable:"))
    return min(int(available.split()[1]) * 1024, host_memory_bytes())


def _gpu_memories() -> list[int]:
    """Usable bytes of each visible GPU; empty without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_usable(handle) for handle in _visible_handles()]
    finally:
        pynvml.nvmlShutdown()


def _visible_handles() -> list[Any]:
    names = visible_gpus()
    if names is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    handles = []
    for name in names:
        try:
            handles.append(
                pynvml.nvmlDeviceGetHandleByIndex(int(name))
                if name.isdecimal()
                else pynvml.nvmlDeviceGetHandleByUUID(name)
            )
        except pynvml.NVMLError as error:
            raise ConfigError(
                f"CUDA_VISIBLE_DEVICES: there is no GPU {name!r} here ({error}); nvidia-smi -L "
                "lists them"
            ) from None
    return handles


def _usable(handle: Any) -> int:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return int(memory.total - memory.reserved)
