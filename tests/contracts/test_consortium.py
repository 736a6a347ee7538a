"""The membership contract: who may do what, what a quorum decides, and what can never be left."""

from __future__ import annotations

import random
from typing import Any

import pytest

from swarm.encoding import ZERO_ADDRESS, Address
from swarm.errors import RejectedError
from swarm.ledger.abi import interface
from swarm.ledger.artifact import Artifact
from swarm.ledger.genesis import CONSORTIUM
from swarm.quorum import quorum
from tests.contracts.chain import Chain, address, founder, node, operator

PRINT = bytes(range(32))
ADMIT, REMOVE, ON, OFF = 1, 2, 3, 4


def consortium(members: int = 4, *, validators: int | None = None) -> Chain:
    count = members if validators is None else validators
    return Chain([founder(i, validator=i < count) for i in range(members)])


def nominate(chain: Chain, index: int, *, by: int = 0, validator: bool = False) -> int:
    events = chain.send(
        operator(by), CONSORTIUM, "nominate", node(index), operator(index), f"site {index}", "/ip4/1.2.3.4", PRINT,
        validator,
    )  # fmt: skip
    assert events[0][0] == "Nominated"
    return int(events[0][1]["proposal"])


def approve(chain: Chain, proposal: int, *by: int) -> None:
    for index in by:
        chain.send(operator(index), CONSORTIUM, "approve", proposal)


def members(chain: Chain) -> list[Address]:
    return list(chain.ask(CONSORTIUM, "members"))


def validators(chain: Chain) -> list[Address]:
    return list(chain.ask(CONSORTIUM, "getValidators"))


def test_founders_are_members_with_their_operators_and_validators() -> None:
    chain = consortium(4, validators=3)
    assert members(chain) == [node(i) for i in range(4)]
    assert validators(chain) == [node(i) for i in range(3)]
    record = (operator(3), "site 3", "/ip4/10.0.0.3/tcp/4101", bytes(32), False, True)
    assert chain.ask(CONSORTIUM, "member", node(3)) == record
    assert chain.ask(CONSORTIUM, "roster")[3] == (node(3), record)
    assert chain.ask(CONSORTIUM, "memberOf", operator(2)) == node(2)
    assert chain.ask(CONSORTIUM, "operatorOf", node(2)) == operator(2)
    assert chain.ask(CONSORTIUM, "isMember", node(0))
    assert not chain.ask(CONSORTIUM, "isMember", operator(0))
    assert chain.ask(CONSORTIUM, "memberOf", node(0)) == ZERO_ADDRESS


@pytest.mark.parametrize(("count", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 4), (6, 4), (7, 5), (10, 7)])
def test_a_quorum_is_two_thirds_rounded_up(count: int, quorum: int) -> None:
    assert consortium(count).ask(CONSORTIUM, "quorum") == quorum


def test_a_consortium_without_a_validator_cannot_be_founded() -> None:
    with pytest.raises(ValueError, match="at least one validator has to stand"):
        consortium(2, validators=0)


def test_two_founders_cannot_share_a_name_a_key_or_an_operator() -> None:
    first = founder(0)
    for second, reason in [
        ((node(1), operator(1), first[2], "", PRINT, True), "another member has this name"),
        ((node(0), operator(1), "b", "", PRINT, True), "the address already is a member"),
        ((node(1), operator(0), "b", "", PRINT, True), "the operator already has a member"),
        ((operator(0), operator(1), "b", "", PRINT, True), "the address is an operator"),
        ((node(1), node(0), "b", "", PRINT, True), "the operator is a node's key"),
        ((node(1), node(1), "b", "", PRINT, True), "a person's key votes, apart from the node's key"),
        ((ZERO_ADDRESS, operator(1), "b", "", PRINT, True), "the member's address is zero"),
        ((node(1), ZERO_ADDRESS, "b", "", PRINT, True), "the operator's address is zero"),
        ((node(1), operator(1), "", "", PRINT, True), "a member has a name"),
    ]:
        with pytest.raises(ValueError, match=reason):
            Chain([first, second])


