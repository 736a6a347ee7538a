"""Tells every run again from the replayed ledger's events, by rules written down apart from the contract's, and does
every merge again whose bytes the store still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swarm.audit.replay import Difference
from swarm.config import Policy
from swarm.consensus import quorum
from swarm.encoding import Address, Digest, from_hex, keccak256, short
from swarm.errors import ConfigError
from swarm.identity import checksum
from swarm.ledger.abi import interface
from swarm.ledger.genesis import RUNS
from swarm.ledger.ledger import Ledger
from swarm.merge import merge
from swarm.merkle import CHUNK_BYTES, digest_of_chunks
from swarm.rounds import Submission, leader_of
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


@dataclass
class _Round:
    """A round as its events tell it."""

    submissions: dict[Address, tuple[Digest, int]] = field(default_factory=dict)
    struck: set[Address] = field(default_factory=set)
    view: int = 0
    leader: Address = b""
    published: Digest = b""
    attested: set[Address] = field(default_factory=set)


@dataclass
class _Run:
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
    runs: dict[int, _Run] = {}
    for entry in ledger.logs(0, ledger.head.number, frozenset({RUNS}), [], logs_max=LOGS_MAX):
        told = interface("Runs").event(entry.log.topics, entry.log.data)
        if told is None:
            raise Difference(f"block {entry.header.number}: an event that the contract Runs does not have")
        name, values = told
        _follow(runs, name, values)
    _compare_with_contract(runs, ledger)
    objects = _check_objects(store)
    total = sum(len(run.closed) for run in runs.values())
    done = merges = 0
    for run in runs.values():
        for index, (base, submissions, checkpoint) in enumerate(run.closed):
            merges += _merge_again(run, index, base, submissions, checkpoint, store)
            done += 1
            progress(done, total)
    return Story(len(runs), total, merges, objects)


def _address(value: Any) -> Address:
    return from_hex(value) if isinstance(value, str) else bytes(value)


def _follow(runs: dict[int, _Run], name: str, values: Mapping[str, Any]) -> None:
    number = int(values["run"])
    if name == "RunProposed":
        runs[number] = _Run(number, values["name"], bytes(values["policy"]), bytes(values["genesis"]))
        return
    run = runs.get(number)
    if run is None:
        raise Difference(f"{name} of run {number}, which nobody proposed")
    if "round" in values and int(values["round"]) != run.index:
        raise Difference(f"{run.where()}: {name} tells of round {values['round']}")
    handler = _HANDLERS.get(name)
    if handler is not None:
        handler(run, values)


def _opened(run: _Run, values: Mapping[str, Any]) -> None:
    run.seed = bytes(values["seed"])
    if run.seed != keccak256(run.checkpoint + run.number.to_bytes(32, "big")):
        raise Difference(f"{run.where()}: it opened with the seed {short(run.seed)}, which is not the genesis's")


def _joined(run: _Run, values: Mapping[str, Any]) -> None:
    member = _address(values["member"])
    if member not in run.seats:
        run.seats.append(member)
    run.leads.discard(member)
    if values["leads"]:
        run.leads.add(member)


def _submitted(run: _Run, values: Mapping[str, Any]) -> None:
    member = _address(values["member"])
    if member in run.round.submissions:
        raise Difference(f"{run.where()}: {checksum(member)} submitted twice")
    run.round.submissions[member] = bytes(values["digest"]), int(values["weight"])


def _elected(run: _Run, values: Mapping[str, Any]) -> None:
    round_ = run.round
    round_.view, round_.leader = int(values["view"]), _address(values["leader"])
    wanted = leader_of(run.seed, round_.view, run.unstruck(), frozenset(run.leads - run.suspended))
    if round_.leader != wanted:
        raise Difference(
            f"{run.where()} view {round_.view}: the leader was {checksum(round_.leader)}, "
            f"the seed gives {checksum(wanted)}"
        )


def _replaced(run: _Run, values: Mapping[str, Any]) -> None:
    if int(values["reason"]) == REFUSED:
        run.suspended.add(_address(values["replaced"]))
    run.round.published, run.round.attested = b"", set()
    _elected(run, values)


def _struck(run: _Run, values: Mapping[str, Any]) -> None:
    run.round.struck.add(_address(values["member"]))


def _restarted(run: _Run, values: Mapping[str, Any]) -> None:
    run.round = _Round(view=int(values["view"]))


def _published(run: _Run, values: Mapping[str, Any]) -> None:
    leader = _address(values["leader"])
    if leader != run.round.leader:
        raise Difference(f"{run.where()}: {checksum(leader)} published, but {checksum(run.round.leader)} leads")
    run.round.published, run.round.attested = bytes(values["checkpoint"]), {leader}


def _attested(run: _Run, values: Mapping[str, Any]) -> None:
    member = _address(values["member"])
    if bytes(values["checkpoint"]) != run.round.published or member not in {s.member for s in run.unstruck()}:
        raise Difference(f"{run.where()}: the attestation of {checksum(member)} is not of this round's checkpoint")
    run.round.attested.add(member)


def _closed(run: _Run, values: Mapping[str, Any]) -> None:
    submissions, checkpoint = run.unstruck(), bytes(values["checkpoint"])
    needed = quorum(len(submissions))
    if checkpoint != run.round.published or len(run.round.attested) < needed:
        raise Difference(
            f"{run.where()}: it closed with {short(checkpoint)} and {len(run.round.attested)} attestations; "
            f"{short(run.round.published)} was published and {needed} belong"
        )
    run.closed.append((run.checkpoint, submissions, checkpoint))
    run.checkpoint, run.seed = checkpoint, keccak256(run.seed + checkpoint)
    run.index, run.round = run.index + 1, _Round()


_HANDLERS: dict[str, Callable[[_Run, Mapping[str, Any]], None]] = {
    "RunOpened": _opened,
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


def _compare_with_contract(runs: Mapping[int, _Run], ledger: Ledger) -> None:
    """The contract's own records are those that its events tell of."""
    contract = interface("Runs")
    for run in runs.values():
        for index, (_, submissions, checkpoint) in enumerate(run.closed):
            outcome = ledger.call(to=RUNS, data=contract.call("closedRound", run.number, index))
            if not outcome.succeeded:
                raise Difference(f"run {run.number} round {index}: the contract has no record of it")
            found, _, _, count, *_ = contract.result("closedRound", outcome.output)
            if (bytes(found), int(count)) != (checkpoint, len(submissions)):
                raise Difference(f"run {run.number} round {index}: the contract's record differs from its events")


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


def _merge_again(
    run: _Run, index: int, base: Digest, submissions: tuple[Submission, ...], checkpoint: Digest, store: Path
) -> int:
    """1 if the store holds what the merge takes and it gives the checkpoint, 0 if the store does not."""
    policy_place = object_place(store, run.policy)
    places = [object_place(store, digest) for digest in (base, *(s.digest for s in submissions))]
    if not all(place.is_file() for place in (policy_place, *places)):
        return 0
    try:
        policy = Policy.decode(policy_place.read_bytes())
    except ConfigError as error:
        raise Difference(f"run {run.number} ({run.name}): its policy cannot be read: {error}") from error
    try:
        found = merge(places[0], places[1:], [s.weight for s in submissions], policy, None).digest
    except ValueError as error:
        raise Difference(f"run {run.number} ({run.name}) round {index}: it cannot be merged: {error}") from error
    if found != checkpoint:
        raise Difference(
            f"run {run.number} ({run.name}) round {index}: its updates merge to {short(found)}, "
            f"but the round closed with {short(checkpoint)}"
        )
    return 1
