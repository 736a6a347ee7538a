"""Blind rounds with real node processes: nobody's update is anywhere, and the sum is what it has to be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from sim.adversaries import WrongDigest
from swarm.blind import Confirm, GiveShares, HaveMasks, MaskDuty, MaskState, MaskTerms, RevealMask, Stage
from swarm.config import Policy
from swarm.encoding import Address, Digest, keccak256
from swarm.errors import PeerError
from swarm.ledger.client import Run
from swarm.merge.blind.blob import blob_of
from swarm.node.masking import Masking, Veil
from swarm.node.participation import Participation
from swarm.rounds import Duty, Have, Publish, RoundState, Submit
from tests.node.hospitals import Hospitals
from tests.node.veiled import BlindPlan, Veiled, play

Upon = Callable[[Veiled, str, Mapping[str, Any]], Awaitable[None]]

NAMES = ["north", "east", "south", "west"]


def test_four_nodes_close_three_blind_rounds_with_one_checkpoint(tmp_path: Path) -> None:
    with Hospitals(tmp_path, NAMES) as hospitals:
        for name in NAMES:
            hospitals.start(name)
        hospitals.open_run(rounds=3, submit_s=20.0, merge_s=10.0, attest_s=10.0, blind=True)
        for name in NAMES:
            hospitals.train(name)
        hospitals.join(90)
        assert len(set(hospitals.finals.values())) == 1
        hospitals.stop()


def test_every_round_is_the_mean_of_what_nobody_saw() -> None:
    ended = play(BlindPlan(seed=1, members=4, rounds=3))
    assert ended.sums == [4, 4, 4]
    assert not ended.events("SharesRevealed")


SERVED_S = 0.8
"""Others have fetched a vector then that the ledger names."""


def vanishing(event: str, *, round_: int = 1, back_s: float = 60.0) -> Upon:
    """The first site with such an event in a round is killed after it, and comes back a minute later."""
    done: list[str] = []

    async def upon(world: Veiled, name: str, found: Mapping[str, Any]) -> None:
        if name != event or found.get("round") != round_ or done:
            return
        site = world.site(found.get("member", world.address(0)))
        done.append(site.name)
        await asyncio.sleep(SERVED_S if event == "Submitted" else 0.0)
        await site.kill()
        await asyncio.sleep(back_s)
        await site.start()

    return upon


@pytest.mark.parametrize(
    ("event", "survivors", "shares"),
    [
        # The others hold its blob, or not: it is not in the sum.
        pytest.param("MasksJoined", 3, False, marks=pytest.mark.slow),
        ("AttemptFrozen", 3, False),  # the three open the seeds that they share with it
        ("Submitted", 4, True),  # its vector is in the sum, and shares of the three open its mask
        pytest.param("Revealed", 4, False, marks=pytest.mark.slow),
    ],
)
def test_a_member_that_vanishes_after(event: str, survivors: int, shares: bool) -> None:
    ended = play(BlindPlan(seed=2, members=4, rounds=3), upon=vanishing(event))
    assert ended.sums[1] == survivors
    assert bool(ended.events("SharesRevealed")) is shares
    assert all(closed.changed for closed in ended.world.closed)
    seeds = [len(found["seeds"]) for found in ended.events("Revealed") if found["round"] == 1]
    assert seeds == ([1, 1, 1] if event == "AttemptFrozen" else [0] * len(seeds))


class _WrongSecret(Masking):
    """Opens its mask with another secret than it committed to."""

    async def _reveal(self, run: Run, state: RoundState, veil: Veil, survivors: frozenset[Address]) -> None:
        await self._transact(self._contracts.masks.reveal(veil.state, survivors, bytes(16), []))


class _Mute(Masking):
    """Never opens anything."""

    def _rule(
        self, state: RoundState, masks: MaskState, have: HaveMasks, now_s: float, terms: MaskTerms, complete: bool
    ) -> frozenset[MaskDuty]:
        owed = super()._rule(state, masks, have, now_s, terms, complete)
        return frozenset(duty for duty in owed if not isinstance(duty, RevealMask | GiveShares))


class _BadShares(Masking):
    """Seals for others what does not open."""

    async def _join(self, run: Run, state: RoundState, veil: Veil) -> None:
        keys, fresh = self._secrets(run, state, veil.state)
        blob = blob_of(keys, fresh)
        entries = tuple(replace(entry, sealed=bytes(len(entry.sealed))) for entry in blob.entries)
        digest = self._store.put(replace(blob, entries=entries).encode())
        self.log.join(run.id, veil.state.attempt, self.log.seed(run.id, veil.state.attempt), digest)
        call = self._contracts.masks.join(veil.state, digest, blob.self_commitment, blob.recovery_commitment)
        await self._transact(call)


class _Outside(Masking):
    """Confirms nobody, and submits all the same."""

    def _rule(
        self, state: RoundState, masks: MaskState, have: HaveMasks, now_s: float, terms: MaskTerms, complete: bool
    ) -> frozenset[MaskDuty]:
        owed = super()._rule(state, masks, have, now_s, terms, complete)
        return frozenset(duty for duty in owed if not isinstance(duty, Confirm))

    def masked(self, run: Run, veil: Veil) -> Digest | None:
        return self._store.put(b"no vector at all") if veil.state.stage is Stage.FROZEN else None


def lying(kind: type[Masking]) -> type[Participation]:
    """A node whose part in blind rounds breaks a rule, and which merges nothing that others have to agree with."""

    class Liar(Participation):
        masks_with = kind

    return Liar


def careless(kind: type[Masking]) -> type[Participation]:
    """The same, and it submits although nobody holds its vector."""

    class Liar(Participation):
        masks_with = kind

        async def _give_custody(self, duty: Submit) -> None:
            return

    return Liar


@pytest.mark.parametrize(
    ("kind", "survivors", "event"),
    [
        # Refused; the others' shares open its mask.
        pytest.param(_WrongSecret, 4, "SharesRevealed", marks=pytest.mark.slow),
        pytest.param(_Mute, 4, "SharesRevealed", marks=pytest.mark.slow),
        (_BadShares, 3, "AttemptFrozen"),  # nobody has a mask in common with it
        # What it submits is in no sum.
        pytest.param(_Outside, 3, "AttemptFrozen", marks=pytest.mark.slow),
    ],
)
def test_a_liar_changes_nothing_but_whose_updates_are_in_the_sum(
    kind: type[Masking], survivors: int, event: str
) -> None:
    ended = play(BlindPlan(seed=3, members=4, rounds=2), liars={3: lying(kind)})
    assert ended.sums == [survivors] * 2
    assert ended.events(event)
    assert all(closed.changed for closed in ended.world.closed)


class _Withholding(Masking):
    """Submits a digest of which nobody ever sees the bytes, in the first attempt."""

    def masked(self, run: Run, veil: Veil) -> Digest | None:
        if veil.state.attempt > 1 or super().masked(run, veil) is None:
            return super().masked(run, veil)
        return keccak256(b"nobody has it")


def test_a_vector_that_never_comes_costs_an_attempt_and_no_secret() -> None:
    ended = play(BlindPlan(seed=4, members=4, rounds=2), liars={3: careless(_Withholding)})
    assert len(ended.events("RoundRestarted")) == 1
    assert {found["attempt"] for found in ended.events("Revealed") if found["round"] == 0} == {2}
    assert all(closed.changed for closed in ended.world.closed)


class _Mum(Participation):
    """Leads nowhere: it does not publish in round 0 until the round starts again."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        quiet = state.round == 0 and state.view < 8
        return frozenset(duty for duty in owed if not (quiet and isinstance(duty, Publish)))


