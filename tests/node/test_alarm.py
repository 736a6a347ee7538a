"""What a blind run does when the agreed hold-out alarm rings, with real nodes in virtual time."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sim.observer import Violation
from sim.site import Site
from sim.training import File
from swarm.blind import MaskDuty
from swarm.config import Policy
from swarm.learn.seat import Place
from swarm.ledger.client import Contracts, Run
from swarm.merge.alarm import Settled
from swarm.node.masking import Masking, Veil
from swarm.node.participation import Effort, Participation
from swarm.node.training import Checkpoint
from swarm.rounds import Duty, Have, Publish, RoundState
from tests.merge.reference import read_file
from tests.node.hospitals import Hospitals
from tests.node.veiled import BlindPlan, Veiled, play, small_update, values_of

POISONER = 3


class Poisoned(Veiled):
    """One site pulls all weights away in round 1; everybody measures how far they are from where they were."""

    poisoned = frozenset({1})

    def trained(self, site: Site, place: Checkpoint, chance: random.Random) -> File:
        update = small_update(chance, place.round)
        if site is not self.founders[POISONER] or place.round not in self.poisoned:
            return update
        return File.of({**update.values, "layer.weight": np.full((3, 2), 0.99, "<f4")})

    def weighs(self, site: Site, chance: random.Random) -> int:
        return 1000 if site is self.founders[POISONER] else super().weighs(site, chance)

    def told(self, site: Site, place: Checkpoint) -> Mapping[str, float]:
        first = next(file for file in self.files.values() if "layer.weight" in file.values)
        moved = np.abs(values_of(place.path)["layer.weight"] - first.values["layer.weight"]).mean()
        return {"score": -float(moved)}


class Ignoring(Participation):
    """Merges on, whatever the alarm says."""

    def _owed_settled(
        self, effort: Effort, ends_with: Settled, state: RoundState, now_s: float, policy: Policy
    ) -> frozenset[Duty | MaskDuty]:
        if effort.veil is not None:
            return self._owed_blind(effort, effort.veil, state, now_s, policy)
        return frozenset(self._owed(state, self._have(effort, state), now_s, policy))


def test_the_round_after_a_poisoned_one_goes_back_to_the_checkpoint_before_it() -> None:
    ended = play(BlindPlan(seed=1, members=4, rounds=6, alarm_action="skip"), kind=Poisoned)
    checkpoints = [closed.checkpoint for closed in ended.world.closed]
    # Round 1 is poisoned; round 2's submissions tell, and it ends with round 0's checkpoint; round 5 only judges.
    assert checkpoints[2] == checkpoints[0]
    assert checkpoints[5] == checkpoints[4]
    assert len(set(checkpoints)) == 4
    # Nothing is opened that is not merged.
    assert {found["round"] for found in ended.events("Revealed")} == {0, 1, 3, 4}


def test_whoever_ignores_the_alarm_opens_and_changes_nothing() -> None:
    ended = play(BlindPlan(seed=1, members=4, rounds=4, alarm_action="skip"), kind=Poisoned, liars={0: Ignoring})
    checkpoints = [closed.checkpoint for closed in ended.world.closed]
    assert checkpoints[2] == checkpoints[0]


def test_an_auditor_finds_that_all_ignored_the_alarm() -> None:
    with pytest.raises(Violation, match=r"round 2: it had to end with .*score fell by more than 0\.1 at 4 of 4"):
        play(
            BlindPlan(seed=1, members=4, rounds=4, alarm_action="skip"),
            kind=Poisoned,
            liars=dict.fromkeys(range(4), Ignoring),
        )


class Stubborn(Poisoned):
    """The same site poisons the round that is merged in groups, too."""

    poisoned = frozenset({1, 3})


@pytest.mark.slow
def test_after_an_alarm_nine_members_merge_in_groups_and_a_poisoner_is_in_one_of_them() -> None:
    ended = play(BlindPlan(seed=1, members=9, rounds=5, alarm_action="groups"), kind=Stubborn)
    checkpoints = [closed.checkpoint for closed in ended.world.closed]
    assert checkpoints[2] == checkpoints[0]
    assert checkpoints[3] not in checkpoints[:3]
    # The median of the groups' means rings no alarm: the last round keeps it.
    assert checkpoints[4] == checkpoints[3]
    assert {found["round"] for found in ended.events("Revealed")} == {0, 1, 3}


class Mum(Participation):
    """Does not publish in round 3 until the round starts again."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        quiet = state.round == 3 and state.view < 18
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(duty for duty in owed if not (quiet and isinstance(duty, Publish)))


@pytest.mark.slow
def test_a_round_of_groups_in_which_masks_were_opened_opens_no_second_sum() -> None:
    plan = BlindPlan(seed=2, members=9, rounds=5, alarm_action="groups")
    ended = play(plan, kind=Poisoned, liars=dict.fromkeys(range(9), Mum))
    checkpoints = [closed.checkpoint for closed in ended.world.closed]
    assert checkpoints[2] == checkpoints[0]
    assert ended.events("RoundRestarted")
    assert checkpoints[3] == checkpoints[2]
    assert len({found["attempt"] for found in ended.events("Revealed") if found["round"] == 3}) == 1


