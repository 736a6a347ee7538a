"""`swarm status`: what a person is told about how much more may fail, and what happens where no node answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swarm.cli.control import NodeClient
from swarm.cli.screen import show
from swarm.cli.status import in_words, strength, view
from swarm.config import SiteConfig, load_site
from swarm.errors import ConfigError, StorageError, SwarmError, UnavailableError

from .conftest import Swarm


def seen(validators: int, connected: int, followers: int = 0) -> dict[str, Any]:
    """The status of a node that sees so many validators of a swarm connected."""
    members = [
        {"name": f"m{i}", "address": f"0x{i:040x}", "validator": i < validators, "connected": i < connected}
        for i in range(validators + followers)
    ]
    run = {
        "id": 1, "name": "heart", "state": "open", "round": 3, "rounds": 15, "phase": "attest", "view": 1,
        "leader": members[0]["address"], "submitted": [members[0]["address"]], "attested": [],
    }  # fmt: skip
    return {
        "name": "m0",
        "address": members[0]["address"],
        "height": 7,
        "height_seen": 9,
        "timestamp_ms": 1_700_000_000_000,
        "chain_id": 5,
        "validators": [member["address"] for member in members if member["validator"]],
        "members": members,
        "runs": [run],
    }


@pytest.mark.parametrize(
    ("validators", "connected", "said"),
    [
        (4, 4, "awake: 4 of 4 validators are connected, 1 more may fail; up to 1 may even lie"),
        (4, 3, "awake: 3 of 4 validators are connected, none more may fail; no block is forged while at most 1 lie"),
        (4, 2, "asleep: 2 of 4 validators are connected and 3 are needed"),
        (4, 2, "it wakes when 1 of these are back: m2, m3. If too many are gone for good"),
        (7, 6, "1 more may fail; up to 1 may even lie"),
        (7, 5, "none more may fail; no block is forged while at most 2 lie, but one that lies could stop"),
        (6, 6, "2 more may fail; up to 1 may even lie"),
        (7, 7, "2 more may fail; up to 2 may even lie"),
        (3, 3, "1 more may fail; a crash at most is tolerated, no traitor"),
        (2, 2, "none more may fail; a crash at most is tolerated, no traitor"),
        (1, 1, "none more may fail"),
    ],
)
def test_how_many_more_may_fail_is_said_in_words(validators: int, connected: int, said: str) -> None:
    assert said in in_words(strength(seen(validators, connected)), 0.0)


def test_a_ledger_that_sleeps_says_since_when_and_one_that_is_awake_does_not() -> None:
    asleep = {**seen(4, 2), "asleep_since_s": 1000.0}
    assert "asleep since 3 h ago: 2 of 4" in in_words(strength(asleep), 1000.0 + 3 * 3600)
    assert strength(asleep)["missing"] == ["m2", "m3"]
    awake = strength({**seen(4, 3), "asleep_since_s": 1000.0})
    assert awake["asleep_since_s"] is None, "it was asleep until just now"


def test_who_is_away_is_shown_with_the_way_back() -> None:
    status = seen(5, 5, followers=1)
    names = [member["address"] for member in status["members"]]
    status["validators"] = names[2:5]
    for member in status["members"][:2]:
        member["validator"] = False
    status["parts"] = dict(zip(names, ["standby", "leave", "votes", "votes", "votes", "follows"], strict=True))
    status |= {"standby_after_s": 604_800.0, "recovery": 8}
    paper = StringIO()
    Console(width=220, file=paper).print(view(status))
    for part in (
        "m0 is on standby: the others had not heard of it for 7 days; it votes again when it is back",
        "m1 is on leave: `swarm members return`",
        "block 8 records it as soon as two thirds of the new ones",
        "on standby",
        "on leave",
        "follows",
    ):
        assert part in paper.getvalue()
    assert "3 of 3 validators are connected" in paper.getvalue()


def test_a_member_that_does_not_vote_does_not_count_towards_the_quorum() -> None:
    assert strength(seen(4, 4, followers=6)) == strength(seen(4, 10, followers=6))


def test_the_view_shows_members_the_round_and_how_far_the_node_is_behind() -> None:
    paper = StringIO()
    Console(width=200, file=paper).print(view(seen(4, 3)))
    for part in ("block 7", "2 behind", "this node", "heart", "3/15", "attest", "m0"):
        assert part in paper.getvalue()


@pytest.mark.parametrize("command", [("status",), ("status", "--json"), ("status", "--watch")])
def test_where_no_node_runs_the_way_out_is_said(swarm: Swarm, consortium: Path, command: tuple[str, ...]) -> None:
    result = swarm(*command, consortium / "sites" / "north.toml")
    assert result.exit_code == 1
    assert f"start it with `swarm node {consortium / 'sites' / 'north.toml'}`" in result.stderr
    assert result.stdout == ""


def test_a_settings_file_that_is_not_there_is_named(swarm: Swarm, tmp_path: Path) -> None:
    result = swarm("status", tmp_path / "nowhere.toml")
    assert result.exit_code == 2
    assert "nowhere.toml" in result.stderr


@asynccontextmanager
async def socket_that(reply: bytes | None, consortium: Path, folder: Path) -> AsyncIterator[SiteConfig]:
    """A site on whose socket every request gets this reply; None hangs up."""
    settings = (consortium / "sites" / "north.toml").read_text().replace("../state/north", str(folder))
    (folder / "north.toml").write_text(settings)
    site = load_site(folder / "north.toml")

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        if reply is not None:
            writer.write(reply)
            await reader.read()  # until the client hangs up
        writer.close()

    server = await asyncio.start_unix_server(session, site.socket)
    try:
        yield site
    finally:
        server.close()


def refusal(code: int, message: str, data: object) -> bytes:
    error = {"code": code, "message": message, "data": data}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "error": error}).encode() + b"\n"


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (None, UnavailableError, "stopped before it answered"),
        (b'{"jsonrpc":"2.0","id":1,"resu', UnavailableError, r"not answered within 0\.2 s"),
        (refusal(-32000, "disk full", {"kind": "StorageError"}), StorageError, "disk full"),
        (refusal(-32000, "run 7 is not there", {"kind": "ConfigError"}), ConfigError, "run 7 is not there"),
        (refusal(3, "execution reverted", "0x08c379a0"), UnavailableError, "reverted"),
    ],
)
async def test_whatever_a_node_answers_the_client_raises_what_it_means(
    consortium: Path, tmp_path: Path, reply: bytes | None, kind: type[SwarmError], said: str
) -> None:
    async with socket_that(reply, consortium, tmp_path) as site, NodeClient(site) as node:
        with pytest.raises(kind, match=said):
            await node.call("swarm_status", timeout_s=0.2)


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal_folds_what_it_cannot_hold_and_cuts_nothing_off(columns: int) -> None:
    paper = StringIO()
    Console(width=columns, force_terminal=True, file=paper).print(view(seen(4, 4)))
    assert "…" not in paper.getvalue()


def test_a_pipe_gets_every_line_whole(capsys: pytest.CaptureFixture[str]) -> None:
    show(view(seen(4, 4)))
    lines = capsys.readouterr().out.splitlines()
    for member in seen(4, 4)["members"]:
        assert any(member["name"] in line and member["address"] in line for line in lines)
