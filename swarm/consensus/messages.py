"""What validators say to each other about one height: four kinds of signed messages and their bytes.

A signature covers kind, chain, height, view and what is voted for; the sender is who the signature recovers to.
Payloads and justifications travel beside it: they prove themselves (by digest, by their own signatures), so whoever
passes a message on cannot make its signer look guilty. Who may say what, and when, is `qbft`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from swarm.config import MEMBERS_MAX
from swarm.encoding import Digest, Item, Unpacked, data_of, keccak256, list_of, number, pack, unpack
from swarm.errors import PeerError
from swarm.identity import SIGNATURE_BYTES

PAYLOAD_BYTES_MAX = 8 << 20
"""Some tens of thousands of transactions. A message with one fits into one message of the transport (16 MiB)."""
VIEW_BITS = 32
HEIGHT_BITS = 64

# 128 promises of about 110 bytes come to 14 KB, 128 prepares to 9 KB.
_JUSTIFICATION_BYTES_MAX = 32 << 10
MESSAGE_BYTES_MAX = PAYLOAD_BYTES_MAX + 2 * _JUSTIFICATION_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Prepared:
    """The view in which a quorum prepared a digest: a later proposal must be for the same digest."""

    view: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Proposal:
    """The proposer of a view: decide this payload, and here is why I may ask for it in this view."""

    height: int
    view: int
    digest: Digest
    signature: bytes
    payload: bytes
    round_changes: tuple[Promise, ...] = ()
    """View 0: none. Later: a quorum of round changes to this height and view."""
    prepares: tuple[bytes, ...] = ()
    """The signatures of a quorum of prepares for the highest prepared view among `round_changes`, if any."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A round change inside a proposal: its height and view are the proposal's, so no other can stand here."""

    prepared: Prepared | None
    signature: bytes


@dataclass(frozen=True, slots=True)
class Prepare:
    """I accepted this proposal; I accept no other in this view."""

    height: int
    view: int
    digest: Digest
    signature: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """A quorum prepared this digest in this view, and I am locked on it. The signature is the certificate's seal."""

    height: int
    view: int
    digest: Digest
    signature: bytes


@dataclass(frozen=True, slots=True)
class RoundChange:
    """I vote in no view below this one, and this is the highest view in which I saw a quorum prepare."""

    height: int
    view: int
    prepared: Prepared | None
    signature: bytes
    payload: bytes = b""
    """What was prepared, so that the next proposer can propose it again."""
    prepares: tuple[bytes, ...] = ()
    """The signatures of the quorum that prepared it."""


Message: TypeAlias = Proposal | Prepare | Commit | RoundChange
_KINDS: dict[type[Message], int] = {Proposal: 1, Prepare: 2, Commit: 3, RoundChange: 4}


# --- what is signed


@lru_cache(maxsize=512)
def proposal_digest(chain_id: int, height: int, view: int, digest: Digest) -> Digest:
    """What the signature of a `Proposal` covers."""
    return keccak256(pack(["swarm/propose", chain_id, height, view, digest]))


@lru_cache(maxsize=512)
def prepare_digest(chain_id: int, height: int, view: int, digest: Digest) -> Digest:
    """What the signature of a `Prepare` covers."""
    return keccak256(pack(["swarm/prepare", chain_id, height, view, digest]))


@lru_cache(maxsize=512)
def commit_digest(chain_id: int, height: int, view: int, digest: Digest) -> Digest:
    """What the signature of a `Commit` covers: the same that a certificate's seals cover."""
    return keccak256(pack(["swarm/commit", chain_id, height, view, digest]))


@lru_cache(maxsize=512)
def round_change_digest(chain_id: int, height: int, view: int, prepared: Prepared | None) -> Digest:
    """What the signature of a `RoundChange` covers."""
    return keccak256(pack(["swarm/round-change", chain_id, height, view, _prepared_item(prepared)]))


def signed_digest(message: Message, chain_id: int) -> Digest:
    """What this message's signature covers."""
    match message:
        case Proposal():
            return proposal_digest(chain_id, message.height, message.view, message.digest)
        case Prepare():
            return prepare_digest(chain_id, message.height, message.view, message.digest)
        case Commit():
            return commit_digest(chain_id, message.height, message.view, message.digest)
        case RoundChange():
            return round_change_digest(chain_id, message.height, message.view, message.prepared)


# --- bytes