def test_a_quorum_of_approvals_admits_a_nominated_member() -> None:
    chain = consortium(4)
    proposal = nominate(chain, 9, validator=True)
    approve(chain, proposal, 1)
    assert node(9) not in members(chain)
    kind, member, record, proposer, decided, approvals = chain.ask(CONSORTIUM, "proposal", proposal)
    assert (kind, member, record[1], proposer, decided, approvals) == (ADMIT, node(9), "site 9", node(0), False, 2)
    assert chain.ask(CONSORTIUM, "approved", proposal, node(1))
    assert not chain.ask(CONSORTIUM, "approved", proposal, node(2))
    events = chain.send(operator(2), CONSORTIUM, "approve", proposal)
    assert [name for name, _ in events] == ["Approved", "Admitted"]
    assert node(9) in members(chain)
    assert node(9) in validators(chain)
    assert chain.ask(CONSORTIUM, "quorum") == 4
    assert chain.ask(CONSORTIUM, "proposals") == 1


def test_only_operators_of_members_propose_and_approve() -> None:
    chain = consortium(4)
    proposal = nominate(chain, 9)
    for stranger in (node(1), operator(9), address("nobody")):
        calls: tuple[tuple[str, tuple[object, ...]], ...] = (
            ("nominate", (node(8), operator(8), "x", "", PRINT, False)),
            ("proposeRemoval", (node(1),)),
            ("proposeValidator", (node(1), False)),
            ("approve", (proposal,)),
            ("rotateKey", (address("new"), "", PRINT)),
        )
        for function, arguments in calls:
            with pytest.raises(RejectedError, match="only the operator of a member may do this"):
                chain.send(stranger, CONSORTIUM, function, *arguments)


def test_what_cannot_be_proposed_is_refused_with_the_reason() -> None:
    chain = consortium(4, validators=3)
    calls: list[tuple[tuple[Any, ...], str]] = [
        (("nominate", node(1), operator(9), "x", "", PRINT, False), "the address already is a member"),
        (("nominate", node(9), operator(1), "x", "", PRINT, False), "the operator already has a member"),
        (("nominate", node(9), operator(9), "site 1", "", PRINT, False), "another member has this name"),
        (("nominate", node(9), operator(9), "", "", PRINT, False), "a member has a name"),
        (("proposeRemoval", node(9)), "only a member can be removed"),
        (("proposeValidator", node(9), True), "only a member can be a validator"),
        (("proposeValidator", node(1), True), "the member already is what is proposed"),
        (("proposeValidator", node(3), False), "the member already is what is proposed"),
        (("approve", 1), "there is no such proposal"),
        (("approve", 0), "there is no such proposal"),
    ]
    for call, reason in calls:
        with pytest.raises(RejectedError, match=reason):
            chain.send(operator(0), CONSORTIUM, *call)


def test_an_operator_approves_once_and_nobody_approves_what_is_decided() -> None:
    chain = consortium(4)
    proposal = nominate(chain, 9)
    with pytest.raises(RejectedError, match="this member has already approved"):
        approve(chain, proposal, 0)
    approve(chain, proposal, 1, 2)
    with pytest.raises(RejectedError, match="the proposal is already decided"):
        approve(chain, proposal, 3)


def test_the_votes_of_removed_members_do_not_count() -> None:
    chain = consortium(4)
    proposal = nominate(chain, 9, by=3)
    removal = int(chain.send(operator(0), CONSORTIUM, "proposeRemoval", node(3))[0][1]["proposal"])
    approve(chain, removal, 1, 2)
    assert chain.ask(CONSORTIUM, "proposal", proposal)[5] == 0
    approve(chain, proposal, 0)
    assert node(9) not in members(chain)
    approve(chain, proposal, 1)
    assert node(9) in members(chain)


def test_a_removal_that_lowers_the_quorum_lets_an_earlier_vote_close() -> None:
    chain = consortium(5)
    proposal = nominate(chain, 9)
    approve(chain, proposal, 1, 2)
    removal = int(chain.send(operator(0), CONSORTIUM, "proposeRemoval", node(4))[0][1]["proposal"])
    approve(chain, removal, 1, 2, 3)
    assert node(9) not in members(chain)
    approve(chain, proposal, 1)
    assert node(9) in members(chain)


