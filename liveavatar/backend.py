"""What renders behind the web server: one group of this machine, or groups of a Ray cluster."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from liveavatar.engine.ladder import Ladder
from liveavatar.engine.served_model import Served
from liveavatar.engine.supervisor import Supervisor
from liveavatar.engine.supervisor_settings import SupervisorSettings
from liveavatar.errors import ConfigError
from liveavatar.jobs.spool import Spool
from liveavatar.jobs.store import JobStore
from liveavatar.plan.tiers import Tier


class Backend(Protocol):
    """What the web server starts and ends, and knows nothing else of."""

    def start(self) -> None:
        """Begin; returns soon, while groups still load."""

    def drain(self) -> None:
        """Begin no more jobs; returns at once."""

    @property
    def is_alive(self) -> bool:
        """Whether something still renders that ends with this process."""

    def stop(self) -> None:
        """End what ends with this process."""


class PagesOnly:
    """A backend for a web server whose jobs others render."""

    is_alive = False

    def start(self) -> None:
        """Nothing has to be started."""

    def drain(self) -> None:
        """Nothing of ours renders."""

    def stop(self) -> None:
        """Nothing has to be ended."""


@dataclass(frozen=True)
class Wish:
    """Which groups are wanted on a cluster; None is left to the kind of model.

    Attributes:
        groups: how many there have to be; None for none from here.
        address: of the cluster; None for one of this machine.
        gpus: cards of each.
        cpus: cores of each.
    """

    groups: int | None
    address: str | None
    gpus: int | None
    cpus: int | None


@dataclass(frozen=True)
class Work:
    """What there is to render and with what.

    Attributes:
        database: URL of the job store.
        store, spool: the jobs and their files.
        served: the model.
        model: as the command line names it; None for the test picture.
        adapter: file or folder, or None.
        tiers: what is offered.
        supervising: times and limits.
    """

    database: str
    store: JobStore
    spool: Spool
    served: Served
    model: str | None
    adapter: Path | None
    tiers: tuple[Tier, ...]
    supervising: SupervisorSettings


def one_group(work: Work) -> Backend:
    """One group of this machine, supervised in this process."""
    make_group, ladder = work.served.group_maker(work.tiers), Ladder(work.tiers)
    return Supervisor(work.store, work.spool, make_group, work.supervising, ladder)


def groups_on_ray(work: Work, wish: Wish) -> Backend:
    """Groups of a Ray cluster.

    Raises:
        ConfigError: Ray is not installed, or a number is none.
    """
    if wish.groups is None:
        return PagesOnly()
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "backend: Ray is not installed; .venv/bin/python -m pip install -r requirements-ray.txt"
        )
    # Here, so that whoever does not ask for a cluster does not load Ray.
    from liveavatar.cluster.backend import ClusterBackend
    from liveavatar.cluster.order import Order, Share, for_a_cluster

    gpus = wish.gpus if wish.gpus is not None else 0 if work.served.is_demo else 4
    cpus = wish.cpus if wish.cpus is not None else 4 if gpus else 1
    order = Order(
        database=work.database,
        data_dir=work.spool.root.resolve(),
        model=_absolute(work.model),
        adapter=work.adapter and work.adapter.resolve(),
        tiers=work.tiers,
        supervising=for_a_cluster(work.supervising),
        storage=work.spool.mirror.storage.url if work.spool.mirror else None,
        share=Share(gpus, cpus),
    )
    return ClusterBackend(order, wish.groups, wish.address)


def _absolute(model: str | None) -> str | None:
    """A folder that other processes find too; what is no folder is a name."""
    return str(Path(model).resolve()) if model is not None and Path(model).is_dir() else model
