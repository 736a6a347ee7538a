"""A message has one encoding, and a stranger's bytes can only be refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sim.cheap import CHAIN_ID, KeyedHash, digest_of
from swarm.consensus import Consensus
from swarm.consensus.messages import (
    PAYLOAD_BYTES_MAX,
    Commit,
    Message,
    Prepare,
    Prepared,
    Promise,
    Proposal,
    RoundChange,
    decode_message,
    encode_message,
    signed_digest,
)
from swarm.encoding import pack
from swarm.errors import PeerError
from tests.consensus.bench import Bench, payload_of

heights = st.integers(0, 2**64 - 1)
views = st.integers(0, 2**32 - 1)
digests = st.binary(min_size=32, max_size=32)
signatures = st.binary(min_size=65, max_size=65)
signature_lists = st.lists(signatures, max_size=5).map(tuple)
payloads = st.binary(max_size=300)


@st.composite
def prepared_before(draw: st.DrawFn, view: int) -> Prepared | None:
    if view == 0 or draw(st.booleans()):
        return None
    return Prepared(draw(st.integers(0, view - 1)), draw(digests))


@st.composite
def proposals(draw: st.DrawFn) -> Proposal:
    view = draw(views)
    promises = st.builds(Promise, prepared_before(view), signatures)
    changes = tuple(draw(st.lists(promises, max_size=5)))
    prepares = draw(signature_lists)
    return Proposal(draw(heights), view, draw(digests), draw(signatures), draw(payloads), changes, prepares)


@st.composite
def round_changes(draw: st.DrawFn) -> RoundChange:
    view = draw(st.integers(1, 2**32 - 1))
    prepared = draw(prepared_before(view))
    message = RoundChange(draw(heights), view, prepared, draw(signatures))
    if prepared is None:
        return message
    return replace(message, payload=draw(payloads), prepares=draw(signature_lists))


messages: st.SearchStrategy[Message] = st.one_of(
    proposals(),
    st.builds(Prepare, heights, views, digests, signatures),
    st.builds(Commit, heights, views, digests, signatures),
    round_changes(),
)


def read(data: bytes) -> Message | None:
    """The message in these bytes, None if they are refused as they should be."""
    try:
        return decode_message(data)
    except PeerError:
        return None


@given(messages)
def test_a_message_comes_back_as_it_went(message: Message) -> None:
    assert decode_message(encode_message(message)) == message


@given(st.binary(max_size=500))
@example(b"")
@example(b"\xf8")
@example(b"\xc0" * 70_000)
@example(b"\xff" * 70_000)
@example(b"\xfb\x01\x00\x00" + b"\xbf" * 70_000)
def test_random_bytes_are_refused_or_have_this_one_encoding(data: bytes) -> None:
    message = read(data)
    assert message is None or encode_message(message) == data


@given(messages, st.data())
def test_a_damaged_message_is_refused_or_another_with_this_one_encoding(message: Message, data: st.DataObject) -> None:
    good = encode_message(message)
    at = data.draw(st.integers(0, len(good) - 1))
    new = data.draw(st.binary(max_size=4))
    gone = data.draw(st.integers(0, 4))
    damaged = good[:at] + new + good[at + gone :]
    found = read(damaged)
    assert found is None or encode_message(found) == damaged


@given(messages, st.data())
def test_a_validator_survives_any_bytes(message: Message, data: st.DataObject) -> None:
    """Whatever it is sent, a PeerError is the worst that comes of it."""
    bench = Bench()
    key = KeyedHash(bench.addresses[data.draw(st.integers(0, 3))])
    message = replace(message, height=data.draw(st.integers(0, 3)), view=min(message.view, 9) or 1)
    if isinstance(message, RoundChange | Proposal) and data.draw(st.booleans()):
        message = replace(message, payload=payload_of(1))
        if isinstance(message, RoundChange):
            message = replace(message, prepared=Prepared(0, digest_of(payload_of(1))))
    signed = replace(message, signature=key.sign(signed_digest(message, CHAIN_ID)))
    consensus = Consensus(
        chain_id=CHAIN_ID,
        height=1,
        proposers=bench.addresses,
        authenticator=bench.keys[0],
        build=lambda: payload_of(0),
        judge=lambda payload, proposer: True,
        digest_of=digest_of,
        timeout_s=1.0,
    )
    for sent in (encode_message(signed), encode_message(message), encode_message(signed)[:-1]):
        kept = len(consensus.faults)
        try:
            consensus.receive(sent, 1.0)
        except PeerError:
            kept += 1
        assert len(consensus.faults) == kept


@given(messages, messages)
def test_different_votes_have_different_signed_digests(first: Message, second: Message) -> None:
    def content(message: Message) -> object:
        what = message.prepared if isinstance(message, RoundChange) else message.digest
        return type(message), message.height, message.view, what

    same = signed_digest(first, CHAIN_ID) == signed_digest(second, CHAIN_ID)
    assert same == (content(first) == content(second))
    assert signed_digest(first, CHAIN_ID) != signed_digest(first, CHAIN_ID + 1)


SIGNATURE, DIGEST = bytes(65), bytes(32)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([9, 1, 0, DIGEST, SIGNATURE], "kind 9"),
        ([2, 1, 0, DIGEST], "kind 2 with 4"),
        ([2, 1, 0, DIGEST, SIGNATURE, b""], "kind 2 with 6"),
        ([2, 1, 0, DIGEST[1:], SIGNATURE], "31 bytes where 32"),
        ([2, 1, 0, DIGEST, SIGNATURE[1:]], "64 bytes where 65"),
        ([2, 1, 2**32, DIGEST, SIGNATURE], "at most 4"),
        ([2, 2**64, 0, DIGEST, SIGNATURE], "at most 8"),
        ([2, b"\x00\x01", 0, DIGEST, SIGNATURE], "leading zeros"),
        ([2, [1], 0, DIGEST, SIGNATURE], "a list stands"),
        ([4, 1, 0, [], SIGNATURE, b"", []], "to view 0"),
        ([4, 1, 3, [3, DIGEST], SIGNATURE, b"x", []], "not before view 3"),
        ([4, 1, 3, [2], SIGNATURE, b"x", []], "without its digest"),
        ([4, 1, 3, [], SIGNATURE, b"x", []], "does not claim"),
        ([4, 1, 3, [], SIGNATURE, b"", [SIGNATURE]], "does not claim"),
        ([1, 1, 0, DIGEST, SIGNATURE, b"", [[[], SIGNATURE]] * 129, []], "at most 128"),
        ([1, 1, 0, DIGEST, SIGNATURE, b"", [], [SIGNATURE] * 129], "at most 128"),
        ([1, 1, 0, DIGEST, SIGNATURE, bytes(PAYLOAD_BYTES_MAX + 1), [], []], "at most"),
        ([1, 1, 0, DIGEST, SIGNATURE, [b"x"] * 100_000, [], []], "at most 32768"),
        ([b"x"] * 100_000, "more than 8 fields"),
        ([1], "1 fields"),
    ],
)
def test_a_message_of_another_form_is_refused_in_words(fields: list[object], why: str) -> None:
    with pytest.raises(PeerError, match=why):
        decode_message(pack(fields))  # type: ignore[arg-type]
