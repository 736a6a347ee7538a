"""Sources of one ledger are followed by certificates alone: folders and nodes that serve JSON-RPC, honest and not."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from swarm.audit.light import Followed, LightReport, follow
from swarm.consensus import Certificate
from swarm.ledger.archive import Archive
from swarm.ledger.light import LightFollower, Roll
from tests.ledger import world
from tests.ledger.served import Served
from tests.ledger.test_light import act
from tests.ledger.world import MEMBERS

BLOCKS = 8


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's folder whose validators changed twice."""
    folder = tmp_path_factory.mktemp("site")
    with closing(world.open_ledger(folder / "ledger", 5)) as ledger:
        world.grow(ledger, 2)
        act(ledger, (MEMBERS[4], "standDown", ()))
        world.grow(ledger, 2)
        act(ledger, (MEMBERS[4], "resume", ()))
        world.grow(ledger, 2)
        assert ledger.head.number == BLOCKS
    return folder


def followed(*folders: Path) -> LightReport:
    return follow(world.config(5), folders=[(f"site {i}", folder) for i, folder in enumerate(folders)])


def copied(site: Path, to: Path, statement: str, *values: object) -> Path:
    """A copy of a site's folder whose file somebody changed."""
    shutil.copytree(site, to)
    with closing(sqlite3.connect(to / "ledger" / "ledger.sqlite")) as file:
        file.execute(statement, values)
        file.commit()
    return to


def test_a_ledger_holds_and_its_report_says_what_was_seen(site: Path) -> None:
    report = followed(site, site)
    assert report.ok
    assert [len(one.hashes) for one in report.sources] == [BLOCKS, BLOCKS]
    assert report.sources[0].light.changes == 2
    assert "8 blocks, each sealed by a quorum of the validators of its time" in report.lines[0]


def test_a_certificate_that_is_changed_is_found(site: Path, tmp_path: Path) -> None:
    false = Certificate(0, (bytes(65),) * 4).encode()
    changed = copied(site, tmp_path / "site", "UPDATE blocks SET certificate = ? WHERE number = 4", false)
    report = followed(changed)
    assert not report.ok
    assert "height 4" in str(report.difference)
    assert len(report.sources[0].hashes) == 3


def test_a_source_that_was_cut_off_is_said_to_be_behind(site: Path, tmp_path: Path) -> None:
    """By itself it looks like a whole ledger: that is why several are compared."""
    short = copied(site, tmp_path / "site", "DELETE FROM blocks WHERE number > 5")
    report = followed(short, site)
    assert report.ok
    assert "3 fewer than another source has" in report.lines[0]


def test_a_missing_block_and_a_damaged_one_are_found(site: Path, tmp_path: Path) -> None:
    gap = copied(site, tmp_path / "gap", "DELETE FROM blocks WHERE number = 3")
    assert "does not follow block" in str(followed(gap).difference)
    damaged = copied(site, tmp_path / "damaged", "UPDATE blocks SET payload = x'c0' WHERE number = 3")
    assert "block 3 cannot be read" in str(followed(damaged).difference)
    assert "no ledger" in str(followed(tmp_path / "nothing").difference)


def test_two_certified_ledgers_are_a_contradiction(site: Path, tmp_path: Path) -> None:
    """Validators that seal two blocks at one height make two ledgers that hold, each by itself."""
    with closing(world.open_ledger(tmp_path / "ledger", 5)) as other:
        world.grow(other, 1)
        world.decide(other, world.build(other, world.propose(world.OPERATORS[3], 0, "another")))
    assert followed(tmp_path).ok
    report = followed(site, tmp_path)
    assert not report.ok
    assert "block 2 is" in str(report.difference)
    assert "signed two ledgers" in str(report.difference)


# --- over JSON-RPC


Lie = Callable[[str, Any], Any]


