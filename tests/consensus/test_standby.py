"""Who reports whom, in virtual time: what a node says follows from what it heard and for how long, and nothing else."""

from __future__ import annotations

from swarm.consensus.standby import GAP_MAX_S, Report, Resume, absentees, listened, owed

ME, *OTHERS = VALIDATORS = [bytes([i]) * 20 for i in range(1, 8)]
WEEK_S = 7 * 86_400.0


def silences(beats: int, *, heard: list[bytes], beat_s: float = 30.0) -> dict[bytes, float]:
    silent_s: dict[bytes, float] = {}
    for _ in range(beats):
        silent_s = listened(silent_s, me=ME, validators=VALIDATORS, heard=heard, elapsed_s=beat_s)
    return silent_s


def absent(silent_s: dict[bytes, float], *, floor: int = 4) -> list[bytes]:
    return absentees(silent_s, validators=VALIDATORS, floor=floor, absence_s=WEEK_S)


def due(**changes: object) -> object:
    facts: dict[str, object] = {
        "me": ME, "validators": VALIDATORS, "on_standby": False, "caught_up": True, "absent": [], "reporters": {},
    }  # fmt: skip
    return owed(**{**facts, **changes})  # type: ignore[arg-type]


def test_a_validator_is_absent_after_a_week_of_silence_and_no_sooner() -> None:
    week = int(WEEK_S / 30)
    assert absent(silences(week, heard=OTHERS[1:])) == []
    assert absent(silences(week + 1, heard=OTHERS[1:])) == [OTHERS[0]]


def test_one_word_ends_a_silence() -> None:
    silent_s = silences(int(WEEK_S / 30) + 1, heard=OTHERS[1:])
    assert absent(listened(silent_s, me=ME, validators=VALIDATORS, heard=OTHERS, elapsed_s=1.0)) == []


def test_a_node_that_hears_no_quorum_accuses_nobody() -> None:
    """It may be this node that is cut off: with four of seven it is not the others' silence that counts."""
    assert absent(silences(10**5, heard=OTHERS[:3])) == []
    assert absent(silences(10**5, heard=OTHERS[:4])) == OTHERS[4:]


def test_a_clock_that_jumps_and_a_machine_that_slept_make_nobody_absent() -> None:
    silent_s = silences(1, heard=OTHERS[1:], beat_s=30 * WEEK_S)
    assert silent_s[OTHERS[0]] == GAP_MAX_S
    assert listened(silent_s, me=ME, validators=VALIDATORS, heard=OTHERS[1:], elapsed_s=-5.0) == silent_s


def test_the_longest_silence_comes_first_and_nobody_at_the_floor() -> None:
    silent_s = {OTHERS[0]: WEEK_S + 1, OTHERS[1]: WEEK_S + 9, OTHERS[2]: 5.0}
    assert absent(silent_s) == [OTHERS[1], OTHERS[0]]
    assert absent(silent_s, floor=7) == []
    assert absentees(silent_s, validators=VALIDATORS[3:], floor=2, absence_s=WEEK_S) == [], "they vote no more"


def test_each_absence_is_reported_once_while_the_report_counts() -> None:
    assert due(absent=OTHERS[:2]) == Report(OTHERS[0])
    assert due(absent=OTHERS[:2], reporters={OTHERS[0]: [ME]}) == Report(OTHERS[1])
    assert due(absent=OTHERS[:2], reporters={one: [ME, OTHERS[4]] for one in OTHERS[:2]}) is None
    assert due(absent=OTHERS[:2], validators=OTHERS) is None, "who does not vote reports nobody"


def test_a_node_on_standby_resumes_when_it_has_every_block() -> None:
    assert due(on_standby=True, validators=OTHERS) == Resume()
    assert due(on_standby=True, validators=OTHERS, caught_up=False) is None


def test_reports_of_so_many_as_may_lie_are_not_answered() -> None:
    """Seven validators: two may lie, three cannot all."""
    assert due(reporters={ME: OTHERS[:2]}) is None
    assert due(reporters={ME: OTHERS[:3]}) == Resume()
    assert due(reporters={ME: OTHERS[:3]}, caught_up=False) is None
