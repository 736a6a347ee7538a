"""What a validator said before a crash it does not contradict after it, and says again."""

from __future__ import annotations

import pytest

from sim.cheap import digest_of
from swarm.consensus.messages import Commit, Prepare, Prepared, Proposal, RoundChange
from swarm.consensus.record import Record
from swarm.errors import PeerError, StorageError
from tests.consensus.bench import Bench, kinds, only, payload_of

D, E = payload_of(0), payload_of(0, 2)


def test_a_restored_proposer_sends_the_same_proposal_again() -> None:
    bench = Bench()
    before = bench.wake(0)
    bench.built[0] = lambda: E
    assert bench.restart(0) == before
    bench.wake(0)
    bench.settle()
    assert bench.decided[1].payload == D


def test_a_restored_validator_prepares_nothing_else_in_the_same_view() -> None:
    bench = Bench()
    first = only(Prepare, bench.give(bench.proposal(0, payload=D), 1))
    assert bench.restart(1) == [first]
    with pytest.raises(PeerError, match="before it restarted") as caught:
        bench.give(bench.proposal(0, payload=E), 1)
    assert caught.value.member == bench.addresses[0]
    assert bench.give(bench.proposal(0, payload=D), 1) == [], "the same one is taken up again, without a second vote"
    assert kinds(bench.give_all([bench.prepare(0), bench.prepare(2)], 1)) == ["Commit"]


def test_a_restored_validator_is_still_locked() -> None:
    bench = Bench()
    bench.give(bench.proposal(0), 1)
    bench.give_all([bench.prepare(0), bench.prepare(2)], 1)
    assert kinds(bench.restart(1)) == ["Prepare", "Commit"]
    change = only(RoundChange, bench.give_up(1))
    assert change.prepared == Prepared(0, digest_of(D))
    assert (change.payload, len(change.prepares)) == (D, 3)


def test_a_restored_validator_does_not_vote_below_the_view_it_promised() -> None:
    bench = Bench()
    bench.wake(1)
    bench.give_up(1)
    assert only(RoundChange, bench.restart(1)).view == 1
    assert bench.give(bench.proposal(0), 1) == []
    assert bench.machines[1].view == 1


def test_a_restored_validator_that_only_lacked_the_news_decides() -> None:
    bench = Bench()
    bench.give(bench.proposal(0), 1)
    bench.give_all([bench.prepare(0), bench.prepare(2)], 1)
    bench.restart(1)
    bench.give_all([bench.commit(0), bench.commit(2)], 1)
    assert bench.decided[1].payload == D


def test_a_single_validator_that_died_between_its_vote_and_its_block_decides_the_same_block() -> None:
    bench = Bench(1)
    bench.wake(0)
    bench.decided.clear()
    bench.built[0] = lambda: E
    bench.restart(0)
    assert bench.decided[0].payload == D


def test_a_validator_restored_in_a_later_view_still_gives_that_view_up() -> None:
    """Found by the simulator: it had come to the view by a proposal, so nobody's round change started its clock."""
    bench = Bench()
    bench.give(bench.proposal(1, 1, changes=[bench.change(i, 1) for i in (0, 1, 3)]), 2)
    bench.restart(2)
    assert only(RoundChange, bench.give_up(2)).view == 2


def test_a_message_with_ones_own_key_that_one_never_sent_is_reported() -> None:
    bench = Bench()
    with pytest.raises(PeerError, match="another node uses its key"):
        bench.give(bench.prepare(1), 1)


def test_restarting_twice_is_as_good_as_once() -> None:
    bench = Bench()
    bench.give(bench.proposal(0), 1)
    bench.give_all([bench.prepare(0), bench.prepare(2)], 1)
    assert bench.restart(1) == bench.restart(1)


def test_a_record_holds_each_payload_once() -> None:
    bench = Bench(1)
    big = D
    bench.wake(0)
    record = bench.saved[0]
    assert record.count(big) == 1
    votes = Record.decode(record).votes
    assert [type(vote) for vote in votes] == [Proposal, Prepare, Commit]
    assert Record.decode(record).encode() == record


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\xc0", b"junk"])
def test_a_damaged_record_stops_the_vote_with_the_way_out(damage: bytes) -> None:
    bench = Bench()
    bench.give(bench.proposal(0), 1)
    bench.saved[1] = damage or bench.saved[1][:-1]
    with pytest.raises(StorageError, match="follow without voting"):
        bench.restart(1)


def test_a_record_of_another_height_is_the_callers_slip() -> None:
    bench = Bench()
    bench.saved[1] = Record(height=2, view=0, votes=(), lock=None).encode()
    with pytest.raises(ValueError, match="height 2 at height 1"):
        bench.restart(1)
