"""A leader that tampers, with real processes; by the hundred: `python -m tests.node.tampering`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.node.hospitals import Hospitals
from tests.node.tampering import PARTS, WHOLE, Failure, Setting, Trial, consortium, tamper

BELIEVABLE = 123
"""With this seed the liar begins with one bit, weights permuted, and another set of updates: all can be trained on."""


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "count"), [(WHOLE, 5), (PARTS, 3)], ids=["whole", "parts"])
def test_tamperings_are_caught_and_nobody_else_is_blamed(tmp_path: Path, setting: Setting, count: int) -> None:
    with consortium(setting, 1, tmp_path) as trial:
        done = tamper(trial, count, at_once=2, tell=lambda told, caught: None)
        assert sum(told.caught.total() for told in done) >= count
        assert any(told.proofs for told in done)
        assert len(trial.end().splitlines()) == len(setting.names)


@pytest.mark.slow
def test_where_the_others_attest_what_they_did_not_merge_the_trial_fails(tmp_path: Path) -> None:
    with Hospitals(tmp_path, list(WHOLE.names)) as hospitals:
        trial = Trial(hospitals, WHOLE, BELIEVABLE)
        trial.start(others="Credulous")

        def until_it_led() -> None:
            for number in range(20):
                trial.run(number, rounds=3)

        with pytest.raises(Failure, match=r"closed with 0x[0-9a-f]{64}, the merge is 0x"):
            until_it_led()
