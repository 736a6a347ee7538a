"""One round: submit, merge, attest, and everything that may go wrong between."""

from __future__ import annotations

import pytest

from swarm.encoding import ZERO_DIGEST, keccak256
from swarm.errors import RejectedError
from swarm.ledger.genesis import CONSORTIUM, RUNS
from swarm.rounds import Phase, Submission
from tests.contracts.chain import address, node, operator
from tests.contracts.rounds import ATTEST_MS, GENESIS, MERGE_MS, SUBMIT_MS, WEIGHT_MAX, Rounds, digest, names

SILENT, UNATTESTED, REFUSED, INPUTS_CHANGED = 1, 2, 3, 4


def merging(members: int = 4, *, rounds: int = 3, submissions_min: int = 2) -> Rounds:
    """A run whose first round waits for its leader."""
    run = Rounds(members, rounds=rounds, submissions_min=submissions_min).open()
    run.submit(*range(members))
    assert run.state().phase == Phase.MERGE
    return run


# --- submit


def test_a_submission_is_shown_and_starts_the_deadline_when_enough_submitted() -> None:
    rounds = Rounds(submissions_min=2).open()
    rounds.submit(2, weight=3)
    first_ms = rounds.chain.now_ms
    assert rounds.state().deadline == 0
    rounds.submit(0, weight=4)
    state = rounds.state()
    assert state.deadline == first_ms + SUBMIT_MS
    assert state.submissions == (Submission(node(0), digest(0, 0), 4), Submission(node(2), digest(0, 2), 3))


def test_the_event_of_a_submission_carries_the_metrics() -> None:
    rounds = Rounds().open()
    metrics = b'{"auc":0.9}' + b" " * 501
    events = rounds.send(node(0), "submit", 1, 0, digest("x"), 5, metrics)
    told = {"run": 1, "round": 0, "member": node(0), "digest": digest("x"), "weight": 5, "metrics": metrics}
    assert events == [("Submitted", told)]
    with pytest.raises(RejectedError, match="no reason"):
        rounds.send(node(1), "submit", 1, 0, digest("x"), 5, metrics + b" ")


def test_what_cannot_be_submitted_is_refused_with_the_reason() -> None:
    rounds = Rounds().open(joined=(0, 1, 2))
    for sender, round, update, weight, reason in [
        (operator(0), 0, digest("x"), 1, "only a member may do this"),
        (node(3), 0, digest("x"), 1, "only a member that joined the run submits"),
        (node(0), 1, digest("x"), 1, "the run is at another round"),
        (node(0), 0, ZERO_DIGEST, 1, "the update's digest is zero"),
        (node(0), 0, digest("x"), 0, "the weight is zero"),
        (node(0), 0, digest("x"), WEIGHT_MAX + 1, "the weight is above the run's weight_max"),
        (node(0), 0, digest("x"), 2**200, "the weight is above the run's weight_max"),
    ]:
        with pytest.raises(RejectedError, match=reason):
            rounds.send(sender, "submit", 1, round, update, weight, b"")
    rounds.submit(0, weight=WEIGHT_MAX)
    with pytest.raises(RejectedError, match="this member has already submitted"):
        rounds.submit(0)
    with pytest.raises(RejectedError, match="only a member that joined the run submits"):
        rounds.send(node(0), "submit", 2, 0, digest("x"), 1, b"")


def test_when_all_who_are_awaited_submitted_the_merge_starts_at_once() -> None:
    rounds = Rounds().open()
    rounds.submit(0, 1, 2)
    events = rounds.send(node(3), "submit", 1, 0, digest(0, 3), 1, b"")
    assert names(events) == ["Submitted", "MergeStarted"]
    state = rounds.state()
    assert (state.phase, state.view, state.deadline) == (Phase.MERGE, 0, rounds.chain.now_ms + MERGE_MS)
    assert events[1][1] == {"run": 1, "round": 0, "view": 0, "leader": state.leader, "deadline": state.deadline}


def test_a_member_that_never_joined_is_awaited_until_the_deadline_and_not_after() -> None:
    rounds = Rounds().open(joined=(0, 1, 3))
    rounds.submit(0, 1, 3)
    assert rounds.state().phase == Phase.SUBMIT
    assert node(2) in rounds.state().expected
    rounds.pass_deadline()
    rounds.advance()
    rounds.close()
    assert rounds.state().expected == (node(0), node(1), node(3))
    rounds.submit(0, 1, 3)
    assert rounds.state().phase == Phase.MERGE


