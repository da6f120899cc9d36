"""Which links a pipeline has, and which of them one stage holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from liveavatar.parallel.transfer import Link, Receiver, Sender


@dataclass
class StageLinks:
    """A stage's ends of the links; what the stage does not have is None."""

    media: Receiver
    previous: Receiver | None = None
    following: Sender | None = None
    velocities: Receiver | Sender | None = None
    latents: Sender | None = None


def stage_links(num_stages: int, media_rank: int) -> list[Link]:
    """All links of a pipeline whose stage k is rank k."""
    links = [Link(f"media-{k}", media_rank, k, depth=16) for k in range(num_stages)]
    links += [Link(f"{k}-{k + 1}", k, k + 1) for k in range(num_stages - 1)]
    if num_stages > 1:
        links.append(Link("velocities", num_stages - 1, 0, depth=8))
    links.append(Link("latents", 0, media_rank, depth=8))
    return links


def links_of_stage(
    index: int, senders: Mapping[str, Sender], receivers: Mapping[str, Receiver]
) -> StageLinks:
    """Sort the ends that stage `index` made of `stage_links`."""
    return StageLinks(
        media=receivers[f"media-{index}"],
        previous=receivers.get(f"{index - 1}-{index}"),
        following=senders.get(f"{index}-{index + 1}"),
        velocities=senders.get("velocities") or receivers.get("velocities"),
        latents=senders.get("latents"),
    )
