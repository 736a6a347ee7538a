"""A run on a chain of its own, driven in few words: what the tests of `Runs` share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from swarm.encoding import Address, Digest, keccak256
from swarm.ledger.artifact import Artifact
from swarm.ledger.genesis import RUNS
from swarm.rounds import Phase, RunState, Submission, leader_of
from tests.contracts.chain import Chain, founder, node, operator

SUBMIT_MS, MERGE_MS, ATTEST_MS = 30_000, 5_000, 4_000
WEIGHT_MAX = 1_000
POLICY = keccak256(b"policy")
GENESIS = keccak256(b"genesis")

FIELDS = (
    "state", "round", "phase", "view", "leader", "base", "seed", "opened", "deadline", "expected", "submissions",
    "published", "attested", "refused", "missing", "verifiers", "verified",
)  # fmt: skip


def digest(*parts: object) -> Digest:
    """A digest from anything."""
    return keccak256(repr(parts).encode())


class RoundView:
    """The answer of `round_state` by names."""

    state: int
    round: int
    phase: int
    view: int
    leader: Address
    base: Digest
    seed: Digest
    opened: int
    deadline: int
    expected: tuple[Address, ...]
    submissions: tuple[Submission, ...]
    published: Digest
    attested: tuple[Address, ...]
    refused: tuple[Address, ...]
    missing: tuple[tuple[Address, Address], ...]
    verifiers: int
    verified: tuple[tuple[Address, int], ...]

    def __init__(self, answer: Sequence[Any]) -> None:
        for name, value in zip(FIELDS, answer, strict=True):
            setattr(self, name, tuple(Submission(*one) for one in value) if name == "submissions" else value)

    @property
    def submitters(self) -> tuple[Address, ...]:
        """Members whose submissions are merged."""
        return tuple(s.member for s in self.submissions if not s.struck)


class Rounds:
    """A chain with one run, number 1."""

    def __init__(
        self,
        members: int = 4,
        *,
        rounds: int = 3,
        submissions_min: int = 2,
        runs: Artifact | None = None,
        consortium: Artifact | None = None,
        blind: Artifact | None = None,
        weight_max: int = WEIGHT_MAX,
        ticks_per_second: int = 1000,
    ) -> None:
        self.members = members
        founders = [founder(i) for i in range(members)]
        self.chain = Chain(founders, runs=runs, consortium=consortium, blind=blind, ticks_per_second=ticks_per_second)
        self.weight_max = weight_max
        self.rounds, self.submissions_min = rounds, submissions_min

    def propose(self, by: int = 0) -> None:
        self.send(
            operator(by), "propose", "heart", POLICY, GENESIS, self.rounds, self.submissions_min, SUBMIT_MS, MERGE_MS,
            ATTEST_MS, self.weight_max,
        )  # fmt: skip

    def open(self, *, joined: Collection[int] | None = None, opted_out: Collection[int] = ()) -> Rounds:
        """Propose, approve by all, and join (all, or those named)."""
        self.propose()
        for index in range(1, self.members):
            self.send(operator(index), "approve", 1)
        for index in range(self.members) if joined is None else joined:
            self.send(node(index), "join", 1, index not in opted_out)
        return self

    def send(self, sender: Address, function: str, *arguments: object) -> list[tuple[str, dict[str, Any]]]:
        return self.chain.send(sender, RUNS, function, *arguments)

    def state(self) -> RoundView:
        return RoundView(self.chain.ask(RUNS, "round_state", 1))

    def pass_deadline(self) -> None:
        """Move the clock to where `advance` is possible."""
        deadline = self.state().deadline
        assert deadline
        self.chain.now_ms = max(self.chain.now_ms, deadline)

    def submit(self, *indexes: int, weight: int = 7) -> None:
        round = self.state().round
        for index in indexes:
            self.send(node(index), "submit", 1, round, digest(round, index), weight, b"{}")

    def publish(self, checkpoint: Digest | None = None) -> Digest:
        """The leader publishes; what it published."""
        state = self.state()
        checkpoint = checkpoint or digest("checkpoint", state.round)
        self.send(state.leader, "publish", 1, state.round, state.view, checkpoint)
        return checkpoint

    def attest(self, *members: Address) -> None:
        state = self.state()
        for member in members:
            self.send(member, "attest", 1, state.round, state.view, state.published)

    def refuse(self, *members: Address) -> list[tuple[str, dict[str, Any]]]:
        state = self.state()
        events = []
        for member in members:
            events = self.send(member, "refuse", 1, state.round, state.view, digest("other"), digest("evidence"))
        return events

    def advance(self, by: Address | None = None) -> list[tuple[str, dict[str, Any]]]:
        state = self.state()
        return self.send(by or node(0), "advance", 1, state.round, state.view)

    def close(self) -> None:
        """From MERGE to the next round: the leader publishes, others attest until the round closes."""
        self.publish()
        before = self.state()
        for member in before.submitters:
            if self.state().round == before.round and self.state().state == RunState.OPEN and member != before.leader:
                self.attest(member)

    def elected(self, *, leads: Collection[Address] | None = None) -> Address:
        """The leader by `swarm.rounds`, from what the view shows."""
        state = self.state()
        assert state.phase != Phase.SUBMIT
        allowed = frozenset(node(i) for i in range(self.members)) if leads is None else frozenset(leads)
        suspended = {member for member in allowed if self.chain.ask(RUNS, "suspended", 1, member)}
        return leader_of(state.seed, state.view, state.submissions, allowed - suspended)


def names(events: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """The events' names."""
    return [name for name, _ in events]
