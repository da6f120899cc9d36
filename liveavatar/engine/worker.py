"""One rank of a worker group: connect, load its part, warm up, say Ready, serve, end.

A rank ends when its owner does: the pipe between them breaks. It ends when a neighbour does: the
link breaks. Either way the reason goes to the owner, if there still is one.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from liveavatar.engine.heartbeat import Heartbeat
from liveavatar.engine.messages import Failed, GroupSpec, Ready
from liveavatar.engine.networks import load_media_networks, load_stage
from liveavatar.engine.owner import Owner
from liveavatar.errors import DeadlineError, JobFaultError, LiveAvatarError, WorkerDiedError
from liveavatar.model.checkpoint import Placement
from liveavatar.parallel.activity import Activity
from liveavatar.parallel.conductor import serve
from liveavatar.parallel.direct import open_routes
from liveavatar.parallel.group import Meeting, open_groups
from liveavatar.parallel.links import links_of_rank, stage_links
from liveavatar.parallel.stage import Stage, StagePlan
from liveavatar.parallel.transfer import Receiver, Sender, connect

EXIT_FAILED = 1


class _Rank:
    """What every rank has: its place, its owner, a heartbeat.

    Args:
        rank: of this process.
        spec: of its group.
        owner: who started it.
    """

    def __init__(self, rank: int, spec: GroupSpec, owner: Owner) -> None:
        self.rank = rank
        self.spec = spec
        self.owner = owner
        self._started = time.monotonic()
        device = torch.device(spec.devices[rank])
        if device.type == "cuda":
            _keep_kernels()
            torch.cuda.set_device(device)
            if limit := spec.memory_limit(rank):
                total = torch.cuda.get_device_properties(device).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
        self.where = Placement.planned(device, spec.precision)
        self.activity = Activity(device)
        self.heartbeat = Heartbeat(rank, spec, self.activity, owner.say)

    def connect(self) -> tuple[dict[str, Sender], dict[str, Receiver]]:
        """Link up with the other ranks; before loading, which may take one minutes longer."""
        spec = self.spec
        links = stage_links(spec.mesh)
        return connect(spec.folder, self.rank, links, self.where.device, spec.timeout_s)

    def seconds(self) -> float:
        """Since this rank began."""
        return time.monotonic() - self._started


def _keep_kernels() -> None:
    """Let compiled kernels outlive a reboot, unlike in torch's own choice of a folder.

    TORCHINDUCTOR_CACHE_DIR names another; without a writable home torch's own is used.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(home) / "liveavatar" / "kernels"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def worker_main(rank: int, spec: GroupSpec, owner: Owner) -> None:
    """Run one rank until it is stopped or fails; the target of its process."""
    try:
        torch.set_num_threads(spec.threads)
        me = _Rank(rank, spec, owner)
        if rank == spec.media_rank:
            _serve_media(me)
        else:
            _serve_stage(me)
    except BaseException as error:  # noqa: BLE001 - the border: everything is reported
        try:
            owner.say(_failure(rank, spec, error))
        finally:
            # Threads may sit in a neighbour's socket or a GPU call; nothing waits for them.
            os._exit(EXIT_FAILED)


def _failure(rank: int, spec: GroupSpec, error: BaseException) -> Failed:
    """What to tell the owner about the error that ended this rank."""
    root = error.__cause__ or error if isinstance(error, JobFaultError) else error
    short = _is_out_of_memory(root)
    if short:
        said = str(root).split(". ")[0]
        reason = f"out of memory on {spec.devices[rank]}: {said}"
    else:
        reason = str(root) if isinstance(root, LiveAvatarError) else repr(root)
    trace = "".join(traceback.format_exception(error))
    by_its_work = not isinstance(error, WorkerDiedError | DeadlineError)
    job = error.job if isinstance(error, JobFaultError) else None
    return Failed(rank, reason, trace, out_of_memory=short, by_its_work=by_its_work, job=job)


def _is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU or of the host; torch has no type of its own for the latter."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _serve_stage(me: _Rank) -> None:
    me.owner.hear(lambda _: None)  # stages are stopped through the media rank, in the order of work
    rank, spec = me.rank, me.spec
    senders, receivers = me.connect()
    meeting = Meeting(spec.folder, rank, spec.mesh, spec.collectives, spec.timeout_s)
    groups = open_groups(meeting)
    transport = "sockets"
    if spec.sends_directly:
        required = spec.transport == "direct"
        transport = open_routes(meeting, senders, receivers, me.where.device, required=required)
    me.heartbeat.loading()
    plan = StagePlan(spec.mesh, rank, spec.timeout_s)
    transformer = load_stage(spec, plan.place.stage, me.where, groups)
    me.heartbeat.loaded()
    links = links_of_rank(spec.mesh, rank, senders, receivers)
    stage = Stage(transformer, plan, links, me.activity)
    me.owner.say(Ready(rank, me.seconds(), me.seconds(), transport))
    serve(stage)
    for sender in senders.values():
        sender.close()


def _serve_media(me: _Rank) -> None:
    # Here, since the library of the encoders takes seconds to import.
    from liveavatar.engine.media_rank import MediaLinks, MediaPlan, MediaRank
    from liveavatar.engine.preparation import Preparation
    from liveavatar.engine.resume import points_of
    from liveavatar.engine.warm_up import warm_up

    spec = me.spec
    jobs = Preparation(me.owner.say)
    me.owner.hear(jobs.take)
    signal.signal(signal.SIGTERM, lambda *_: jobs.stop())
    senders, receivers = me.connect()
    me.heartbeat.loading()
    networks = load_media_networks(spec, me.where)
    me.heartbeat.loaded()
    load_s = me.seconds()
    links = MediaLinks(
        [senders[f"media-{rank}"] for rank in range(spec.media_rank)], receivers["latents"]
    )
    config = networks.embedder.config
    plan = MediaPlan(
        len(spec.stages),
        spec.jobs_at_once,
        spec.timeout_s,
        partial(points_of, spec=spec, config=config),
    )
    media = MediaRank(networks, links, plan, me.activity)
    jobs.stages_ready.wait()  # for as long as they load; the owner ends this rank if one does not
    warm_up(media, spec)
    me.owner.say(Ready(me.rank, load_s, me.seconds()))
    media.serve(jobs, me.owner.say)
    media.shut_down()
    for sender in senders.values():
        sender.close()