class Together(Masking):
    """Masks with all and sums all, whatever the round's groups are."""

    async def read(
        self,
        run: Run,
        state: RoundState,
        before: Veil | None,
        contracts: Contracts,
        *,
        grouped: Collection[int] | None = None,
    ) -> Veil:
        return await super().read(run, state, before, contracts)


class Ungrouped(Participation):
    masks_with = Together


@pytest.mark.slow
def test_one_that_masks_beyond_its_group_spoils_that_group_and_no_other() -> None:
    plan = BlindPlan(seed=4, members=9, rounds=5, alarm_action="groups")
    ended = play(plan, kind=Poisoned, liars={0: Ungrouped}, checks_sums=False)
    checkpoints = [closed.checkpoint for closed in ended.world.closed]
    assert checkpoints[2] == checkpoints[0]
    assert checkpoints[3] not in checkpoints[:3]


@pytest.mark.slow
def test_an_auditor_finds_that_all_summed_one_sum_where_groups_belonged() -> None:
    plan = BlindPlan(seed=4, members=9, rounds=5, alarm_action="groups")
    with pytest.raises(Violation, match=r"round 3: its updates merge to|round 3: its sum cannot be opened"):
        play(plan, kind=Poisoned, liars=dict.fromkeys(range(9), Ungrouped), checks_sums=False)


@pytest.mark.slow
def test_fewer_than_nine_stay_with_one_sum() -> None:
    ended = play(BlindPlan(seed=1, members=4, rounds=5, alarm_action="groups"), kind=Stubborn)
    checkpoints = [closed.checkpoint for closed in ended.world.closed]
    assert checkpoints[2] == checkpoints[4] == checkpoints[0]


@dataclass(frozen=True)
class OpenPlan(BlindPlan):
    """The same with updates that everybody reads; large enough that each verifies parts only, where `parts`."""

    parts: bool = False

    @property
    def policy(self) -> Policy:
        few = 2 if self.parts else Policy.verify_all_members
        return replace(super().policy, blind=False, norm_max=0.0, weights="equal", verify_all_members=few)


@pytest.mark.parametrize("parts", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_round_of_visible_updates_goes_back_too_and_a_leader_that_merges_on_is_refused(parts: bool) -> None:
    plan = OpenPlan(seed=3, members=4, rounds=4, alarm_action="skip", parts=parts)
    ended = play(plan, kind=Poisoned, liars={0: Ignoring})
    checkpoints = [closed.checkpoint for closed in ended.world.closed]
    assert checkpoints[2] == checkpoints[0]
    assert checkpoints[3] == checkpoints[2]
    led = [found for found in ended.events("Published") if found["leader"] == ended.world.address(0)]
    refused = [found for found in ended.events("Refused") if found["leader"] == ended.world.address(0)]
    assert {found["round"] for found in refused} == {found["round"] for found in led if found["round"] in (2, 3)}
    assert {found["accuser"] for found in ended.events("AccusationFailed")} <= {ended.world.address(0)}


def test_an_alarm_that_only_tells_changes_nothing() -> None:
    ended = play(BlindPlan(seed=1, members=4, rounds=3), kind=Poisoned)
    assert len({closed.checkpoint for closed in ended.world.closed}) == 3


class PoisonedHospitals(Hospitals):
    """Processes of which the last poisons round 1."""

    def update(self, name: str, round_: int, rng: np.random.Generator) -> NDArray[np.float32]:
        update = super().update(name, round_, rng)
        return update + np.float32(0.9) if round_ == 1 and name == NAMES[-1] else update

    def metrics(self, place: Place) -> Mapping[str, float]:
        return {"score": -float(np.abs(read_file(place.path)["weight"]).mean())}


NAMES = ["north", "east", "south", "west"]


@pytest.mark.slow
@pytest.mark.parametrize("blind", [True, False])
def test_real_processes_go_back_and_say_so_and_an_audit_finds_the_same(tmp_path: Path, blind: bool) -> None:
    with PoisonedHospitals(tmp_path, NAMES) as hospitals:
        for name in NAMES:
            hospitals.start(name)
        alarm = 'alarm_metric = "score"\nalarm_fall = 0.1\nalarm_action = "skip"\n'
        merge = "" if blind else 'merge = "mean"\n'
        hospitals.open_run(rounds=5, submit_s=20.0, merge_s=10.0, attest_s=10.0, blind=blind, more=merge + alarm)
        for name in NAMES:
            hospitals.train(name)
        hospitals.join(200)
        assert len(set(hospitals.finals.values())) == 1
        site = str(hospitals.sites["north"])
        shown = json.loads(hospitals.swarm("run", "show", site, "test", "--json"))
        checkpoints = [one["checkpoint"] for one in shown["closed_rounds"]]
        assert checkpoints[2] == checkpoints[0]
        assert checkpoints[4] == checkpoints[3]
        (alarm_rung,) = shown["alarms"]
        assert (alarm_rung["round"], sorted(alarm_rung["members"])) == (1, sorted(NAMES))
        assert alarm_rung["given_up"]
        told = hospitals.swarm("run", "show", site, "test")
        assert "which was given up" in told
        hospitals.stop()
        assert "score fell by more than 0.1 at 4 of 4 members" in hospitals.swarm("audit", str(hospitals.folder))
