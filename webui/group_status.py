"""The worker group as the store tells it."""

from __future__ import annotations

import time
from dataclasses import asdict

from liveavatar.jobs.job import JobState
from liveavatar.jobs.store import JobStore
from webui.schemas import CeilingView, GroupView


def group_view(store: JobStore, *, admin: bool) -> GroupView:
    """State of the worker group; ranks and errors only for the operator.

    A supervisor that has not said anything for a while is taken to be stopped.
    """
    queue_length = store.counts()[JobState.QUEUED]
    found = store.ceiling()
    ceiling = None if found is None else CeilingView(**asdict(found))
    workers = store.read_workers()
    if not workers or not workers[0].is_heard(time.time()):
        message = "the worker group does not answer" if workers else ""
        return GroupView(
            state="stopped",
            load_percent=0,
            message=message,
            queue_length=queue_length,
            ceiling=ceiling,
        )
    said = workers[0].document
    view = GroupView(
        state=said["state"],
        load_percent=said["load_percent"],
        message=said["message"] if admin or said["state"] == "loading" else "",
        queue_length=queue_length,
        ceiling=ceiling,
    )
    if admin:
        view.ranks, view.errors = said["ranks"], said["errors"]
        view.restarts = said["restarts"]
    return view
