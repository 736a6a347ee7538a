"""Each rule of the machine, as the QBFT specification names it (Consensys, dafny/spec/L1/node.dfy)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sim.cheap import CHAIN_ID, digest_of
from swarm.consensus import Contradiction, Qbft
from swarm.consensus.messages import Commit, Message, Prepare, Prepared, Proposal, RoundChange
from swarm.consensus.qbft import RESEND_MAX_S, TIMEOUT_MAX_S
from swarm.errors import PeerError
from swarm.quorum import faults_max, quorum
from tests.consensus.bench import TIMEOUT_S, Bench, kinds, only, payload_of
from tests.consensus.planted import Hurries

D, E = payload_of(0), payload_of(1, 2)


def locked_bench() -> tuple[Bench, tuple[bytes, ...]]:
    """Validator 0 is locked on D in view 0; the others prepared it and saw no quorum."""
    bench = Bench()
    bench.wake(0)
    bench.give(bench.proposal(0, payload=D), 1, 2, 3)
    bench.give_all([bench.prepare(1), bench.prepare(2)], 0)
    return bench, bench.prepares((0, 1, 2), 0, D)


# --- UponBlockTimeout: here a transaction takes the place of the block time


def test_the_first_proposer_proposes_and_prepares_when_a_transaction_waits() -> None:
    bench = Bench()
    sent = bench.wake(0)
    assert kinds(sent) == ["Proposal", "Prepare"]
    assert only(Proposal, sent).payload == D


def test_others_wait_for_the_proposer_and_only_start_their_clock() -> None:
    bench = Bench()
    assert bench.machines[1].deadline_s is None
    assert bench.wake(1) == []
    assert bench.machines[1].deadline_s == TIMEOUT_S


def test_a_proposer_proposes_once_however_often_it_is_woken() -> None:
    bench = Bench()
    bench.wake(0)
    assert bench.wake(0) == []


def test_a_proposer_with_nothing_to_execute_stays_awake_and_tries_again() -> None:
    bench = Bench()
    bench.built[0] = lambda: None
    assert bench.wake(0) == []
    assert bench.machines[0].deadline_s is not None
    del bench.built[0]
    assert kinds(bench.wake(0)) == ["Proposal", "Prepare"]


def test_a_sleeping_machine_is_woken_by_a_valid_message_and_by_no_other() -> None:
    bench = Bench()
    with pytest.raises(PeerError):
        bench.give(bench.proposal(2), 1)
    with pytest.raises(PeerError):
        bench.give(bench.proposal(0, payload=payload_of(0, valid=False)), 1)
    assert bench.machines[1].deadline_s is None
    bench.give(bench.proposal(0, payload=D), 2)
    assert bench.machines[2].deadline_s is not None


# --- UponProposal


def test_a_valid_proposal_is_prepared() -> None:
    bench = Bench()
    prepare = only(Prepare, bench.give(bench.proposal(0), 1))
    assert (prepare.view, prepare.digest) == (0, digest_of(D))


def test_only_the_views_proposer_proposes() -> None:
    bench = Bench()
    with pytest.raises(PeerError, match="its proposer is") as caught:
        bench.give(bench.proposal(2), 1)
    assert caught.value.member == bench.addresses[2]


def test_nobody_elses_signature_counts() -> None:
    bench = Bench()
    stranger = Bench(5)
    with pytest.raises(PeerError, match="no validator's signature"):
        bench.give(stranger.prepare(4), 1)


def test_a_payload_must_have_the_digest_that_is_signed() -> None:
    bench = Bench()
    proposal = bench.proposal(0, payload=D)
    swapped = Proposal(1, 0, proposal.digest, proposal.signature, E)
    with pytest.raises(PeerError, match="the payload of") as caught:
        bench.give(swapped, 1)
    assert caught.value.member is None, "whoever passed it on may have swapped it"
    assert kinds(bench.give(proposal, 1)) == ["Prepare"]


def test_a_payload_is_judged_once_and_after_everything_else() -> None:
    bench = Bench()
    bad = payload_of(1, valid=False)
    with pytest.raises(PeerError):
        bench.give(bench.proposal(1, 1, bad), 2)  # no justification
    assert bench.judged == []
    justified = bench.proposal(1, 1, bad, changes=[bench.change(i, 1) for i in (0, 1, 3)])
    for _ in range(3):
        with pytest.raises(PeerError, match="not valid") as caught:
            bench.give(justified, 2)
    assert caught.value.member == bench.addresses[1]
    assert bench.judged == [(2, bad)]


def test_a_second_proposal_in_a_view_is_evidence_and_is_not_prepared() -> None:
    bench = Bench()
    first, second = bench.proposal(0, payload=D), bench.proposal(0, payload=payload_of(0, 2))
    bench.give(first, 1)
    with pytest.raises(PeerError, match="contradicts itself") as caught:
        bench.give(second, 1)
    assert (caught.value.member, caught.value.evidence) == (
        bench.addresses[0],
        Contradiction.of(first, second, CHAIN_ID),
    )
    assert bench.give(first, 1) == [], "the first one again is no news"


def test_a_proposal_of_a_later_view_takes_the_machine_there() -> None:
    bench = Bench()
    bench.wake(2)
    proposal = bench.proposal(1, 5, E, changes=[bench.change(i, 5) for i in (0, 1, 3)])
    assert only(Prepare, bench.give(proposal, 2)).view == 5
    assert bench.machines[2].view == 5


def test_a_proposal_of_an_earlier_view_is_not_prepared() -> None:
    bench = Bench()
    bench.wake(1)
    bench.give_up(1)
    assert bench.give(bench.proposal(0), 1) == []


# --- UponPrepare


def test_a_quorum_of_prepares_locks_and_commits() -> None:
    bench = Bench()
    bench.give(bench.proposal(0), 1)
    assert bench.give(bench.prepare(0), 1) == []
    commit = only(Commit, bench.give(bench.prepare(2), 1))
    assert (commit.view, commit.digest) == (0, digest_of(D))


def test_prepares_count_before_their_proposal_is_there() -> None:
    bench = Bench()
    bench.give_all([bench.prepare(0), bench.prepare(2)], 1)
    assert kinds(bench.give(bench.proposal(0), 1)) == ["Prepare", "Commit"]


@pytest.mark.parametrize(("view", "payload"), [(1, D), (0, E)])
def test_prepares_of_another_view_or_digest_do_not_count(view: int, payload: bytes) -> None:
    bench = Bench()
    bench.give(bench.proposal(0), 1)
    assert bench.give_all([bench.prepare(i, view, payload) for i in (0, 2, 3)], 1) == []


@pytest.mark.parametrize("vote", ["prepare", "commit"])
def test_two_votes_in_a_view_are_evidence_and_the_first_stands(vote: str) -> None:
    bench = Bench()
    bench.give(bench.proposal(0), 1)
    make = getattr(bench, vote)
    bench.give(make(2, 0, D), 1)
    with pytest.raises(PeerError, match="contradicts itself") as caught:
        bench.give(make(2, 0, E), 1)
    assert caught.value.member == bench.addresses[2]
    bench.give_all([bench.prepare(0), bench.prepare(2), bench.prepare(3), bench.commit(0), bench.commit(2)], 1)
    assert 1 in bench.decided, "a traitor's second vote stops nobody"


# --- UponCommit


def test_a_quorum_of_commits_decides_with_a_certificate() -> None:
    bench = Bench()
    bench.wake(0)
    bench.settle()
    assert sorted(bench.decided) == [0, 1, 2, 3]
    assert {decision.payload for decision in bench.decided.values()} == {D}
    assert all(machine.deadline_s is None for machine in bench.machines)


def test_commits_of_different_views_do_not_add_up() -> None:
    bench = Bench()
    bench.give(bench.proposal(0), 1)
    bench.give_all([bench.commit(0, 0, D), bench.commit(2, 1, D), bench.commit(3, 2, D)], 1)
    assert bench.decided == {}


def test_a_quorum_of_commits_decides_in_a_view_that_this_validator_never_saw() -> None:
    bench = Bench()
    bench.give(bench.proposal(0), 1)
    bench.give_all([bench.commit(i, 3, D) for i in (0, 2, 3)], 1)
    assert bench.decided[1].certificate.view == 3


def test_a_decision_waits_for_its_payload_even_if_that_comes_last() -> None:
    bench = Bench()
    bench.give_all([bench.commit(i, 0, D) for i in (0, 2, 3)], 1)
    assert bench.decided == {}
    bench.give_up(1)
    bench.give(bench.proposal(0), 1)
    assert bench.decided[1].payload == D


def test_a_decided_machine_says_nothing_more() -> None:
    bench = Bench(1)
    bench.wake(0)
    assert bench.machines[0].wake(9.0) == bench.machines[0].tick(9.0) == []
    assert bench.machines[0].accept(bench.prepare(0), 9.0) == []


# --- UponRoundTimeout


def test_a_time_out_sends_the_votes_again_and_then_promises_the_next_view() -> None:
    bench = Bench()
    bench.give(bench.proposal(0), 1)
    sent = bench.tick(1)
    assert kinds(sent) == ["Prepare", "RoundChange"]
    assert (only(RoundChange, sent).view, only(RoundChange, sent).prepared) == (1, None)


def test_a_round_change_shows_the_lock_and_its_proof() -> None:
    bench, prepares = locked_bench()
    sent = bench.tick(0)
    assert kinds(sent) == ["Proposal", "Prepare", "Commit", "RoundChange"]
    change = only(RoundChange, sent)
    assert change.prepared == Prepared(0, digest_of(D))
    assert (change.payload, change.prepares) == (D, prepares)


def test_views_grow_longer_up_to_a_minute() -> None:
    bench = Bench()
    bench.wake(0)
    lengths = []
    for view in range(1, 10):
        began_s = bench.now_s
        bench.give_up(0)
        lengths.append(bench.now_s - began_s)
        bench.give_all([bench.change(i, view) for i in (1, 2)], 0)
    assert lengths == [1, 2, 4, 8, 16, 32, TIMEOUT_MAX_S, TIMEOUT_MAX_S, TIMEOUT_MAX_S]


def test_a_views_time_runs_only_when_a_quorum_has_reached_it() -> None:
    """PBFT §4.5.2: who was alone for an hour is not an hour ahead."""
    bench = Bench()
    bench.wake(0)
    bench.give_up(0)
    for _ in range(50):
        assert kinds(bench.tick(0)) == ["RoundChange"]
    assert bench.machines[0].view == 1
    bench.give_all([bench.change(i, 1) for i in (2, 3)], 0)
    bench.give_up(0)
    assert bench.machines[0].view == 2


def alone_for_an_hour(machine: type[Qbft]) -> Bench:
    """Validator 0 is alone for an hour; then it goes on with 1 and 2, and 3 is gone for good."""
    bench = Bench(machine=machine)
    bench.built[0] = lambda: None
    bench.wake(0)
    bench.play(3600.0, alive=[0])
    bench.now_s = 3600.0
    del bench.built[0]
    bench.wake(0, 1, 2)
    bench.play(7200.0, alive=[0, 1, 2])
    return bench


def test_who_was_alone_for_an_hour_still_finds_to_the_others() -> None:
    bench = alone_for_an_hour(Qbft)
    assert sorted(bench.decided) == [0, 1, 2]
    assert bench.now_s < 3600.0 + 60


def test_with_a_clock_that_hurries_it_would_stay_ahead_of_them_for_ever() -> None:
    """The planted mistake: a minute's views are as long for all, so who is ahead by some stays ahead by as many."""
    bench = alone_for_an_hour(Hurries)
    assert bench.decided == {}


