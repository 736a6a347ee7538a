"""What a member is told that asks who is at the other end: `/ipfs/id/1.0.0`, as go and js peers do on every connection.

No addresses are given: where a member can be dialled stands on the ledger, and behind NAT a node does not know it.

Source: https://github.com/libp2p/specs/blob/master/identify/README.md
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from libp2p.identity.identify.pb.identify_pb2 import Identify

PROTOCOL = "/ipfs/id/1.0.0"


def about(public_key: bytes, protocols: Iterable[str]) -> bytes:
    """The one message of the protocol, with its length before it.

    Args:
        public_key: in libp2p's protobuf form.
        protocols: what streams are accepted for.
    """
    message = Identify(
        protocol_version="swarm/1", agent_version=_agent(), public_key=public_key, protocols=sorted(protocols)
    ).SerializeToString()
    return _length(len(message)) + bytes(message)


@cache
def _agent() -> str:
    try:
        return f"swarm-ledger/{version('swarm-ledger')}"
    except PackageNotFoundError:  # from a checkout on the path
        return "swarm-ledger"


def _length(size: int) -> bytes:
    """Unsigned LEB128, as protobuf's delimited messages begin."""
    out = bytearray()
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)