def test_a_removed_member_is_nobody_and_its_name_and_key_are_free_for_its_operator() -> None:
    chain = consortium(4)
    proposal = int(chain.send(operator(0), CONSORTIUM, "proposeRemoval", node(1))[0][1]["proposal"])
    approve(chain, proposal, 2, 3)
    assert members(chain) == [node(0), node(3), node(2)]
    assert node(1) not in validators(chain)
    assert chain.ask(CONSORTIUM, "operatorOf", node(1)) == ZERO_ADDRESS
    for gone in (node(1), operator(1)):
        with pytest.raises(RejectedError, match="only a member or its operator may do this"):
            chain.send(gone, CONSORTIUM, "setEndpoint", "x", PRINT)
    again = nominate(chain, 1)
    approve(chain, again, 2)
    assert node(1) in members(chain)


def test_a_key_that_served_one_operator_never_serves_another() -> None:
    chain = consortium(4)
    chain.send(operator(1), CONSORTIUM, "rotateKey", address("new"), "e", PRINT)
    with pytest.raises(RejectedError, match="the address was the node of another operator"):
        chain.send(operator(0), CONSORTIUM, "nominate", node(1), operator(9), "x", "", PRINT, False)
    with pytest.raises(RejectedError, match="the address was the node of another operator"):
        chain.send(operator(2), CONSORTIUM, "rotateKey", node(1), "e", PRINT)


def test_the_last_validator_that_stands_cannot_be_taken() -> None:
    chain = consortium(4, validators=1)
    for call in (("proposeRemoval", node(0)), ("proposeValidator", node(0), False)):
        proposal = int(chain.send(operator(1), CONSORTIUM, *call)[0][1]["proposal"])
        approve(chain, proposal, 2)
        with pytest.raises(RejectedError, match="at least one validator has to stand"):
            approve(chain, proposal, 3)
    assert validators(chain) == [node(0)]


def test_operators_decide_who_is_a_validator() -> None:
    chain = consortium(4, validators=2)
    on = int(chain.send(operator(0), CONSORTIUM, "proposeValidator", node(3), True)[0][1]["proposal"])
    approve(chain, on, 1, 2)
    assert validators(chain) == [node(0), node(1), node(3)]
    off = int(chain.send(operator(0), CONSORTIUM, "proposeValidator", node(0), False)[0][1]["proposal"])
    assert chain.ask(CONSORTIUM, "proposal", off)[0] == OFF
    approve(chain, off, 1, 2)
    assert validators(chain) == [node(1), node(3)]


def test_two_proposals_for_the_same_end_do_not_both_happen() -> None:
    chain = consortium(4)
    first, second = nominate(chain, 9), nominate(chain, 9, by=1)
    approve(chain, first, 1, 2)
    approve(chain, second, 0)
    approve(chain, second, 2)
    with pytest.raises(RejectedError, match="the operator already has a member"):
        approve(chain, second, 3)
    removals = [int(chain.send(operator(0), CONSORTIUM, "proposeRemoval", node(9))[0][1]["proposal"]) for _ in range(2)]
    approve(chain, removals[0], 1, 2, 3)
    approve(chain, removals[1], 1)
    with pytest.raises(RejectedError, match="the member was removed meanwhile"):
        approve(chain, removals[1], 2)


def test_a_rotated_key_takes_the_members_place_and_the_old_one_is_worth_nothing() -> None:
    chain = consortium(4)
    events = chain.send(operator(1), CONSORTIUM, "rotateKey", address("new"), "/ip4/9.9.9.9", PRINT)
    assert [name for name, _ in events] == ["KeyRotated", "EndpointChanged"]
    assert members(chain) == [node(0), address("new"), node(2), node(3)]
    assert address("new") in validators(chain)
    assert node(1) not in validators(chain)
    assert chain.ask(CONSORTIUM, "member", address("new")) == (
        operator(1), "site 1", "/ip4/9.9.9.9", PRINT, True, True,
    )  # fmt: skip
    assert chain.ask(CONSORTIUM, "memberOf", operator(1)) == address("new")
    assert chain.ask(CONSORTIUM, "member", node(1))[0] == ZERO_ADDRESS
    with pytest.raises(RejectedError, match="only a member or its operator"):
        chain.send(node(1), CONSORTIUM, "standDown")
    chain.send(address("new"), CONSORTIUM, "setEndpoint", "/ip4/8.8.8.8", PRINT)


