"""Tells every run again from the replayed ledger's events, by rules written down apart from the contract's, and does
every merge again whose bytes the store still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swarm.audit.replay import Difference
from swarm.audit.sights import RoundSeen, round_seen
from swarm.audit.veils import EVENTS, Chain, MaskStory, Try, open_again
from swarm.config import LEAK_CHECK, Policy
from swarm.encoding import Address, Digest, from_hex, keccak256, short
from swarm.errors import ConfigError
from swarm.identity import checksum
from swarm.ledger.abi import interface
from swarm.ledger.client import decode_metrics
from swarm.ledger.genesis import BLIND, RUNS
from swarm.ledger.ledger import Ledger
from swarm.merge import Merged, merge
from swarm.merge.alarm import Judged, in_groups, settled
from swarm.merkle import CHUNK_BYTES, digest_of_chunks
from swarm.quorum import faults_max, quorum
from swarm.rounds import PARTS, Submission, leader_of
from swarm.store import object_place

LOGS_MAX = 1_000_000
REFUSED = 3


@dataclass(frozen=True)
class Story:
    """How much was told again."""

    runs: int
    rounds: int
    merges: int
    objects: int
    seen: tuple[RoundSeen, ...] = ()
    """What the merges that were done again saw of the updates."""
    leak_checks: tuple[LeakCheck, ...] = ()
    """What sites stated of what their updates give away."""


@dataclass(frozen=True)
class LeakCheck:
    """A digest that a site stated with its submissions; what it is of stays at the site."""

    run: int
    round: int
    """The first that it was stated with."""
    member: str
    digest: str
    recognised: int
    """Records that the site says its own attacks recognised."""

    @property
    def line(self) -> str:
        """For a person."""
        return (
            f"run {self.run} round {self.round}: {self.member} states the leak check {self.digest}, by which "
            f"{self.recognised} records were recognised"
        )


@dataclass
class _Round:
    """A round as its events tell it."""

    submissions: dict[Address, tuple[Digest, int]] = field(default_factory=dict)
    told: dict[Address, Mapping[str, float]] = field(default_factory=dict)
    """Metrics."""
    struck: set[Address] = field(default_factory=set)
    view: int = 0
    leader: Address = b""
    published: Digest = b""
    attested: set[Address] = field(default_factory=set)
    refused: set[Address] = field(default_factory=set)
    verified: dict[Address, int] = field(default_factory=dict)
    """Parts, of those who did not verify all."""


@dataclass(frozen=True)
class Publication:
    """What a leader published, and what its merge had to take."""

    run: int
    round: int
    view: int
    leader: Address
    checkpoint: Digest
    base: Digest
    submissions: tuple[Submission, ...]
    policy: Digest


@dataclass
class RunStory:
    """A run as its events tell it."""

    number: int
    name: str
    policy: Digest
    checkpoint: Digest
    seed: Digest = b""
    seats: list[Address] = field(default_factory=list)
    leads: set[Address] = field(default_factory=set)
    suspended: set[Address] = field(default_factory=set)
    index: int = 0
    round: _Round = field(default_factory=_Round)
    closed: list[tuple[Digest, tuple[Submission, ...], Digest]] = field(default_factory=list)
    """Base, merged submissions and checkpoint of every closed round."""
    judged: list[Judged] = field(default_factory=list)
    """Every closed round as an alarm looks at it."""
    left_out: list[dict[Address, str]] = field(default_factory=list)
    """Of every closed round the members of the run whose update was not merged, and why."""
    publications: list[Publication] = field(default_factory=list)
    consents: int = 0
    leak_checks: dict[tuple[Address, str], LeakCheck] = field(default_factory=dict)
    masks: MaskStory = field(init=False)
    sums: list[Try | None] = field(default_factory=list)
    """Of every closed round of a blind run the attempt whose sum was opened; None where it closed as it began."""

    def __post_init__(self) -> None:
        self.masks = MaskStory(self.where)

    def where(self) -> str:
        return f"run {self.number} ({self.name}) round {self.index}"

    def unstruck(self) -> tuple[Submission, ...]:
        taken = self.round.submissions
        return tuple(
            Submission(member, *taken[member])
            for member in self.seats
            if member in taken and member not in self.round.struck
        )


def retell(ledger: Ledger, store: Path, progress: Callable[[int, int], None]) -> Story:
    """Derive every round of the ledger again.

    Args:
        ledger: a replayed one.
        store: the folder of the site's store; what it does not hold any more is not checked.
    Raises:
        Difference: a leader, a quorum, a seed, a checkpoint or an object's bytes are not what they have to be.
    """
    runs = runs_of(events_of(ledger))
    compare_records(runs, lambda place: _record(ledger, *place))
    return merge_all(runs, store, progress, Chain(ledger.chain_id, BLIND))


def merge_all(runs: Mapping[int, RunStory], store: Path, progress: Callable[[int, int], None], chain: Chain) -> Story:
    """Hash every object of a site's store, and do every merge again whose bytes it still holds.

    Raises:
        Difference: an object's bytes or a checkpoint are not what they have to be.
    """
    objects = _check_objects(store)
    total = sum(len(run.closed) for run in runs.values())
    done, seen = 0, list[RoundSeen]()
    for run in runs.values():
        for index, (base, submissions, checkpoint) in enumerate(run.closed):
            found = _seen_again(chain, run, index, base, submissions, checkpoint, store)
            if found is not None:
                seen.append(found)
            done += 1
            progress(done, total)
    stated = tuple(one for run in runs.values() for one in run.leak_checks.values())
    return Story(len(runs), total, len(seen), objects, tuple(seen), stated)


def events_of(ledger: Ledger) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and arguments of everything that `Runs` and `Blind` logged, in order."""
    names = {RUNS: "Runs", BLIND: "Blind"}
    for entry in ledger.logs(0, ledger.head.number, frozenset(names), [], logs_max=LOGS_MAX):
        name = names[entry.log.address]
        told = interface(name).event(entry.log.topics, entry.log.data)
        if told is None:
            raise Difference(f"block {entry.header.number}: an event that the contract {name} does not have")
        yield told