def test_a_stuck_machine_sends_its_round_change_again_at_growing_but_bounded_intervals() -> None:
    bench = Bench()
    bench.wake(1)
    bench.give_up(1)
    times = [bench.now_s]
    for _ in range(8):
        only(RoundChange, bench.tick(1))
        times.append(bench.now_s)
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == [1, 1, 2, 4, 8, RESEND_MAX_S, RESEND_MAX_S, RESEND_MAX_S]


def test_the_first_transaction_of_a_machine_that_others_kept_awake_does_not_wait_a_minute() -> None:
    bench = Bench()
    for view in range(1, 9):
        bench.give_all([bench.change(i, view) for i in (0, 2, 3)], 1)
    before_s = bench.machines[1].deadline_s
    bench.wake(1)
    after_s = bench.machines[1].deadline_s
    assert before_s is not None
    assert after_s == bench.now_s + TIMEOUT_S


# --- UponRoundChange, first case: a new proposal


def test_the_next_proposer_builds_when_nothing_was_prepared() -> None:
    bench = Bench()
    sent = bench.give_all([bench.change(i, 1) for i in (0, 2, 3)], 1)
    proposal = only(Proposal, sent)
    assert (proposal.view, proposal.payload) == (1, payload_of(1))
    assert kinds(bench.give(proposal, 2)) == ["Prepare"]


