"""Jobs on their way to the stages: taken from the owner, their inputs encoded one job ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from liveavatar.conditioning import Conditions, Encoders, encode_conditions
from liveavatar.engine.messages import (
    Cancel,
    Finished,
    Progress,
    Refused,
    RenderJob,
    StagesReady,
    Stop,
    Submit,
)
from liveavatar.errors import EngineError, JobFaultError, LiveAvatarError
from liveavatar.model.transformer import ConditionEmbedder
from liveavatar.parallel.blame import work_of


@dataclass(frozen=True)
class Prepared:
    """A job and what its inputs were encoded to."""

    job: RenderJob
    conditions: Conditions


class Preparation:
    """Takes jobs at any time; encodes them in a thread of its own once there are networks.

    On a GPU the thread has a stream of its own, so that decoding goes on beside it; the portrait
    has another where its encoder says so.

    Args:
        report: tells the owner.

    Attributes:
        stages_ready: set when the owner has heard that all other ranks are ready.
    """

    def __init__(self, report: Callable[[object], None]) -> None:
        self._report = report
        self._submitted: queue.Queue[RenderJob | None] = queue.Queue()
        self._prepared: queue.Queue[Prepared | BaseException | None] = queue.Queue(maxsize=1)
        self._known: set[int] = set()
        self.stages_ready = threading.Event()
        self._cancelled: set[int] = set()

    def take(self, message: object) -> None:
        """Do what the owner asks; from any thread."""
        if isinstance(message, StagesReady):
            self.stages_ready.set()
        elif isinstance(message, Submit):
            self.submit(message.job)
        elif isinstance(message, Cancel):
            if message.number in self._known:
                self._cancelled.add(message.number)
        elif isinstance(message, Stop):
            self.stop()
        else:
            raise EngineError(f"unexpected message from the owner: {message!r}")

    def submit(self, job: RenderJob) -> None:
        """Take a job."""
        self._known.add(job.number)
        self._submitted.put(job)

    def stop(self) -> None:
        """Take no more; what was submitted before is still done."""
        self._submitted.put(None)

    def is_cancelled(self, number: int) -> bool:
        """Whether a job that is not over was cancelled."""
        return number in self._cancelled

    def forget(self, number: int) -> None:
        """A job is over."""
        self._known.discard(number)
        self._cancelled.discard(number)

    def start(self, encoders: Encoders, embedder: ConditionEmbedder) -> None:
        """Begin to encode what was submitted."""
        threading.Thread(
            target=self._run, args=(encoders, embedder), name="prepare", daemon=True
        ).start()

    def next_job(self) -> Prepared | None:
        """The next prepared job, None if there is none yet.

        Raises:
            StopIteration: no more will come.
        """
        try:
            prepared = self._prepared.get_nowait()
        except queue.Empty:
            return None
        if prepared is None:
            raise StopIteration
        if isinstance(prepared, BaseException):
            raise prepared
        return prepared

    @torch.no_grad()
    def _run(self, encoders: Encoders, embedder: ConditionEmbedder) -> None:
        try:
            device = next(embedder.parameters()).device
            stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                while (job := self._submitted.get()) is not None:
                    conditions = self._encode(job, encoders, embedder)
                    if stream is not None:
                        stream.synchronize()
                    if conditions is not None:
                        self._prepared.put(Prepared(job, conditions))
            self._prepared.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._prepared.put(error)

    def _encode(
        self, job: RenderJob, encoders: Encoders, embedder: ConditionEmbedder
    ) -> Conditions | None:
        """Encode a job's inputs; None when it is over already."""
        if self.is_cancelled(job.number):
            self.forget(job.number)
            self._report(Finished(job.number, 0, cancelled=True))
            return None
        self._report(Progress(job.number, 0, "preparing"))
        try:
            with work_of(job.number):
                return encode_conditions(
                    encoders,
                    job.portrait_HWC,
                    job.speech_N,
                    job.prompt,
                    embedder=embedder,
                    num_blocks=job.timeline.num_blocks,
                )
        except JobFaultError as fault:
            error = fault.__cause__
            if not isinstance(error, LiveAvatarError):
                raise
            self.forget(job.number)
            self._report(Refused(job.number, str(error)))
            return None
