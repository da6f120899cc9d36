"""Under which names this installation's actors are found in a Ray cluster."""

from __future__ import annotations

from typing import Any

import ray

NAMESPACE = "liveavatar"
KEEPER = "liveavatar-keeper"

_PREFIX = "liveavatar-group-"


def name_of(number: int) -> str:
    """Name of a group's actor and of its placement group."""
    return f"{_PREFIX}{number}"


def number_of(name: str) -> int | None:
    """The number of the group with this name; None for other names."""
    digits = name.removeprefix(_PREFIX)
    return int(digits) if digits != name and digits.isdecimal() else None


def find_group(number: int) -> Any:
    """The actor of a group; None when there is none."""
    return _find(name_of(number))


def find_keeper() -> Any:
    """The keeper's actor; None when there is none."""
    return _find(KEEPER)


def own_node() -> str:
    """Name of the machine that this process of Ray's runs on."""
    mine = ray.get_runtime_context().get_node_id()
    return next((str(node["NodeName"]) for node in ray.nodes() if node["NodeID"] == mine), mine)


def _find(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None
