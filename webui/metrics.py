"""What Prometheus reads at /metrics: counted anew from the store at every scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from liveavatar.jobs.job import JobState
from webui.routes import ServiceOf
from webui.schemas import GroupView
from webui.service import Service

router = APIRouter()

_RANK = ("group", "rank", "role", "device")
_RANK_GAUGES = (
    ("memory_bytes", "liveavatar_rank_memory_bytes", "Memory that a rank holds"),
    ("peak_bytes", "liveavatar_rank_peak_memory_bytes", "The most memory that a rank held"),
    ("memory_limit_bytes", "liveavatar_rank_memory_limit_bytes", "Memory that it may hold"),
    ("busy_share", "liveavatar_rank_busy_share", "Share of the last second in which it worked"),
    ("temperature_c", "liveavatar_rank_temperature_celsius", "Temperature of its GPU"),
    ("gpu_busy_share", "liveavatar_rank_gpu_busy_share", "Share of time in which its GPU ran"),
)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request, service: ServiceOf) -> Response:
    """Queue, jobs by state, speed per tier, memory per rank, viewers: Prometheus text."""
    viewers = request.app.state.streams.num_viewers
    text = await to_thread.run_sync(exposition, service, viewers)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def exposition(service: Service, num_viewers: int) -> bytes:
    """All metrics as text; `num_viewers` follow growing videos now."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(service, num_viewers))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, service: Service, num_viewers: int) -> None:
        self._service = service
        self._num_viewers = num_viewers

    def collect(self) -> Iterator[Metric]:
        counts = self._service.store.counts()
        jobs = GaugeMetricFamily("liveavatar_jobs", "Jobs kept, by state", labels=["state"])
        for state, count in counts.items():
            jobs.add_metric([state.value], count)
        yield jobs
        yield _gauge("liveavatar_queue_length", "Jobs that wait", counts[JobState.QUEUED])
        yield _gauge("liveavatar_live_viewers", "Viewers of growing videos", self._num_viewers)
        group = self._service.group_view(admin=True)
        yield _gauge("liveavatar_group_ready", "1 when jobs are rendered", group.state == "ready")
        yield _gauge("liveavatar_group_load_percent", "Weights loaded", group.load_percent)
        yield from _group_gauges(group)
        restarts = CounterMetricFamily("liveavatar_group_restarts", "Restarts of the worker group")
        restarts.add_metric([], group.restarts or 0)
        yield restarts
        yield from self._speeds()
        yield from _rank_gauges(group)

    def _speeds(self) -> Iterator[Metric]:
        fps = GaugeMetricFamily(
            "liveavatar_fps", "Frames per second of the last finished jobs", labels=["tier"]
        )
        first = GaugeMetricFamily(
            "liveavatar_first_frame_seconds", "Time to their first frame", labels=["tier"]
        )
        for tier in self._service.settings.tiers:
            speed = self._service.store.tier_speed(tier.name)
            if speed.fps is not None:
                fps.add_metric([tier.name], speed.fps)
            if speed.first_frame_s is not None:
                first.add_metric([tier.name], speed.first_frame_s)
        yield from (fps, first)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _group_gauges(view: GroupView) -> Iterator[Metric]:
    states = Counter(group.state for group in view.groups or [])
    gauge = GaugeMetricFamily("liveavatar_groups", "Worker groups, by state", labels=["state"])
    for state, count in sorted(states.items()):
        gauge.add_metric([state], count)
    yield gauge


def _rank_gauges(group: GroupView) -> Iterator[Metric]:
    ranks: list[dict[str, Any]] = group.ranks or []
    for key, name, text in _RANK_GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=list(_RANK))
        for rank in ranks:
            if rank[key] is not None:
                gauge.add_metric([str(rank[label]) for label in _RANK], rank[key])
        yield gauge
