"""Every rule of the machine-checked QBFT specification has one place here and a test: the table, and what holds it.

The rules are the predicates and functions of Consensys/qbft-formal-spec-and-verification, dafny/spec/L1: node.dfy and
node_auxiliary_functions.dfy. `swarm/consensus/README.md` shows the same table and says where we differ and why.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from sim.cheap import CHAIN_ID, KeyedHash, digest_of
from swarm.consensus.messages import Prepare, prepare_digest
from swarm.errors import PeerError
from swarm.quorum import faults_max, quorum
from tests.consensus.bench import Bench, only, payload_of
from tests.consensus.test_heights import VALIDATORS, consensus_of, payload, prepare, proposal

ROOT = Path(__file__).parents[2]

SPECIFICATION: dict[str, tuple[str, str]] = {
    # node.dfy
    "NodeInit": ("qbft.Qbft.__init__", "test_rules.test_others_wait_for_the_proposer_and_only_start_their_clock"),
    "NodeNext": ("qbft.Qbft._follow_rules", "test_rules.test_prepares_count_before_their_proposal_is_there"),
    "NodeNextSubStep": ("heights.Consensus.accept", "test_heights.test_only_a_validator_has_a_machine"),
    "UponBlockTimeout": (
        "qbft.Qbft._upon_transaction",
        "test_rules.test_the_first_proposer_proposes_and_prepares_when_a_transaction_waits",
    ),
    "UponProposal": ("qbft.Qbft._upon_proposal", "test_rules.test_a_valid_proposal_is_prepared"),
    "UponPrepare": ("qbft.Qbft._upon_prepare", "test_rules.test_a_quorum_of_prepares_locks_and_commits"),
    "UponCommit": ("qbft.Qbft._upon_commit", "test_rules.test_a_quorum_of_commits_decides_with_a_certificate"),
    "UponNewBlock": ("heights.Consensus.advance", "test_heights.test_four_nodes_decide_block_after_block"),
    "UponRoundTimeout": (
        "qbft.Qbft._upon_round_timeout",
        "test_rules.test_a_time_out_sends_the_votes_again_and_then_promises_the_next_view",
    ),
    "UponRoundChange (justification)": (
        "qbft.Qbft._upon_round_change",
        "test_rules.test_the_next_proposer_builds_when_nothing_was_prepared",
    ),
    "UponRoundChange (f + 1)": (
        "qbft.Qbft._upon_f_plus_1_round_change",
        "test_rules.test_f_plus_1_round_changes_take_a_laggard_along",
    ),
    # node_auxiliary_functions.dfy
    "recoverSigned…Author": ("voters.Voters.sender", "test_rules.test_nobody_elses_signature_counts"),
    "digest": ("qbft.Qbft._check_payload", "test_rules.test_a_payload_must_have_the_digest_that_is_signed"),
    "getNewBlock": (
        "qbft.Qbft._built",
        "test_rules.test_a_proposer_with_nothing_to_execute_stays_awake_and_tries_again",
    ),
    "f": ("swarm.quorum.faults_max", "test_specification.test_quorum_and_f_are_the_specifications"),
    "quorum": ("swarm.quorum.quorum", "test_specification.test_quorum_and_f_are_the_specifications"),
    "roundTimeout": ("qbft.Qbft._run_timer", "test_rules.test_views_grow_longer_up_to_a_minute"),
    "replaceRoundInBlock": ("messages.Prepared", "test_rules.test_a_prepared_block_survives_a_view_change"),
    "hashBlockForCommitSeal": (
        "messages.commit_digest",
        "test_certificate.test_seals_of_several_views_would_certify_a_second_block",
    ),
    "proposer": ("voters.Voters.proposer", "test_rules.test_only_the_views_proposer_proposes"),
    "validators": (
        "heights.Consensus.advance",
        "test_specification.test_the_validators_of_a_height_are_those_that_its_parent_names",
    ),
    "receivedSignedRoundChangesForCurrentHeightAndFutureRounds": (
        "qbft.Qbft._take_round_change",
        "test_rules.test_f_members_move_nobody",
    ),
    "receivedBlocksInRoundChanges": (
        "qbft.Qbft._payload_of",
        "test_rules.test_a_prepared_block_survives_a_view_change",
    ),
    "validateNonPreparedBlock": (
        "qbft.Qbft._check_judgement",
        "test_specification.test_a_new_block_is_its_proposers_own_and_a_prepared_one_may_be_anothers",
    ),
    "validRoundChange": ("messages._prepared", "test_rules.test_a_proposal_without_its_justification_is_not_prepared"),
    "isHighestPrepared": ("voters.Voters.check_justification", "test_rules.test_the_highest_lock_wins"),
    "isProposalJustification": (
        "voters.Voters.check_justification",
        "test_rules.test_a_proposal_without_its_justification_is_not_prepared",
    ),
    "isValidProposal": ("qbft.Qbft._take_proposal", "test_rules.test_a_proposal_of_an_earlier_view_is_not_prepared"),
    "isReceivedProposalJustification": (
        "qbft.Qbft._upon_round_change",
        "test_rules.test_a_proposer_believes_no_lock_without_a_quorum_of_prepares",
    ),
    "getRoundChangeJustification": (
        "qbft.Qbft._shown_lock",
        "test_rules.test_a_round_change_shows_the_lock_and_its_proof",
    ),
    "createRoundChange": ("qbft.Qbft._change_to", "test_rules.test_a_round_change_shows_the_lock_and_its_proof"),
    "validSignedPrepareForHeightRoundAndDigest": (
        "voters.Voters.check_prepares",
        "test_rules.test_a_proposer_believes_no_lock_without_a_quorum_of_prepares",
    ),
    "validPreparesForHeightRoundAndDigest": (
        "qbft.Qbft._upon_prepare",
        "test_rules.test_prepares_of_another_view_or_digest_do_not_count",
    ),
    "validateCommit": ("qbft.Qbft._keep", "test_rules.test_two_votes_in_a_view_are_evidence_and_the_first_stands"),
    "validCommitsForHeightRoundAndDigest": (
        "qbft.Qbft._upon_commit",
        "test_rules.test_commits_of_different_views_do_not_add_up",
    ),
    "ValidNewBlock": ("certificate.check_certificate", "test_certificate.test_a_broken_certificate_is_refused"),
    "validNodeState": ("record.Record.decode", "test_restart.test_a_restored_validator_is_still_locked"),
}
"""Rule of the specification: (what here is that rule, the test that names it)."""

BESIDES: dict[str, tuple[str, str]] = {
    "votes are durable before they leave": (
        "qbft.Qbft._effects",
        "test_restart.test_a_restored_validator_prepares_nothing_else_in_the_same_view",
    ),
    "messages of the next height wait, bounded": (
        "heights.Consensus._upon_later_height",
        "test_heights.test_the_room_for_the_next_height_is_one_slot_for_a_kind_and_a_sender",
    ),
    "messages of later views wait, bounded": (
        "qbft.Qbft._keep",
        "test_rules.test_a_liar_fills_only_its_own_slots",
    ),
    "payloads that wait are bounded in bytes": (
        "heights.Consensus._upon_later_height",
        "test_specification.test_payloads_of_the_next_height_are_bounded_together",
    ),
    "a contradiction is evidence": (
        "contradiction.Contradiction.signer",
        "test_contradiction.test_two_votes_for_different_things_prove_who_signed_both",
    ),
    "a view's time waits for a quorum": (
        "qbft.Qbft._upon_quorum_reached_view",
        "test_rules.test_a_views_time_runs_only_when_a_quorum_has_reached_it",
    ),
    "laggards are helped": (
        "heights.Consensus._upon_laggard",
        "test_heights.test_a_round_change_for_a_decided_height_asks_for_help",
    ),
}
"""What a ledger needs and the specification leaves out, in the same form."""


def _found(place: str) -> object:
    """What a cell of the table names: in `swarm.consensus`, unless it says where."""
    within = "swarm" if place.startswith("swarm.") else "swarm.consensus"
    module, *names = place.removeprefix("swarm.").split(".")
    found: object = importlib.import_module(f"{within}.{module}")
    for name in names:
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("rule", [*SPECIFICATION, *BESIDES])
def test_a_rule_has_its_place_and_its_test(rule: str) -> None:
    place, test = {**SPECIFICATION, **BESIDES}[rule]
    assert callable(_found(place))
    file, name = test.split(".")
    tree = ast.parse((ROOT / "tests" / "consensus" / f"{file}.py").read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{test} is not there"


def test_the_table_in_the_readme_is_this_one() -> None:
    text = (ROOT / "swarm" / "consensus" / "README.md").read_text()
    shown = {line for line in text.splitlines() if line.startswith("| ")}
    for rule, (place, test) in {**SPECIFICATION, **BESIDES}.items():
        line = f"| {rule} | `{place}` | `{test.split('.')[1]}` |"
        assert line in shown, f"swarm/consensus/README.md lacks: {line}"


def test_every_rule_of_the_machine_stands_in_the_table() -> None:
    """A handler that is not in the specification and not said to be besides it would be somebody's idea."""
    places = {place for place, _ in {**SPECIFICATION, **BESIDES}.values()}
    qbft = importlib.import_module("swarm.consensus.qbft").Qbft
    for name in vars(qbft):
        if name.startswith("_upon_"):
            assert f"qbft.Qbft.{name}" in places, f"{name} stands in no table"


