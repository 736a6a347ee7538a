"""The contract of runs, outside of a round: proposing, consent, joining, leaving, stopping, finishing."""

from __future__ import annotations

import pytest
from eth_abi.abi import encode

from swarm.encoding import ZERO_ADDRESS, ZERO_DIGEST, Address, keccak256
from swarm.errors import RejectedError
from swarm.ledger.genesis import CONSORTIUM, RUNS
from swarm.rounds import Phase, RunState
from tests.contracts.chain import START_MS, Chain, address, founder, node, operator
from tests.contracts.rounds import (
    ATTEST_MS,
    GENESIS,
    MERGE_MS,
    POLICY,
    SUBMIT_MS,
    WEIGHT_MAX,
    Rounds,
    digest,
    names,
)

TERMS = ("heart", POLICY, GENESIS, 3, 2, SUBMIT_MS, MERGE_MS, ATTEST_MS, WEIGHT_MAX)


def test_a_proposed_run_says_what_was_proposed() -> None:
    rounds = Rounds()
    rounds.propose(by=1)
    assert rounds.chain.ask(RUNS, "count") == 1
    record = rounds.chain.ask(RUNS, "run", 1)
    assert record == (
        node(1), "heart", POLICY, GENESIS, 3, 2, SUBMIT_MS, MERGE_MS, ATTEST_MS, WEIGHT_MAX, RunState.PROPOSED, 0,
        GENESIS,
    )  # fmt: skip
    assert rounds.chain.ask(RUNS, "approvals", 1) == (node(1),)
    assert rounds.state().state == RunState.PROPOSED


def test_durations_are_in_the_ledgers_ticks_rounded_up() -> None:
    rounds = Rounds(ticks_per_second=1)
    rounds.send(operator(0), "propose", "heart", POLICY, GENESIS, 3, 2, 30_000, 1, 1_001, 7)
    assert rounds.chain.ask(RUNS, "run", 1)[6:9] == (30, 1, 2)
    assert rounds.chain.ask(RUNS, "ticksPerSecond") == 1


def test_only_operators_of_members_propose() -> None:
    rounds = Rounds()
    for stranger in (node(0), operator(9)):
        with pytest.raises(RejectedError, match="only the operator of a member may do this"):
            rounds.send(stranger, "propose", *TERMS)


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, "", "a run has a name"),
        (1, ZERO_DIGEST, "the policy's digest is zero"),
        (2, ZERO_DIGEST, "the first checkpoint's digest is zero"),
        (3, 0, "a run has at least one round"),
        (3, 2**32, "less than 2\\*\\*32"),
        (4, 0, "submissions_min is from 1 to 128"),
        (4, 129, "submissions_min is from 1 to 128"),
        (5, 0, "a duration is at least 1 ms"),
        (6, 2**48, "less than 2\\*\\*48 ms"),
        (7, 0, "a duration is at least 1 ms"),
        (8, 2**64, "less than 2\\*\\*64"),
    ],
)
def test_terms_that_cannot_work_are_refused(place: int, value: object, reason: str) -> None:
    terms = [*TERMS[:place], value, *TERMS[place + 1 :]]
    with pytest.raises(RejectedError, match=reason):
        Rounds().send(operator(0), "propose", *terms)


def test_the_widest_terms_are_kept_exactly() -> None:
    rounds = Rounds()
    rounds.send(
        operator(0), "propose", "x" * 64, POLICY, GENESIS, 2**32 - 1, 128, 2**48 - 1, 2**48 - 2, 2**48 - 3, 2**64 - 1
    )
    assert rounds.chain.ask(RUNS, "run", 1)[4:10] == (
        2**32 - 1, 128, 2**48 - 1, 2**48 - 2, 2**48 - 3, 2**64 - 1,
    )  # fmt: skip


