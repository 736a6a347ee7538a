"""One height after the other: what is kept for the next, who is helped, and how far others are."""

from __future__ import annotations

import pytest

from sim.cheap import CHAIN_ID, GENESIS, KeyedHash, digest_of, make_payload, recover, validator_addresses
from swarm.consensus import Broadcast, Consensus, Decide, Effect, Help, Save
from swarm.consensus.messages import (  # fmt: skip
    Commit,
    Prepare,
    Proposal,
    RoundChange,
    commit_digest,
    decode_message,
    encode_message,
    prepare_digest,
    proposal_digest,
    round_change_digest,
)
from swarm.errors import PeerError

VALIDATORS = validator_addresses(4)
KEYS = [KeyedHash(address) for address in VALIDATORS]


def payload(height: int, builder: int = 0, *, valid: bool = True) -> bytes:
    return make_payload(height=height, parent=GENESIS, builder=VALIDATORS[builder], counter=1, valid=valid)


def consensus_of(index: int, *, saved: bytes | None = None, height: int = 1) -> Consensus:
    made: list[Consensus] = []
    consensus = Consensus(
        chain_id=CHAIN_ID,
        height=height,
        proposers=VALIDATORS,
        authenticator=KEYS[index],
        build=lambda: payload(made[0].height, index),
        judge=lambda data, proposer: data[65] == 1,
        digest_of=digest_of,
        timeout_s=1.0,
        saved=saved,
        now_s=10.0,
    )
    made.append(consensus)
    return consensus


def proposal(height: int, *, sender: int = 0, valid: bool = True) -> bytes:
    block = payload(height, sender, valid=valid)
    signature = KEYS[sender].sign(proposal_digest(CHAIN_ID, height, 0, digest_of(block)))
    return encode_message(Proposal(height, 0, digest_of(block), signature, block))


def prepare(height: int, sender: int, view: int = 0) -> bytes:
    digest = digest_of(payload(height))
    signature = KEYS[sender].sign(prepare_digest(CHAIN_ID, height, view, digest))
    return encode_message(Prepare(height, view, digest, signature))


def commit(height: int, sender: int) -> bytes:
    digest = digest_of(payload(height))
    signature = KEYS[sender].sign(commit_digest(CHAIN_ID, height, 0, digest))
    return encode_message(Commit(height, 0, digest, signature))


def change(height: int, sender: int, view: int = 1) -> bytes:
    signature = KEYS[sender].sign(round_change_digest(CHAIN_ID, height, view, None))
    return encode_message(RoundChange(height, view, None, signature))


def said(effects: list[Effect]) -> list[str]:
    return [type(decode_message(e.message)).__name__ for e in effects if isinstance(e, Broadcast)]