def test_a_prepared_block_survives_a_view_change() -> None:
    bench, _ = locked_bench()
    bench.sent.clear()
    bench.wake(1, 2, 3)
    bench.give_up(0, 1, 2)
    bench.settle()
    assert {decision.payload for decision in bench.decided.values()} == {D}
    assert {decision.certificate.view for decision in bench.decided.values()} == {1}


def test_the_highest_lock_wins() -> None:
    bench = Bench()
    low = bench.change(0, 5, (0, D), bench.prepares((0, 1, 2), 0, D))
    high = bench.change(2, 5, (3, E), bench.prepares((1, 2, 3), 3, E))
    proposal = only(Proposal, bench.give_all([low, high, bench.change(3, 5)], 1))
    assert (proposal.payload, proposal.prepares) == (E, high.prepares)
    assert kinds(bench.give(proposal, 0, 2, 3)) == ["Prepare"] * 3
    assert all(payload != E for _, payload in bench.judged), "a quorum prepared it: it is not judged again"


@pytest.mark.parametrize("senders", [(0, 1), (0, 1, 1), ()])
def test_a_proposer_believes_no_lock_without_a_quorum_of_prepares(senders: tuple[int, ...]) -> None:
    bench = Bench()
    with pytest.raises(PeerError, match="no quorum of prepares") as caught:
        bench.give(bench.change(0, 5, (3, E), bench.prepares(senders, 3, E)), 1)
    assert caught.value.member is None, "the signature does not cover the proof"
    bench.give(bench.change(0, 5, (3, E), bench.prepares((0, 1, 2), 3, E)), 1)


