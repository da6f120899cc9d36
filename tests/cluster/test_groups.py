"""Groups on several machines: every job once, machines that come and go, groups that leave."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray

from benchmarks.application import Application
from benchmarks.simulated_cluster import WAIT_S, Machines, Site, site, wait
from liveavatar.cluster.__main__ import main as command
from liveavatar.cluster.names import find_group
from liveavatar.cluster.pool import Pool
from liveavatar.jobs.job import JobState
from liveavatar.media.live_file import complete_length
from tests.faults.suite import goes_on, pictures
from tests.unit.mp4_material import decode_video
from tests.unit.postgres_cluster import cluster, find_binaries

pytestmark = pytest.mark.timeout(600)

LONG = 129  # frames of the whole speech


def says_that_it_leaves(here: Site, number: int) -> bool:
    said = [worker.document for worker in here.store.read_workers()]
    return any(each.get("group") == number and each.get("leaves") for each in said)


def test_groups_share_the_jobs_and_those_of_a_lost_machine_go_on_elsewhere(
    tmp_path: Path, machines: Machines, pool: Pool
) -> None:
    machines.add("node-1")
    machines.add("node-2")
    with ExitStack() as stack:
        binaries = find_binaries()
        url = None if binaries is None else stack.enter_context(cluster(binaries))
        here = stack.enter_context(site(tmp_path, pool, database=url))
        assert pool.grow_to(3) == [1, 2, 3]
        assert pool.grow_to(3) == []
        here.wait_ready(2)
        assert sorted(here.states()) == ["ready", "ready", "waiting"]

        machines.add("node-3")
        here.wait_ready(3)
        jobs = [here.submit(owner=f"user {number % 5}") for number in range(30)]
        done = here.wait_done(*jobs)
        assert Counter((job.attempt, job.take, job.frames) for job in done) == {(1, 1, 24): 30}
        shares = Counter(here.makers().values())
        assert len(shares) == 3
        assert min(shares.values()) >= 5, shares

        whole = here.submit(frames=LONG)  # first, so that it is done should one group take both
        long = here.submit(frames=LONG)
        wait(lambda: here.now(long).frames >= 48, "frames")
        folder, lost = here.folder_of(long), here.node_of(long)
        before = folder.live.read_bytes()[: complete_length(folder.live)]
        machines.kill(lost)
        (again, undisturbed) = here.wait_done(long, whole)
        assert (again.attempt, again.take, again.frames) == (2, 1, LONG)
        assert folder.live.read_bytes().startswith(before)
        assert len(decode_video(folder.video)) == LONG
        assert undisturbed.attempt == 1
        assert goes_on(pictures(folder.live), pictures(here.folder_of(whole).live))

        wait(lambda: "waiting" in here.states(), "Ray sees that the machine is gone")
        assert [node.name for node in pool.nodes() if not node.alive] == [lost]

        running = [here.submit(frames=LONG) for _ in range(2)]
        wait(lambda: all(here.now(job).frames for job in running), "both groups render")
        leaving = pool.shrink(2)  # the one that waits, and one that renders
        pool.wait_until_gone(leaving, 60)
        assert [job.attempt for job in here.wait_done(*running)] == [1, 1]
        late = here.submit()
        here.wait_done(late)

        # One whose process is lost while it drains comes back only to leave.
        first, left = here.submit(frames=LONG), here.submit(frames=LONG)
        wait(lambda: here.now(first).frames > 0 and here.now(left).attempt == 1, "both are taken")
        (last,) = pool.shrink(1)
        wait(lambda: says_that_it_leaves(here, last), "the store knows that it leaves")
        ray.kill(find_group(last), no_restart=False)
        pool.wait_until_gone([last], 90)
        assert here.now(left).state is JobState.QUEUED
        assert here.now(left).restart_note == "the server was restarted"
        assert pool.stop() == []


def test_a_video_of_the_demo_model_goes_on_without_a_seam_when_its_machine_is_lost(
    tmp_path: Path, machines: Machines, pool: Pool
) -> None:
    """On machines that share no folder: file, resume points and inputs come from the storage."""
    machines.ensure(2)
    with site(tmp_path, pool, model="demo", storage=f"file://{tmp_path / 'storage'}") as here:
        pool.grow(2)
        here.wait_ready(2)
        # Large enough that it is not done before the machine is really gone.
        undisturbed, hurt = (here.submit(frames=LONG, width=128, height=128) for _ in range(2))
        wait(lambda: here.now(hurt).frames >= 36, "frames")
        machines.kill(here.node_of(hurt))
        whole, again = here.wait_done(undisturbed, hurt)
        assert (whole.attempt, again.attempt, again.take, again.frames) == (1, 2, 1, LONG)
        ours, theirs = (pictures(here.video_of(job)) for job in (hurt, undisturbed))
        assert len(ours) == LONG
        assert goes_on(ours, theirs)


def test_web_servers_only_show_what_groups_render_and_the_command_counts_them(
    tmp_path: Path, machines: Machines, pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first server makes the group; the second one has a folder of its own and no Ray."""
    shared = ("--test-picture", "--backend", "ray", "--database", f"sqlite:///{tmp_path}/jobs.db",
              "--storage", f"file://{tmp_path}/storage")  # fmt: skip
    wished = ("--groups", "1", "--ray-address", machines.address)
    first = Application(tmp_path / "first", options=(*shared, *wished))
    second = Application(tmp_path / "second", options=shared)
    machines.ensure(2)
    try:
        with first, second:
            first.start()
            second.start()
            job_id = second.submit()
            assert first.wait_for_end(job_id, WAIT_S)["state"] == "done"
            served = second.client.get(f"/media/{job_id}.mp4")
            assert served.content == first.client.get(f"/media/{job_id}.mp4").content
            assert first.stop() == 0
            assert second.is_ready(), "the group outlives the server that asked for it"
            assert command(["grow", "1", "--ray-address", machines.address]) == 0
            assert command(["room", "2", "--ray-address", machines.address]) == 0
            assert command(["status", "--ray-address", machines.address]) == 0
            said = capsys.readouterr().out
            assert "asked for groups 2\nasked for room for 2 groups in all\n" in said
            assert "group 1 on " in said
            assert command(["shrink", "2", "--wait", "60", "--ray-address", machines.address]) == 0
            assert capsys.readouterr().out == "gone: groups 1, 2\n"
            assert second.stop() == 0
    finally:
        pool.stop()
    assert command(["grow", "--ray-address", machines.address]) == 2
    assert capsys.readouterr().err.startswith("error: there is no pool of groups in this cluster")