def test_who_misses_the_deadline_is_awaited_again_when_it_returns() -> None:
    rounds = Rounds().open()
    rounds.submit(0, 1)
    with pytest.raises(RejectedError, match="the deadline has not passed"):
        rounds.advance()
    rounds.pass_deadline()
    assert names(rounds.advance()) == ["MergeStarted"]
    assert rounds.state().expected == (node(0), node(1))
    with pytest.raises(RejectedError, match="the round no longer takes submissions"):
        rounds.submit(2)
    rounds.send(node(2), "join", 1, True)
    assert rounds.state().expected == (node(0), node(1), node(2))
    rounds.close()
    rounds.submit(0, 1)
    assert rounds.state().phase == Phase.SUBMIT
    rounds.submit(3)
    assert rounds.state().phase == Phase.SUBMIT
    rounds.submit(2)
    assert rounds.state().phase == Phase.MERGE
    assert rounds.state().expected == (node(0), node(1), node(2), node(3))


def test_no_deadline_takes_a_round_below_submissions_min() -> None:
    rounds = Rounds(submissions_min=3).open()
    rounds.submit(0, 1)
    rounds.chain.now_ms += 10 * SUBMIT_MS
    with pytest.raises(RejectedError, match="no deadline runs before enough have submitted"):
        rounds.advance()
    rounds.submit(2)
    rounds.advance()
    assert rounds.state().phase == Phase.MERGE


def test_only_members_advance_and_only_the_view_that_is() -> None:
    rounds = merging()
    rounds.pass_deadline()
    with pytest.raises(RejectedError, match="only a member may do this"):
        rounds.advance(by=address("nobody"))
    for arguments, reason in [((1, 1, 0), "at another round"), ((1, 0, 1), "at another view"), ((2, 0, 0), "not open")]:
        with pytest.raises(RejectedError, match=reason):
            rounds.send(node(0), "advance", *arguments)


# --- the leader


@pytest.mark.parametrize("members", [1, 2, 3, 4, 7])
def test_the_leader_is_the_one_that_anybody_can_compute(members: int) -> None:
    rounds = Rounds(members, rounds=6, submissions_min=1).open(opted_out=range(2, members, 3))
    leads = [node(i) for i in range(members) if i not in range(2, members, 3)]
    leaders = set()
    for _ in range(6):
        rounds.submit(*range(members))
        assert rounds.state().leader == rounds.elected(leads=leads)
        leaders.add(rounds.state().leader)
        rounds.pass_deadline()
        rounds.advance()
        if rounds.state().phase == Phase.MERGE:
            assert rounds.state().leader == rounds.elected(leads=leads)
            rounds.close()
    assert leaders <= set(leads)


def test_seeds_follow_from_the_checkpoints_alone() -> None:
    rounds = merging()
    seed = rounds.state().seed
    checkpoint = rounds.publish()
    rounds.attest(*[m for m in rounds.state().submitters if m != rounds.state().leader][:2])
    assert rounds.state().seed == keccak256(seed + checkpoint)


def test_nobody_leads_who_opted_out_unless_all_did() -> None:
    rounds = Rounds(3).open(opted_out=(0, 1))
    rounds.submit(0, 1, 2)
    assert rounds.state().leader == node(2)
    all_out = Rounds(3).open(opted_out=(0, 1, 2))
    all_out.submit(0, 1, 2)
    assert all_out.state().leader == all_out.elected(leads=())


def test_opting_out_in_the_middle_of_a_view_changes_the_next_one_only() -> None:
    rounds = merging()
    leader = rounds.state().leader
    rounds.send(leader, "join", 1, False)
    assert rounds.state().leader == leader
    for _ in range(5):
        rounds.pass_deadline()
        rounds.advance()
        assert rounds.state().leader != leader


# --- publish and attest


