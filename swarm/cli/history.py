"""A run's rounds as its events tell them: who submitted what, who led, who attested, refused, or was replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from swarm.encoding import Address, to_hex
from swarm.ledger.client import Event, decode_metrics

REASONS = {1: "silent", 2: "unattested", 3: "refused", 4: "inputs changed"}


@dataclass
class RoundHistory:
    """One round; members by their names, digests as `0x…`."""

    round: int
    view: int = 0
    leader: str = ""
    checkpoint: str = ""
    closed: bool = False
    block: int = 0
    submissions: list[dict[str, Any]] = field(default_factory=list)
    attestations: list[str] = field(default_factory=list)
    refusals: list[dict[str, Any]] = field(default_factory=list)
    replaced: list[dict[str, Any]] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)
    verified: dict[str, int] = field(default_factory=dict)
    """Parts of 256 that a member verified; who is not named here and attested verified all."""
    false_accusers: list[str] = field(default_factory=list)
    """Who refused the checkpoint that the round closed with."""
    masked: dict[int, str] = field(default_factory=dict)
    """Of a blind round: who joined with masks, by seat."""
    unsummed: list[str] = field(default_factory=list)
    """Who joined and is not in the sum."""
    silent: list[str] = field(default_factory=list)
    """Who is in the sum and has not opened its mask."""
    spent: bool = False
    """A sum of the round may be known."""
    sum_closed_off: bool = False
    """That was before the round started again: it changes nothing."""
    absent: list[str] = field(default_factory=list)
    """Who had joined the run and had not submitted when the merge began."""


def rounds_of(events: Iterable[Event], run: int, name: Callable[[Address], str]) -> list[RoundHistory]:
    """Every round of a run so far, in order, the open one last.

    Args:
        events: of the `Runs` contract, in the ledger's order.
        name: how to call a member.
    """
    rounds: dict[int, RoundHistory] = {}
    joined: dict[str, None] = {}
    for event in events:
        args = event.args
        if args.get("run") != run:
            continue
        if event.name == "Joined":
            joined[name(args["member"])] = None
        if "round" not in args:
            continue
        here = rounds.setdefault(int(args["round"]), RoundHistory(int(args["round"])))
        here.block = event.block
        _tell(here, event, name)
        if event.name == "MergeStarted":
            here.absent = [member for member in joined if member not in {s["name"] for s in here.submissions}]
    return [rounds[number] for number in sorted(rounds)]


def _tell(here: RoundHistory, event: Event, name: Callable[[Address], str]) -> None:
    args = event.args
    match event.name:
        case "Submitted":
            here.submissions.append(
                {
                    "name": name(args["member"]),
                    "digest": to_hex(args["digest"]),
                    "weight": int(args["weight"]),
                    "metrics": decode_metrics(args["metrics"]),
                }
            )
        case "MergeStarted":
            here.leader, here.view = name(args["leader"]), int(args["view"])
        case "Published":
            here.checkpoint, here.attestations = to_hex(args["checkpoint"]), [name(args["leader"])]
        case "Attested":
            here.attestations.append(name(args["member"]))
        case "Refused":
            here.refusals.append(
                {
                    "name": name(args["member"]),
                    "leader": name(args["leader"]),
                    "view": int(args["view"]),
                    "published": to_hex(args["published"]),
                    "found": to_hex(args["found"]),
                    "evidence": to_hex(args["evidence"]),
                }
            )
        case "Verified":
            here.verified[name(args["member"])] = int(args["parts"]).bit_count()
        case "AccusationFailed":
            here.false_accusers.append(name(args["accuser"]))
        case "LeaderReplaced":
            reason = REASONS.get(int(args["reason"]), str(args["reason"]))
            here.replaced.append({"leader": name(args["replaced"]), "view": int(args["view"]) - 1, "reason": reason})
            here.leader, here.view = name(args["leader"]), int(args["view"])
            here.checkpoint, here.attestations, here.verified = "", [], {}
        case "Struck":
            here.struck.append(name(args["member"]))
        case "RoundRestarted":
            here.submissions, here.struck, here.attestations, here.checkpoint = [], [], [], ""
            here.masked, here.unsummed, here.silent, here.sum_closed_off = {}, [], [], here.spent
        case "AttemptOpened":
            here.masked, here.unsummed, here.silent = {}, [], []
        case "MasksJoined":
            here.masked[int(args["seat"])] = name(args["member"])
        case "SurvivorsFixed":
            inside = {seat: bool(int(args["survivors"]) >> seat & 1) for seat in here.masked}
            here.unsummed = [member for seat, member in here.masked.items() if not inside[seat]]
            here.silent = [member for seat, member in here.masked.items() if inside[seat]]
        case "Revealed":
            here.silent = [member for member in here.silent if member != name(args["member"])]
        case "RoundSpent":
            here.spent = True
        case "RoundClosed":
            here.closed = True
        case _:
            pass
