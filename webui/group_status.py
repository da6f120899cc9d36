"""The worker groups as the store tells of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from liveavatar.jobs.job import JobState
from liveavatar.jobs.store import JobStore
from liveavatar.jobs.workers import WorkerState
from webui.schemas import CeilingView, GroupView, NodeView, OneGroupView

# What one word says of several groups: that of the first of these that one of them is.
_WORDS = ("ready", "loading", "starting", "restarting", "draining", "waiting", "failed")
_MOST_ERRORS = 10


def group_view(store: JobStore, *, admin: bool) -> GroupView:
    """State of the worker groups as one; ranks, errors, machines only for the operator.

    A supervisor that has not said anything for a while is taken to be stopped.
    """
    found, now = store.ceiling(), time.time()
    workers = store.read_workers()
    heard = [worker for worker in workers if worker.is_heard(now)]
    clusters = [worker.document for worker in heard if worker.document["state"] == "cluster"]
    serving = [w for w in heard if w.document["state"] not in ("cluster", "stopped")]
    groups = [_view(worker) for worker in serving]
    groups += [_waiting(place) for each in clusters for place in _without(each, groups)]
    view = GroupView(
        state="stopped",
        load_percent=0,
        message="the worker group does not answer" if workers and not heard else "",
        queue_length=store.counts()[JobState.QUEUED],
        ceiling=None if found is None else CeilingView(**asdict(found)),
    )
    if groups:
        _sum_up(view, sorted(groups, key=lambda group: group.number), admin=admin)
    if admin:
        _add_details(view, [worker.document for worker in serving], clusters)
    return view


def _sum_up(view: GroupView, groups: Sequence[OneGroupView], *, admin: bool) -> None:
    best = min(groups, key=lambda group: (_WORDS.index(group.state), -group.load_percent))
    view.state = "starting" if best.state == "waiting" else best.state
    view.load_percent = best.load_percent
    view.message = best.message if admin or best.state == "loading" else ""
    view.num_groups = len(groups)
    if admin:
        view.groups = list(groups)
        view.restarts = sum(group.restarts for group in groups)


def _add_details(
    view: GroupView, said: Sequence[Mapping[str, Any]], clusters: Sequence[Mapping[str, Any]]
) -> None:
    said = sorted(said, key=_number)
    errors = [error for each in said for error in each["errors"]]
    view.errors = sorted(errors, key=lambda error: float(error["at"]))[-_MOST_ERRORS:]
    view.ranks = [{"group": _number(each), **rank} for each in said for rank in each["ranks"]]
    view.nodes = [NodeView(**node) for each in clusters for node in each["nodes"]]


def _number(said: Mapping[str, Any]) -> int:
    return int(said.get("group", 1))


def _view(worker: WorkerState) -> OneGroupView:
    said = worker.document
    return OneGroupView(
        number=_number(said),
        node=said.get("node", ""),
        state=said["state"],
        load_percent=said["load_percent"],
        message=said["message"],
        restarts=said["restarts"],
        num_jobs=len(said["jobs"]),
    )


def _without(cluster: Mapping[str, Any], groups: Sequence[OneGroupView]) -> list[Mapping[str, Any]]:
    """Groups of a cluster that say nothing, because they have no machine or are not up yet."""
    speaking = {group.number for group in groups}
    return [place for place in cluster["placements"] if place["number"] not in speaking]


def _waiting(place: Mapping[str, Any]) -> OneGroupView:
    state = "waiting" if place["state"] == "waiting" else "starting"
    return OneGroupView(number=place["number"], node=place["node"], state=state)
