"""What has to hold in every run, whoever does what: it watches each call that the contract took and cries foul.

It keeps its own books from the calls and their events, and shares no arithmetic with the contract but the election
of `swarm.rounds`.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import ceil
from typing import Any

from swarm.encoding import Address, Digest, keccak256
from swarm.rounds import Phase, RunState, Submission, leader_of
from tests.contracts.rounds import ATTEST_MS, GENESIS, MERGE_MS, SUBMIT_MS, WEIGHT_MAX, RoundView

Args = dict[str, Any]


class Foul(AssertionError):
    """A rule of the contract does not hold."""


def hold(holds: bool, rule: str) -> None:
    """Cry foul unless the rule holds."""
    if not holds:
        raise Foul(rule)


EVERY_PART = 2**256 - 1


def faults(count: int) -> int:
    """The greatest whole number that is below a third of `count`."""
    return ceil(Fraction(count, 3)) - 1


def two_thirds(count: int) -> int:
    """The least whole number that is at least two thirds of `count`."""
    return ceil(Fraction(2, 3) * count)


class Referee:
    """The books of run 1."""

    def __init__(self, state: RoundView, *, members: set[Address], rounds: int, submissions_min: int) -> None:
        self.members = members
        self.rounds, self.submissions_min = rounds, submissions_min
        self.state = RunState.OPEN
        self.seats: list[Address] = []
        self.joined: set[Address] = set()
        self.leads: set[Address] = set()
        self.suspended: set[Address] = set()
        self.discredited: set[Address] = set()
        self.consents = len(members)
        self.failed: set[Address] = set()
        self.round, self.base, self.seed = 0, GENESIS, state.seed
        self.phase, self.view, self.first_view = Phase.SUBMIT, 0, 0
        self.leader: Address = b""
        self.deadline_ms = 0
        self.seen: set[str] = set()
        self._begin()
        self.check(state)

    def _begin(self) -> None:
        """No submissions."""
        self.phase = Phase.SUBMIT
        self.first_ms: int | None = None
        self.submitted: dict[Address, tuple[Digest, int]] = {}
        self.struck: set[Address] = set()
        self.reports: set[tuple[Address, Address]] = set()
        self._new_view()

    def _new_view(self) -> None:
        self.published: Digest = bytes(32)
        self.attested: set[Address] = set()
        self.refused: set[Address] = set()
        self.verified: dict[Address, int] = {}

    @property
    def borne(self) -> int:
        """The liars that the members who consent bear."""
        return faults(max(self.consents, len(self.submitted)))

    @property
    def verifiers(self) -> int:
        """How many members besides the leader verify each part."""
        k = len(self.voters)
        return min(max(faults(k) + 1, self.borne), k - 1)

    @property
    def refusals(self) -> int:
        """How many refusals replace a leader: a quorum is out of reach, and more than may lie refuse."""
        k = len(self.voters)
        return max(k - two_thirds(k) + 1, min(faults(max(self.consents, k)) + 1, k - 1))

    def heard(self) -> int:
        """The refusals that count."""
        return len(self.refused - self.discredited)

    def covered(self) -> bool:
        """Whether enough members besides the leader verified every part."""
        words = [self.verified.get(member, EVERY_PART) for member in self.attested - {self.leader}]
        words += [parts for member, parts in self.verified.items() if member not in self.attested]
        return all(sum(word >> part & 1 for word in words) >= self.verifiers for part in range(256))

    @property
    def voters(self) -> set[Address]:
        return self.submitted.keys() - self.struck

    def elected(self) -> Address:
        submissions = tuple(
            Submission(m, *self.submitted[m], struck=m in self.struck) for m in self.seats if m in self.submitted
        )
        return leader_of(self.seed, self.view, submissions, frozenset(self.leads - self.suspended))

    def watch(
        self,
        sender: Address,
        function: str,
        arguments: tuple[object, ...],
        now_ms: int,
        events: list[tuple[str, Args]],
        state: RoundView,
    ) -> None:
        """A call that the contract took, and what it shows afterwards."""
        if function in ("submit", "reportMissing"):
            hold(arguments[1] == self.round, "a call names its round")
        elif function in ("publish", "attest", "refuse", "advance"):
            hold(arguments[1:3] == (self.round, self.view), "a call names its round and view")
        self.sender, self.now_ms, self.awaited = sender, now_ms, set(self.shown.expected)
        of_run = [name for name, args in events if "run" in args]
        hold(self.state == RunState.OPEN or not of_run, "a run that is over stays as it is")
        for name, args in events:
            if name in BOOKS:
                self.seen.add(name)
                BOOKS[name](self, args)
        self.check(state)

    def check(self, state: RoundView) -> None:
        """The contract shows what the books say, and nothing waits that is ready."""
        self.shown = state
        hold(state.state == self.state, "state")
        hold((state.round, state.base, state.seed) == (self.round, self.base, self.seed), "round, base, seed")
        if self.state != RunState.OPEN:
            return
        hold((state.phase, state.view) == (self.phase, self.view), "phase and view")
        shown = {s.member: (s.digest, s.weight) for s in state.submissions}
        hold(shown == self.submitted, "submissions")
        hold([s.member for s in state.submissions] == [m for m in self.seats if m in shown], "order of submissions")
        hold({s.member for s in state.submissions if s.struck} == self.struck, "struck")
        hold(set(state.attested) == self.attested, "attested")
        hold(set(state.refused) == self.refused, "refused")
        hold(set(state.missing) == self.reports, "missing")
        k = len(self.voters)
        if self.phase == Phase.SUBMIT:
            hold(not any(state.leader), "nobody leads while submissions come")
            ready = k >= self.submissions_min and set(state.expected) <= self.voters
            hold(not ready, "the merge starts when all who are awaited submitted")
        else:
            hold(state.leader == self.leader, "leader")
            hold(k >= self.submissions_min, "a merge has submissions_min submissions")
            hold(self.view - self.first_view < 2 * k, "a round restarts when every leader had two turns")
        if self.phase == Phase.ATTEST:
            hold(state.published == self.published, "published")
            quorum = len(self.attested) >= two_thirds(k)
            hold(not (quorum and self.covered()), "a quorum that verified every part closes the round at once")
            hold(self.heard() < self.refusals, "enough refusals replace the leader at once")
            told = {m: self.verified[m] for m in self.verified if m in self.attested}
            hold(dict(state.verified) == told, "the parts that were verified")
            hold(state.verifiers == self.verifiers, "the number of verifiers")


def _joined(book: Referee, args: Args) -> None:
    hold(args["member"] == book.sender and book.sender in book.members, "a member joins for itself")
    if args["member"] not in book.seats:
        book.seats.append(args["member"])
    hold(book.seats[args["seat"]] == args["member"], "seats are given in the order of joining and kept")
    book.joined.add(args["member"])
    (book.leads.add if args["leads"] else book.leads.discard)(args["member"])


def _approved(book: Referee, args: Args) -> None:
    book.consents += 1


def _withdrawn(book: Referee, args: Args) -> None:
    book.consents -= 1
    book.joined.discard(args["member"])
    book.awaited.discard(args["member"])
    book.leads.discard(args["member"])


def _submitted(book: Referee, args: Args) -> None:
    member = args["member"]
    hold(book.phase == Phase.SUBMIT and args["round"] == book.round, "submissions come in their round and phase")
    hold(member == book.sender and member in book.members, "a member submits for itself")
    hold(member in book.joined and member not in book.submitted, "who joined submits, once")
    hold(0 < args["weight"] <= WEIGHT_MAX and any(args["digest"]), "weights are bounded")
    book.submitted[member] = args["digest"], args["weight"]
    book.first_ms = book.now_ms if book.first_ms is None else book.first_ms


def _merge_started(book: Referee, args: Args) -> None:
    hold(book.phase == Phase.SUBMIT and args["view"] == book.view, "a merge follows submissions")
    hold(len(book.submitted) >= book.submissions_min, "a merge has submissions_min submissions")
    late = book.first_ms is not None and book.now_ms >= book.first_ms + SUBMIT_MS
    hold(late or book.awaited <= book.submitted.keys(), "a merge waits for all, or for the deadline")
    book.phase, book.first_view = Phase.MERGE, book.view
    _lead(book, args)
    hold(args["deadline"] == book.deadline_ms, "a merge's deadline")


def _lead(book: Referee, args: Args) -> None:
    book.leader = args["leader"]
    hold(book.leader == book.elected(), "the leader is who anybody computes")
    book.deadline_ms = book.now_ms + MERGE_MS
    book._new_view()


def _missing_reported(book: Referee, args: Args) -> None:
    reporter, member = args["reporter"], args["member"]
    hold(book.phase == Phase.MERGE and args["round"] == book.round, "missing bytes are reported while merging")
    hold(reporter == book.sender and reporter in book.voters & book.members, "submitters report")
    hold(member in book.voters and member != reporter, "others' submissions are reported")
    hold((reporter, member) not in book.reports, "a report counts once")
    book.reports.add((reporter, member))


def _struck(book: Referee, args: Args) -> None:
    count = sum(member == args["member"] and who not in book.discredited for who, member in book.reports)
    k = len(book.submitted)
    hold(count >= min(max(2, book.borne + 1), k - 1), "more than may be faulty strike")
    book.struck.add(args["member"])


def _published(book: Referee, args: Args) -> None:
    hold(book.phase == Phase.MERGE, "a publication follows a merge")
    hold((args["round"], args["view"]) == (book.round, book.view), "a publication is of this view")
    hold(args["leader"] == book.sender == book.leader and book.sender in book.members, "only the leader publishes")
    book.phase, book.published, book.attested = Phase.ATTEST, args["checkpoint"], {book.sender}
    book.deadline_ms = book.now_ms + ATTEST_MS


def _verdict(book: Referee, args: Args) -> None:
    hold(book.phase == Phase.ATTEST, "a verdict follows a publication")
    hold((args["round"], args["view"]) == (book.round, book.view), "a verdict is of this view")
    hold(args["member"] == book.sender and book.sender in book.voters & book.members, "submitters judge")
    hold(book.sender not in book.refused, "who refused says no more")


def _verified(book: Referee, args: Args) -> None:
    _verdict(book, args)
    before = book.verified.get(book.sender, 0)
    hold(before == 0 or book.sender in book.attested, "who adds parts attested before")
    hold(before != 0 or book.sender not in book.attested, "who verified all adds nothing")
    hold(args["parts"] & before == before and args["parts"] != before, "verified parts only grow")
    book.verified[book.sender] = args["parts"]


def _attested(book: Referee, args: Args) -> None:
    _verdict(book, args)
    hold(book.sender not in book.attested, "a member attests a view once")
    hold(args["checkpoint"] == book.published, "what is attested was published")
    book.attested.add(book.sender)


def _refused(book: Referee, args: Args) -> None:
    _verdict(book, args)
    hold(args["found"] != args["published"] == book.published, "what is refused was published")
    hold(book.sender not in book.attested or book.sender in book.verified, "who verified all and attested stays")
    book.attested.discard(book.sender)
    book.refused.add(book.sender)
    if book.heard() >= book.refusals:
        book.suspended.add(book.leader)


def _accusation_failed(book: Referee, args: Args) -> None:
    hold(args["accuser"] in book.refused, "only who refused is an accuser")
    hold((args["round"], args["view"]) == (book.round, book.view), "an accusation fails in its view")
    book.failed.add(args["accuser"])


def _leader_replaced(book: Referee, args: Args) -> None:
    hold(args["view"] == book.view + 1, "views grow by one")
    hold(args["replaced"] == book.leader, "who is replaced led")
    _check_reason(book, args["reason"])
    book.phase, book.view = Phase.MERGE, args["view"]
    _lead(book, args)


def _check_reason(book: Referee, reason: int) -> None:
    late = book.now_ms >= book.deadline_ms
    holds = {
        1: book.phase == Phase.MERGE and late,
        2: book.phase == Phase.ATTEST and late,
        3: book.phase == Phase.ATTEST and book.heard() >= book.refusals,
        4: book.phase == Phase.MERGE and bool(book.struck),
    }
    hold(holds[reason], f"a leader is replaced for reason {reason} only with that reason")


def _round_restarted(book: Referee, args: Args) -> None:
    k = len(book.voters)
    turned = args["view"] - book.first_view >= 2 * k
    hold(k < book.submissions_min or turned, "a round restarts only where it cannot go on")
    hold(args["view"] == book.view + 1, "views grow by one")
    book.view = args["view"]
    book._begin()


def _round_closed(book: Referee, args: Args) -> None:
    k = len(book.voters)
    hold(book.phase == Phase.ATTEST and args["view"] == book.view, "a round closes in a view that published")
    hold(book.attested <= book.voters, "submitters close a round")
    hold(len(book.attested) * 3 >= 2 * k, "no round closes without a quorum")
    hold(book.covered(), "no round closes with a part that too few verified")
    hold(book.failed == book.refused, "who refused in vain is named")
    book.suspended |= book.refused
    book.discredited |= book.refused
    book.failed = set()
    hold(args["attestations"] == len(book.attested), "attestations are counted right")
    hold(args["checkpoint"] == book.published and args["leader"] == book.leader, "what closes was published")
    book.base, book.seed = book.published, keccak256(book.seed + book.published)
    book.round, book.view = book.round + 1, 0
    book._begin()


def _run_finished(book: Referee, args: Args) -> None:
    hold(book.round == book.rounds and args["checkpoint"] == book.base, "a run finishes after its last round")
    book.state = RunState.FINISHED


def _run_stopped(book: Referee, args: Args) -> None:
    book.state = RunState.STOPPED


def _removed(book: Referee, args: Args) -> None:
    book.members.discard(args["member"])


BOOKS: dict[str, Callable[[Referee, Args], None]] = {
    "RunApproved": _approved,
    "Joined": _joined,
    "Withdrawn": _withdrawn,
    "Submitted": _submitted,
    "MergeStarted": _merge_started,
    "MissingReported": _missing_reported,
    "Struck": _struck,
    "Published": _published,
    "Attested": _attested,
    "Refused": _refused,
    "Verified": _verified,
    "AccusationFailed": _accusation_failed,
    "LeaderReplaced": _leader_replaced,
    "RoundRestarted": _round_restarted,
    "RoundClosed": _round_closed,
    "RunFinished": _run_finished,
    "RunStopped": _run_stopped,
    "Removed": _removed,
}
