"""The states of a stage's jobs: made for one job, kept when it ends, taken over by the next.

A state is gigabytes of caches, and on a GPU the recordings that were made of its forwards. Where
the next job has the same sizes both are used again, so that neither is made while somebody waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from liveavatar.model.denoiser import Denoiser, TokenGrid
from liveavatar.model.transformer import TimeTable, Transformer
from liveavatar.parallel.recorded import RecordedDenoiser


@dataclass(frozen=True)
class JobSizes:
    """What two jobs must have in common for one state to serve both.

    Attributes:
        num_steps: denoise steps.
        grid: tokens of a latent frame.
        window_blocks: blocks in a ring.
        tokens: of a block whose residual stream is at hand; None for all.
    """

    num_steps: int
    grid: TokenGrid
    window_blocks: int
    tokens: range | None


class Denoisers:
    """Gives jobs their state.

    Args:
        transformer: the stage's layers.
        recorded: whether forwards are recorded; see `RecordedDenoiser`.
    """

    def __init__(self, transformer: Transformer, *, recorded: bool) -> None:
        self.transformer = transformer
        self._kind = RecordedDenoiser if recorded else Denoiser
        self._resting: list[tuple[JobSizes, Denoiser]] = []
        self._taken: dict[Denoiser, JobSizes] = {}

    def take(self, sizes: JobSizes, time: TimeTable, text_LD: Tensor) -> Denoiser:
        """The state of a job that begins: one that rests, or a new one, in place of all that rest.

        Args:
            sizes: of the job.
            time: its time table.
            text_LD: its embedded prompt.
        """
        fitting = [denoiser for known, denoiser in self._resting if known == sizes]
        if fitting:
            denoiser = fitting[0]
            self._resting = [pair for pair in self._resting if pair[1] is not denoiser]
            denoiser.renew(time, text_LD)
        else:
            self._resting.clear()
            denoiser = self._kind(
                self.transformer, time, text_LD, sizes.grid, sizes.window_blocks, sizes.tokens
            )
        self._taken[denoiser] = sizes
        return denoiser

    def rest(self, denoiser: Denoiser) -> None:
        """Keep the state of a job that has ended."""
        self._resting.append((self._taken.pop(denoiser), denoiser))