def test_a_key_is_rotated_to_a_free_address_only() -> None:
    chain = consortium(4)
    for new, reason in [
        (node(2), "the address already is a member"),
        (operator(2), "the address is an operator"),
        (operator(1), "the address is an operator"),
        (ZERO_ADDRESS, "the member's address is zero"),
    ]:
        with pytest.raises(RejectedError, match=reason):
            chain.send(operator(1), CONSORTIUM, "rotateKey", new, "", PRINT)


def test_nobody_escapes_a_vote_by_rotating_the_key() -> None:
    chain = consortium(4)
    proposal = int(chain.send(operator(0), CONSORTIUM, "proposeRemoval", node(1))[0][1]["proposal"])
    chain.send(operator(1), CONSORTIUM, "rotateKey", address("new"), "", PRINT)
    approve(chain, proposal, 2, 3)
    assert members(chain) == [node(0), node(3), node(2)]


def test_an_operators_vote_counts_once_however_often_it_rotates_the_key() -> None:
    chain = consortium(4)
    proposal = nominate(chain, 9)
    chain.send(operator(0), CONSORTIUM, "rotateKey", address("new"), "", PRINT)
    with pytest.raises(RejectedError, match="this member has already approved"):
        approve(chain, proposal, 0)
    assert chain.ask(CONSORTIUM, "proposal", proposal)[5] == 1


def test_a_member_and_its_operator_say_where_the_node_is() -> None:
    chain = consortium(4)
    for sender, endpoint in ((node(2), "a" * 256), (operator(2), "")):
        events = chain.send(sender, CONSORTIUM, "setEndpoint", endpoint, PRINT)
        assert events == [("EndpointChanged", {"member": node(2), "endpoint": endpoint, "fingerprint": PRINT})]
        assert chain.ask(CONSORTIUM, "member", node(2))[2:4] == (endpoint, PRINT)


@pytest.mark.parametrize(("count", "leave"), [(2, 0), (4, 0), (5, 1), (7, 3)])
def test_planned_leave_stops_at_the_floor(count: int, leave: int) -> None:
    chain = consortium(count)
    for index in range(leave):
        chain.send(node(index) if index % 2 else operator(index), CONSORTIUM, "standDown")
    assert validators(chain) == [node(i) for i in range(leave, count)]
    with pytest.raises(RejectedError, match="too few validators would stand"):
        chain.send(node(count - 1), CONSORTIUM, "standDown")
    for index in range(leave):
        chain.send(node(index), CONSORTIUM, "resume")
    assert validators(chain) == [node(i) for i in range(count)]


def test_only_a_validator_that_stands_stands_down_and_only_one_that_left_resumes() -> None:
    chain = consortium(6, validators=5)
    with pytest.raises(RejectedError, match="only a validator can stand down"):
        chain.send(node(5), CONSORTIUM, "standDown")
    chain.send(node(0), CONSORTIUM, "standDown")
    with pytest.raises(RejectedError, match="the validator has already stood down"):
        chain.send(node(0), CONSORTIUM, "standDown")
    with pytest.raises(RejectedError, match="the validator has not stood down"):
        chain.send(node(1), CONSORTIUM, "resume")


def absent(chain: Chain, member: int, *by: int) -> list[tuple[str, dict[str, Any]]]:
    events = []
    for index in by:
        events += chain.send(node(index), CONSORTIUM, "reportAbsent", node(member))
    return events