def test_a_round_closes_with_a_quorum_and_the_next_one_starts_from_its_checkpoint() -> None:
    rounds = merging()
    leader = rounds.state().leader
    checkpoint = rounds.publish()
    state = rounds.state()
    assert (state.phase, state.published, state.attested) == (Phase.ATTEST, checkpoint, (leader,))
    assert state.deadline == rounds.chain.now_ms + ATTEST_MS
    others = [m for m in state.submitters if m != leader]
    rounds.attest(others[0])
    assert rounds.state().round == 0
    assert rounds.chain.ask(RUNS, "closedRound", 1, 0) == (ZERO_DIGEST, bytes(20), 0, 0, 0, 0)
    rounds.attest(others[1])
    closed = {"run": 1, "round": 0, "view": 0, "leader": leader, "checkpoint": checkpoint, "attestations": 3}
    assert rounds.chain.events[-1] == ("RoundClosed", closed)
    state = rounds.state()
    assert (state.round, state.phase, state.view, state.deadline, state.base) == (1, Phase.SUBMIT, 0, 0, checkpoint)
    assert (state.submissions, state.attested, state.opened) == ((), (), rounds.chain.now_ms)
    assert rounds.chain.ask(RUNS, "closedRound", 1, 0) == (checkpoint, leader, 0, 4, 3, rounds.chain.now_ms)


@pytest.mark.parametrize(("members", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 4), (7, 5), (10, 7)])
def test_a_quorum_of_attestations_is_two_thirds_of_the_submissions_rounded_up(members: int, needed: int) -> None:
    rounds = merging(members, submissions_min=1)
    leader = rounds.state().leader
    rounds.publish()
    others = [node(i) for i in range(members) if node(i) != leader]
    for given, member in enumerate(others, start=1):
        if given == needed:
            break
        assert rounds.state().round == 0
        rounds.attest(member)
    assert rounds.state().round == 1
    assert rounds.chain.ask(RUNS, "closedRound", 1, 0)[4] == needed


def test_only_the_leader_publishes_and_only_once() -> None:
    rounds = merging()
    state = rounds.state()
    other = next(m for m in state.submitters if m != state.leader)
    with pytest.raises(RejectedError, match="only the leader of this view publishes"):
        rounds.send(other, "publish", 1, 0, 0, digest("c"))
    for arguments, reason in [
        ((1, 1, 0, digest("c")), "the run is at another round"),
        ((1, 0, 1, digest("c")), "the round is at another view"),
        ((1, 0, 0, ZERO_DIGEST), "the checkpoint's digest is zero"),
        ((2, 0, 0, digest("c")), "only a member that joined the run"),
    ]:
        with pytest.raises(RejectedError, match=reason):
            rounds.send(state.leader, "publish", *arguments)
    rounds.publish()
    with pytest.raises(RejectedError, match="the round does not wait for the leader"):
        rounds.publish()


def test_only_submitters_attest_once_and_only_what_was_published() -> None:
    rounds = Rounds(5).open()
    rounds.submit(0, 1, 2, 3)
    rounds.pass_deadline()
    rounds.advance()
    leader = rounds.state().leader
    other = next(m for m in rounds.state().submitters if m != leader)
    for call in (("attest", 1, 0, 0, digest("c")), ("refuse", 1, 0, 0, digest("c"), digest("e"))):
        with pytest.raises(RejectedError, match="the leader has not published"):
            rounds.send(other, *call)
    checkpoint = rounds.publish()
    for sender, arguments, reason in [
        (operator(0), (1, 0, 0, checkpoint), "only a member may do this"),
        (node(4), (1, 0, 0, checkpoint), "only a member that submitted to this round may do this"),
        (leader, (1, 0, 0, checkpoint), "this member has already attested"),
        (other, (1, 1, 0, checkpoint), "the run is at another round"),
        (other, (1, 0, 1, checkpoint), "the round is at another view"),
        (other, (1, 0, 0, digest("d")), "the leader published another checkpoint"),
    ]:
        with pytest.raises(RejectedError, match=reason):
            rounds.send(sender, "attest", *arguments)
    rounds.attest(other)
    with pytest.raises(RejectedError, match="this member has already attested"):
        rounds.attest(other)
    with pytest.raises(RejectedError, match="this member has already attested"):
        rounds.refuse(other)


# --- leaders that fail


