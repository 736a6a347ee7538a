"""Watches every node's ledger and says when something happened that must never happen.

It keeps its own history of each run from the ledger's events, and takes nothing from the nodes' word: leaders are
elected again, quorums counted again, checkpoints merged again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.plan import Plan
from sim.story import Story
from sim.training import File, merge
from swarm.encoding import Address, Digest, keccak256, short
from swarm.ledger.abi import interface
from swarm.ledger.genesis import RUNS
from swarm.ledger.ledger import Ledger
from swarm.quorum import faults_max, quorum
from swarm.rounds import EVERY_PART, Submission, leader_of

REASONS = {1: "silent", 2: "unattested", 3: "refused", 4: "inputs changed"}


class Violation(AssertionError):
    """A rule of the swarm was broken."""


@dataclass
class Round:
    """The round that a run is at, by the events so far."""

    number: int
    base: File
    seed: Digest
    view: int = 0
    submissions: dict[Address, tuple[Digest, int]] = field(default_factory=dict)
    struck: set[Address] = field(default_factory=set)
    leader: Address = b""
    published: Digest | None = None
    attested: set[Address] = field(default_factory=set)
    verified: dict[Address, int] = field(default_factory=dict)
    """Parts, of those who did not verify all."""
    wrong_leaders: set[Address] = field(default_factory=set)
    """Who published something else than the merge."""


class Observer:
    """Checks each block of each node as it appears.

    Args:
        name: how the story calls a member.
        files: every update that an honest or dishonest member made, by digest; whatever is not in it nobody can read.
        liars: members whose submissions may be struck and whose words mean nothing. Where few take part in a round,
            they may be more there than the round bears, though not more than the swarm does: then they can strike a
            submission and suspend a leader, but close nothing.
        on_event: told about every event of the runs contract, once.
    """

    def __init__(
        self,
        plan: Plan,
        story: Story,
        *,
        name: Callable[[Address], str],
        files: Mapping[Digest, File],
        liars: frozenset[Address],
        on_event: Callable[[str, Mapping[str, Any]], None],
        excused: Callable[[Address], bool],
    ) -> None:
        self._plan = plan
        self._story = story
        self._name = name
        self._files = files
        self._liars = liars
        self._on_event = on_event
        self._excused = excused
        self._hashes: list[Digest] = []
        self._runs = interface("Runs")
        self._seats: list[Address] = []
        self._leads: dict[Address, bool] = {}
        self._suspended: set[Address] = set()
        self.round: Round | None = None
        self.closed: list[Digest] = []
        """The checkpoint of every closed round."""
        self.finished: Digest | None = None
        self.calls = 0
        """Transactions in all blocks."""
        self.wrong_publications = 0
        self.replacements = 0
        self.struck = 0
        self.restarts = 0

    def look(self, who: str, ledger: Ledger, first: int) -> int:
        """Check a node's blocks from `first` to its head; the number of the next one to come.

        Raises:
            Violation: says which rule, where.
        """
        for number in range(first, ledger.head.number + 1):
            block = ledger.block(number)
            digest = block.header.hash
            if number < len(self._hashes):
                known = self._hashes[number]
                if known != digest:
                    raise Violation(f"fork: block {number} is {short(digest)} at {who} and {short(known)} elsewhere")
                continue
            assert number == len(self._hashes), "blocks are looked at in order"
            self._hashes.append(digest)
            self.calls += len(block.raws)
            self._story.note(f"block {number} {digest.hex()}")
            for receipt in block.receipts:
                for log in receipt.logs:
                    event = self._runs.event(log.topics, log.data) if log.address == RUNS else None
                    if event is not None:
                        self._upon(*event)
        return ledger.head.number + 1

    @property
    def height(self) -> int:
        """The highest block that any node had."""
        return len(self._hashes) - 1

    def right(self) -> Digest | None:
        """What the round's merge gives, made again from the submissions; None while bytes of one never existed."""
        merged = self._merged()
        return None if merged is None else merged.digest

    # --- the history of a run, event by event

    def _upon(self, event: str, found: Mapping[str, Any]) -> None:
        handler = getattr(self, f"_upon_{event}", None)
        self._story.note(f"{event} {sorted(found.items())!r}")
        if handler is not None:
            handler(found)
        self._on_event(event, found)

    def _upon_RunOpened(self, found: Mapping[str, Any]) -> None:
        self.round = Round(0, self._files[found["checkpoint"]], found["seed"])
        self._story.say(f"the run opens with checkpoint {short(found['checkpoint'])}")

    def _upon_Joined(self, found: Mapping[str, Any]) -> None:
        member = found["member"]
        if found["seat"] == len(self._seats):
            self._seats.append(member)
        if self._seats[found["seat"]] != member:
            raise Violation(f"seat {found['seat']} changed from {self._name(self._seats[found['seat']])}")
        self._leads[member] = found["leads"]
        self._story.say(f"{self._name(member)} joins")

    def _upon_Submitted(self, found: Mapping[str, Any]) -> None:
        round_, member = self._at(found), found["member"]
        if member in round_.submissions:
            raise Violation(f"round {round_.number}: {self._name(member)} submitted twice")
        round_.submissions[member] = (found["digest"], found["weight"])
        self._story.say(
            f"round {round_.number}: {self._name(member)} submits {short(found['digest'])}, weight {found['weight']}"
        )

    def _upon_MergeStarted(self, found: Mapping[str, Any]) -> None:
        round_ = self._at(found)
        if len(round_.submissions) < self._plan.policy.submissions_min:
            raise Violation(f"round {round_.number} merges with {len(round_.submissions)} submissions")
        self._elected(round_, found)
        self._story.say(
            f"round {round_.number}: {self._name(round_.leader)} leads, {len(round_.submissions)} submissions"
        )

    def _upon_LeaderReplaced(self, found: Mapping[str, Any]) -> None:
        round_ = self._at(found)
        before = found["replaced"]
        if found["reason"] == 3:
            self._suspended.add(before)
            k = len(self._unstruck(round_))
            needed = max(k - quorum(k) + 1, min(faults_max(max(self._plan.members, k)) + 1, k - 1))
            outvoted = len(self._liars & self._unstruck(round_).keys()) >= needed
            if before not in self._liars and before not in round_.wrong_leaders and not outvoted:
                raise Violation(f"round {round_.number}: {self._name(before)} is honest and was refused")
        self._elected(round_, found)
        self.replacements += 1
        self._story.say(
            f"round {round_.number}: {self._name(before)} is replaced ({REASONS[found['reason']]}), "
            f"{self._name(round_.leader)} leads"
        )

    def _upon_MissingReported(self, found: Mapping[str, Any]) -> None:
        reporter, member = self._name(found["reporter"]), self._name(found["member"])
        self._story.say(f"round {self._at(found).number}: {reporter} reports that the bytes of {member} never came")

    def _upon_Struck(self, found: Mapping[str, Any]) -> None:
        round_, member = self._at(found), found["member"]
        round_.struck.add(member)
        self.struck += 1
        self._story.say(f"round {round_.number}: the submission of {self._name(member)} is struck")
        k = len(round_.submissions)
        outvoted = len(self._liars & round_.submissions.keys()) >= min(
            max(2, faults_max(max(self._plan.members, k)) + 1), k - 1
        )
        if member not in self._liars and not outvoted and not self._excused(member):
            raise Violation(f"round {round_.number}: the submission of {self._name(member)}, which is honest, is lost")

    def _upon_RoundRestarted(self, found: Mapping[str, Any]) -> None:
        round_ = self._at(found)
        round_.submissions.clear()
        round_.struck.clear()
        round_.attested.clear()
        round_.published = None
        self.restarts += 1
        self._story.say(f"round {round_.number}: starts again")

    def _upon_Published(self, found: Mapping[str, Any]) -> None:
        round_, leader = self._at(found), found["leader"]
        if leader != round_.leader or found["view"] != round_.view:
            raise Violation(
                f"round {round_.number}: {self._name(leader)} published in view {found['view']} out of turn"
            )
        round_.published = found["checkpoint"]
        round_.attested, round_.verified = {leader}, {}
        wrong = found["checkpoint"] != self.right()
        if wrong:
            round_.wrong_leaders.add(leader)
            self.wrong_publications += 1
            if leader not in self._liars:
                raise Violation(f"round {round_.number}: {self._name(leader)} is honest and published another merge")
        self._story.say(
            f"round {round_.number}: {self._name(leader)} publishes {short(found['checkpoint'])}"
            f"{', which is not the merge' if wrong else ''}"
        )

    def _upon_Attested(self, found: Mapping[str, Any]) -> None:
        round_, member = self._at(found), found["member"]
        if found["checkpoint"] != round_.published or member not in self._unstruck(round_) or member in round_.attested:
            raise Violation(
                f"round {round_.number}: an attestation of {self._name(member)} that does not count counted"
            )
        round_.attested.add(member)
        self._story.say(f"round {round_.number}: {self._name(member)} attests")

    def _upon_Refused(self, found: Mapping[str, Any]) -> None:
        round_, member = self._at(found), found["member"]
        if member not in self._liars and round_.leader not in round_.wrong_leaders:
            raise Violation(f"round {round_.number}: {self._name(member)} is honest and refused the right merge")
        self._story.say(f"round {round_.number}: {self._name(member)} refuses, it found {short(found['found'])}")

    def _upon_Verified(self, found: Mapping[str, Any]) -> None:
        round_ = self._at(found)
        round_.verified[found["member"]] = found["parts"]
        self._story.say(
            f"round {round_.number}: {self._name(found['member'])} verified {found['parts'].bit_count()} parts"
        )

    def _upon_AccusationFailed(self, found: Mapping[str, Any]) -> None:
        round_, accuser = self._at(found), found["accuser"]
        if accuser not in self._liars:
            raise Violation(f"round {round_.number}: {self._name(accuser)} is honest and called a false accuser")
        self._suspended.add(accuser)
        self._story.say(f"round {round_.number}: {self._name(accuser)} accused falsely")

    def _upon_RoundClosed(self, found: Mapping[str, Any]) -> None:
        round_ = self._at(found)
        needed = quorum(len(self._unstruck(round_)))
        if len(round_.attested) < needed or found["attestations"] != len(round_.attested):
            raise Violation(f"round {round_.number} closed with {len(round_.attested)} attestations of {needed}")
        honest = round_.attested - self._liars - {round_.leader}
        seen = 0
        for member in honest:
            seen |= round_.verified.get(member, EVERY_PART)
        if round_.leader in self._liars and seen != EVERY_PART:
            raise Violation(f"round {round_.number} closed with a part that no honest member verified")
        merged = self._merged()
        if merged is None:
            raise Violation(f"round {round_.number} closed with a submission whose bytes nobody ever had")
        if merged.digest != found["checkpoint"]:
            raise Violation(
                f"round {round_.number} closed with {short(found['checkpoint'])}, but the merge of its submissions is "
                f"{short(merged.digest)}"
            )
        self.closed.append(merged.digest)
        self._story.say(
            f"round {round_.number}: closed with {short(merged.digest)}, {len(round_.attested)} of "
            f"{len(self._unstruck(round_))} attested"
        )
        self.round = Round(round_.number + 1, merged, keccak256(round_.seed + merged.digest))

    def _upon_RunFinished(self, found: Mapping[str, Any]) -> None:
        if len(self.closed) != self._plan.rounds or found["checkpoint"] != self.closed[-1]:
            raise Violation(f"the run finished after {len(self.closed)} rounds with {short(found['checkpoint'])}")
        self.finished = found["checkpoint"]
        self._story.say(f"the run is finished: {short(self.finished)}")

    # --- made again

    def _at(self, found: Mapping[str, Any]) -> Round:
        if self.round is None or found["round"] != self.round.number:
            raise Violation(f"an event of round {found['round']}, which is not open")
        return self.round

    def _unstruck(self, round_: Round) -> dict[Address, tuple[Digest, int]]:
        return {member: entry for member, entry in round_.submissions.items() if member not in round_.struck}

    def _elected(self, round_: Round, found: Mapping[str, Any]) -> None:
        """Take the new view's leader, if it is the one that the seed gives."""
        round_.view, round_.leader, round_.published, round_.attested = (
            found["view"],
            found["leader"],
            None,
            set(),
        )
        submissions = tuple(
            Submission(member, *round_.submissions[member], member in round_.struck)
            for member in self._seats
            if member in round_.submissions
        )
        leads = frozenset(member for member, leads in self._leads.items() if leads) - self._suspended
        expected = leader_of(round_.seed, round_.view, submissions, leads)
        if expected != round_.leader:
            raise Violation(
                f"round {round_.number} view {round_.view}: {self._name(round_.leader)} leads, but the seed elects "
                f"{self._name(expected)}"
            )

    def _merged(self) -> File | None:
        assert self.round is not None
        entries = self._unstruck(self.round).values()
        if any(digest not in self._files for digest, _ in entries):
            return None
        updates = [self._files[digest] for digest, _ in entries]
        return merge(self.round.base, updates, [weight for _, weight in entries], self._plan.policy)
