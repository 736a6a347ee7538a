"""What `swarm run show` says of updates, from what a node keeps and what the ledger tells."""

from __future__ import annotations

from dataclasses import asdict, replace

from swarm.cli.history import RoundHistory
from swarm.cli.sights import COLUMNS, alarms_of, course_of, merges_of, row_of, warnings_of, words_of_course
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
    rung = {"round": 1, "metric": "auc", "members": ["north", "south"], "given_up": False}
    assert alarms_of(rounds, agreed) == [rung]
    assert alarms_of(rounds, asdict(Policy("heart", 10, 1))) == []
    assert alarms_of(rounds, None) == []
    for number, one in enumerate(rounds[:3]):
        one.closed, one.checkpoint = True, f"0x{number % 2 + 1:064x}"
    acts = agreed | {"alarm_action": "skip"}
    assert alarms_of(rounds, acts) == [rung | {"given_up": True}]
    assert alarms_of([*rounds[:2], replace(rounds[2], closed=False)], acts) == [rung]


def test_a_round_that_merged_nothing_says_why() -> None:
    (found,) = merges_of([kept(2, settled="auc fell")], NAMES.__getitem__)
    assert warnings_of([found]) == ["round 2: merged nothing: auc fell"]


def test_the_best_checkpoint_and_an_early_end_are_named() -> None:
    def closed(round_: int, *auc: float) -> RoundHistory:
        told = [{"name": name, "metrics": {"auc": value}} for name, value in zip("abcd", auc, strict=True)]
        checkpoint = f"0x{round_:064x}"
        return RoundHistory(round_, checkpoint=checkpoint, closed=True, submissions=told, struck=["d"])

    rounds = [closed(n, value, value - 0.01, value + 0.01, 1.0) for n, value in enumerate([0.0, 0.8, 0.7, 0.6, 0.5])]
    agreed = asdict(Policy("heart", 50, 1, best_metric="auc", patience=2))
    course = course_of([*rounds, RoundHistory(5)], agreed)
    assert course == {
        "best": {"round": 0, "checkpoint": "0x" + 64 * "0", "metric": "auc", "value": 0.8},
        "ended_after": 3,
    }
    first, second = words_of_course(course, "7", "open")
    assert first.startswith("best checkpoint so far: that of round 0, 0x0000")
    assert first.endswith("with auc 0.8 (the members' median)")
    assert second.startswith("over after round 3")
    assert second.endswith("`swarm run stop SITE.toml 7`")
    assert words_of_course(course_of(rounds, asdict(Policy("heart", 50, 1))), "7", "open") == []
    assert course_of(rounds, None) == {"best": None, "ended_after": None}