@pytest.mark.parametrize(("count", "needed"), [(5, 3), (6, 4), (7, 4), (10, 6), (13, 8)])
def test_two_thirds_of_the_others_put_an_absent_validator_on_standby_and_no_fewer(count: int, needed: int) -> None:
    chain = consortium(count)
    assert needed > (count - 1) // 3, "those who may lie are enough"
    absent(chain, 0, *range(1, needed))
    assert validators(chain) == [node(i) for i in range(count)]
    assert chain.ask(CONSORTIUM, "reportersOf", node(0)) == tuple(node(i) for i in range(1, needed))
    assert absent(chain, 0, needed) == [
        ("ReportedAbsent", {"member": node(0), "reporter": node(needed), "reports": needed}),
        ("PutOnStandby", {"member": node(0), "reports": needed}),
    ]
    assert validators(chain) == [node(i) for i in range(1, count)]
    assert chain.ask(CONSORTIUM, "standbys") == (node(0),)


def test_who_is_back_from_standby_resumes_and_starts_without_reports() -> None:
    chain = consortium(5)
    absent(chain, 0, 1, 2, 3)
    assert chain.send(node(0), CONSORTIUM, "resume") == [("Resumed", {"member": node(0)})]
    assert validators(chain) == [node(i) for i in range(5)]
    assert chain.ask(CONSORTIUM, "standbys") == () == chain.ask(CONSORTIUM, "reportersOf", node(0))
    assert [name for name, _ in absent(chain, 0, 1, 2)] == ["ReportedAbsent"] * 2


def test_a_sign_of_life_ends_reports_and_time_ends_them_too() -> None:
    chain = consortium(7)
    absent(chain, 0, 1, 2)
    chain.send(node(0), CONSORTIUM, "resume")
    assert chain.ask(CONSORTIUM, "reportersOf", node(0)) == ()
    absent(chain, 0, 1, 2, 3)
    with pytest.raises(RejectedError, match="the report already counts"):
        absent(chain, 0, 3)
    chain.now_ms += chain.ask(CONSORTIUM, "absence")
    absent(chain, 0, 4)
    assert chain.ask(CONSORTIUM, "reportersOf", node(0)) == (node(4),), "reports of long ago count on"
    assert validators(chain) == [node(i) for i in range(7)]


@pytest.mark.parametrize(("count", "standbys"), [(3, 0), (4, 0), (5, 1), (7, 3)])
def test_standby_stops_at_the_floor_as_leave_does(count: int, standbys: int) -> None:
    chain = consortium(count)
    assert chain.ask(CONSORTIUM, "floor") == min(4, count)
    for gone in range(standbys):
        others = list(range(gone + 1, count))
        absent(chain, gone, *others[: quorum(len(others))])
    assert len(validators(chain)) == count - standbys
    with pytest.raises(RejectedError, match="too few validators would stand"):
        absent(chain, count - 1, count - 2)
    with pytest.raises(RejectedError, match="too few validators would stand"):
        chain.send(node(count - 1), CONSORTIUM, "standDown")


def test_only_validators_that_stand_report_and_are_reported() -> None:
    chain = consortium(8, validators=6)
    chain.send(node(5), CONSORTIUM, "standDown")
    for member, by, reason in [
        (0, 6, "only a validator that stands may report another"),
        (0, 5, "only a validator that stands may report another"),
        (6, 0, "only a validator that stands can be absent"),
        (5, 0, "only a validator that stands can be absent"),
        (0, 0, "a validator does not report itself"),
    ]:
        with pytest.raises(RejectedError, match=reason):
            absent(chain, member, by)
    with pytest.raises(RejectedError, match="only a member or its operator may do this"):
        chain.send(address("stranger"), CONSORTIUM, "reportAbsent", node(0))


def test_reports_stay_with_their_operators_when_keys_rotate_and_no_report_counts_twice() -> None:
    chain = consortium(7)
    absent(chain, 0, 1, 2, 3)
    chain.send(operator(1), CONSORTIUM, "rotateKey", node(11), "", PRINT)
    with pytest.raises(RejectedError, match="the report already counts"):
        absent(chain, 0, 11)
    assert len(validators(chain)) == 7
    chain.send(operator(0), CONSORTIUM, "rotateKey", node(10), "", PRINT)
    assert absent(chain, 10, 4)[-1][0] == "PutOnStandby"
    chain.send(operator(0), CONSORTIUM, "rotateKey", node(20), "", PRINT)
    assert chain.ask(CONSORTIUM, "standbys") == (node(20),), "a new key is no way back"


