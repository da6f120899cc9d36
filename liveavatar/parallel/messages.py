"""What the ranks of a running group say to each other; tensors travel beside these values.

    media ──JobOpen, BlockSpeech──▶ every stage      media ──JobCancel──▶ stage 0
    stage k ──PrefillWork, StepWork, JobEnd, Shutdown──▶ stage k+1
    last stage ──Velocity──▶ stage 0 ──FinishedBlock, JobEnd──▶ media ──Shutdown──▶ every stage

Shapes: L block tokens, C condition tokens, D model width.
"""

from dataclasses import dataclass

from liveavatar.model.denoiser import Item, TokenGrid
from liveavatar.resume_points import PointPlan
from liveavatar.sampling import Schedule
from liveavatar.timeline import Timeline


@dataclass(frozen=True)
class JobOpen:
    """A job begins; with it come text (text_len, D), time tables, and for stage 0 the condition.

    A job that goes on from a resume point begins with `first_block`; for stage 0 there comes the
    first latent frame of block 0 too. `points` says where further points are written, if they are.
    """

    job: int
    timeline: Timeline
    schedule: Schedule
    grid: TokenGrid
    seed: int
    first_block: int = 0
    points: PointPlan | None = None


@dataclass(frozen=True)
class BlockSpeech:
    """Encoded speech of a block; with it come the local and global vectors."""

    job: int
    block: int


@dataclass(frozen=True)
class PrefillWork:
    """Run the condition; with it comes the residual stream (C, D)."""

    job: int
    version: int


@dataclass(frozen=True)
class StepWork:
    """Run an item; with it comes the residual stream (L, D)."""

    job: int
    item: Item


@dataclass(frozen=True)
class Velocity:
    """Head output of an item; with it comes the velocity."""

    job: int
    block: int
    step: int


@dataclass(frozen=True)
class FinishedBlock:
    """A block's final latent comes with it."""

    job: int
    block: int


@dataclass(frozen=True)
class JobEnd:
    """No more work of this job follows."""

    job: int


@dataclass(frozen=True)
class JobCancel:
    """The media rank asks stage 0 to stop this job at once; blocks under way are dropped."""

    job: int


@dataclass(frozen=True)
class Shutdown:
    """No more jobs follow."""
