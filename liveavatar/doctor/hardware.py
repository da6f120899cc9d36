"""Checks of cards, memory and disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from liveavatar.config import check_visible_devices
from liveavatar.doctor.cards import Card, Cards
from liveavatar.doctor.finding import Finding, fail, ok, skip, warn
from liveavatar.errors import ConfigError

GIB = 2**30
OLDEST_DRIVER = "535.104.05"
WIDE_LANES = 16
HOT_MARGIN_C = 5
HOT_C = 85
FREE_SHARE = 0.92
"""A tier that fits a card takes up to this share of it, as 22.15 of 24 GiB."""

# The oldest driver for a major version of CUDA, as its release notes have it.
DRIVER_FOR_CUDA = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}

SHARED_MEMORY_NEEDED = 256 * 2**20
DISK_NEEDED, DISK_WANTED = GIB, 10 * GIB
HOST_NEEDED, HOST_WANTED = 2 * GIB, 4 * GIB
HOST_WANTED_WITH_CARDS = 16 * GIB


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (535, 104, 5) of "535.104.05"."""
    found = []
    for part in version.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)


def check_cards(cards: Cards | None) -> Iterator[Finding]:
    """Which cards there are, and how each of them is."""
    if cards is None:
        yield skip("gpus", "no NVIDIA driver: the demo model runs on the CPU, the 14B does not")
        return
    if not cards.cards:
        yield fail(
            "gpus",
            "the driver sees no card",
            "look for 'NVRM' in dmesg; in a container start it with --gpus all",
        )
        return
    names = sorted({card.name for card in cards.cards})
    yield ok("gpus", f"{len(cards.cards)} x {', '.join(names)}")
    for card in cards.cards:
        yield _health(card)


def _health(card: Card) -> Finding:
    name = f"gpu {card.index}"
    heat = "temperature unknown" if card.temperature_c is None else f"{card.temperature_c} °C"
    free, total = card.free_bytes / GIB, card.total_bytes / GIB
    shown = f"{card.name}, {free:.1f} of {total:.1f} GiB free, {heat}"
    if card.rows_failed or card.uncorrected_errors:
        errors = f"{card.uncorrected_errors or 0} uncorrected memory errors"
        return fail(
            name,
            f"{shown}; {errors}" + (", worn-out memory" if card.rows_failed else ""),
            "reboot; if the errors come back leave the card out with CUDA_VISIBLE_DEVICES and "
            "have it replaced",
        )
    limit = HOT_C if card.slowdown_c is None else card.slowdown_c - HOT_MARGIN_C
    if card.held_back or (card.temperature_c or 0) >= limit:
        why = ", ".join(card.held_back) or f"slows down at {card.slowdown_c or HOT_C} °C"
        return warn(
            name,
            f"{shown}; {why}",
            "cool it: air flow and dust, or lower its power with 'nvidia-smi -pl WATTS'; check its "
            "power cables",
        )
    if card.free_bytes < FREE_SHARE * card.total_bytes:
        return warn(
            name,
            f"{shown}; {card.num_programs} programs use it",
            "end what runs there ('nvidia-smi' lists it), or a tier that fits the card will not",
        )
    return ok(name, shown)