def runs_of(events: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[int, RunStory]:
    """Every run by its number, told from all events of `Runs` and `Blind` in order.

    Raises:
        Difference: a leader, a quorum or a seed is not what it has to be.
    """
    runs: dict[int, RunStory] = {}
    for name, values in events:
        _follow(runs, name, values)
    return runs


def _address(value: Any) -> Address:
    return from_hex(value) if isinstance(value, str) else bytes(value)


def _follow(runs: dict[int, RunStory], name: str, values: Mapping[str, Any]) -> None:
    number = int(values["run"])
    if name == "RunProposed":
        runs[number] = RunStory(number, values["name"], bytes(values["policy"]), bytes(values["genesis"]))
        return
    run = runs.get(number)
    if run is None:
        raise Difference(f"{name} of run {number}, which nobody proposed")
    if "round" in values and int(values["round"]) != run.index:
        raise Difference(f"{run.where()}: {name} tells of round {values['round']}")
    if name in EVENTS:
        run.masks.follow(name, values, run.unstruck())
    handler = _HANDLERS.get(name)
    if handler is not None:
        handler(run, values)


def _opened(run: RunStory, values: Mapping[str, Any]) -> None:
    run.seed = bytes(values["seed"])
    if run.seed != keccak256(run.checkpoint + run.number.to_bytes(32, "big")):
        raise Difference(f"{run.where()}: it opened with the seed {short(run.seed)}, which is not the genesis's")


def _joined(run: RunStory, values: Mapping[str, Any]) -> None:
    member = _address(values["member"])
    if member not in run.seats:
        run.seats.append(member)
    run.leads.discard(member)
    if values["leads"]:
        run.leads.add(member)


def _submitted(run: RunStory, values: Mapping[str, Any]) -> None:
    member = _address(values["member"])
    if member in run.round.submissions:
        raise Difference(f"{run.where()}: {checksum(member)} submitted twice")
    run.round.submissions[member] = bytes(values["digest"]), int(values["weight"])
    run.round.told[member] = decode_metrics(bytes(values["metrics"]))
    for name, value in run.round.told[member].items():
        digest = name.removeprefix(LEAK_CHECK)
        if digest != name and len(digest) == 64 and set(digest) <= set("0123456789abcdef"):
            found = LeakCheck(run.number, run.index, checksum(member), digest, int(value))
            run.leak_checks.setdefault((member, digest), found)


def _elected(run: RunStory, values: Mapping[str, Any]) -> None:
    round_ = run.round
    round_.view, round_.leader = int(values["view"]), _address(values["leader"])
    round_.published, round_.attested, round_.refused, round_.verified = b"", set(), set(), {}
    wanted = leader_of(run.seed, round_.view, run.unstruck(), frozenset(run.leads - run.suspended))
    if round_.leader != wanted:
        raise Difference(
            f"{run.where()} view {round_.view}: the leader was {checksum(round_.leader)}, "
            f"the seed gives {checksum(wanted)}"
        )


def _replaced(run: RunStory, values: Mapping[str, Any]) -> None:
    if int(values["reason"]) == REFUSED:
        run.suspended.add(_address(values["replaced"]))
    _elected(run, values)


def _struck(run: RunStory, values: Mapping[str, Any]) -> None:
    run.round.struck.add(_address(values["member"]))


def _restarted(run: RunStory, values: Mapping[str, Any]) -> None:
    run.round = _Round(view=int(values["view"]))
    run.masks.restarted()


def _published(run: RunStory, values: Mapping[str, Any]) -> None:
    leader = _address(values["leader"])
    if leader != run.round.leader:
        raise Difference(f"{run.where()}: {checksum(leader)} published, but {checksum(run.round.leader)} leads")
    run.round.published, run.round.attested = bytes(values["checkpoint"]), {leader}
    run.publications.append(
        Publication(
            run.number, run.index, run.round.view, leader, run.round.published, run.checkpoint, run.unstruck(),
            run.policy,
        )
    )  # fmt: skip


def _verified(run: RunStory, values: Mapping[str, Any]) -> None:
    run.round.verified[_address(values["member"])] = int(values["parts"])


def _refused(run: RunStory, values: Mapping[str, Any]) -> None:
    member = _address(values["member"])
    run.round.attested.discard(member)
    run.round.refused.add(member)


def _accusation_failed(run: RunStory, values: Mapping[str, Any]) -> None:
    accuser = _address(values["accuser"])
    if accuser not in run.round.refused:
        raise Difference(f"{run.where()}: {checksum(accuser)} is called a false accuser and accused nobody")
    run.suspended.add(accuser)


def _attested(run: RunStory, values: Mapping[str, Any]) -> None:
    member = _address(values["member"])
    if bytes(values["checkpoint"]) != run.round.published or member not in {s.member for s in run.unstruck()}:
        raise Difference(f"{run.where()}: the attestation of {checksum(member)} is not of this round's checkpoint")
    run.round.attested.add(member)


def _closed(run: RunStory, values: Mapping[str, Any]) -> None:
    submissions, checkpoint = run.unstruck(), bytes(values["checkpoint"])
    needed = quorum(len(submissions))
    if checkpoint != run.round.published or len(run.round.attested) < needed:
        raise Difference(
            f"{run.where()}: it closed with {short(checkpoint)} and {len(run.round.attested)} attestations; "
            f"{short(run.round.published)} was published and {needed} belong"
        )
    # Where everybody verified everything, all parts are alike.
    wanted = _verifiers_needed(run)
    unseen = [part for part in range(PARTS if run.round.verified else 1) if _verifiers(run, part) < wanted]
    if unseen:
        raise Difference(f"{run.where()}: it closed with part {unseen[0]} verified by {_verifiers(run, unseen[0])}")
    if run.round.refused - run.suspended:
        raise Difference(f"{run.where()}: it closed in spite of a refusal that is held against nobody")
    run.left_out.append(
        {
            member: "struck" if member in run.round.submissions else "no submission when the merge began"
            for member in run.seats
            if member not in {s.member for s in submissions}
        }
    )
    run.closed.append((run.checkpoint, submissions, checkpoint))
    run.judged.append(Judged(run.checkpoint, {s.member: run.round.told[s.member] for s in submissions}))
    run.sums.append(run.masks.closed(run.index))
    run.checkpoint, run.seed = checkpoint, keccak256(run.seed + checkpoint)
    run.index, run.round = run.index + 1, _Round()


def _verifiers(run: RunStory, part: int) -> int:
    """How many members besides the leader verified this part."""
    here = run.round
    whole = here.attested - {here.leader} - here.verified.keys()
    return len(whole) + sum(parts >> part & 1 for parts in here.verified.values())


def _verifiers_needed(run: RunStory) -> int:
    """One more than can lie besides a lying leader."""
    k = len(run.unstruck())
    return min(max(faults_max(k) + 1, faults_max(max(run.consents, k))), k - 1)


def _consented(run: RunStory, values: Mapping[str, Any]) -> None:
    run.consents += 1


def _withdrawn(run: RunStory, values: Mapping[str, Any]) -> None:
    run.consents -= 1
    run.leads.discard(_address(values["member"]))


_HANDLERS: dict[str, Callable[[RunStory, Mapping[str, Any]], None]] = {
    "RunApproved": _consented,
    "RunOpened": _opened,
    "Withdrawn": _withdrawn,
    "Verified": _verified,
    "Refused": _refused,
    "AccusationFailed": _accusation_failed,
    "Joined": _joined,
    "Submitted": _submitted,
    "MergeStarted": _elected,
    "LeaderReplaced": _replaced,
    "Struck": _struck,
    "RoundRestarted": _restarted,
    "Published": _published,
    "Attested": _attested,
    "RoundClosed": _closed,
}


def compare_records(
    runs: Mapping[int, RunStory], record: Callable[[tuple[int, int]], tuple[Digest, int] | None]
) -> None:
    """The contract's own records are those that its events tell of.

    Args:
        record: of a run and round: the checkpoint and the number of submissions, None where the contract has none.
    Raises:
        Difference: they are not.
    """
    for run in runs.values():
        for index, (_, submissions, checkpoint) in enumerate(run.closed):
            found = record((run.number, index))
            if found is None:
                raise Difference(f"run {run.number} round {index}: the contract has no record of it")
            if found != (checkpoint, len(submissions)):
                raise Difference(f"run {run.number} round {index}: the contract's record differs from its events")


def _record(ledger: Ledger, run: int, index: int) -> tuple[Digest, int] | None:
    contract = interface("Runs")
    outcome = ledger.call(to=RUNS, data=contract.call("closedRound", run, index))
    if not outcome.succeeded:
        return None
    checkpoint, _, _, count, *_ = contract.result("closedRound", outcome.output)
    return bytes(checkpoint), int(count)


def _check_objects(store: Path) -> int:
    """Every object's bytes are what its name says."""
    count = 0
    for place in sorted((store / "objects").glob("??/*")):
        name = place.parent.name + place.name
        if len(name) != 64:
            continue
        with place.open("rb") as file:
            digest, _ = digest_of_chunks(iter(lambda: file.read(CHUNK_BYTES), b""))
        if digest.hex() != name:
            raise Difference(
                f"the store's object {name[:8]} is damaged: its bytes have the digest {short(digest)} ({place})"
            )
        count += 1
    return count


def _seen_again(
    chain: Chain,
    run: RunStory,
    index: int,
    base: Digest,
    submissions: tuple[Submission, ...],
    checkpoint: Digest,
    store: Path,
) -> RoundSeen | None:
    """What doing a round's merge again showed; None where the store does not hold what it takes."""
    left_out = run.left_out[index]
    policy = _policy(run, store)
    ends_with = settled(policy, run.judged[: index + 1]) if policy is not None else None
    if ends_with is not None:
        if checkpoint != ends_with.checkpoint:
            raise Difference(
                f"run {run.number} ({run.name}) round {index}: it had to end with {short(ends_with.checkpoint)} "
                f"({ends_with.why}), but it closed with {short(checkpoint)}"
            )
        return round_seen(run.number, index, (), (), left_out, ends_with.why)
    if run.masks.here is None:
        merged = _merge_again(run, index, base, submissions, checkpoint, store)
        if merged is None:
            return None
        return round_seen(run.number, index, submissions, merged.reports, left_out)
    here = run.sums[index]
    if policy is None:
        return None
    grouped = in_groups(policy, run.judged[:index])
    if here is None or (grouped and run.masks.opened_before(here)):
        if checkpoint != base:
            raise Difference(
                f"run {run.number} ({run.name}) round {index}: no sum was opened, yet it changed something"
            )
        return round_seen(run.number, index, (), (), left_out, "no second sum of it was opened")
    opened = open_again(chain, run.number, run.policy, policy, base, here, submissions, store, grouped=grouped)
    if opened is None:
        return None
    _compare(run, index, opened.digest, checkpoint)
    return round_seen(run.number, index, (), (), left_out, opened.refused, opened.groups)


def _policy(run: RunStory, store: Path) -> Policy | None:
    place = object_place(store, run.policy)
    if not place.is_file():
        return None
    try:
        return Policy.decode(place.read_bytes())
    except ConfigError as error:
        raise Difference(f"run {run.number} ({run.name}): its policy cannot be read: {error}") from error


def _compare(run: RunStory, index: int, found: Digest, checkpoint: Digest) -> None:
    if found != checkpoint:
        raise Difference(
            f"run {run.number} ({run.name}) round {index}: its updates merge to {short(found)}, "
            f"but the round closed with {short(checkpoint)}"
        )


def _merge_again(
    run: RunStory, index: int, base: Digest, submissions: tuple[Submission, ...], checkpoint: Digest, store: Path
) -> Merged | None:
    """The merge if the store holds what it takes and it gives the checkpoint, None if the store does not."""
    places = [object_place(store, digest) for digest in (base, *(s.digest for s in submissions))]
    policy = _policy(run, store)
    if policy is None or not all(place.is_file() for place in places):
        return None
    try:
        merged = merge(places[0], places[1:], [s.weight for s in submissions], policy, None)
    except ValueError as error:
        raise Difference(f"run {run.number} ({run.name}) round {index}: it cannot be merged: {error}") from error
    _compare(run, index, merged.digest, checkpoint)
    return merged
