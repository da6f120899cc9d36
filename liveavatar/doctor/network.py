"""Checks of the ways between ranks: peer access, and tensors really sent."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from liveavatar.doctor.cards import Cards
from liveavatar.doctor.child import Outcome, Program, run_programs
from liveavatar.doctor.finding import Finding, fail, ok, skip, warn

P2P_OFF = "NCCL_P2P_DISABLE"
GPU_DEADLINE_S, CPU_DEADLINE_S = 60.0, 30.0

# What failed exchanges say, and what to do; the first that matches counts.
CURES: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device|/dev/shm|shared memory (segment|region)|shmem",
        "NCCL found no room in /dev/shm: start the container with --shm-size=8g or --ipc=host",
    ),
    (
        r"out of memory",
        "end the programs that fill the cards; 'nvidia-smi' lists them",
    ),
    (
        r"Duplicate GPU detected",
        "two ranks were given one card: list each card once in CUDA_VISIBLE_DEVICES",
    ),
    (
        r"no socket interface|Bootstrap : no|interface.*not found|Unable to find address",
        "no network interface to meet on: export NCCL_SOCKET_IFNAME=lo GLOO_SOCKET_IFNAME=lo",
    ),
    (
        r"resolve hostname|Name or service not known|getaddrinfo|nodename nor servname",
        "this machine cannot resolve its own name: export GLOO_SOCKET_IFNAME=lo, or add the name "
        "to /etc/hosts",
    ),
    (
        r"ibv_|libibverbs|InfiniBand|NET/IB",
        "InfiniBand is half there: export NCCL_IB_DISABLE=1",
    ),
    (
        r"driver version is insufficient|forward compatibility",
        "driver and torch do not fit: see the line 'driver'",
    ),
    (
        r"no kernel image|invalid device function",
        "this build of torch has no code for these cards: see the line 'torch'",
    ),
    (
        r"Permission denied|Operation not permitted",
        "the system forbids it: start the container with --ipc=host and without a restrictive "
        "seccomp profile",
    ),
    (
        r"peer access|cudaIpc|unhandled cuda error|invalid argument|illegal memory access",
        "the cards cannot reach each other's memory: export NCCL_P2P_DISABLE=1",
    ),
    (
        r"received other values|wrong sum",
        "transfers between cards damage data: export NCCL_P2P_DISABLE=1, switch off ACS and IOMMU "
        "in the BIOS",
    ),
    (
        r"ModuleNotFoundError|ImportError|cannot open shared object|import of torch",
        "torch is broken: see the line 'torch'",
    ),
)
LAST_RESORT = "export NCCL_DEBUG=INFO and run this again with --json; the first WARN names it"


def check_peers(
    cards: Cards | None, environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Whether cards read each other's memory, or NCCL is told to go through the host's."""
    if cards is None or len(cards.cards) < 2:
        yield skip("peer access", "fewer than two cards")
        return
    if environment.get(P2P_OFF, "0") == "1":
        yield ok("peer access", f"off by {P2P_OFF}=1: tensors go through host memory")
        return
    if not cards.strangers:
        yield ok("peer access", "every card reaches every other")
        return
    pairs = ", ".join(f"{one}-{other}" for one, other in cards.strangers[:6])
    yield warn(
        "peer access",
        f"none between gpus {pairs}",
        f"export {P2P_OFF}=1, so that NCCL does not try it: some drivers hang then",
    )


def cure_for(errors: str) -> str:
    """What to do about an exchange that failed with these words."""
    for pattern, cure in CURES:
        if re.search(pattern, errors, re.IGNORECASE):
            return cure
    return LAST_RESORT


def exchange_program(num_cards: int, deadline_s: float | None = None) -> Program:
    """The program that sends tensors around: NCCL between cards, else gloo between two processes.

    Args:
        num_cards: that programs see; fewer than two are left alone.
        deadline_s: seconds for one try.
    """
    backend, ranks = _who(num_cards)
    if deadline_s is None:
        deadline_s = GPU_DEADLINE_S if backend == "nccl" else CPU_DEADLINE_S
    options = ["--ranks", str(ranks), "--backend", backend, "--deadline_s", str(deadline_s)]
    return Program("liveavatar.doctor.collectives", options, deadline_s)


def judge_exchange(
    outcome: Outcome,
    num_cards: int,
    deadline_s: float | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Finding:
    """What to say of an exchange.

    When NCCL failed with peer access, it is tried once more without, so that the cure is known.

    Args:
        outcome: of `exchange_program`.
        num_cards: as it got it.
        deadline_s: as it got it.
        environment: variables that it ran with.
    """
    backend, ranks = _who(num_cards)
    program, name = exchange_program(num_cards, deadline_s), f"{backend} exchange"
    if outcome.answer is not None:
        return ok(name, _shown(outcome, ranks))
    found = outcome.last_error
    if outcome.timed_out:
        found = f"hangs: not done in {program.deadline_s:g} s"
    if backend == "nccl" and environment.get(P2P_OFF, "0") != "1":
        again = run_programs({name: program}, {P2P_OFF: "1"})[name]
        if again.answer is not None:
            return fail(
                name,
                f"{found}; without peer access it works: {_shown(again, ranks)}",
                f"export {P2P_OFF}=1",
            )
    return fail(name, found, explain(outcome, backend))


def _who(num_cards: int) -> tuple[str, int]:
    """Backend and number of ranks."""
    return ("nccl", num_cards) if num_cards > 1 else ("gloo", 2)


def _shown(outcome: Outcome, ranks: int) -> str:
    rates = outcome.answer or {}
    return (
        f"{ranks} ranks, send and receive {rates['send_gb_s']:.2f} GB/s, "
        f"all-reduce {rates['all_reduce_gb_s']:.2f} GB/s"
    )


def explain(outcome: Outcome, backend: str) -> str:
    """What to do about an exchange that failed."""
    if not outcome.timed_out:
        return cure_for(outcome.errors)
    known = cure_for(outcome.errors)
    if known != LAST_RESORT:
        return known
    if backend == "nccl":
        return (
            f"export {P2P_OFF}=1; if it still hangs, switch off ACS and IOMMU in the BIOS, "
            "or boot with iommu=pt"
        )
    return "processes cannot reach each other: export GLOO_SOCKET_IFNAME=lo; look at the firewall"