@asynccontextmanager
async def lying(served: Served, lie: Lie) -> AsyncIterator[str]:
    """A server whose answers a liar changes."""

    async def answer(request: web.Request) -> web.Response:
        asked = await request.json()
        told = served.answer(asked)
        return web.json_response({**told, "result": lie(asked["method"], told.get("result"))})

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def asked(folder: Path, tmp_path: Path, lie: Lie | None = None) -> Followed:
    """What the ledger of a folder shows over HTTP: by the node's own server, or by a liar's."""
    shutil.copytree(folder, tmp_path / "served")

    async def ask() -> Followed:
        served = Served(tmp_path / "served" / "ledger", 5)
        genesis = served.ledger.block(0).header
        one = Followed("node", LightFollower(genesis, Roll.of(world.config(5)), chain_id=world.CHAIN))
        try:
            async with served.listening() if lie is None else lying(served, lie) as url:
                await one.ask(url)
        finally:
            served.close()
        return one

    return asyncio.run(ask())


def test_a_node_is_followed_over_its_json_rpc(site: Path, tmp_path: Path) -> None:
    one = asked(site, tmp_path)
    assert one.difference is None
    assert len(one.hashes) == BLOCKS
    assert one.light.changes == 2


def hides_logs(method: str, result: Any) -> Any:
    if method == "eth_getBlockReceipts":
        return [{**receipt, "logs": []} for receipt in result]
    return result


def gives_another_state(method: str, result: Any) -> Any:
    if method == "eth_getBlockByNumber" and result["number"] == "0x4":
        return {**result, "stateRoot": "0x" + "11" * 32}
    return result


def is_of_another_chain(method: str, result: Any) -> Any:
    return "0x1" if method == "eth_chainId" else result


def babbles(method: str, result: Any) -> Any:
    return ["nonsense"] if method == "eth_getBlockByNumber" else result


def counts_in_words(method: str, result: Any) -> Any:
    return "many" if method == "eth_blockNumber" else result


def owes_gas(method: str, result: Any) -> Any:
    if method == "eth_getBlockReceipts":
        return [{**receipt, "cumulativeGasUsed": "-0x1"} for receipt in result]
    return result


@pytest.mark.parametrize(
    ("lie", "why", "holds"),
    [
        (owes_gas, "is no number", 2),
        (hides_logs, "not the receipts that its header commits to", 2),
        (gives_another_state, "no validator sealed", 3),
        (is_of_another_chain, "swarm.toml says", 0),
        (babbles, "block 1 cannot be read", 0),
        (counts_in_words, "is no number", 0),
    ],
)
def test_a_node_that_lies_is_followed_up_to_its_lie(site: Path, tmp_path: Path, lie: Lie, why: str, holds: int) -> None:
    one = asked(site, tmp_path, lie)
    assert why in str(one.difference)
    assert len(one.hashes) == holds


def test_nobody_at_an_address_is_said(site: Path) -> None:
    report = follow(world.config(5), urls=["http://127.0.0.1:1"])
    assert not report.ok
    assert "does not answer" in str(report.difference)


def mangles(seed: int) -> Lie:
    """Now and then another kind of value in the place of one, or one that differs in its last digit."""
    rng = random.Random(seed)
    strange: list[Any] = [None, -1, 1.5, "", "0x", "0xzz", "-0x1", "0x" + "f" * 700, [], [[]], {}, True, "\ud800"]

    def mangled(value: Any) -> Any:
        if rng.random() < 0.02:
            near = isinstance(value, str) and value.startswith("0x") and rng.random() < 0.5
            return value[:-1] + ("1" if value[-1] == "0" else "0") if near else rng.choice(strange)
        if isinstance(value, dict):
            return {key: mangled(one) for key, one in value.items()}
        return [mangled(one) for one in value] if isinstance(value, list) else value

    return lambda method, result: mangled(result)


def test_answers_of_any_form_stop_the_following_and_nothing_wrong_is_followed(site: Path, tmp_path: Path) -> None:
    """What was followed is what was decided, as far as it came; where it did not come to the end, it says why."""
    with closing(Archive(site / "ledger")) as archive:
        decided = [row.hash for row in archive.blocks()][1:]
    ends = set()
    for seed in range(40):
        one = asked(site, tmp_path / str(seed), mangles(seed))
        assert one.hashes == decided[: len(one.hashes)], seed
        assert one.difference is not None or len(one.hashes) == BLOCKS, seed
        ends.add(len(one.hashes))
    assert {0, BLOCKS} < ends, "other seeds are needed: some that stop at once, half-way and nowhere"