def test_a_planned_leave_is_no_standby() -> None:
    chain = consortium(5)
    chain.send(operator(0), CONSORTIUM, "standDown")
    assert chain.ask(CONSORTIUM, "standbys") == ()


def test_a_full_consortium_admits_nobody() -> None:
    chain = consortium(128)
    assert len(members(chain)) == 128
    with pytest.raises(RejectedError, match="the consortium is full"):
        nominate(chain, 200)


def test_whatever_operators_do_the_members_agree_with_themselves() -> None:
    """Random calls, and after each: no member twice, both directories agree, validators stand and are never gone."""
    happened: set[str] = set()
    for seed in range(4):
        happened |= play(seed)
    missing = set(interface("Consortium").topics) - happened
    assert missing == {"Recovered"}, "the random calls do not reach everything (signatures are no chance)"


def play(seed: int, *, artifact: Artifact | None = None) -> set[str]:
    """Operators do what comes to their mind; the names of what happened."""
    chance = random.Random(seed)
    validators_count = 6 if seed % 2 else 1
    chain = Chain([founder(i, validator=i < validators_count) for i in range(6)], consortium=artifact)
    keys = [node(i) for i in range(10)] + [address(f"spare {i}") for i in range(6)]
    everybody = keys + [operator(i) for i in range(10)]
    refusals: set[str] = set()
    votes: dict[int, set[Address]] = {}
    for _ in range(200):
        sitting = [record[0] for _, record in chain.ask(CONSORTIUM, "roster")]
        sender = chance.choice(sitting if chance.random() < 0.85 else everybody)
        other = chance.randrange(10)
        count = chain.ask(CONSORTIUM, "proposals")
        call: tuple[object, ...] = chance.choice(
            [
                ("nominate", chance.choice(keys), operator(other), f"site {other}", "", PRINT, chance.random() < 0.5),
                ("proposeRemoval", chance.choice(keys)),
                *[("proposeValidator", chance.choice(keys[:6]), chance.random() < 0.5)] * 2,
                ("rotateKey", chance.choice(keys), "", PRINT),
                ("standDown",),
                *[("reportAbsent", keys[0])] * 6,
                *[("resume",)] * 4,
                *[("approve", chance.randint(max(count - 1, 1), count + 1))] * 12,
            ]
        )
        events: list[tuple[str, dict[str, Any]]] = []
        try:
            events = chain.send(sender, CONSORTIUM, str(call[0]), *call[1:])
        except RejectedError as error:
            refusals.add(str(error))
        for name, args in events:
            if name == "Approved":
                assert sender in sitting, f"seed {seed}: a stranger votes"
                votes.setdefault(args["proposal"], set()).add(sender)
            elif name in ("Admitted", "Removed", "ValidatorChanged"):
                count = len(votes[events[-2][1]["proposal"]] & set(sitting))
                assert 3 * count >= 2 * len(sitting), f"seed {seed}: decided without a quorum"
        roster = dict(chain.ask(CONSORTIUM, "roster"))
        assert list(roster) == members(chain), f"seed {seed}"
        assert len({record[0] for record in roster.values()}) == len(roster) >= 1, f"seed {seed}"
        assert len({record[1] for record in roster.values()}) == len(roster), f"seed {seed}"
        voter, record = chance.choice(list(roster.items()))
        assert chain.ask(CONSORTIUM, "memberOf", record[0]) == voter, f"seed {seed}"
        standing = [member for member, record in roster.items() if record[4] and record[5]]
        assert validators(chain) == standing != [], f"seed {seed}"
    assert not any("no reason" in refusal for refusal in refusals), f"seed {seed}: {refusals}"
    return {name for name, _ in chain.events}
