"""Bytes of a GPU that NCCL takes to carry tensors between stages: a bound read off its source.

Not measured: no machine with several GPUs was at hand. torch does not count these bytes, since NCCL
allocates by itself. What is counted, by the public source and issues of NVIDIA/nccl:

- `parallel/direct.py` has a communicator of two ranks per link. Connections are made when they are
  first used (NCCL_RUNTIME_CONNECT, on by default): rings, trees and network buffers never are.
- A connection has one channel or more. On each, the receiver holds a buffer per protocol, behind a
  header, rounded up to 2 MiB (`p2pRecvSetup` in `src/transport/p2p.cc`); the sender holds a header,
  and the simple protocol's buffer if it is read from (`p2pSendSetup`).
- Buffers have 8 slots: simple 4 MiB (NCCL_BUFFSIZE), LL 512 KiB, LL128 120 * 640 * 8 bytes a slot
  (`computeBuffSizes` in `src/init.cc`).
- Over PCIe a peer has 2 channels, over NVLink up to two per link of the card
  (`ncclTopoGetNchannels` in `src/graph/paths.cc`), but no more than NCCL_MAX_CTAS lets a
  communicator have: memory is linear in them (NVIDIA/nccl#864). Ranks that only pass tensors on set
  that to `MAX_CHANNELS`, unless it is set already; a larger value of the user's is not planned.
- Code and bookkeeping: to start a communicator of one rank took 484 MiB of an RTX 3090
  (NVIDIA/nccl#2366), by all appearance with the CUDA context. Half of it is assumed to be NCCL's.

Without peer access (NCCL_P2P_DISABLE=1) the buffers lie in host memory, and less is needed. What
stages of several ranks trade inside a layer has more connections, which are not counted.
"""

MAX_CHANNELS = 4
"""Of a connection: enough for a block's tokens, 30 MB at 688*368; each also keeps a GPU's core."""

_MIB = 2**20
_GRANULE = 2 * _MIB
_HEADER = 4096
_SLOTS = 8
_SIMPLE, _LL, _LL128 = 4 * _MIB, _SLOTS * 64 * 1024, _SLOTS * 120 * 640 * 8
_LIBRARY = 256 * _MIB


def transport_bytes(num_sending: int, num_receiving: int) -> int:
    """Bytes of a rank with links of its own to and from other stage ranks, at most; 0 without."""
    if not num_sending + num_receiving:
        return 0
    receiver = _rounded(_HEADER + _SIMPLE + _LL + _LL128)
    sender = _rounded(_HEADER + _SIMPLE)
    return _LIBRARY + MAX_CHANNELS * (num_receiving * receiver + num_sending * sender)


def _rounded(count: int) -> int:
    return -(-count // _GRANULE) * _GRANULE