def test_a_silent_leader_is_replaced_after_the_deadline() -> None:
    rounds = merging()
    silent = rounds.state().leader
    with pytest.raises(RejectedError, match="the deadline has not passed"):
        rounds.advance()
    rounds.pass_deadline()
    events = rounds.advance()
    state = rounds.state()
    told = {"run": 1, "round": 0, "view": 1, "leader": state.leader, "replaced": silent, "reason": SILENT}
    assert events == [("LeaderReplaced", told)]
    assert (state.view, state.phase, state.deadline) == (1, Phase.MERGE, rounds.chain.now_ms + MERGE_MS)
    assert state.leader == rounds.elected() != silent
    for view, reason in ((0, "the round is at another view"), (1, "only the leader of this view publishes")):
        with pytest.raises(RejectedError, match=reason):
            rounds.send(silent, "publish", 1, 0, view, digest("late"))
    rounds.close()
    assert rounds.state().round == 1


def test_a_publication_without_a_quorum_is_replaced_after_the_deadline_and_its_votes_are_gone() -> None:
    rounds = merging()
    first = rounds.state().leader
    rounds.publish()
    others = [m for m in rounds.state().submitters if m != first]
    rounds.attest(others[0])
    rounds.pass_deadline()
    assert rounds.advance()[0][1]["reason"] == UNATTESTED
    state = rounds.state()
    assert (state.view, state.phase, state.attested, state.published) == (1, Phase.MERGE, (), ZERO_DIGEST)
    assert not rounds.chain.ask(RUNS, "suspended", 1, first)
    rounds.publish()
    with pytest.raises(RejectedError, match="the round is at another view"):
        rounds.send(others[1], "attest", 1, 0, 0, digest("checkpoint", 0))
    assert rounds.state().attested == (rounds.state().leader,)


def test_a_refused_leader_is_replaced_at_once_and_leads_no_more_in_this_run() -> None:
    rounds = merging(rounds=9)
    liar = rounds.state().leader
    published = rounds.publish(digest("lie"))
    others = [m for m in rounds.state().submitters if m != liar]
    with pytest.raises(RejectedError, match="a member that found the same attests"):
        rounds.send(others[0], "refuse", 1, 0, 0, published, digest("evidence"))
    told = rounds.refuse(others[0])
    assert told == [
        ("Refused", {"run": 1, "round": 0, "view": 0, "leader": liar, "member": others[0], "published": published,
                     "found": digest("other"), "evidence": digest("evidence")})
    ]  # fmt: skip
    assert rounds.state().refused == (others[0],)
    for verdict in (rounds.refuse, rounds.attest):
        with pytest.raises(RejectedError, match="this member has already refused"):
            verdict(others[0])
    events = rounds.refuse(others[1])
    assert names(events) == ["Refused", "LeaderReplaced"]
    assert events[1][1]["reason"] == REFUSED
    state = rounds.state()
    assert (state.round, state.view, state.phase, state.refused) == (0, 1, Phase.MERGE, ())
    assert rounds.chain.ask(RUNS, "suspended", 1, liar)
    for _ in range(5):
        assert rounds.state().leader == rounds.elected() != liar
        rounds.close()
        rounds.submit(0, 1, 2, 3)


@pytest.mark.parametrize(("members", "harmless"), [(4, 1), (5, 1), (7, 2), (10, 3)])
def test_so_few_as_may_be_faulty_cannot_refuse_an_honest_leader_away(members: int, harmless: int) -> None:
    rounds = merging(members)
    leader = rounds.state().leader
    rounds.publish()
    others = [m for m in rounds.state().submitters if m != leader]
    rounds.refuse(*others[:harmless])
    assert rounds.state().leader == leader
    for member in others[harmless:]:
        if rounds.state().round == 0:
            rounds.attest(member)
    assert rounds.state().round == 1


def test_when_all_are_suspended_all_lead_again() -> None:
    rounds = merging(2)
    for _ in range(2):
        state = rounds.state()
        rounds.publish(digest("lie", state.view))
        rounds.refuse(next(m for m in state.submitters if m != state.leader))
    assert all(rounds.chain.ask(RUNS, "suspended", 1, node(i)) for i in range(2))
    rounds.close()
    assert rounds.state().round == 1


