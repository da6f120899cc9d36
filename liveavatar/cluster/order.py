"""What the worker groups of a cluster serve, and what each takes of a machine; no Ray, no torch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from liveavatar.engine.served_model import Served, serve_checkpoint, serve_test_picture
from liveavatar.engine.supervisor_settings import SupervisorSettings
from liveavatar.errors import ConfigError
from liveavatar.jobs.mirror import open_mirror
from liveavatar.jobs.spool import Spool
from liveavatar.plan.tiers import Tier

LEASE_S = 8.0
"""How long a group holds a job without renewing, which it does four times as often: so much later,
and a quarter, another group goes on with what a lost machine rendered."""

_CODE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Share:
    """What one group takes of a machine.

    Attributes:
        gpus: cards, all on one machine; 0 for a group on the CPU.
        cpus: cores that Ray sets aside for it.
    """

    gpus: int = 4
    cpus: int = 4

    def __post_init__(self) -> None:
        """Raise ConfigError for a share that is none."""
        for name, value, least in (("group_gpus", self.gpus, 0), ("group_cpus", self.cpus, 1)):
            if value < least:
                raise ConfigError(f"{name}: expected {least} or more, got {value}")

    @property
    def bundle(self) -> dict[str, float]:
        """As Ray takes it."""
        cards = {"GPU": float(self.gpus)} if self.gpus else {}
        return {"CPU": float(self.cpus), **cards}


@dataclass(frozen=True)
class Order:
    """What all groups of a cluster serve.

    Attributes:
        database: URL of the job store, as every machine reaches it.
        data_dir: the spool, at the same path on every machine.
        storage: URL where the jobs' files are if the machines share no folder; `data_dir` is then
            each machine's own. None if they share it.
        model: checkpoint folder or "demo", at the same path on every machine; None for a moving
            test picture.
        adapter: adapter file or folder, or None.
        tiers: what a group has to be able to make.
        supervising: times and limits of each supervisor.
        share: what a group takes of its machine.
        code: checkout that the groups run, at the same path on every machine.
    """

    database: str
    data_dir: Path
    model: str | None
    adapter: Path | None
    tiers: tuple[Tier, ...]
    supervising: SupervisorSettings
    storage: str | None = None
    share: Share = Share()
    code: Path = _CODE

    def spool(self, group: int) -> Spool:
        """The files as a group of this number sees them; a folder of its own begins empty.

        Raises:
            ConfigError: the storage cannot be used.
            JobError: the folder cannot be used.
        """
        if self.storage is None:
            return Spool(self.data_dir)
        own = self.data_dir / "groups" / str(group)
        shutil.rmtree(own, ignore_errors=True)
        return Spool(own, mirror=open_mirror(self.storage))

    def served(self) -> Served:
        """The model as the machine that this is called on serves it.

        Raises:
            CheckpointError: there is no checkpoint on this machine.
            ConfigError: CUDA_VISIBLE_DEVICES names a GPU that is not there.
        """
        if self.model is None:
            return serve_test_picture()
        return serve_checkpoint(self.model, self.adapter, self.data_dir)


def for_a_cluster(settings: SupervisorSettings) -> SupervisorSettings:
    """The same settings, with leases so short that another machine soon goes on."""
    return replace(settings, lease_s=LEASE_S)