def test_a_round_whose_sum_may_be_known_and_that_starts_again_closes_as_it_began() -> None:
    """The difference of two sums over the same updates would be somebody's update."""
    ended = play(BlindPlan(seed=5, members=4, rounds=2), liars=dict.fromkeys(range(4), _Mum))
    assert ended.events("RoundSpent")
    assert [closed.changed for closed in ended.world.closed] == [False, True]
    assert {found["attempt"] for found in ended.events("Revealed")} == {1, 2}
    assert {found["round"] for found in ended.events("AttemptOpened") if found["attempt"] > 1} == {1}


def test_a_disk_that_was_restored_takes_new_keys_and_sits_the_round_out() -> None:
    """R4: between its submission and the end of the round a site goes back to a backup without its log."""
    done: list[Address] = []

    async def upon(world: Veiled, name: str, found: Mapping[str, Any]) -> None:
        if name != "Submitted" or found["round"] != 1 or done:
            return
        site = world.site(found["member"])
        done.append(found["member"])
        await asyncio.sleep(SERVED_S)
        await site.kill()
        for place in (site.folder / "blind").glob("1-*.json"):
            place.unlink()
        await site.start()

    ended = play(BlindPlan(seed=6, members=4, rounds=4), upon=upon)
    keys = [found["number"] for found in ended.events("KeySet") if found["member"] == done[0]]
    assert keys == [1, 2]
    told = {found["round"] for found in ended.events("Revealed") if found["member"] == done[0]}
    assert 1 not in told
    assert 3 in told
    assert ended.sums[1] == 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_some_vanish_before_the_sum_and_others_are_silent_in_it(seed: int) -> None:
    """Seven members, five open anything: one joins and is gone, one submits and opens nothing."""

    async def upon(world: Veiled, name: str, found: Mapping[str, Any]) -> None:
        gone = world.founders[seed]
        if name == "AttemptFrozen" and found["round"] == 1:
            gone.gone = True
            await gone.kill()

    ended = play(BlindPlan(seed=seed, members=7, rounds=2), liars={6 - seed % 3: lying(_Mute)}, upon=upon)
    assert ended.sums == [7, 6]
    assert any(found["seeds"] for found in ended.events("SharesRevealed"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_leader_that_publishes_another_sum_is_refused_and_replaced(seed: int) -> None:
    ended = play(BlindPlan(seed=seed, members=4, rounds=3), liars={0: WrongDigest})
    assert all(closed.changed for closed in ended.world.closed)
    led = [found for found in ended.events("Published") if found["leader"] == ended.world.address(0)]
    assert len(ended.events("Refused")) >= len(led)


def test_a_custodian_takes_one_vector_of_a_member_in_an_attempt() -> None:
    masks = MaskState(1, 0, Stage.FROZEN, 1, 3, 0.0, 0, 0.0, False, ())
    veil = Veil(cast(Run, None), masks)
    member, first, second = b"m" * 20, b"1" * 32, b"2" * 32
    masking = cast(Masking, None)
    Masking.take_one(masking, veil, member, first)
    Masking.take_one(masking, veil, member, first)
    with pytest.raises(PeerError, match="one vector is masked in an attempt"):
        Masking.take_one(masking, veil, member, second)