@pytest.mark.parametrize("validators", range(1, 129))
def test_quorum_and_f_are_the_specifications(validators: int) -> None:
    assert quorum(validators) == (validators * 2 - 1) // 3 + 1
    assert faults_max(validators) == (validators - 1) // 3


def test_the_validators_of_a_height_are_those_that_its_parent_names() -> None:
    """Three of the four stay; the one that left signs nothing that counts, the newcomer does."""
    newcomer = KeyedHash(bytes([9]) * 20)
    consensus = consensus_of(1)
    following = (*VALIDATORS[1:], newcomer.me)
    consensus.advance(2, following, 0.0)
    digest = digest_of(payload(2, builder=1))
    for keys, counts in ((KeyedHash(VALIDATORS[0]), False), (newcomer, True)):
        vote = Prepare(2, 0, digest, keys.sign(prepare_digest(CHAIN_ID, 2, 0, digest)))
        if counts:
            consensus.accept(vote, 0.0)
        else:
            with pytest.raises(PeerError, match="no validator's signature"):
                consensus.accept(vote, 0.0)


def test_a_new_block_is_its_proposers_own_and_a_prepared_one_may_be_anothers() -> None:
    """Who built a block decides who proposes next, so nobody may put another's name there."""
    bench = Bench()
    others = payload_of(0, 7)
    changes = [bench.change(index, 1) for index in (0, 1, 3)]
    with pytest.raises(PeerError, match="not valid"):
        bench.give(bench.proposal(1, 1, others, changes), 2)
    bench = Bench()
    prepares = bench.prepares((0, 1, 3), 0, others)
    changes = [bench.change(0, 1, (0, others), prepares), bench.change(1, 1), bench.change(3, 1)]
    sent = bench.give(bench.proposal(1, 1, others, changes, prepares), 2)
    assert only(Prepare, sent).digest == digest_of(others)


def test_payloads_of_the_next_height_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.consensus.heights._WAITING_BYTES_MAX", 2 * len(payload(2)))
    consensus = consensus_of(1)
    for sender in (0, 2, 3):
        consensus.receive(proposal(2, sender=sender), 0.0)
    assert len(consensus._waiting) == 2
    consensus.receive(prepare(2, 0), 0.0)
    assert len(consensus._waiting) == 3, "votes have no payload"