def encode_message(message: Message) -> bytes:
    """Canonical bytes: RLP of the kind's number and the fields."""
    start: list[Item] = [_KINDS[type(message)], message.height, message.view]
    match message:
        case Proposal():
            promises = [[_prepared_item(p.prepared), p.signature] for p in message.round_changes]
            rest: list[Item] = [message.digest, message.signature, message.payload, promises, list(message.prepares)]
        case Prepare() | Commit():
            rest = [message.digest, message.signature]
        case RoundChange():
            rest = [_prepared_item(message.prepared), message.signature, message.payload, list(message.prepares)]
    return pack(start + rest)


def decode_message(data: bytes) -> Message:
    """The message in a stranger's bytes. Its signature is not checked here.

    Raises:
        PeerError: too long, not canonical, or not of a message's form.
    """
    try:
        _check_outline(data)
        return _message(list_of(unpack(data, max_bytes=MESSAGE_BYTES_MAX), size_max=8))
    except ValueError as error:
        raise PeerError(f"not a consensus message: {error}", evidence=data[:_JUSTIFICATION_BYTES_MAX]) from error


def _check_outline(data: bytes) -> None:
    """Refuse large messages whose bulk is lists, before a decoder makes millions of small objects of them."""
    if len(data) <= 2 * _JUSTIFICATION_BYTES_MAX or data[0] < 0xF8:
        return
    position, parts = 1 + data[0] - 0xF7, 0
    while position < len(data):
        prefix = data[position]
        base, small = (0xC0, 0xF7) if prefix >= 0xC0 else (0x80, 0xB7)
        width = max(prefix - small, 0)
        length = int.from_bytes(data[position + 1 : position + 1 + width], "big") if width else max(prefix - base, 0)
        if prefix >= 0xC0 and length > _JUSTIFICATION_BYTES_MAX:
            raise ValueError(f"a justification of {length} bytes, at most {_JUSTIFICATION_BYTES_MAX} are read")
        parts += 1
        if parts > 8:
            raise ValueError("more than 8 fields")
        position += 1 + width + length if prefix >= 0x80 else 1


def _message(parts: Sequence[Unpacked]) -> Message:
    if len(parts) < 4:
        raise ValueError(f"{len(parts)} fields")
    kind, height, view = number(parts[0], bits=8), number(parts[1], bits=HEIGHT_BITS), number(parts[2], bits=VIEW_BITS)
    rest = parts[3:]
    match kind, len(rest):
        case 1, 5:
            promises = tuple(_promise(part, view) for part in list_of(rest[3], size_max=MEMBERS_MAX))
            return Proposal(
                height, view, _digest(rest[0]), _signature(rest[1]), _payload(rest[2]), promises, _prepares(rest[4])
            )
        case 2, 2:
            return Prepare(height, view, _digest(rest[0]), _signature(rest[1]))
        case 3, 2:
            return Commit(height, view, _digest(rest[0]), _signature(rest[1]))
        case 4, 4:
            if view == 0:
                raise ValueError("a round change to view 0")
            prepared = _prepared(rest[0], view)
            message = RoundChange(height, view, prepared, _signature(rest[1]), _payload(rest[2]), _prepares(rest[3]))
            if prepared is None and (message.payload or message.prepares):
                raise ValueError("a round change that justifies what it does not claim")
            return message
        case _:
            raise ValueError(f"kind {kind} with {len(parts)} fields")


def _prepared_item(prepared: Prepared | None) -> list[Item]:
    return [] if prepared is None else [prepared.view, prepared.digest]


def _prepared(item: Unpacked, view: int) -> Prepared | None:
    parts = list_of(item, size_max=2)
    if not parts:
        return None
    if len(parts) != 2:
        raise ValueError("a prepared view without its digest")
    prepared = Prepared(number(parts[0], bits=VIEW_BITS), _digest(parts[1]))
    if prepared.view >= view:
        raise ValueError(f"prepared in view {prepared.view}, which is not before view {view}")
    return prepared


def _promise(item: Unpacked, view: int) -> Promise:
    prepared, signature = list_of(item, size=2)
    return Promise(_prepared(prepared, view), _signature(signature))


def _prepares(item: Unpacked) -> tuple[bytes, ...]:
    return tuple(_signature(part) for part in list_of(item, size_max=MEMBERS_MAX))


def _signature(item: Unpacked) -> bytes:
    return data_of(item, size=SIGNATURE_BYTES)


def _digest(item: Unpacked) -> Digest:
    return data_of(item, size=32)


def _payload(item: Unpacked) -> bytes:
    payload = data_of(item)
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a payload of {len(payload)} bytes, at most {PAYLOAD_BYTES_MAX} are read")
    return payload
