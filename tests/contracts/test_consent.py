"""Who is waited for in the first round: everybody who consented before it began, in whatever order they came."""

from __future__ import annotations

from swarm.rounds import Phase
from tests.contracts.chain import node, operator
from tests.contracts.rounds import Rounds


def test_a_member_that_consents_after_the_quorum_and_before_the_first_update_is_waited_for() -> None:
    # With four members a quorum is three: the fourth hospital's consent is never what opens the run.
    rounds = Rounds()
    rounds.propose()
    for index in (1, 2, 3):
        rounds.send(operator(index), "approve", 1)
    assert set(rounds.state().expected) == {node(index) for index in range(4)}
    for index in (0, 1, 2):
        rounds.send(node(index), "join", 1, True)
    rounds.submit(0, 1, 2)
    assert rounds.state().phase == Phase.SUBMIT, "the fourth is slower to start, and part of it all the same"
    rounds.send(node(3), "join", 1, True)
    rounds.submit(3)
    assert rounds.state().phase == Phase.MERGE


def test_a_member_that_consented_in_time_and_never_comes_costs_one_deadline() -> None:
    rounds = Rounds()
    rounds.propose()
    for index in (1, 2, 3):
        rounds.send(operator(index), "approve", 1)
    for index in (0, 1, 2):
        rounds.send(node(index), "join", 1, True)
    rounds.submit(0, 1, 2)
    rounds.pass_deadline()
    rounds.advance()
    assert rounds.state().phase == Phase.MERGE
    rounds.close()
    rounds.submit(0, 1, 2)
    assert rounds.state().phase == Phase.MERGE, "the second round does not wait for it"


def test_who_takes_its_consent_back_before_training_is_not_waited_for() -> None:
    rounds = Rounds()
    rounds.propose()
    for index in (1, 2, 3):
        rounds.send(operator(index), "approve", 1)
    rounds.send(operator(3), "withdraw", 1)
    for index in (0, 1, 2):
        rounds.send(node(index), "join", 1, True)
    rounds.submit(0, 1, 2)
    assert rounds.state().phase == Phase.MERGE
