"""In which order a pipeline works: plain arithmetic, no tensors.

The work of a video is a grid of **items** (n, s): block n at denoise step s. An item passes the
pipeline stages 0..K-1 in turn, one **tick** each. It may enter stage 0 when

- (n, s-1) has left stage K-1: its head output becomes the next sample, K ticks after it entered;
- (n-1, s) entered before it: each stage keeps the keys and values that blocks leave at a step, and
  needs them in block order.

Item (n, s) enters at tick S*n + offset(s). The offsets have different residues modulo S, so no two
items ask for the same tick, and from the first block's last step on every tick has one: no bubbles
for any K and S.

Besides items there are **prefills**: the condition runs through the stages once before block 0, and
again before the first block of the second clip, with the first latent frame of the finished block 0
as reference. Blocks before that one keep the old condition, so nothing has to drain.

All stages do the same work in the same order, each one tick later than the stage before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Prefill:
    """Run the condition through the stages; `version` 0 at the start, 1 at the refresh."""

    version: int


@dataclass(frozen=True)
class BlockStep:
    """Run block `block` at denoise step `step`, with condition `version`."""

    block: int
    step: int
    version: int


Work = Prefill | BlockStep


@dataclass(frozen=True)
class Pipeline:
    """Shape of the schedule.

    Attributes:
        num_stages: pipeline stages K, at least 1.
        num_steps: denoise steps S, at least 1.
    """

    num_stages: int
    num_steps: int

    @property
    def offsets(self) -> tuple[int, ...]:
        """Ticks from a block's start to the entry of each of its steps.

        offset(0) = 0; offset(s) is the smallest number >= offset(s-1) + K whose residue modulo S is
        still free.
        """
        chosen: list[int] = []
        for _ in range(self.num_steps):
            tick = chosen[-1] + self.num_stages if chosen else 0
            while tick % self.num_steps in {earlier % self.num_steps for earlier in chosen}:
                tick += 1
            chosen.append(tick)
        return tuple(chosen)

    @property
    def latency(self) -> int:
        """Ticks from a block's entry to its finished latent."""
        return self.offsets[-1] + self.num_stages

    @property
    def blocks_in_flight(self) -> int:
        """Blocks that are begun and not finished, in steady state, at most."""
        return -(-self.latency // self.num_steps)

    def refresh_delay(self, refresh_block: int) -> int:
        """Ticks by which blocks from `refresh_block` on wait for block 0 to be finished.

        A multiple of S, so that delayed and earlier blocks never ask for the same tick. 0 for the
        headline layout of 3 stages, 4 steps and 4 blocks per clip.
        """
        late = self.latency - self.num_steps * refresh_block
        return max(0, -(-late // self.num_steps)) * self.num_steps


@dataclass(frozen=True)
class Slot:
    """One tick of stage 0; stage k does the same work k ticks later."""

    tick: int
    work: Work


def schedule_video(
    pipeline: Pipeline,
    num_blocks: int,
    refresh_block: int | None = None,
    first_block: int = 0,
) -> Iterator[Slot]:
    """Yield the work of one video in the order in which every stage does it.

    A prefill takes one tick of its own; all later work moves back by it.

    Args:
        pipeline: stages and steps.
        num_blocks: blocks of the video.
        refresh_block: first block that uses the refreshed condition; None for never.
        first_block: of a video that goes on from a resume point; the blocks before it, and with
            them the refreshed reference, are there.
    """
    if first_block:
        yield from _rest_of_video(pipeline, num_blocks, refresh_block, first_block)
        return
    offsets, steps = pipeline.offsets, pipeline.num_steps
    refreshes = refresh_block is not None and refresh_block < num_blocks
    delay = pipeline.refresh_delay(refresh_block) if refresh_block is not None else 0
    # Entries are made tick by tick, so that a video of any length needs no memory: at a tick, one
    # step has the right residue, and with it the block is known.
    step_of_residue = {offset % steps: step for step, offset in enumerate(offsets)}
    prefills = 1
    yield Slot(0, Prefill(0))
    last_tick = steps * (num_blocks - 1) + offsets[-1] + (delay if refreshes else 0)
    for tick in range(last_tick + 1):
        step = step_of_residue[tick % steps]
        block, version = (tick - offsets[step]) // steps, 0
        if refreshes and refresh_block is not None and block >= refresh_block:
            block, version = block - delay // steps, 1
            if block < refresh_block:
                continue  # the new reference is not finished yet
        if not 0 <= block < num_blocks:
            continue
        if version == prefills:
            yield Slot(tick + prefills, Prefill(version))
            prefills += 1
        yield Slot(tick + prefills, BlockStep(block, step, version))


def _rest_of_video(
    pipeline: Pipeline, num_blocks: int, refresh_block: int | None, first_block: int
) -> Iterator[Slot]:
    """The work from `first_block` on, its ticks from 0: that of a shorter video, renumbered."""
    refreshed = num_blocks if refresh_block is None else refresh_block
    versions: list[int] = []
    for slot in schedule_video(pipeline, num_blocks - first_block):
        if isinstance(slot.work, Prefill):
            continue
        block = first_block + slot.work.block
        version = int(block >= refreshed)
        tick = slot.tick - 1 + len(versions)  # the shorter video has one prefill
        if not versions or version > versions[-1]:
            versions.append(version)
            yield Slot(tick, Prefill(version))
            tick += 1
        yield Slot(tick, BlockStep(block, slot.work.step, version))
