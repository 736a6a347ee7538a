"""What an audit's merges saw of the updates of every round, for a person to read: nothing here is a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swarm.encoding import Address
from swarm.identity import checksum
from swarm.merge import UpdateReport, standing_out
from swarm.merge.blind.merging import GroupSeen
from swarm.rounds import Submission


@dataclass(frozen=True)
class UpdateSeen:
    """One update of one round."""

    member: str
    weight: int
    seen: UpdateReport
    stands_out: str
    """What is unusual about it, in words; empty if nothing is."""


@dataclass(frozen=True)
class RoundSeen:
    """One round, whose merge was made again."""

    run: int
    round: int
    updates: tuple[UpdateSeen, ...]
    left_out: Mapping[str, str]
    """Members whose update was not merged, and why."""
    unchanged: str = ""
    """Why a round closed as it began, or went back; empty where its updates were merged."""
    groups: tuple[GroupSeen, ...] = ()
    """Of a blind round that was merged in groups."""

    @property
    def lines(self) -> list[str]:
        """What a person should look at, a line each."""
        where = f"run {self.run} round {self.round}"
        found = [f"{where}: {member} was left out: {why}" for member, why in self.left_out.items()]
        if self.unchanged:
            found.append(f"{where}: it changed nothing: {self.unchanged}")
        for group in self.groups:
            names = ", ".join(map(checksum, group.members))
            said = f"counts as no change: {group.refused}" if group.refused else f"has a mean {group.norm:.4g} long"
            found.append(f"{where}: merged in groups: that of {names} {said}")
        return found + [
            f"{where}: the update of {update.member} stands out: {update.stands_out}"
            for update in self.updates
            if update.stands_out
        ]


def round_seen(
    run: int,
    round_: int,
    submissions: Sequence[Submission],
    reports: Sequence[UpdateReport],
    left_out: Mapping[Address, str],
    unchanged: str = "",
    groups: tuple[GroupSeen, ...] = (),
) -> RoundSeen:
    """What one merge saw, members by their addresses."""
    strange = standing_out(reports)
    updates = tuple(
        UpdateSeen(checksum(submission.member), submission.weight, seen, strange.get(place, ""))
        for place, (submission, seen) in enumerate(zip(submissions, reports, strict=True))
    )
    words = {checksum(member): why for member, why in left_out.items()}
    return RoundSeen(run, round_, updates, words, unchanged, groups)