def test_a_proposer_with_nothing_to_build_lets_others_try_and_proposes_when_it_has() -> None:
    bench = Bench()
    bench.built[1] = lambda: None
    assert "Proposal" not in kinds(bench.give_all([bench.change(i, 1) for i in (0, 2, 3)], 1))
    assert bench.machines[1].deadline_s is not None
    del bench.built[1]
    assert "Proposal" in kinds(bench.wake(1))


def unjustified(bench: Bench) -> dict[str, Proposal]:
    """Proposals by validator 1 in view 5 of a payload that may not be proposed there."""
    free = [bench.change(i, 5) for i in (0, 1, 2, 3)]
    low = bench.change(0, 5, (0, D))
    high = bench.change(2, 5, (3, E))
    return {
        "nothing": bench.proposal(1, 5, E),
        "too few": bench.proposal(1, 5, E, free[:2]),
        "one twice": bench.proposal(1, 5, E, [free[0], free[1], free[1]]),
        "another view's": bench.proposal(1, 5, E, [bench.change(i, 4) for i in (0, 1, 2)]),
        "a stranger's": bench.proposal(1, 5, E, [*free[:2], Bench(5).change(4, 5)]),
        "a lock ignored": bench.proposal(1, 5, E, [low, *free[1:3]]),
        "a lock ignored, with its proof": bench.proposal(1, 5, E, [low, *free[1:3]], bench.prepares((0, 1, 2), 0, D)),
        "the lower lock": bench.proposal(1, 5, D, [low, high, free[1]], bench.prepares((0, 1, 2), 0, D)),
        "a lock without prepares": bench.proposal(1, 5, E, [high, *free[:2]]),
        "a lock with too few prepares": bench.proposal(1, 5, E, [high, *free[:2]], bench.prepares((0, 1), 3, E)),
        "one prepare twice": bench.proposal(1, 5, E, [high, *free[:2]], bench.prepares((0, 1, 1), 3, E)),
        "prepares of another view": bench.proposal(1, 5, E, [high, *free[:2]], bench.prepares((0, 1, 2), 2, E)),
        "prepares for no lock": bench.proposal(1, 5, E, free[:3], bench.prepares((0, 1, 2), 3, E)),
        "justified in view 0": bench.proposal(0, 0, D, free[:3]),
    }


