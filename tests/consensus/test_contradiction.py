"""Evidence that a validator contradicted itself: what is one, what is none, and where it is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sim.cheap import CHAIN_ID, recover
from swarm.consensus import Accuse, Contradiction
from swarm.consensus.contradiction import CONTRADICTION_BYTES_MAX
from swarm.consensus.messages import (
    Message,
    Prepare,
    Prepared,
    Proposal,
    RoundChange,
    decode_message,
    prepare_digest,
    round_change_digest,
)
from swarm.errors import PeerError
from swarm.identity import Identity
from swarm.ledger.contradictions import KEPT_PER_MEMBER, Contradictions
from tests.consensus.bench import Bench, payload_of
from tests.consensus.test_heights import KEYS, VALIDATORS, change, commit, consensus_of, prepare, proposal

LIAR = Identity(bytes([7]) * 32)
D, E = payload_of(0), payload_of(0, 2)


def signed(height: int, view: int, content: int, *, by: Identity = LIAR) -> Prepare:
    digest = bytes([content]) * 32
    return Prepare(height, view, digest, by.sign(prepare_digest(CHAIN_ID, height, view, digest)))


def two(height: int = 7, view: int = 1) -> Contradiction:
    return Contradiction.of(signed(height, view, 1), signed(height, view, 2), CHAIN_ID)


def test_two_votes_for_different_things_prove_who_signed_both() -> None:
    assert two().signer() == LIAR.address
    assert Contradiction.decode(two().encode()) == two()


def test_a_payload_is_left_out_and_proves_nothing_less() -> None:
    bench = Bench()
    found = Contradiction.of(bench.proposal(0, payload=D), bench.proposal(0, payload=E), CHAIN_ID)
    assert isinstance(found.first, Proposal)
    assert found.first.payload == b""
    assert found.signer(recover) == bench.addresses[0]
    locked = bench.change(1, 2, (0, D), bench.prepares((0, 1, 2), 0, D))
    found = Contradiction.of(bench.change(1, 2), locked, CHAIN_ID)
    assert found.signer(recover) == bench.addresses[1]
    assert len(found.encode()) < CONTRADICTION_BYTES_MAX


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (signed(7, 1, 1), signed(7, 1, 1), "the same vote"),
        (signed(7, 1, 1), signed(7, 2, 2), "different kinds, heights or views"),
        (signed(7, 1, 1), signed(8, 1, 2), "different kinds, heights or views"),
        (signed(7, 1, 1), signed(7, 1, 2, by=Identity(bytes([8]) * 32)), "different members"),
        (signed(7, 1, 1), replace(signed(7, 1, 2), signature=bytes(65)), "signed by nobody"),
        (signed(7, 1, 1), replace(signed(7, 1, 2), digest=bytes(32)), "different members|nobody"),
    ],
)
def test_what_contradicts_nothing_is_refused(first: Message, second: Message, why: str) -> None:
    with pytest.raises(PeerError, match=why):
        Contradiction.of(first, second, CHAIN_ID).signer()


def test_a_lock_that_is_hidden_from_some_is_a_contradiction() -> None:
    prepared = Prepared(0, bytes([1]) * 32)
    shown, hidden = (
        RoundChange(3, 1, lock, LIAR.sign(round_change_digest(CHAIN_ID, 3, 1, lock))) for lock in (prepared, None)
    )
    assert Contradiction.of(shown, hidden, CHAIN_ID).signer() == LIAR.address


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\xc3\x01\x80\x80", bytes(2000)])
def test_strange_bytes_are_no_contradiction(data: bytes) -> None:
    with pytest.raises(PeerError):
        Contradiction.decode(data)


# --- who notices


@pytest.mark.parametrize("height", [1, 2], ids=["this height", "the next one"])
def test_a_validator_accuses_whoever_contradicts_itself(height: int) -> None:
    consensus = consensus_of(1)
    first = decode_message(prepare(height, 2))
    digest = bytes([5]) * 32
    second = Prepare(height, 0, digest, KEYS[2].sign(prepare_digest(CHAIN_ID, height, 0, digest)))
    assert consensus.accept(first, 10.0) == []
    (accused,) = consensus.accept(second, 10.0)
    assert isinstance(accused, Accuse)
    assert accused.member == VALIDATORS[2] == accused.contradiction.signer(recover)


def test_the_same_message_twice_and_messages_of_several_views_accuse_nobody() -> None:
    consensus = consensus_of(1)
    messages = [prepare(1, 2), prepare(1, 2, 1), commit(1, 2), change(1, 2), change(1, 2, 2), proposal(1), proposal(2)]
    for message in [one for one in messages for _ in range(2)]:
        effects = consensus.receive(message, 10.0)
        assert not [effect for effect in effects if isinstance(effect, Accuse)]


# --- where it is kept


def test_it_is_kept_once_and_read_again(tmp_path: Path) -> None:
    book = Contradictions(tmp_path / "contradictions")
    assert book.kept() == []
    assert book.keep(LIAR.address, two())
    assert not book.keep(LIAR.address, two())
    (found,) = Contradictions(tmp_path / "contradictions").kept()
    assert (found.member, found.contradiction) == (LIAR.address, two())
    assert json.loads(found.path.read_text())["kind"] == "Prepare"


def test_a_liar_fills_no_disk(tmp_path: Path) -> None:
    book = Contradictions(tmp_path)
    assert sum(book.keep(LIAR.address, two(height)) for height in range(1, 100)) == KEPT_PER_MEMBER
    other = Identity(bytes([8]) * 32)
    theirs = Contradiction.of(signed(1, 0, 1, by=other), signed(1, 0, 2, by=other), CHAIN_ID)
    assert book.keep(other.address, theirs), "another member's evidence finds its place"


def test_files_that_prove_nothing_are_left_out(tmp_path: Path) -> None:
    book = Contradictions(tmp_path)
    book.keep(LIAR.address, two())
    same = Contradiction(CHAIN_ID, signed(1, 1, 1), signed(1, 1, 1))
    for name, text in (
        ("a", ""),
        ("b", "{}"),
        ("c", json.dumps({"evidence": "0xzz"})),
        ("d", json.dumps({"evidence": "0x" + same.encode().hex()})),
        ("e", "x" * 100_000),
        ("f", "[" * 5000),
    ):
        (tmp_path / f"{name}.json").write_text(text)
    assert len(book.kept()) == 1


def test_a_disk_that_does_not_take_it_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    assert not Contradictions(tmp_path / "file").keep(LIAR.address, two())
    assert "cannot be kept" in caplog.text
