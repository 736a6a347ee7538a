"""A certificate holds a quorum's seals of one view, and why one view matters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cheap import CHAIN_ID, digest_of, recover
from swarm.consensus import Certificate, Qbft, check_certificate
from swarm.consensus.messages import Commit, Message, Proposal, RoundChange
from swarm.encoding import keccak256, pack
from swarm.errors import PeerError
from swarm.identity import Identity
from swarm.quorum import faults_max, quorum
from tests.consensus.bench import Bench, only, payload_of
from tests.consensus.planted import MixesViews, check_mixed

A, T, C, B = range(4)
"""Three honest validators and a traitor, in the order in which they propose."""
D, E = payload_of(A), payload_of(T)


def seals(bench: Bench, *senders: int, view: int = 0, payload: bytes = D) -> tuple[bytes, ...]:
    return tuple(bench.commit(sender, view, payload).signature for sender in senders)


def check(certificate: Certificate, validators: int = 4, *, height: int = 1, payload: bytes = D) -> None:
    check_certificate(
        certificate,
        chain_id=CHAIN_ID,
        height=height,
        digest=digest_of(payload),
        validators=Bench(validators).addresses,
        recover=recover,
    )


@given(st.integers(1, 128))
def test_two_quorums_share_an_honest_validator_and_the_honest_ones_are_a_quorum(validators: int) -> None:
    assert 2 * quorum(validators) - validators >= faults_max(validators) + 1
    assert validators - faults_max(validators) >= quorum(validators)


def test_quorums_of_small_ledgers() -> None:
    assert [quorum(n) for n in range(1, 11)] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7]
    assert [faults_max(n) for n in range(1, 11)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_a_quorums_sorted_seals_pass() -> None:
    bench = Bench()
    check(Certificate(0, seals(bench, 0, 1, 2)))
    check(Certificate(3, seals(bench, 0, 1, 2, 3, view=3)))


def test_real_keys_pass_by_default() -> None:
    keys = sorted((Identity(bytes(31) + bytes([i + 1])) for i in range(4)), key=lambda key: key.address)
    digest = keccak256(b"block")
    sealed = keccak256(pack(["swarm/commit", 5, 9, 2, digest]))
    certificate = Certificate(2, tuple(key.sign(sealed) for key in keys[:3]))
    addresses = [key.address for key in keys]
    check_certificate(certificate, chain_id=5, height=9, digest=digest, validators=addresses)
    with pytest.raises(PeerError):
        check_certificate(certificate, chain_id=6, height=9, digest=digest, validators=addresses)


def broken(bench: Bench) -> dict[str, Certificate]:
    good = seals(bench, 0, 1, 2)
    return {
        "too few": Certificate(0, good[:2]),
        "too many": Certificate(0, good * 2),
        "one twice": Certificate(0, (good[0], good[0], good[1])),
        "out of order": Certificate(0, good[::-1]),
        "of another view": Certificate(1, good),
        "of two views": Certificate(0, (*good[:2], *seals(bench, 2, view=1))),
        "of another block": Certificate(0, (*good[:2], *seals(bench, 2, payload=E))),
        "a stranger's": Certificate(0, (*good[:2], *seals(Bench(5), 4))),
        "a prepare": Certificate(0, (*good[:2], bench.prepare(2).signature)),
        "noise": Certificate(0, (*good[:2], bytes(65))),
    }


@pytest.mark.parametrize("fault", broken(Bench()))
def test_a_broken_certificate_is_refused(fault: str) -> None:
    with pytest.raises(PeerError):
        check(broken(Bench())[fault])


def test_a_certificate_of_another_height_is_refused() -> None:
    with pytest.raises(PeerError):
        check(Certificate(0, seals(Bench(), 0, 1, 2)), height=2)


@given(st.integers(0, 2**32 - 1), st.lists(st.binary(min_size=65, max_size=65), max_size=128))
def test_a_certificate_has_one_encoding(view: int, found: list[bytes]) -> None:
    certificate = Certificate(view, tuple(found))
    assert Certificate.decode(certificate.encode()) == certificate


@given(st.binary(max_size=300))
def test_strange_bytes_are_no_certificate(data: bytes) -> None:
    try:
        assert Certificate.decode(data).encode() == data
    except PeerError:
        return


@pytest.mark.parametrize("data", [b"", pack([0]), pack([0, b""]), pack([0, [b"x"]]), pack([0, [bytes(65)] * 129])])
def test_bytes_of_another_form_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="not a certificate"):
        Certificate.decode(data)


def two_blocks(machine: type[Qbft]) -> tuple[Bench, dict[bytes, dict[int, Commit]]]:
    """Four views in which A and C commit D at different times, while E becomes final: every step is honest but T's.

    Gives the bench, and for each payload the commits that were sent for it.
    """
    bench = Bench(machine=machine)
    bench.wake(A)
    commits: dict[bytes, dict[int, Commit]] = {D: {}, E: {}}

    def note(payload: bytes, sender: int, sent: list[Message]) -> None:
        commits[payload][sender] = only(Commit, sent)

    # View 0: A proposes D; only A sees it prepared.
    bench.give(bench.proposal(A, payload=D), B, C)
    note(D, A, bench.give_all([bench.prepare(B), bench.prepare(C)], A))
    # View 1: the round changes of B, C and T know of no lock; T proposes E; only B sees it prepared.
    bench.wake(B, C)
    free = [only(RoundChange, bench.give_up(member)) for member in (B, C)]
    bench.give_all([*free, bench.change(T, 1)], B, C)
    proposal = bench.proposal(T, 1, E, [*free, bench.change(T, 1)])
    bench.give(proposal, B, C)
    note(E, B, bench.give_all([bench.prepare(T, 1, E), bench.prepare(C, 1, E)], B))
    # View 2: A's lock on D is the highest that C hears of; only C sees D prepared again.
    locked = only(RoundChange, bench.give_all([bench.change(T, 2), bench.change(B, 2)], A))
    assert locked.prepared is not None
    bench.give_all([bench.change(T, 2), locked], C)
    again = only(Proposal, [message for sender, message in bench.sent if sender == C and message.view == 2
                            and isinstance(message, Proposal)])  # fmt: skip
    assert again.payload == D
    bench.give(again, A)
    note(D, C, bench.give_all([bench.prepare(T, 2, D), bench.prepare(A, 2, D)], C))
    # View 3: B's lock on E is higher than A's; A, B and T decide E.
    changes = [only(RoundChange, bench.give_all([bench.change(T, 3), bench.change(C, 3)], A))]
    bench.sent.clear()
    bench.give_all([bench.change(T, 3), changes[0]], B)
    last = only(Proposal, [message for _, message in bench.sent if isinstance(message, Proposal)])
    assert last.payload == E
    bench.give(last, A)
    bench.give_all([bench.prepare(T, 3, E), bench.prepare(B, 3, E)], A)
    bench.give_all([bench.prepare(T, 3, E), bench.prepare(A, 3, E)], B)
    bench.give_all([bench.commit(T, 3, E), bench.commit(B, 3, E)], A)
    return bench, commits


def test_seals_of_several_views_would_certify_a_second_block() -> None:
    """Why a certificate has one view: E is final, and yet D has seals of A (view 0), C (view 2) and the traitor."""
    bench, commits = two_blocks(Qbft)
    assert bench.decided[A].payload == E
    assert {sender: commit.view for sender, commit in commits[D].items()} == {A: 0, C: 2}
    for view in range(4):
        found = {**commits[D], T: bench.commit(T, view, D)}
        ordered = tuple(found[sender].signature for sender in sorted(found))
        with pytest.raises(PeerError, match="seal"):
            check(Certificate(view, ordered))
    check_mixed(
        Certificate(3, ordered),
        chain_id=CHAIN_ID,
        height=1,
        digest=digest_of(D),
        validators=bench.addresses,
        recover=recover,
    )


def test_a_machine_that_counts_commits_of_all_views_forks() -> None:
    """The planted mistake, in the same story: C decides D where A has decided E."""
    bench, commits = two_blocks(Qbft)
    bench.give_all([commits[D][A], bench.commit(T, 2, D)], C)
    assert C not in bench.decided
    bench, commits = two_blocks(MixesViews.machine)
    assert bench.decided[A].payload == E
    with pytest.raises(PeerError):  # the bench checks each decision's certificate: D has none
        bench.give_all([commits[D][A], bench.commit(T, 2, D)], C)
    assert bench.machines[C].decided