def test_a_quorum_of_consents_opens_a_run() -> None:
    rounds = Rounds()
    rounds.propose()
    rounds.send(operator(1), "approve", 1)
    assert rounds.state().state == RunState.PROPOSED
    events = rounds.send(operator(2), "approve", 1)
    seed = keccak256(encode(["bytes32", "uint256"], [GENESIS, 1]))
    assert events[1] == ("RunOpened", {"run": 1, "checkpoint": GENESIS, "seed": seed})
    state = rounds.state()
    assert (state.state, state.round, state.phase, state.view) == (RunState.OPEN, 0, Phase.SUBMIT, 0)
    assert (state.base, state.seed, state.deadline, state.leader) == (GENESIS, seed, 0, ZERO_ADDRESS)
    assert state.opened == rounds.chain.now_ms > START_MS
    assert state.expected == (node(0), node(1), node(2))
    assert rounds.chain.ask(RUNS, "approvals", 1) == state.expected
    assert rounds.chain.ask(RUNS, "participants", 1) == ()


def test_consent_is_given_once_by_operators_and_to_runs_that_are_not_over() -> None:
    rounds = Rounds()
    with pytest.raises(RejectedError, match="there is no such run"):
        rounds.send(operator(0), "approve", 1)
    rounds.propose()
    with pytest.raises(RejectedError, match="only the operator of a member"):
        rounds.send(node(1), "approve", 1)
    with pytest.raises(RejectedError, match="this member has already approved"):
        rounds.send(operator(0), "approve", 1)
    rounds.send(operator(0), "stop", 1)
    with pytest.raises(RejectedError, match="the run is over"):
        rounds.send(operator(1), "approve", 1)


def test_the_consent_of_a_removed_member_does_not_open_a_run() -> None:
    rounds = Rounds(5)
    rounds.propose()
    rounds.send(operator(1), "approve", 1)
    rounds.send(operator(2), "approve", 1)
    remove(rounds.chain, 1, by=(0, 2, 3, 4))
    assert rounds.chain.ask(RUNS, "approvals", 1) == (node(0), node(2))
    assert rounds.state().state == RunState.PROPOSED
    rounds.send(operator(3), "approve", 1)
    assert rounds.state().state == RunState.OPEN


def remove(chain: Chain, index: int, *, by: tuple[int, ...]) -> None:
    proposal = chain.send(operator(by[0]), CONSORTIUM, "proposeRemoval", node(index))[0][1]["proposal"]
    for voter in by[1:]:
        chain.send(operator(voter), CONSORTIUM, "approve", proposal)
    assert not chain.ask(CONSORTIUM, "isMember", node(index))


def test_only_members_whose_operators_consent_join_and_only_an_open_run() -> None:
    rounds = Rounds()
    rounds.propose()
    with pytest.raises(RejectedError, match="only a member may do this"):
        rounds.send(operator(0), "join", 1, True)
    with pytest.raises(RejectedError, match="the member's operator has not approved the run"):
        rounds.send(node(1), "join", 1, True)
    with pytest.raises(RejectedError, match="the run is not open"):
        rounds.send(node(0), "join", 1, True)
    with pytest.raises(RejectedError, match="the member's operator has not approved the run"):
        rounds.send(node(0), "join", 2, True)


def test_seats_are_given_in_the_order_of_joining_and_kept() -> None:
    rounds = Rounds().open(joined=(2, 0))
    assert rounds.send(node(3), "join", 1, False) == [
        ("Joined", {"run": 1, "member": node(3), "seat": 2, "leads": False})
    ]
    assert rounds.chain.ask(RUNS, "participants", 1) == (node(2), node(0), node(3))
    assert rounds.send(node(0), "join", 1, True)[0][1]["seat"] == 1
    assert rounds.state().expected == (node(2), node(0), node(3), node(1))


def test_a_latecomer_joins_with_its_own_consent_and_is_awaited_from_then_on() -> None:
    rounds = Rounds()
    rounds.propose()
    for index in (1, 2):
        rounds.send(operator(index), "approve", 1)
    for index in (0, 1, 2):
        rounds.send(node(index), "join", 1, True)
    rounds.submit(0, 1)
    with pytest.raises(RejectedError, match="has not approved"):
        rounds.send(node(3), "join", 1, True)
    rounds.send(operator(3), "approve", 1)
    assert node(3) not in rounds.state().expected
    rounds.send(node(3), "join", 1, True)
    rounds.submit(2)
    assert rounds.state().phase == Phase.SUBMIT
    rounds.submit(3)
    assert rounds.state().phase == Phase.MERGE


