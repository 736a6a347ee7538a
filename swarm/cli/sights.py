"""What the merges of a run looked like from this site: who counted how much, who stands out, whether an alarm rang."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from swarm.cli.history import RoundHistory
from swarm.config import Policy
from swarm.course import Told, best, ended_after
from swarm.encoding import Address, from_hex, to_hex

COLUMNS = ("member", "samples", "share", "length", "kept", "beyond range", "cosine", "")


def merges_of(rounds: Sequence[dict[str, Any]], name: Callable[[Address], str]) -> list[dict[str, Any]]:
    """What this site's node saw in each round, members by their names and with what stands out in words.

    Args:
        rounds: as the node keeps them.
    """
    from swarm.merge import UpdateReport, standing_out  # brings in numpy: other commands start without it

    kinds = [field.name for field in fields(UpdateReport)]
    found = []
    for one in rounds:
        updates = one.get("updates", [])
        words = standing_out([UpdateReport(**{kind: update[kind] for kind in kinds}) for update in updates])
        told = [
            {"name": name(from_hex(update["member"], size=20)), "weight": update["weight"]}
            | {kind: update[kind] for kind in kinds}
            | {"stands_out": words.get(place, "")}
            for place, update in enumerate(updates)
        ]
        unusable = {name(from_hex(who, size=20)): reason for who, reason in one.get("unusable", {}).items()}
        found.append(
            {
                "round": one["round"],
                "merged": one.get("merged", ""),
                "updates": told,
                "unusable": unusable,
                "sum": _named(one.get("sum"), name),
                "settled": one.get("settled", ""),
            }
        )
    return found


def _named(found: dict[str, Any] | None, name: Callable[[Address], str]) -> dict[str, Any] | None:
    """What was seen of a blind round's sums, members of groups by their names."""
    if found is None or "groups" not in found:
        return found
    groups = [one | {"members": [name(from_hex(who, size=20)) for who in one["members"]]} for one in found["groups"]]
    return found | {"groups": groups}


def row_of(update: dict[str, Any]) -> list[str]:
    """A row for a person, under `COLUMNS`."""
    return [
        update["name"],
        str(update["weight"]),
        f"{update['share']:.1%}",
        f"{update['norm']:.4g}",
        f"{update['kept']:.1%}",
        str(update["clipped"]),
        f"{update['cosine']:.2f}",
        update["stands_out"],
    ]


def warnings_of(merges: Sequence[dict[str, Any]]) -> list[str]:
    """Every update that stands out or that no merge takes, a line each."""
    found = []
    for one in merges:
        found += [f"round {one['round']}: no merge takes {who}'s update: {why}" for who, why in one["unusable"].items()]
        if one.get("sum") and one["sum"]["refused"]:
            found.append(f"round {one['round']}: the sum is none of honest updates, and changed nothing: "
                         f"{one['sum']['refused']}")  # fmt: skip
        for group in (one.get("sum") or {}).get("groups", []):
            said = f"counts as no change: {group['refused']}" if group["refused"] else f"is {group['norm']:.4g} long"
            found.append(f"round {one['round']}: merged in groups: the mean of {', '.join(group['members'])} {said}")
        if one.get("settled"):
            found.append(f"round {one['round']}: merged nothing: {one['settled']}")
        found += [
            f"round {one['round']}: {update['name']}'s update stands out: {update['stands_out']}"
            for update in one["updates"]
            if update["stands_out"]
        ]
    return found


def alarms_of(rounds: Sequence[RoundHistory], policy: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rounds after which the agreed metric fell at half of the members who tell it; `given_up` where the run went
    back to the checkpoint before, as its policy says."""
    from swarm.merge.alarm import Judged, fell, rings

    if not policy or not policy["alarm_metric"]:
        return []
    agreed = Policy(**policy)
    told = {one.round: {s["name"]: s["metrics"] for s in one.submissions} for one in rounds}
    judged = [
        Judged(
            from_hex(before.checkpoint, size=32) if before is not None else b"",
            {s["name"]: s["metrics"] for s in one.submissions if s["name"] not in one.struck},
        )
        for before, one in zip([None, *rounds], rounds, strict=False)
        if before is None or before.closed
    ]
    found = []
    for place, one in enumerate(rounds):
        members = fell(told[one.round], told.get(one.round + 1, {}), agreed.alarm_metric, agreed.alarm_fall)
        acts = agreed.acts_on_alarm and place + 1 < len(rounds) and rounds[place + 1].closed
        given_up = acts and bool(rings(agreed, judged[: place + 2]))
        if members:
            found.append({
                "round": one.round, "metric": agreed.alarm_metric, "members": list(members), "given_up": given_up
            })  # fmt: skip
    return found


def course_of(rounds: Sequence[RoundHistory], policy: dict[str, Any] | None) -> dict[str, Any]:
    """The best checkpoint by the agreed metric, and the round after which the run is over by its policy's patience.

    Returns:
        `best` (round, checkpoint, metric and its value, the lower median of what members told) and `ended_after`, each
        None where there is none.
    """
    if not policy or not policy["best_metric"]:
        return {"best": None, "ended_after": None}
    agreed = Policy(**policy)
    told = [
        Told(
            one.round,
            from_hex(one.checkpoint, size=32),
            {s["name"]: s["metrics"] for s in one.submissions if s["name"] not in one.struck},
        )
        for one in rounds
        if one.closed
    ]
    found = best(agreed, told)
    shown = found and {
        "round": found.round,
        "checkpoint": to_hex(found.checkpoint),
        "metric": agreed.best_metric,
        "value": found.value,
    }
    return {"best": shown, "ended_after": ended_after(agreed, told)}


def words_of_course(course: dict[str, Any], run: str, state: str) -> list[str]:
    """The same for a person."""
    lines = []
    if found := course["best"]:
        lines.append(
            f"best checkpoint so far: that of round {found['round']}, {found['checkpoint']}, with {found['metric']} "
            f"{found['value']:.4g} (the members' median)"
        )
    if course["ended_after"] is not None:
        on_ledger = f"; the operators close it: `swarm run stop SITE.toml {run}`" if state == "open" else ""
        lines.append(f"over after round {course['ended_after']}, no better checkpoint came for long enough{on_ledger}")
    return lines