def test_a_round_without_enough_living_submitters_restarts_when_every_leader_had_two_turns() -> None:
    rounds = merging(4, submissions_min=2)
    seen = []
    for _ in range(7):
        rounds.pass_deadline()
        assert names(rounds.advance()) == ["LeaderReplaced"]
        seen.append(rounds.state().leader)
    assert set(seen) == {node(i) for i in range(4)}
    rounds.pass_deadline()
    assert rounds.advance() == [("RoundRestarted", {"run": 1, "round": 0, "view": 8})]
    state = rounds.state()
    assert (state.phase, state.view, state.submissions, state.deadline) == (Phase.SUBMIT, 8, (), 0)
    assert state.base == GENESIS
    # Two are gone for good: the two that live go on.
    rounds.submit(0, 1)
    rounds.pass_deadline()
    rounds.advance()
    assert rounds.state().leader == rounds.elected()
    rounds.close()
    assert rounds.state().round == 1
    assert rounds.chain.ask(RUNS, "closedRound", 1, 0)[2] == 8


# --- bytes that never came


def report(rounds: Rounds, target: int, *reporters: int) -> list[str]:
    events = []
    for reporter in reporters:
        events = rounds.send(node(reporter), "reportMissing", 1, rounds.state().round, node(target))
    return names(events)


def not_leading(rounds: Rounds) -> list[int]:
    return [i for i in range(rounds.members) if node(i) != rounds.state().leader]


@pytest.mark.parametrize(("members", "needed"), [(2, 1), (3, 2), (4, 2), (7, 3), (10, 4)])
def test_more_reporters_than_may_be_faulty_strike_a_submission(members: int, needed: int) -> None:
    rounds = merging(members, submissions_min=1)
    target = not_leading(rounds)[0]
    reporters = [i for i in range(members) if i != target]
    if needed > 1:
        assert report(rounds, target, *reporters[: needed - 1]) == ["MissingReported"]
    shown = rounds.state().missing
    assert shown == tuple(sorted(((node(i), node(target)) for i in reporters[: needed - 1]), key=shown.index))
    assert report(rounds, target, reporters[needed - 1]) == ["MissingReported", "Struck", "LeaderReplaced"]
    state = rounds.state()
    assert [s.member for s in state.submissions if s.struck] == [node(target)]
    assert (state.view, state.phase) == (1, Phase.MERGE)
    assert state.leader == rounds.elected() != node(target)
    assert node(target) not in state.expected
    if members > 2:
        assert rounds.chain.events[-1][1]["reason"] == INPUTS_CHANGED
    rounds.close()
    assert rounds.state().round == 1
    assert rounds.chain.ask(RUNS, "closedRound", 1, 0)[3] == members - 1


def test_a_leader_whose_bytes_are_missing_is_struck_too() -> None:
    rounds = merging()
    leader = next(i for i in range(4) if node(i) == rounds.state().leader)
    others = not_leading(rounds)
    assert report(rounds, leader, *others[:2]) == ["MissingReported", "Struck", "LeaderReplaced"]
    assert rounds.state().leader in {node(i) for i in others}
    with pytest.raises(RejectedError, match="this member's submission was struck"):
        rounds.send(node(leader), "publish", 1, 0, 1, digest("c"))
    rounds.close()


def test_a_struck_member_has_no_word_in_the_round_and_is_back_in_the_next() -> None:
    rounds = merging()
    target, *others = not_leading(rounds)
    report(rounds, target, *others)
    rounds.publish()
    for call in (
        ("attest", 1, 0, 1, rounds.state().published),
        ("refuse", 1, 0, 1, digest("o"), digest("e")),
        ("reportMissing", 1, 0, node(others[0])),
    ):
        with pytest.raises(RejectedError, match="this member's submission was struck"):
            rounds.send(node(target), *call)
    rounds.attest(*[m for m in rounds.state().submitters if m != rounds.state().leader][:1])
    rounds.submit(target)
    assert node(target) in rounds.state().expected


def test_only_submitters_report_others_once_while_the_leader_merges() -> None:
    rounds = Rounds(5).open()
    rounds.submit(0, 1, 2, 3)
    with pytest.raises(RejectedError, match="missing updates are reported while the leader merges"):
        report(rounds, 0, 1)
    rounds.pass_deadline()
    rounds.advance()
    for reporter, target, round, reason in [
        (operator(0), node(1), 0, "only a member may do this"),
        (node(4), node(1), 0, "only a member that submitted to this round may do this"),
        (node(0), node(1), 1, "the run is at another round"),
        (node(0), node(4), 0, "the reported member has not submitted to this round"),
        (node(0), address("nobody"), 0, "the reported member has not submitted to this round"),
        (node(0), node(0), 0, "a member does not report itself"),
    ]:
        with pytest.raises(RejectedError, match=reason):
            rounds.send(reporter, "reportMissing", 1, round, target)
    report(rounds, 1, 0)
    with pytest.raises(RejectedError, match="this member has already reported that one"):
        report(rounds, 1, 0)
    report(rounds, 1, 2)
    with pytest.raises(RejectedError, match="the reported submission is already struck"):
        report(rounds, 1, 3)
    rounds.publish()
    with pytest.raises(RejectedError, match="missing updates are reported while the leader merges"):
        report(rounds, 2, 3)


