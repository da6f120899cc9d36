"""Which links a worker group has, and which of them one transformer rank holds.

Work enters at the leading rank of stage 0, which hands it to the other ranks of its stage; from
there it goes down the line between ranks at equal places in their stages.

    lead of stage 0 ──▶ other ranks of stage 0      rank of stage k ──▶ the like of stage k+1
    lead of the last stage ──velocities──▶ lead of stage 0 ──latents──▶ media rank ──▶ every rank
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from liveavatar.parallel.mesh import Mesh, Place
from liveavatar.parallel.transfer import Link, Receiver, Sender


@dataclass(frozen=True)
class StageLinks:
    """A rank's ends of the links.

    Attributes:
        media: jobs and speech.
        previous: work from the stage before, or from the lead of stage 0; None at that lead.
        following: work to the next stage; None in the last one.
        peers: work to the other ranks of stage 0, by place; empty but at its lead.
        velocities: of the lead of the last stage to that of stage 0, where there are two stages.
        latents: to the media rank, from the lead of stage 0.
    """

    media: Receiver
    previous: Receiver | None
    following: Sender | None
    peers: Mapping[Place, Sender]
    velocities: Receiver | Sender | None
    latents: Sender | None


def stage_links(mesh: Mesh) -> list[Link]:
    """All links of a worker group."""
    ranks, last = range(mesh.num_dit_ranks), mesh.stage_ranks(mesh.num_stages - 1)
    links = [Link(f"media-{rank}", mesh.media_rank, rank, depth=16) for rank in ranks]
    links += [_work(0, peer) for peer in mesh.stage_ranks(0)[1:]]
    links += [_work(rank, rank + len(last)) for rank in ranks if rank not in last]
    if mesh.num_stages > 1:
        links.append(Link("velocities", last[0], 0, depth=8))
    links.append(Link("latents", 0, mesh.media_rank, depth=8))
    return links


def links_of_rank(
    mesh: Mesh, rank: int, senders: Mapping[str, Sender], receivers: Mapping[str, Receiver]
) -> StageLinks:
    """Sort the ends that a transformer rank made of `stage_links`."""
    place = mesh.place(rank)
    assert place is not None
    work = {sender.link.target: sender for sender in senders.values() if _is_work(sender.link)}
    following = mesh.rank(replace(place, stage=place.stage + 1))
    previous = [end for end in receivers.values() if _is_work(end.link)]
    return StageLinks(
        media=receivers[f"media-{rank}"],
        previous=previous[0] if previous else None,
        following=work.pop(following, None),
        peers={other: end for target, end in work.items() if (other := mesh.place(target))},
        velocities=senders.get("velocities") or receivers.get("velocities"),
        latents=senders.get("latents"),
    )


def _work(source: int, target: int) -> Link:
    return Link(f"work-{source}-{target}", source, target)


def _is_work(link: Link) -> bool:
    return link.name.startswith("work-")