@pytest.mark.parametrize("fault", unjustified(Bench()))
def test_a_proposal_without_its_justification_is_not_prepared(fault: str) -> None:
    """isProposalJustification, one condition after the other."""
    bench = Bench()
    with pytest.raises(PeerError):
        bench.give(unjustified(bench)[fault], 3)
    assert bench.machines[3].view == 0
    assert bench.judged == []


def test_a_round_change_that_contradicts_another_is_evidence() -> None:
    bench = Bench()
    bench.give(bench.change(0, 1), 2)
    with pytest.raises(PeerError, match="contradicts itself"):
        bench.give(bench.change(0, 1, (0, D), bench.prepares((0, 1, 2), 0, D)), 2)


# --- UponRoundChange, second case: f + 1


def test_f_plus_1_round_changes_take_a_laggard_along() -> None:
    bench = Bench(7)
    bench.wake(0)
    assert bench.give_all([bench.change(1, 9), bench.change(2, 4)], 0) == []
    sent = bench.give(bench.change(3, 6), 0)
    assert only(RoundChange, sent).view == 4, "the highest view that an honest member is sure to have reached"


def test_f_members_move_nobody() -> None:
    for validators in (4, 7, 10):
        bench = Bench(validators)
        bench.wake(0)
        for liar in range(1, faults_max(validators) + 1):
            bench.give(bench.change(liar, 2**32 - 1), 0)
        assert bench.machines[0].view == 0


# --- few validators


def test_a_single_validator_decides_alone_and_at_once() -> None:
    bench = Bench(1)
    bench.wake(0)
    assert bench.decided[0].payload == D
    assert 0 in bench.saved, "not even alone may it forget what it sealed"


@pytest.mark.parametrize("validators", [2, 3])
def test_two_and_three_validators_decide(validators: int) -> None:
    bench = Bench(validators)
    bench.wake(0)
    bench.settle()
    assert len(bench.decided) == validators


@pytest.mark.parametrize("validators", [3, 4, 7])
def test_a_dead_proposer_costs_one_view(validators: int) -> None:
    bench = Bench(validators)
    alive = range(1, validators)
    bench.wake(*alive)
    bench.give_up(*alive)
    bench.settle(alive=alive)
    assert {bench.decided[index].certificate.view for index in alive} == {1}


def test_two_validators_wait_for_each_other() -> None:
    bench = Bench(2)
    bench.wake(0)
    bench.settle(alive=[0])
    assert bench.decided == {}
    assert quorum(2) == 2


# --- bounds and cost


def test_a_liar_fills_only_its_own_slots() -> None:
    bench = Bench()
    bench.wake(2)
    for view in range(1, 2000):
        liar: list[Message] = [bench.prepare(1, view, E), bench.commit(1, view, E), bench.change(1, view)]
        bench.give_all(liar, 2)
    machine = bench.machines[2]
    held = (len(machine._proposals), len(machine._prepares), len(machine._commits), len(machine._round_changes))
    assert held == (0, 1, 1, 1)


def test_no_signature_is_recovered_twice_where_all_goes_well() -> None:
    bench = Bench(7)
    bench.wake(0)
    bench.settle()
    for key in bench.keys:
        assert all(count == 1 for count in key.recovered.values())
        assert len(key.recovered) <= 1 + 2 * (quorum(7) - 1) + 2
