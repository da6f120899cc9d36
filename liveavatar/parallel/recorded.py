"""Forwards of a job as CUDA graphs: the host hands over a whole range of layers at once.

A forward is hundreds of kernels, and at small sizes the host takes longer to start them than the
GPU to run them. What the kernels are depends on the phase only (`Denoiser.run`), so each phase is
recorded when it first comes and replayed for every later item, also of later jobs of the same
sizes.

Shapes: L block tokens, D model width.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from liveavatar.model.denoiser import Denoiser, Item
from liveavatar.model.kv_cache import Phase

logger = logging.getLogger(__name__)


class RecordedDenoiser(Denoiser):
    """A denoiser on a GPU that starts each phase's kernels by hand only once.

    Its layers must not wait for another rank inside a forward. All recordings share one pool of
    memory, since they run one after another; it is beside what the allocator holds for everything
    else, and is given back with this object. A phase that cannot be recorded, for want of memory
    say, is run by hand every time, and the log says so.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._pool = torch.cuda.graph_pool_handle()
        self._recordings: dict[Phase, torch.cuda.CUDAGraph | None] = {}
        self._hidden_LD: Tensor | None = None
        self._result_LD: Tensor | None = None

    def forward(self, hidden_LD: Tensor, item: Item) -> Tensor:
        """Run the range on the residual stream (L, D) of `item`."""
        phase = self.prepare(item)
        recording = self._recordings.get(phase)
        if recording is None or self._hidden_LD is None or self._result_LD is None:
            result_LD = self.run(hidden_LD, phase)
            if phase not in self._recordings:
                self._recordings[phase] = self._record(hidden_LD, phase)
            return result_LD
        self._hidden_LD.copy_(hidden_LD)
        recording.replay()
        return self._result_LD.clone()

    def _record(self, like_LD: Tensor, phase: Phase) -> torch.cuda.CUDAGraph | None:
        """Record a phase that has just run: nothing is compiled or chosen any more."""
        recording = torch.cuda.CUDAGraph()
        try:
            if self._hidden_LD is None or self._result_LD is None:
                self._hidden_LD, self._result_LD = like_LD.clone(), like_LD.clone()
            # Other threads copy tensors meanwhile, which a recording of the process would forbid.
            with torch.cuda.graph(recording, pool=self._pool, capture_error_mode="thread_local"):
                self._result_LD.copy_(self.run(self._hidden_LD, phase))
        except RuntimeError as error:
            logger.warning("%s is run by hand, it cannot be recorded: %s", phase, error)
            return None
        return recording