def test_who_withdraws_is_not_awaited_and_may_come_back_to_its_seat() -> None:
    rounds = Rounds().open()
    rounds.submit(0, 1, 2)
    events = rounds.send(operator(3), "withdraw", 1)
    assert names(events) == ["Withdrawn", "MergeStarted"]
    assert rounds.chain.ask(RUNS, "approvals", 1) == (node(0), node(1), node(2))
    assert rounds.chain.ask(RUNS, "participants", 1) == (node(0), node(1), node(2))
    with pytest.raises(RejectedError, match="has not approved the run"):
        rounds.send(node(3), "join", 1, True)
    with pytest.raises(RejectedError, match="this member has not approved the run"):
        rounds.send(node(3), "withdraw", 1)
    rounds.send(operator(3), "approve", 1)
    assert rounds.send(node(3), "join", 1, True)[0][1]["seat"] == 3


def test_the_submission_of_a_member_that_withdraws_stays_and_it_leads_no_more() -> None:
    rounds = Rounds(3).open()
    rounds.submit(0, 1, 2)
    leader = rounds.state().leader
    rounds.send(leader, "withdraw", 1)
    assert len(rounds.state().submissions) == 3
    assert leader not in rounds.state().expected
    others = {node(i) for i in range(3)} - {leader}
    for _ in range(4):
        rounds.pass_deadline()
        rounds.advance(by=min(others))
        assert rounds.state().leader in others
        assert rounds.state().leader == rounds.elected(leads=others)
    rounds.close()
    with pytest.raises(RejectedError, match="only a member that joined the run submits"):
        rounds.send(leader, "submit", 1, 1, digest("x"), 1, b"")


def test_only_members_and_operators_withdraw() -> None:
    rounds = Rounds().open()
    with pytest.raises(RejectedError, match="only a member or its operator may do this"):
        rounds.send(address("nobody"), "withdraw", 1)
    with pytest.raises(RejectedError, match="there is no such run"):
        rounds.send(node(0), "withdraw", 2)


def test_a_quorum_of_operators_stops_a_run() -> None:
    rounds = Rounds().open()
    rounds.submit(0, 1)
    with pytest.raises(RejectedError, match="only the operator of a member"):
        rounds.send(node(0), "stop", 1)
    assert names(rounds.send(operator(0), "stop", 1)) == ["StopVoted"]
    with pytest.raises(RejectedError, match="this member has already voted to stop"):
        rounds.send(operator(0), "stop", 1)
    rounds.send(operator(1), "stop", 1)
    assert rounds.state().state == RunState.OPEN
    assert names(rounds.send(operator(2), "stop", 1)) == ["StopVoted", "RunStopped"]
    assert rounds.state().state == RunState.STOPPED
    for sender, call in (
        (operator(3), ("stop", 1)),
        (operator(3), ("withdraw", 1)),
    ):
        with pytest.raises(RejectedError, match="the run is over"):
            rounds.send(sender, *call)
    refused_by_the_open(rounds, node(3))


def refused_by_the_open(rounds: Rounds, member: Address) -> None:
    round = rounds.state().round
    calls: tuple[tuple[str, tuple[object, ...]], ...] = (
        ("submit", (1, round, digest("x"), 1, b"")),
        ("advance", (1, round, 0)),
        ("join", (1, True)),
    )
    for function, arguments in calls:
        with pytest.raises(RejectedError, match="the run is not open"):
            rounds.send(member, function, *arguments)


def test_only_operators_that_consented_vote_to_stop() -> None:
    rounds = Rounds()
    rounds.propose()
    with pytest.raises(RejectedError, match="only an operator that approved the run may stop it"):
        rounds.send(operator(1), "stop", 1)
    rounds.send(operator(0), "stop", 1)
    assert rounds.state().state == RunState.STOPPED


