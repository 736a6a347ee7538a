"""Who votes and who comes back: in virtual time with real nodes, and once with real processes and the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from sim.liveness import draw
from sim.loop import VirtualLoop
from sim.people import ledger_of
from sim.plan import Plan
from sim.world import Outcome, World, run
from swarm.errors import RejectedError
from tests.node.hospitals import Hospitals


def well(plan: Plan) -> Outcome:
    outcome = run(plan)
    assert not outcome.failure, f"{outcome.failure}\n{plan.command()}\n" + "\n".join(outcome.lines[-20:])
    return outcome


def test_followers_join_verify_train_lead_and_attest() -> None:
    outcome = well(Plan(seed=3, members=6, followers=2, rounds=5))
    for follower in ("site-1", "site-2"):
        for deed in ("joins", "submits", "leads", "publishes", "attests"):
            assert any(f"{follower} {deed}" in line for line in outcome.lines), f"{follower} never {deed}"


@pytest.mark.parametrize("seed", [0, 2, 1, 3])
def test_the_ledger_goes_on_after_losses_and_long_absences(seed: int) -> None:
    outcome = well(draw(seed))
    said = ("operators sign", "turns up again") if seed % 2 == 0 else ("is on standby", "votes again")
    for part in said:
        assert any(part in line for line in outcome.lines)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 200, 10))
def test_a_hundred_losses_and_absences(first: int) -> None:
    for seed in range(first, first + 10):
        well(draw(seed))


class _Scene(World):
    """A world whose story is the test's."""

    async def _live(self) -> None:
        for site in self.founders:
            await site.start()
        await self.play()

    async def play(self) -> None:
        raise NotImplementedError


def show(scene: type[_Scene], plan: Plan, folder: Path) -> None:
    loop = VirtualLoop(limit_s=1e6)
    try:
        loop.run_until_complete(scene(plan, folder, loop).run())
    finally:
        loop.settle()
        loop.close()


def test_an_idle_ledger_makes_no_block(tmp_path: Path) -> None:
    class Idle(_Scene):
        async def play(self) -> None:
            await asyncio.sleep(3600.0)
            for site in self.founders:
                assert ledger_of(await site.up()).head.number == 0

    show(Idle, Plan(members=4), tmp_path)


def test_slander_of_so_many_as_may_lie_changes_nothing_and_is_not_even_answered(tmp_path: Path) -> None:
    """Seven validators, two of them report a third day and night: it votes on, and the ledger does not fill."""

    class Slander(_Scene):
        async def play(self) -> None:
            victim, *liars = self.founders[:3]
            for _ in range(5):
                for liar in liars:
                    node = await liar.up()
                    call = node.contracts.report_absent(victim.identity.address)
                    await node.contracts.transact(liar.identity, call, timeout_s=30.0)
                    with pytest.raises(RejectedError, match="the report already counts"):
                        await node.contracts.transact(liar.identity, call, timeout_s=30.0)
                await asyncio.sleep(2 * self.plan.standby_s)
            ledger = ledger_of(await victim.up())
            assert victim.identity.address in ledger.validators()
            transactions = sum(len(ledger.block(number).raws) for number in range(1, ledger.head.number + 1))
            assert transactions == 5 * 2 * 2

    show(Slander, Plan(members=7, standby_s=100.0), tmp_path)


NAMES = ["north", "east", "south", "west", "coast"]


@pytest.mark.slow
def test_two_of_five_are_gone_for_good_and_the_operators_recover(tmp_path: Path) -> None:
    """Leave, return and recovery with real processes, by the commands that people type."""
    with Hospitals(tmp_path, NAMES) as hospitals:
        site = {name: str(path) for name, path in hospitals.sites.items()}
        for name in NAMES:
            hospitals.start(name)

        def status(name: str) -> dict[str, object]:
            return dict(hospitals.ask(name, "swarm_status"))

        def strength(name: str) -> dict[str, object]:
            status(name)  # once its node answers
            return dict(json.loads(hospitals.swarm("status", site[name], "--json"))["strength"])

        hospitals.wait_for(lambda: strength("north")["connected"] == 5, "all are connected", 60)
        said = hospitals.swarm("members", "leave", site["coast"])
        assert "blocks are decided without coast" in said
        assert "its node may be switched off" in said
        assert "on leave" in hospitals.swarm("status", site["north"])
        assert "votes again" in hospitals.swarm("members", "return", site["coast"])

        for name in ("west", "coast"):
            hospitals.kill(name)
        hospitals.wait_for(lambda: strength("north")["spare"] == -1, "the ledger sleeps", 60)
        asleep = hospitals.swarm("status", site["north"])
        assert "it wakes when 1 of these are back: west, coast" in asleep
        assert "swarm recover propose" in asleep

        manifest = tmp_path / "manifest.json"
        height = int(str(status("north")["height"]))
        manifest.write_text(
            hospitals.swarm(
                "recover", "propose", site["north"], "--validators", "north,east,south", "--reason", "two sites burned"
            )
        )
        with pytest.raises(AssertionError, match="1 signatures; 4 of the 5 members' operators have to sign"):
            hospitals.swarm("recover", "import", site["north"], str(manifest))
        for name in ("east", "south", "west"):  # a site is gone, its operator is not
            hospitals.swarm("recover", "sign", site[name], str(manifest), "--yes")
        hospitals.kill("south")
        hospitals.swarm("recover", "import", site["south"], str(manifest))  # a stopped node imports too
        hospitals.start("south")
        for name in ("north", "east"):
            hospitals.swarm("recover", "import", site[name], str(manifest))
        hospitals.wait_for(lambda: status("north")["height"] == height + 1, "the recovery is recorded", 60)
        assert strength("north")["validators"] == 3
        with pytest.raises(AssertionError, match="the longer ledger stands"):
            hospitals.swarm("recover", "import", site["north"], str(manifest))

        hospitals.start("west")  # it was not gone for good: it follows
        hospitals.wait_for(lambda: int(str(status("west")["height"])) > height, "west follows", 60)
        del hospitals.processes["coast"]
        hospitals.stop()
        told = hospitals.swarm("audit", str(hospitals.folder))
        assert "audit passed" in told
        assert f"block {height + 1}: recovery" in told
