"""What this node's own merges saw of the updates, kept for people: bounded, and nothing depends on it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swarm.encoding import Address, Digest, to_hex
from swarm.merge import UpdateReport
from swarm.merge.blind.merging import BlindMerged
from swarm.rounds import Submission

logger = logging.getLogger(__name__)

# A round of ten members takes some 3 kB; more rounds are seldom read, and an audit makes any of them again.
ROUNDS_MAX = 2000
FILE_MAX_BYTES = 1 << 18


class Reports:
    """One small file a round in `folder`; the rounds that were written longest ago are forgotten first."""

    def __init__(self, folder: Path, *, rounds_max: int = ROUNDS_MAX) -> None:
        self._folder = folder
        self._rounds_max = rounds_max

    def merged(
        self, run: int, round_: int, found: Digest, submissions: Sequence[Submission], seen: Sequence[UpdateReport]
    ) -> None:
        """Keep what a merge saw."""
        updates = [
            {"member": to_hex(submission.member), "weight": submission.weight} | asdict(report)
            for submission, report in zip(submissions, seen, strict=True)
        ]
        self._write(run, round_, {"merged": to_hex(found), "updates": updates})

    def summed(self, run: int, round_: int, merged: BlindMerged, submissions: Sequence[Submission]) -> None:
        """Keep what a blind merge saw: of each update nothing, of their sums the lengths, or why one was not merged."""
        told: dict[str, Any] = {
            "members": [to_hex(submission.member) for submission in submissions],
            "norm": merged.norm,
            "refused": merged.refused,
        }
        if merged.groups:
            told["groups"] = [
                {"members": [to_hex(member) for member in group.members], "norm": group.norm, "refused": group.refused}
                for group in merged.groups
            ]
        self._write(run, round_, {"merged": to_hex(merged.digest), "sum": told})

    def settled(self, run: int, round_: int, found: Digest, why: str) -> None:
        """Keep why a round ends with a checkpoint that stood before."""
        self._write(run, round_, {"merged": to_hex(found), "settled": why})

    def unusable(self, run: int, round_: int, member: Address, reason: str) -> None:
        """Keep why no merge takes a member's update."""
        known = (self._read(self._place(run, round_)) or {}).get("unusable", {})
        self._write(run, round_, {"unusable": known | {to_hex(member): reason[:500]}})

    def of(self, run: int) -> list[dict[str, Any]]:
        """Every round of a run that is still kept, in order."""
        places = sorted(self._folder.glob(f"{run}-*.json"), key=lambda place: int(place.stem.split("-")[1]))
        return [found for place in places if (found := self._read(place)) is not None]

    def _place(self, run: int, round_: int) -> Path:
        return self._folder / f"{run}-{round_}.json"

    def _read(self, place: Path) -> dict[str, Any] | None:
        try:
            if place.stat().st_size > FILE_MAX_BYTES:
                return None
            found = json.loads(place.read_bytes())
        except (OSError, ValueError):
            return None  # never written, or half of it when the machine stopped
        return found if isinstance(found, dict) else None

    def _write(self, run: int, round_: int, more: dict[str, Any]) -> None:
        place = self._place(run, round_)
        document = {"run": run, "round": round_} | (self._read(place) or {}) | more
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = place.with_suffix(".part")
            draft.write_text(json.dumps(document))
            os.replace(draft, place)
            kept = sorted(self._folder.glob("*.json"), key=lambda other: other.stat().st_mtime_ns)
            for old in kept[: max(0, len(kept) - self._rounds_max)]:
                old.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("run %d round %d: what the merge saw is not kept: %s", run, round_, error)