def test_a_round_left_with_too_few_submissions_restarts() -> None:
    rounds = merging(3, submissions_min=3)
    assert report(rounds, 0, 1, 2) == ["MissingReported", "Struck", "RoundRestarted"]
    state = rounds.state()
    assert (state.phase, state.view, state.submissions, state.missing) == (Phase.SUBMIT, 1, (), ())
    assert state.expected == (node(1), node(2))
    rounds.submit(1, 2)
    assert rounds.state().phase == Phase.SUBMIT
    rounds.submit(0)
    state = rounds.state()
    assert (state.phase, state.view) == (Phase.MERGE, 1)
    assert state.leader == rounds.elected()
    assert state.missing == ()


def test_reports_do_not_outlive_their_round() -> None:
    rounds = merging(7)
    report(rounds, 0, 1, 2)
    assert len(rounds.state().missing) == 2
    rounds.close()
    rounds.submit(*range(7))
    assert rounds.state().missing == ()
    report(rounds, 0, 3)
    assert rounds.state().missing == ((node(3), node(0)),)


def test_reports_stay_through_a_change_of_leaders() -> None:
    rounds = merging(4)
    report(rounds, 0, 1)
    rounds.pass_deadline()
    rounds.advance()
    assert rounds.state().missing == ((node(1), node(0)),)
    assert "Struck" in report(rounds, 0, 2)


def test_a_removed_member_cannot_act_in_a_round() -> None:
    rounds = merging(5)
    gone = not_leading(rounds)[0]
    voters = [i for i in range(5) if i != gone]
    proposal = rounds.chain.send(operator(voters[0]), CONSORTIUM, "proposeRemoval", node(gone))[0][1]["proposal"]
    for voter in voters[1:]:
        rounds.chain.send(operator(voter), CONSORTIUM, "approve", proposal)
    rounds.publish()
    for call in (
        ("attest", 1, 0, 0, rounds.state().published),
        ("refuse", 1, 0, 0, digest("o"), digest("e")),
        ("advance", 1, 0, 0),
    ):
        with pytest.raises(RejectedError, match="only a member may do this"):
            rounds.send(node(gone), *call)


# --- parts

HALVES = 2**128 - 1, 2**256 - 2**128


def attest_parts(rounds: Rounds, member: bytes, parts: int) -> list[str]:
    state = rounds.state()
    arguments = 1, state.round, state.view, state.published, parts
    return names(rounds.send(member, "attestParts", *arguments))


def test_a_quorum_closes_a_round_once_enough_verified_every_part() -> None:
    rounds = merging(7)
    state = rounds.state()
    others = [m for m in state.submitters if m != state.leader]
    rounds.publish()
    assert rounds.state().verifiers == 3
    for index, member in enumerate(others):
        assert attest_parts(rounds, member, HALVES[index % 2])[:2] == ["Verified", "Attested"]
        assert rounds.state().round == (0 if index < 5 else 1)
    assert rounds.chain.ask(RUNS, "closedRound", 1, 0)[4] == 7


def test_parts_are_added_and_count_once_a_member() -> None:
    rounds = merging(7)
    state = rounds.state()
    others = [m for m in state.submitters if m != state.leader]
    rounds.publish()
    for member in others:
        attest_parts(rounds, member, HALVES[0])
    assert rounds.state().round == 0, "a quorum attested, and nobody verified the other half"
    with pytest.raises(RejectedError, match="this member attests no further part"):
        attest_parts(rounds, others[0], HALVES[0])
    assert attest_parts(rounds, others[0], HALVES[1]) == ["Verified"]
    assert dict(rounds.state().verified)[others[0]] == 2**256 - 1
    attest_parts(rounds, others[1], HALVES[1] - 2**200)
    assert attest_parts(rounds, others[2], 2**256 - 1) == ["Verified"]
    assert rounds.state().round == 0, "part 200 has two verifiers"
    assert attest_parts(rounds, others[3], 2**200) == ["Verified", "RoundClosed"]


