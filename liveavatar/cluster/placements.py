"""Worker groups as Ray keeps them: an actor in a placement group, both detached and named.

A placement group has one bundle with all cards of a group. An actor's process sees the cards of one
bundle only, and one bundle lies on one machine by itself; four bundles of one card each would need
four actors, which is another division of work than that of a group and its ranks.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal

import ray
from ray.util.placement_group import (
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from liveavatar.cluster.group_actor import GroupActor
from liveavatar.cluster.names import NAMESPACE, find_group, name_of, number_of
from liveavatar.cluster.order import Order


@dataclass(frozen=True)
class NodeState:
    """A machine of the cluster.

    Attributes:
        name: as it was given to Ray, else its address.
        alive: whether Ray hears it.
        cpus, gpus: what it has.
    """

    name: str
    alive: bool
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Placement:
    """Where a group is.

    Attributes:
        number: of the group.
        state: "waiting" for a machine with room for it, or "placed".
        node: name of its machine; empty while it waits.
    """

    number: int
    state: Literal["waiting", "placed"]
    node: str


def make_group(number: int, order: Order) -> bool:
    """Ask Ray for a group; returns at once, and Ray starts it where there is room, or will be.

    Returns:
        Whether it is made; False when somebody has made one of this number meanwhile.
    """
    share, name = order.share, name_of(number)
    worker = f"group {number} {secrets.token_hex(4)}"
    place = placement_group([share.bundle], strategy="STRICT_PACK", name=name, lifetime="detached")
    try:
        ray.remote(GroupActor).options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(place),
            runtime_env={"env_vars": _environment(order)},
        ).remote(number, worker, order)
    except ValueError:  # the name is taken
        remove_placement_group(place)
        return False
    return True


def remove_group(number: int) -> None:
    """End a group's process now, for good, and free its place; does nothing where there is none."""
    if (actor := find_group(number)) is not None:
        ray.kill(actor, no_restart=True)
    try:
        remove_placement_group(get_placement_group(name_of(number)))
    except ValueError:
        return


def nodes() -> list[NodeState]:
    """All machines, also those that were lost."""
    found = []
    for node in ray.nodes():
        resources = node["Resources"] if node["Alive"] else {}
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        found.append(NodeState(node["NodeName"], node["Alive"], cpus, gpus))
    return found


def placements() -> list[Placement]:
    """All groups, by number."""
    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
    found = []
    for entry in placement_group_table().values():
        number = number_of(entry["name"])
        if number is None or entry["state"] == "REMOVED":
            continue
        if entry["state"] == "CREATED":
            node = names.get(next(iter(entry["bundles_to_node_id"].values())), "")
            found.append(Placement(number, "placed", node))
        else:
            found.append(Placement(number, "waiting", ""))
    return sorted(found, key=lambda each: each.number)


def _environment(order: Order) -> dict[str, str]:
    environment = {"PYTHONPATH": str(order.code)}
    if not order.share.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # it was given none
    return environment
