"""One rank of a worker group: load its part, connect, say Ready, serve, end.

A rank ends when its supervisor does: the pipe between them breaks. It ends when a neighbour does:
the link breaks. Either way the reason goes to the supervisor, if there still is one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection

import torch

from liveavatar.conditioning import Encoders
from liveavatar.engine.media_rank import MediaNetworks, MediaRank
from liveavatar.engine.messages import Cancel, Failed, GroupSpec, Ready, Stop, Submit
from liveavatar.errors import EngineError, LiveAvatarError
from liveavatar.model.checkpoint import Placement, open_checkpoint
from liveavatar.parallel.conductor import serve
from liveavatar.parallel.group import open_groups
from liveavatar.parallel.links import links_of_rank, stage_links
from liveavatar.parallel.loading import load_part
from liveavatar.parallel.stage import Stage, StagePlan
from liveavatar.parallel.transfer import connect

EXIT_ORPHANED = 3

Report = Callable[[object], None]


def worker_main(rank: int, spec: GroupSpec, pipe: Connection) -> None:
    """Run one rank until it is stopped or fails; the target of its process."""
    # Ctrl-C in a terminal reaches every process; what it means is for the supervisor to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reporting = threading.Lock()

    def report(message: object) -> None:
        with reporting:
            pipe.send(message)

    try:
        torch.set_num_threads(spec.threads)
        if rank == spec.media_rank:
            _serve_media(spec, pipe, report)
        else:
            _serve_stage(rank, spec, pipe, report)
    except BrokenPipeError:
        os._exit(EXIT_ORPHANED)
    except BaseException as error:  # noqa: BLE001 - the border: everything is reported
        reason = str(error) if isinstance(error, LiveAvatarError) else repr(error)
        try:
            report(Failed(rank, reason, traceback.format_exc()))
        finally:
            # Threads may sit in a neighbour's socket or a GPU call; nothing waits for them.
            os._exit(1)


def _placement(rank: int, spec: GroupSpec) -> Placement:
    device = torch.device(spec.devices[rank])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Placement(device, getattr(torch, spec.dtype))


def _serve_stage(rank: int, spec: GroupSpec, pipe: Connection, report: Report) -> None:
    started = time.monotonic()
    _watch_supervisor(pipe, None)
    where = _placement(rank, spec)
    # Before loading, which may take one rank minutes longer than another.
    senders, receivers = connect(
        spec.folder, rank, stage_links(spec.mesh), where.device, spec.timeout_s
    )
    groups = open_groups(spec.folder, rank, spec.mesh, spec.collectives, spec.timeout_s)
    checkpoint = open_checkpoint(spec.checkpoint, spec.adapter)
    plan = StagePlan(spec.mesh, rank, spec.timeout_s)
    transformer = load_part(checkpoint, where, spec.stages[plan.place.stage], groups)
    stage = Stage(transformer, plan, links_of_rank(spec.mesh, rank, senders, receivers))
    report(Ready(rank, time.monotonic() - started))
    serve(stage)
    for sender in senders.values():
        sender.close()


def _serve_media(spec: GroupSpec, pipe: Connection, report: Report) -> None:
    started = time.monotonic()
    loaded: Future[MediaRank] = Future()
    _watch_supervisor(pipe, loaded)
    rank = spec.media_rank
    where = _placement(rank, spec)
    senders, receivers = connect(
        spec.folder, rank, stage_links(spec.mesh), where.device, spec.timeout_s
    )
    checkpoint = open_checkpoint(spec.checkpoint, spec.adapter)
    networks = MediaNetworks(
        Encoders(
            checkpoint.load_text_encoder(where),
            checkpoint.load_tokenizer(),
            checkpoint.load_audio_encoder(where),
            checkpoint.load_vae_encoder(where),
        ),
        checkpoint.load_condition_embedder(where),
        checkpoint.load_vae_decoder(where),
    )
    media = MediaRank(
        networks,
        [senders[f"media-{other}"] for other in range(rank)],
        receivers["latents"],
        report,
        spec.timeout_s,
    )
    loaded.set_result(media)
    report(Ready(rank, time.monotonic() - started))
    media.serve()
    for sender in senders.values():
        sender.close()


def _watch_supervisor(pipe: Connection, loaded: Future[MediaRank] | None) -> None:
    """Follow the supervisor's pipe in a thread; when it breaks, this process ends at once."""

    def follow() -> None:
        try:
            while True:
                message = pipe.recv()
                if loaded is None:
                    continue  # stages are stopped through the media rank, in the order of work
                media = loaded.result()
                if isinstance(message, Submit):
                    media.submit(message.job)
                elif isinstance(message, Cancel):
                    media.cancel(message.number)
                elif isinstance(message, Stop):
                    media.stop()
                else:
                    raise EngineError(f"unexpected message from the supervisor: {message!r}")
        except (EOFError, OSError):
            os._exit(EXIT_ORPHANED)

    threading.Thread(target=follow, name="supervisor", daemon=True).start()
