"""What a validator must not forget about a height, as bytes: its view, its last vote of each kind, and its lock.

A validator that comes back without it could vote twice in one view; two such restarts fork a ledger without any
dishonest member.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from swarm.consensus.messages import (
    HEIGHT_BITS,
    PAYLOAD_BYTES_MAX,
    VIEW_BITS,
    Message,
    Prepared,
    Proposal,
    RoundChange,
    decode_message,
    encode_message,
)
from swarm.encoding import Digest, Unpacked, data_of, list_of, number, pack, unpack
from swarm.errors import PeerError, StorageError
from swarm.identity import SIGNATURE_BYTES

# One payload in each of: the proposal, the round change, the lock.
_RECORD_BYTES_MAX = 3 * PAYLOAD_BYTES_MAX + (256 << 10)


@dataclass(frozen=True)
class Lock:
    """What a quorum prepared, seen by this validator: the payload, and the signatures that prove it to others."""

    prepared: Prepared
    payload: bytes
    prepares: tuple[bytes, ...]


@dataclass(frozen=True)
class Record:
    """The durable state of one validator at one height."""

    height: int
    view: int
    votes: tuple[Message, ...]
    """This validator's own latest messages, at most one of each kind."""
    lock: Lock | None

    def encode(self) -> bytes:
        """The bytes of a `Save`. Each payload stands in them once."""
        payloads: dict[Digest, bytes] = {}
        votes = []
        for vote in self.votes:
            match vote:
                case Proposal(digest=digest, payload=payload):
                    payloads[digest] = payload
                    vote = replace(vote, payload=b"")
                case RoundChange(prepared=Prepared(digest=digest), payload=payload):
                    payloads[digest] = payload
                    vote = replace(vote, payload=b"")
                case _:
                    pass
            votes.append(encode_message(vote))
        lock: list[int | bytes | list[bytes]] = []
        if self.lock is not None:
            prepared = self.lock.prepared
            payloads[prepared.digest] = self.lock.payload
            lock = [prepared.view, prepared.digest, list(self.lock.prepares)]
        return pack([self.height, self.view, votes, lock, [list(pair) for pair in payloads.items()]])

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """The record in the bytes of a `Save`.

        Raises:
            StorageError: damaged. To vote without it could contradict an earlier vote.
        """
        try:
            height, view, votes, lock, pairs = list_of(unpack(data, max_bytes=_RECORD_BYTES_MAX), size=5)
            payloads = dict(_pair(pair) for pair in list_of(pairs, size_max=3))
            return cls(
                number(height, bits=HEIGHT_BITS),
                number(view, bits=VIEW_BITS),
                tuple(_vote(vote, payloads) for vote in list_of(votes, size_max=4)),
                _lock(list_of(lock), payloads),
            )
        except (ValueError, KeyError, PeerError) as error:
            raise StorageError(
                f"the saved votes of this validator are damaged ({error}); restore them from a good copy, "
                "or let this node follow without voting until the others have decided this height"
            ) from error


def _pair(item: Unpacked) -> tuple[Digest, bytes]:
    digest, payload = list_of(item, size=2)
    return data_of(digest, size=32), data_of(payload)


def _vote(item: Unpacked, payloads: dict[Digest, bytes]) -> Message:
    vote = decode_message(data_of(item))
    match vote:
        case Proposal(digest=digest):
            return replace(vote, payload=payloads[digest])
        case RoundChange(prepared=Prepared(digest=digest)):
            return replace(vote, payload=payloads[digest])
        case _:
            return vote


def _lock(parts: list[Unpacked], payloads: dict[Digest, bytes]) -> Lock | None:
    if not parts:
        return None
    view, digest, prepares = list_of(parts, size=3)
    prepared = Prepared(number(view, bits=VIEW_BITS), data_of(digest, size=32))
    return Lock(
        prepared, payloads[prepared.digest], tuple(data_of(part, size=SIGNATURE_BYTES) for part in list_of(prepares))
    )