def test_four_nodes_decide_block_after_block() -> None:
    nodes = [consensus_of(index) for index in range(4)]
    queue: list[tuple[int, bytes]] = []
    decided: list[tuple[int, int]] = []

    def perform(index: int, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Broadcast(message=message):
                    queue.extend((other, message) for other in range(4) if other != index)
                case Decide(height=height, payload=data):
                    assert data == payload(height)
                    decided.append((height, index))
                    perform(index, nodes[index].advance(height + 1, VALIDATORS, 10.0))
                case _:
                    pass

    for height in range(1, 6):
        perform(0, nodes[0].wake(10.0))
        while queue:
            receiver, message = queue.pop(0)
            perform(receiver, nodes[receiver].receive(message, 10.0))
        assert [node.height for node in nodes] == [height + 1] * 4
    assert sorted(decided) == [(height, index) for height in range(1, 6) for index in range(4)]
    assert not any(node.faults for node in nodes)


def test_what_comes_a_height_too_early_is_kept_and_used_there() -> None:
    node = consensus_of(1)
    for message in (proposal(2), prepare(2, 0), prepare(2, 2)):
        assert node.receive(message, 10.0) == []
    assert node.deadline_s is None
    assert said(node.advance(2, VALIDATORS, 10.0)) == ["Prepare", "Commit"]


def test_the_room_for_the_next_height_is_one_slot_for_a_kind_and_a_sender() -> None:
    node = consensus_of(1)
    for view in range(500):
        node.receive(prepare(2, 0, view), 10.0)
        node.receive(prepare(3, 0, view), 10.0)
    assert len(node._waiting) == 1
    assert next(iter(node._waiting.values())).view == 499


def test_what_waited_for_a_height_that_was_skipped_is_dropped() -> None:
    node = consensus_of(1)
    node.receive(proposal(2), 10.0)
    assert node.advance(3, VALIDATORS, 10.0) == []
    assert node.deadline_s is None


def test_a_fault_in_what_waited_is_kept_and_stops_nothing() -> None:
    node = consensus_of(1)
    node.receive(proposal(2, valid=False), 10.0)
    node.receive(change(2, 2), 10.0)
    node.advance(2, VALIDATORS, 10.0)
    assert [fault.member for fault in node.faults] == [VALIDATORS[0]]
    assert node.deadline_s is not None, "the other message still woke it"


def test_a_fault_is_raised_and_kept() -> None:
    node = consensus_of(1)
    with pytest.raises(PeerError) as caught:
        node.receive(proposal(1, sender=2), 10.0)
    assert list(node.faults) == [caught.value]
    for _ in range(100):
        with pytest.raises(PeerError):
            node.receive(b"junk", 10.0)
    assert len(node.faults) == 64


def test_a_round_change_for_a_decided_height_asks_for_help() -> None:
    node = consensus_of(1)
    node.advance(2, VALIDATORS, 10.0)
    assert node.receive(change(1, 3), 10.0) == [Help(VALIDATORS[3], 1)]


def test_other_late_votes_are_no_call_for_help() -> None:
    """Each block leaves some behind: answering them would send every block twice."""
    node = consensus_of(1)
    node.advance(2, VALIDATORS, 10.0)
    assert node.receive(commit(1, 3), 10.0) == []
    assert node.receive(prepare(1, 3), 10.0) == []


def test_nobody_is_helped_more_often_than_once_a_time_out() -> None:
    node = consensus_of(1)
    node.advance(2, VALIDATORS, 10.0)
    times = [at_s / 10 for at_s in range(100, 151) if node.receive(change(1, 3), at_s / 10)]
    assert times == [10, 11, 12, 13, 14, 15]


def test_strangers_and_ones_own_echo_are_not_helped() -> None:
    node = consensus_of(1)
    node.advance(2, VALIDATORS[:2], 10.0)
    node.advance(3, VALIDATORS[:2], 10.0)
    assert node.receive(change(1, 3), 10.0) == [], "no validator, neither now nor a block ago"
    assert node.receive(change(1, 1), 10.0) == []
    assert node.receive(encode_message(RoundChange(1, 1, None, bytes(65))), 10.0) == [], "signed by nobody"


def test_how_far_others_are_is_believed_to_f_plus_1_of_them() -> None:
    node = consensus_of(1)
    node.receive(prepare(10**9, 0), 10.0)
    assert node.height_seen == 1, "one may lie"
    node.receive(prepare(7, 2), 10.0)
    assert node.height_seen == 7
    node.receive(prepare(5, 3), 10.0)
    assert node.height_seen == 7
    node.advance(8, VALIDATORS, 10.0)
    assert node.height_seen == 8


def test_claims_of_strangers_count_for_nothing() -> None:
    node = consensus_of(1)
    signature = bytes(65)
    for view in range(3):
        node.receive(encode_message(Prepare(9, view, bytes(32), signature)), 10.0)
    assert node.height_seen == 1


def test_a_restored_node_is_due_at_once_and_resumes_its_votes() -> None:
    node = consensus_of(1)
    effects = node.receive(proposal(1), 10.0)
    assert isinstance(effects[0], Save)
    restored = consensus_of(1, saved=effects[0].record)
    assert restored.deadline_s == 10.0
    assert restored.resume(10.0) == effects[1:]
    assert restored.resume(10.0) == []


def test_votes_that_outlived_their_block_bind_the_node_when_it_gets_there_again() -> None:
    """The ledger's last block may be lost in a power failure, the votes of the height above it are synced."""
    node = consensus_of(1)
    node.advance(2, VALIDATORS, 10.0)
    saved = node.receive(proposal(2), 10.0)[0]
    assert isinstance(saved, Save)
    assert saved.height == 2
    again = consensus_of(1)
    assert said(again.advance(2, VALIDATORS, 10.0, saved=saved.record)) == ["Prepare"]


def test_there_is_no_way_back() -> None:
    node = consensus_of(1, height=4)
    with pytest.raises(ValueError, match="no way"):
        node.advance(4, VALIDATORS, 10.0)


def test_only_a_validator_has_a_machine() -> None:
    with pytest.raises(ValueError, match="belongs to one"):
        consensus_of(1).advance(2, VALIDATORS[2:], 10.0)


def test_cheap_keys_recover_like_real_ones() -> None:
    digest = digest_of(payload(1))
    assert recover(digest, KEYS[2].sign(digest)) == VALIDATORS[2]
    with pytest.raises(ValueError):
        recover(digest, bytes(65))
