"""What `swarm run show` says of updates, from what a node keeps and what the ledger tells."""

from __future__ import annotations

from dataclasses import asdict

from swarm.cli.history import RoundHistory
from swarm.cli.sights import COLUMNS, alarms_of, merges_of, row_of, warnings_of
from swarm.config import Policy
from swarm.merge import UpdateReport

NAMES = {bytes([n]) * 20: name for n, name in enumerate(["north", "south", "east", "west"])}


def kept(round_: int, *reports: UpdateReport, **more: object) -> dict[str, object]:
    updates = [{"member": "0x" + f"{n:02x}" * 20, "weight": 400} | asdict(report) for n, report in enumerate(reports)]
    return {"run": 1, "round": round_, "merged": "0x00", "updates": updates} | more


def like(norm: float, cosine: float = 0.8) -> UpdateReport:
    return UpdateReport(norm, 0, 0.25, 1.0, cosine)


def test_every_update_is_listed_and_who_stands_out_is_named() -> None:
    (found,) = merges_of([kept(3, like(1.0), like(1.05), like(12.5), like(0.97, -0.6))], NAMES.__getitem__)
    assert [update["name"] for update in found["updates"]] == ["north", "south", "east", "west"]
    assert warnings_of([found]) == [
        "round 3: east's update stands out: 12.2 times as long as the median",
        "round 3: west's update stands out: points against the others (cosine -0.60)",
    ]
    row = row_of(found["updates"][2])
    assert len(row) == len(COLUMNS)
    assert row[:7] == ["east", "400", "25.0%", "12.5", "100.0%", "0", "0.80"]


def test_an_update_that_no_merge_takes_is_named_with_the_reason() -> None:
    more = {"unusable": {"0x" + "01" * 20: "update 1: element 0 of x F32[1] is nan"}}
    (found,) = merges_of([kept(0, like(1.0), **more)], NAMES.__getitem__)
    assert warnings_of([found]) == [
        "round 0: no merge takes south's update: update 1: element 0 of x F32[1] is nan"
    ]  # fmt: skip


def test_the_alarm_rings_after_the_round_whose_checkpoint_was_worse() -> None:
    def submitted(round_: int, **auc: float) -> RoundHistory:
        return RoundHistory(round_, submissions=[{"name": n, "metrics": {"auc": v}} for n, v in auc.items()])

    rounds = [
        submitted(0, north=0.5, south=0.5, east=0.5),
        submitted(1, north=0.9, south=0.8, east=0.85),
        submitted(2, north=0.6, south=0.7, east=0.85),
        submitted(3, north=0.9, south=0.8, east=0.5),
    ]
    agreed = asdict(Policy("heart", 10, 1, alarm_metric="auc"))
    assert alarms_of(rounds, agreed) == [{"round": 1, "metric": "auc", "members": ["north", "south"]}]
    assert alarms_of(rounds, asdict(Policy("heart", 10, 1))) == []
    assert alarms_of(rounds, None) == []