def check_order(
    cards: Cards | None, environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Whether ranks land on the cards that the operator reads in nvidia-smi."""
    listed = environment.get("CUDA_VISIBLE_DEVICES", "").strip()
    try:
        check_visible_devices(environment)
    except ConfigError as error:
        yield fail("visible devices", str(error), "export CUDA_VISIBLE_DEVICES=0,1,2,3")
        return
    if cards is None:
        return
    count = len(cards.cards)
    beyond = [n for n in listed.split(",") if n.strip().isdecimal() and int(n) >= count]
    if beyond:
        yield fail(
            "visible devices",
            f"CUDA_VISIBLE_DEVICES={listed}, but the driver sees {count} cards",
            f"leave out {', '.join(beyond)}; cards are counted from 0",
        )
    else:
        yield ok("visible devices", f"CUDA_VISIBLE_DEVICES={listed}" if listed else "all")
    mixed = len({card.name for card in cards.cards}) > 1
    if mixed and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        yield warn(
            "gpu order",
            "cards of several kinds: CUDA counts the fastest first, nvidia-smi by slot",
            "export CUDA_DEVICE_ORDER=PCI_BUS_ID",
        )


def visible_count(cards: Cards | None, environment: Mapping[str, str] = os.environ) -> int:
    """Cards that programs started in `environment` see."""
    if cards is None:
        return 0
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return len(cards.cards)
    names = [name.strip() for name in listed.split(",")]
    return min(len(cards.cards), sum(bool(name) and name != "-1" for name in names))


def check_driver(cards: Cards | None, torch_cuda: str | None) -> Iterator[Finding]:
    """Whether the driver is new enough for this project and for the CUDA of torch.

    Args:
        cards: None without a driver.
        torch_cuda: what torch was built for, such as "12.8"; None for a build without CUDA, or
            where torch did not say.
    """
    if cards is None:
        yield skip("driver", "none")
        return
    serves = ".".join(map(str, cards.cuda))
    shown = f"{cards.driver}, serves CUDA {serves}"
    if numbers(cards.driver) < numbers(OLDEST_DRIVER):
        yield fail("driver", shown, f"update the NVIDIA driver to {OLDEST_DRIVER} or later")
        return
    if torch_cuda and numbers(torch_cuda)[0] > cards.cuda[0]:
        major = numbers(torch_cuda)[0]
        oldest = DRIVER_FOR_CUDA.get(major, f"one that serves CUDA {torch_cuda}")
        yield fail(
            "driver",
            f"{shown}, torch is built for CUDA {torch_cuda}",
            f"update the NVIDIA driver to {oldest} or later, or install the torch build for "
            f"CUDA {cards.cuda[0]}.x",
        )
        return
    yield ok("driver", shown)


def check_links(cards: Cards | None) -> Iterator[Finding]:
    """Generation and width of every card's PCIe link."""
    if cards is None:
        return
    known = [card for card in cards.cards if card.link and card.widest_link]
    if not known:
        yield skip("pcie", "the driver does not tell the links of these cards")
        return
    shown = ", ".join(
        f"gpu {card.index} gen {card.widest_link[0]} x{card.link[1]}"
        for card in known
        if card.link and card.widest_link
    )
    wide = sum(card.link[1] >= WIDE_LANES for card in known if card.link)
    if len(known) > 1 and wide < 2:
        yield warn(
            "pcie",
            f"{shown}: fewer than two cards run at x16",
            "put the cards into x16 slots (mainboard manual; bifurcation in the BIOS) and keep "
            "risers short; every hop between ranks crosses these links",
        )
    else:
        yield ok("pcie", shown)


def host_memory(meminfo: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """Bytes of host memory: available, in all."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available, total = (int(fields[f].split()[0]) * 1024 for f in ("MemAvailable", "MemTotal"))
    return available, total


def check_host_memory(available: int, total: int, num_cards: int) -> Finding:
    """Whether ranks and encoders find room in the host's memory; sizes in bytes."""
    shown = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"
    cure = "close other programs, add memory, or give a container more of it"
    if available < HOST_NEEDED:
        return fail("host memory", shown, cure)
    wanted = HOST_WANTED_WITH_CARDS if num_cards else HOST_WANTED
    if available < wanted:
        return warn("host memory", f"{shown}; {wanted // GIB} GiB are comfortable", cure)
    return ok("host memory", shown)


def check_disk(data_dir: Path) -> Finding:
    """Whether videos can be written where they are kept."""
    folder = data_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
        return fail(
            "disk",
            f"{folder} cannot be written",
            f"sudo chown -R $USER {folder}, or name another folder with --data-dir",
        )
    free = shutil.disk_usage(folder).free
    shown = f"{free / GIB:.1f} GiB free at {folder}"
    cure = f"delete old videos under {data_dir}, or name a larger disk with --data-dir"
    if free < DISK_NEEDED:
        return fail("disk", shown, cure)
    return warn("disk", shown, cure) if free < DISK_WANTED else ok("disk", shown)


def check_shared_memory(folder: Path, num_cards: int) -> Finding:
    """Size of /dev/shm, through which NCCL moves tensors where cards cannot reach each other."""
    if not folder.is_dir():
        return warn("shared memory", f"no {folder}", "mount -t tmpfs tmpfs /dev/shm")
    size = shutil.disk_usage(folder).total
    shown = f"{size / 2**20:.0f} MiB at {folder}"
    if size >= SHARED_MEMORY_NEEDED:
        return ok("shared memory", shown)
    say = fail if num_cards > 1 else warn
    return say(
        "shared memory",
        f"{shown}, at least {SHARED_MEMORY_NEEDED >> 20} MiB are needed between cards",
        "start the container with --shm-size=8g or --ipc=host; elsewhere "
        "'mount -o remount,size=8G /dev/shm'",
    )