def test_who_verified_some_parts_may_learn_that_another_one_is_wrong() -> None:
    rounds = merging(7)
    liar = rounds.state().leader
    others = [m for m in rounds.state().submitters if m != liar]
    rounds.publish(digest("lie"))
    for member in others[:3]:
        attest_parts(rounds, member, HALVES[0])
    rounds.refuse(others[0], others[3])
    assert set(rounds.state().attested) == {liar, *others[1:3]}
    with pytest.raises(RejectedError, match="this member has already refused"):
        attest_parts(rounds, others[0], HALVES[1])
    assert names(rounds.refuse(others[1])) == ["Refused", "LeaderReplaced"]
    state = rounds.state()
    assert (state.verified, rounds.chain.ask(RUNS, "suspended", 1, liar)) == ((), True)
    rounds.publish()
    attest_parts(rounds, next(m for m in others if m != rounds.state().leader), HALVES[0])
    assert len(rounds.state().verified) == 1


def test_in_a_small_round_more_have_to_verify_than_may_lie_besides_the_leader() -> None:
    rounds = merging(10, submissions_min=5)
    rounds.close()
    rounds.submit(0, 1, 2, 3, 4)
    rounds.pass_deadline()
    rounds.advance()
    rounds.publish()
    assert rounds.state().verifiers == 3


def test_in_a_small_round_the_liars_that_the_members_bear_neither_strike_nor_suspend() -> None:
    rounds = merging(7)
    rounds.close()
    rounds.submit(0, 1, 2, 3)
    rounds.pass_deadline()
    rounds.advance()
    leader = rounds.state().leader
    victim, *liars = [i for i in range(4) if node(i) != leader]
    assert report(rounds, victim, *liars) == ["MissingReported"]
    rounds.publish()
    assert names(rounds.refuse(*[node(i) for i in liars])) == ["Refused"]
    assert rounds.state().leader == leader
    rounds.pass_deadline()
    rounds.advance()
    assert not rounds.chain.ask(RUNS, "suspended", 1, leader)


def test_an_accusation_that_failed_falls_back_on_the_accuser() -> None:
    rounds = merging(7, rounds=9)
    leader = rounds.state().leader
    others = [m for m in rounds.state().submitters if m != leader]
    accusers = others[:2]
    rounds.publish()
    rounds.refuse(*accusers)
    rounds.attest(*others[2:5])
    events = rounds.send(others[5], "attest", 1, 0, 0, rounds.state().published)
    assert names(events) == ["Attested", "AccusationFailed", "AccusationFailed", "RoundClosed"]
    for accuser, event in zip(sorted(accusers, key=others.index), events[1:3], strict=True):
        assert event[1] == {"run": 1, "round": 0, "view": 0, "accuser": accuser}
        assert rounds.chain.ask(RUNS, "suspended", 1, accuser)
    # From now on their word moves nothing: two of them and two more are not three.
    rounds.submit(*range(7))
    leader = rounds.state().leader
    assert leader not in accusers
    target = next(i for i in range(7) if node(i) not in (leader, *accusers))
    honest = [i for i in range(7) if node(i) not in (leader, *accusers) and i != target]
    index = {node(i): i for i in range(7)}
    assert report(rounds, target, *(index[m] for m in accusers), *honest[:2]) == ["MissingReported"]
    rounds.publish(digest("lie"))
    assert names(rounds.refuse(*accusers, *(node(i) for i in honest[:2]))) == ["Refused"]
    assert names(rounds.refuse(node(honest[2]))) == ["Refused", "LeaderReplaced"]


def test_a_refusal_in_a_view_that_did_not_close_is_held_against_nobody() -> None:
    rounds = merging(7)
    leader = rounds.state().leader
    accuser = next(m for m in rounds.state().submitters if m != leader)
    rounds.publish(digest("lie"))
    rounds.refuse(accuser)
    rounds.pass_deadline()
    rounds.advance()
    rounds.close()
    assert not rounds.chain.ask(RUNS, "suspended", 1, accuser)
