"""What portraits, prompts and recordings were encoded to lately, for whoever brings them again.

Somebody who tries another prompt has the same portrait and the same sound, and a group that many
share hears the same examples again and again. An entry is known by a digest of what went into the
network: the pixels at the video's size, the token ids that the prompt became, the samples. The
network itself is no part of it: whoever owns the networks owns one of these beside them.
"""

import hashlib
from collections import OrderedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from liveavatar.model.upload import upload


def digest_of(kind: str, *parts: npt.NDArray[np.generic]) -> bytes:
    """A digest of arrays: of their dtypes, shapes and bytes, in order.

    Args:
        kind: what they are, so that equal bytes of another kind are another input.
        parts: C-contiguous or copied to be.
    """
    found = hashlib.sha256(kind.encode())
    for part in parts:
        found.update(f"|{part.dtype.str}{part.shape}".encode())
        found.update(np.ascontiguousarray(part).data)
    return found.digest()


class EncodedInputs:
    """Tensors in host memory by digest; those used longest ago leave first.

    A copy to the host and back keeps every bit. On the CPU nothing is copied: whoever gets a tensor
    must not write into it. Not for several threads at once.

    Args:
        limit_bytes: of all tensors together; an entry that is larger is not kept. 0 keeps nothing.

    Attributes:
        num_bytes: of what is kept.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self.num_bytes = 0

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._kept

    def recall(self, digest: bytes, device: torch.device | str) -> Tensor | None:
        """What an input was encoded to, on `device`; None where that is not known."""
        if digest not in self._kept:
            return None
        self._kept.move_to_end(digest)
        return upload(self._kept[digest], device)

    def keep(self, digest: bytes, encoded: Tensor) -> None:
        """Remember what an input was encoded to; on a GPU waits for the current stream."""
        if digest in self._kept or encoded.nbytes > self._limit_bytes:
            return
        self._kept[digest] = encoded.cpu()
        self.num_bytes += encoded.nbytes
        while self.num_bytes > self._limit_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.num_bytes -= oldest.nbytes
