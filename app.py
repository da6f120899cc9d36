"""The web application: upload a portrait and a speech, watch it talk while it is made.

`python app.py --help` lists the options. The pages are up at once; the ranks of the worker group
load in processes of their own.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from liveavatar.backend import Backend, Wish, Work, groups_on_ray, one_group
from liveavatar.engine.identity import hold_folder
from liveavatar.engine.served_model import Served, serve_checkpoint, serve_test_picture
from liveavatar.engine.supervisor_settings import SupervisorSettings
from liveavatar.errors import LiveAvatarError
from liveavatar.jobs.mirror import open_mirror
from liveavatar.jobs.spool import Spool
from liveavatar.jobs.store import JobStore, sqlite_url
from liveavatar.media.reader_process import MediaReader
from liveavatar.plan.tiers import DEMO_TIERS, TIERS
from webui.auth import installation_key
from webui.mounting import mount_page
from webui.offers import ServedModel
from webui.operator import operator_token
from webui.options import accounts_of, read_options
from webui.running import DrainingServer, listen, share_one_heap
from webui.server import Access, create_app
from webui.service import Service
from webui.settings import ServerSettings, read_settings
from webui.tunnel import host_of, public_link


def run(options: argparse.Namespace) -> None:
    """Serve until stopped."""
    spool = _spool(options)
    accounts = accounts_of(options, installation_key(spool.root))
    model, settings = _choose(options)
    with ExitStack() as stack:
        if spool.mirror is not None:
            stack.callback(os.close, hold_folder(spool, shares=False))
        store = JobStore(_database(options))
        stack.callback(store.close)
        backend = _backend(options, model, settings, store, spool)
        token = operator_token(spool.root)
        hosts = frozenset(options.allow_host)
        access = Access(accounts, hosts, set(), options.behind_proxy, token)
        # What this machine has room for says nothing of the machines of a cluster.
        plan = model.planner(settings.tiers) if options.backend == "local" else None
        offered = ServedModel(model.name, model.is_demo, model.is_random, plan)
        reader = MediaReader()
        stack.callback(reader.close)
        reader.get_ready()
        service = Service(store, spool, settings, offered, reader)
        app = create_app(service, mount_page, access)
        listener = stack.enter_context(listen(options.host, options.port))
        listener.listen()
        port = listener.getsockname()[1]
        backend.start()
        stack.callback(backend.stop)
        if options.share:
            address = stack.enter_context(public_link(port, options.share_server))
            access.public_hosts.add(host_of(address))
            logging.info("public link: %s", address)
        logging.info("open http://%s:%d", options.host, port)

        def begin_drain() -> None:
            service.taking_jobs = False
            backend.drain()

        server = DrainingServer(
            app,
            begin_drain,
            is_drained=lambda: not backend.is_alive,
            drain_s=settings.limits.drain_seconds,
            end_streams=app.state.streams.close,
        )
        server.run([listener])


def _spool(options: argparse.Namespace) -> Spool:
    if options.storage is not None:
        return Spool(options.data_dir, mirror=open_mirror(options.storage))
    return Spool(options.data_dir, shared=options.backend == "ray")


def _choose(options: argparse.Namespace) -> tuple[Served, ServerSettings]:
    model = (
        serve_test_picture()
        if options.test_picture
        else serve_checkpoint(options.model, options.lora, options.data_dir)
    )
    defaults = ServerSettings(tiers=DEMO_TIERS if model.is_demo else TIERS)
    return model, read_settings(options.config, defaults) if options.config else defaults


def _database(options: argparse.Namespace) -> str:
    return options.database or sqlite_url(options.data_dir.resolve() / "jobs.db")


def _backend(
    options: argparse.Namespace,
    model: Served,
    settings: ServerSettings,
    store: JobStore,
    spool: Spool,
) -> Backend:
    limits = settings.limits
    work = Work(
        database=_database(options),
        store=store,
        spool=spool,
        served=model,
        model=None if options.test_picture else options.model,
        adapter=options.lora,
        tiers=settings.tiers,
        supervising=SupervisorSettings(
            free_disk_bytes=limits.free_disk_bytes,
            memory_threshold_bytes=limits.memory_threshold_mb * 2**20,
        ),
    )
    if options.backend == "local":
        return one_group(work)
    wish = Wish(options.groups, options.ray_address, options.group_gpus, options.group_cpus)
    return groups_on_ray(work, wish)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    share_one_heap()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        run(read_options(arguments))
    except LiveAvatarError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