def test_the_last_who_consent_can_stop_a_run_that_others_left() -> None:
    rounds = Rounds().open()
    for index in (0, 1):
        rounds.send(operator(index), "withdraw", 1)
    rounds.send(operator(2), "stop", 1)
    assert rounds.state().state == RunState.OPEN
    rounds.send(operator(3), "stop", 1)
    assert rounds.state().state == RunState.STOPPED


def test_a_vote_to_stop_ends_with_the_consent() -> None:
    rounds = Rounds().open()
    for index in (0, 1):
        rounds.send(operator(index), "stop", 1)
    rounds.send(operator(0), "withdraw", 1)
    rounds.send(operator(0), "approve", 1)
    rounds.send(operator(2), "stop", 1)
    assert rounds.state().state == RunState.OPEN


def test_a_run_finishes_after_its_last_round_with_its_result() -> None:
    rounds = Rounds(rounds=2).open()
    for _ in range(2):
        rounds.submit(0, 1, 2, 3)
        rounds.close()
    assert ("RunFinished", {"run": 1, "checkpoint": digest("checkpoint", 1)}) in rounds.chain.events
    state = rounds.state()
    assert (state.state, state.round, state.base) == (RunState.FINISHED, 2, digest("checkpoint", 1))
    assert rounds.chain.ask(RUNS, "run", 1)[10:] == (RunState.FINISHED, 2, digest("checkpoint", 1))
    refused_by_the_open(rounds, node(0))
    with pytest.raises(RejectedError, match="the run is over"):
        rounds.send(operator(0), "withdraw", 1)


def test_runs_do_not_touch_each_other() -> None:
    rounds = Rounds(rounds=5).open()
    rounds.propose(by=1)
    for index in (0, 2, 3):
        rounds.send(operator(index), "approve", 2)
    rounds.submit(0, 1)
    rounds.send(node(3), "join", 2, True)
    rounds.send(node(3), "submit", 2, 0, digest("y"), 1, b"")
    assert [s.member for s in rounds.state().submissions] == [node(0), node(1)]
    assert rounds.chain.ask(RUNS, "round_state", 2)[10] == ((node(3), digest("y"), 1, False),)
    assert rounds.chain.ask(RUNS, "participants", 2) == (node(3),)


def test_a_new_key_takes_its_operators_seat_and_submission_over() -> None:
    rounds = Rounds().open()
    rounds.submit(0, 1)
    new = address("new")
    rounds.chain.send(operator(1), CONSORTIUM, "rotateKey", new, "", ZERO_DIGEST)
    with pytest.raises(RejectedError, match="only a member may do this"):
        rounds.send(node(1), "submit", 1, 0, digest("x"), 1, b"")
    with pytest.raises(RejectedError, match="only a member that joined the run submits"):
        rounds.send(new, "submit", 1, 0, digest("x"), 1, b"")
    assert rounds.send(new, "join", 1, True)[0][1]["seat"] == 1
    with pytest.raises(RejectedError, match="this member has already submitted"):
        rounds.send(new, "submit", 1, 0, digest("x"), 1, b"")
    assert [s.member for s in rounds.state().submissions] == [node(0), new]
    assert rounds.chain.ask(RUNS, "participants", 1) == (node(0), new, node(2), node(3))
    assert rounds.chain.ask(RUNS, "approvals", 1) == (node(0), new, node(2), node(3))
    rounds.submit(2, 3)
    rounds.publish()
    for member in (node(0), new, node(2), node(3)):
        state = rounds.state()
        if state.phase == Phase.ATTEST and member != state.leader:
            rounds.attest(member)
    assert rounds.state().round == 1


def test_a_run_cannot_be_deployed_without_a_consortium_or_a_known_clock() -> None:
    with pytest.raises(ValueError, match="timestamps count seconds or milliseconds"):
        Chain([founder(0)], ticks_per_second=60)
