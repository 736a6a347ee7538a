"""The ledger's JSON-RPC app: the envelope by the specification, errors that tools understand, and a bound for all that
one client may ask for. Sockets are in `test_web_server`.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from swarm.config import RpcConfig
from swarm.encoding import keccak256, to_hex
from swarm.errors import StorageError
from swarm.ledger import rpc_news, web, web_guard
from swarm.ledger.abi import interface
from swarm.ledger.genesis import CONSORTIUM, RUNS
from swarm.ledger.ledger import Ledger
from swarm.ledger.rpc_news import Subscriptions
from swarm.ledger.web import Web
from swarm.ledger.web_guard import Buckets
from tests.ledger import world
from tests.ledger.served import OPEN_RPC
from tests.ledger.world import OPERATORS

NOBODY = "0x" + "00" * 20


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = world.open_ledger(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Client:
    """Asks one app, as a site configures it."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self.configure(OPEN_RPC)

    def configure(self, config: RpcConfig, url: str = "http://127.0.0.1:8545") -> None:
        self.web = Web(self._ledger, config, self._ledger.add_transaction, clock=self._clock)
        self._ledger.on_waiting = self.web.on_waiting
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.web.app), base_url=url)

    async def post(self, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, (str, bytes)) else json.dumps(body)
        return await self.http.post("/", content=content, headers=headers)

    async def answer(self, method: str, *params: Any) -> dict[str, Any]:
        found = await self.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        answer: dict[str, Any] = found.json()
        return answer

    async def result(self, method: str, *params: Any) -> Any:
        return (await self.answer(method, *params))["result"]

    async def error(self, method: str, *params: Any) -> dict[str, Any]:
        error: dict[str, Any] = (await self.answer(method, *params))["error"]
        return error


@pytest.fixture
async def client(ledger: Ledger, clock: Clock) -> AsyncIterator[Client]:
    asking = Client(ledger, clock)
    yield asking
    await asking.http.aclose()


def call(number: object, method: str = "eth_blockNumber", *params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}


# --- the envelope


@pytest.mark.parametrize("number", [7, "seven", 0, None, 1.5, "x" * 1000])
async def test_the_answer_has_the_requests_id(client: Client, number: object) -> None:
    answer = (await client.post(call(number))).json()
    assert answer == {"jsonrpc": "2.0", "id": number, "result": "0x0"}


@pytest.mark.parametrize(
    ("body", "code", "number"),
    [
        ('{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', -32700, None),
        ("", -32700, None),
        (b"\xff\xfe", -32700, None),
        ('{"jsonrpc": "2.0", "id": NaN, "method": "eth_chainId"}', -32700, None),
        ("[" * 100_000, -32700, None),
        ('{"a":' * 100_000, -32700, None),
        ("9" * 100_000, -32700, None),
        ("[]", -32600, None),
        ("1", -32600, None),
        ('{"jsonrpc": "2.0", "id": 5, "method": 1, "params": "bar"}', -32600, 5),
        ('{"jsonrpc": "2.0", "id": 5, "method": "eth_chainId", "params": "bar"}', -32600, 5),
        ('{"jsonrpc": "1.0", "id": 5, "method": "eth_chainId"}', -32600, 5),
        ('{"jsonrpc": "2.0", "id": [5], "method": "eth_chainId"}', -32600, None),
        ('{"jsonrpc": "2.0", "id": 5, "method": "foobar"}', -32601, 5),
        ('{"jsonrpc": "2.0", "id": 5, "method": "eth_subscribe", "params": ["newHeads"]}', -32601, 5),
        ('{"jsonrpc": "2.0", "id": 5, "method": "eth_chainId", "params": {"a": 1}}', -32602, 5),
        ('{"jsonrpc": "2.0", "id": 5, "method": "eth_chainId", "params": [1]}', -32602, 5),
        ('{"jsonrpc": "2.0", "id": 5, "method": "eth_getBalance", "params": []}', -32602, 5),
    ],
    ids=lambda item: str(item)[:40],
)
async def test_what_is_no_request_gets_the_specifications_error(
    client: Client, body: str | bytes, code: int, number: object
) -> None:
    found = await client.post(body)
    answer = found.json()
    assert found.status_code == 200
    assert (answer["error"]["code"], answer["id"]) == (code, number)
    assert len(answer["error"]["message"]) < 600


async def test_a_batch_is_answered_in_order_and_each_for_itself(client: Client) -> None:
    batch = [call(1), {"foo": "boo"}, call(2, "foobar"), 3, call("4", "eth_chainId")]
    answers = (await client.post(batch)).json()
    assert [answer["id"] for answer in answers] == [1, None, 2, None, "4"]
    assert [answer.get("error", {}).get("code") for answer in answers] == [None, -32600, -32601, -32600, None]


async def test_a_notification_is_carried_out_and_not_answered(client: Client, ledger: Ledger) -> None:
    raw = to_hex(world.propose(OPERATORS[0], 0))
    silent = {"jsonrpc": "2.0", "method": "eth_sendRawTransaction", "params": [raw]}
    found = await client.post([silent, {"jsonrpc": "2.0", "method": "foobar"}])
    assert (found.status_code, found.content) == (204, b"")
    assert len(ledger.pending_transactions()) == 1
    assert [answer["id"] for answer in (await client.post([silent, call(9)])).json()] == [9]


async def test_a_revert_has_code_3_the_reason_and_the_bytes(client: Client) -> None:
    fields = {"from": NOBODY, "to": to_hex(RUNS), "data": to_hex(interface("Runs").call("approve", 7))}
    for method in ("eth_call", "eth_estimateGas"):
        error = await client.error(method, fields)
        assert error["code"] == 3
        assert error["message"] == "execution reverted: only the operator of a member may do this"
        assert error["data"].startswith("0x08c379a0")


async def test_a_damaged_disk_is_not_the_clients_fault_and_stands_in_the_log(
    client: Client, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def damaged(*_: Any) -> Any:
        raise StorageError("block 0 is damaged")

    monkeypatch.setattr(ledger, "block", damaged)
    assert (await client.error("eth_getBlockByNumber", "0x0"))["code"] == -32603
    assert "block 0 is damaged" in caplog.text


async def test_our_own_mistake_is_an_internal_error_and_stands_in_the_log(
    client: Client, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger, "balance", lambda *_: 1 // 0)
    assert (await client.error("eth_getBalance", NOBODY))["code"] == -32603
    assert "ZeroDivisionError" in caplog.text


# --- who may ask


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8545", 200),
        ("[::1]:8545", 200),
        ("10.1.0.4", 200),
        ("localhost:8545", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:8545", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
async def test_a_page_whose_name_was_made_to_point_here_is_refused(client: Client, host: str, status: int) -> None:
    found = await client.post(call(1), host=host)
    assert found.status_code == status
    if status == 403:
        assert "name it among `hosts` in [rpc]" in found.json()["error"]["message"]


async def test_a_name_that_the_site_gives_is_served(client: Client) -> None:
    client.configure(replace(OPEN_RPC, hosts=("Node.North.example",)))
    assert (await client.post(call(1), host="node.north.example:8545")).status_code == 200


async def test_pages_of_other_origins_are_refused_and_those_that_the_site_names_may_read(client: Client) -> None:
    page = "https://explorer.example"
    refused = await client.post(call(1), origin=page)
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    client.configure(replace(OPEN_RPC, origins=(page,)))
    taken = await client.post(call(1), origin=page)
    assert taken.json()["result"] == "0x0"
    assert taken.headers["access-control-allow-origin"] == page
    asked = {"origin": page, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    assert (await client.http.options("/", headers=asked)).headers["access-control-allow-methods"] == "POST"
    assert (await client.post(call(1), origin="https://evil.example")).status_code == 403


async def test_what_is_not_json_rpc_is_told_where_it_is(client: Client) -> None:
    for found in (await client.http.get("/"), await client.http.get("/x"), await client.http.post("/x")):
        assert found.status_code in (404, 405)
        assert "POST to /" in found.json()["error"]["message"]


# --- how much


async def test_a_body_or_batch_that_is_too_large_is_refused_and_told_the_size(client: Client) -> None:
    client.configure(replace(OPEN_RPC, body_max_bytes=1024, batch_max=3))
    found = await client.post(json.dumps(call("x" * 1024)))
    assert found.status_code == 413
    assert "at most 1024 bytes" in found.json()["error"]["message"]

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    assert (await client.http.post("/", content=parts())).status_code == 413
    assert (await client.http.post("/", content=b"{}", headers={"content-length": "1e3"})).status_code == 413
    error = (await client.post([call(number) for number in range(4)])).json()["error"]
    assert (error["code"], "1 to 3 requests" in error["message"]) == (-32600, True)
    assert len((await client.post([call(number) for number in range(3)])).json()) == 3


async def test_who_asks_too_often_is_told_when_to_come_back(client: Client, clock: Clock) -> None:
    client.configure(replace(OPEN_RPC, requests_s=10))
    assert [(await client.post(call(1))).status_code for _ in range(20)] == [200] * 20
    refused = await client.post(call(1))
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    error = refused.json()["error"]
    assert (error["code"], "more than 10 requests a second" in error["message"]) == (-32005, True)
    clock.now_s += 1
    assert [(await client.post(call(1))).status_code for _ in range(11)] == [200] * 10 + [429]


async def test_a_batch_counts_as_many_as_it_holds(client: Client) -> None:
    client.configure(replace(OPEN_RPC, requests_s=10))
    answers = (await client.post([call(number) for number in range(30)])).json()
    assert ["error" in answer for answer in answers] == [False] * 20 + [True] * 10
    assert [answer["id"] for answer in answers] == list(range(30))


async def test_nonsense_counts_too(client: Client) -> None:
    client.configure(replace(OPEN_RPC, requests_s=10))
    bodies = ["{", "[]", "1", json.dumps([call(number) for number in range(101)])]
    statuses = [(await client.post(body)).status_code for body in bodies * 6]
    assert statuses == [200] * 20 + [429] * 4


async def test_an_answer_counts_by_the_time_it_took(
    client: Client, clock: Clock, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.configure(replace(OPEN_RPC, requests_s=10))

    def slow(*_: Any) -> int:
        clock.now_s += 17.5 * web_guard.COST_S
        return 0

    monkeypatch.setattr(ledger, "balance", slow)
    assert await client.result("eth_getBalance", NOBODY) == "0x0"
    assert [(await client.post(call(1))).status_code for _ in range(3)] == [200, 200, 429]


async def test_an_answer_that_is_too_large_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "ANSWER_MAX_BYTES", 1000)
    block = call(1, "eth_getBlockByNumber", "0x0", False)
    assert (await client.post(block)).json()["error"]["code"] == -32003
    chain = call(1, "eth_chainId")
    answers = (await client.post([chain] * 50)).json()
    codes = [answer.get("error", {}).get("code") for answer in answers]
    assert codes[0] is None
    assert codes[-1] == -32003


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"data": "0x5b600056"}, "neither creates one nor asks a precompile"),
        ({"to": None, "data": "0x5b600056"}, "neither creates"),
        ({"to": "0x" + "00" * 19 + "08", "data": "0x" + "00" * 192 * 100}, "nor asks a precompile"),
        ({"to": "0x" + "00" * 19 + "05"}, "nor asks a precompile"),
        ({"to": to_hex(RUNS), "data": "0x" + "00" * 65537}, "65537 bytes of call data"),
    ],
)
async def test_a_call_that_could_keep_the_node_busy_is_refused_at_once(
    client: Client, fields: dict[str, Any], match: str
) -> None:
    began_s = time.perf_counter()
    for method in ("eth_call", "eth_estimateGas"):
        error = await client.error(method, fields)
        assert error["code"] == -32602
        assert match in error["message"]
    assert time.perf_counter() - began_s < 2


async def test_a_call_gets_no_more_gas_than_the_site_allows(client: Client) -> None:
    client.configure(replace(OPEN_RPC, call_gas=22_000))
    fields = {"to": to_hex(RUNS), "data": to_hex(interface("Runs").call("count")), "gas": hex(10**9)}
    assert "OutOfGas" in (await client.error("eth_call", fields))["message"]
    assert "OutOfGas" in (await client.error("eth_estimateGas", fields))["message"]


async def test_searches_are_bounded_in_blocks_logs_and_what_is_looked_for(client: Client, ledger: Ledger) -> None:
    world.grow(ledger, 3)
    client.configure(replace(OPEN_RPC, log_blocks_max=2, logs_max=1))
    error = await client.error("eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest"})
    assert "at most 2 are searched at a time: ask for 0 to 1" in error["message"]
    many = await client.error("eth_getLogs", {"fromBlock": "0x1", "toBlock": "0x2"})
    assert "ask for fewer blocks at a time" in many["message"]
    topics = {"topics": [["0x" + "00" * 32] * 257]}
    assert "at most 256 are looked for" in (await client.error("eth_getLogs", topics))["message"]
    assert "at most 256 are proven" in (await client.error("eth_getProof", NOBODY, ["0x0"] * 257))["message"]
    assert "at most 100" in (await client.error("eth_feeHistory", "0x1", "latest", [1] * 101))["message"]


def test_a_bucket_fills_with_time_and_forgets_the_clients_it_saw_first() -> None:
    buckets = Buckets(rate=2)
    buckets.spend("a", 4, 0)
    assert buckets.wait_s("a", 0) == 0.5
    assert buckets.wait_s("b", 0) == 0
    assert buckets.wait_s("a", 0.5) == 0
    buckets.spend("a", 100, 1)  # a debt
    assert buckets.wait_s("a", 1) == pytest.approx((1 + 98) / 2)
    assert buckets.wait_s("a", 1000) == 0
    buckets.spend("a", 4, 1000)
    assert buckets.wait_s("a", 1000) == 0.5, "what is saved up is bounded"
    for number in range(web_guard.CLIENTS_KEPT):
        buckets.spend(str(number), 1, 1000)
    assert buckets.wait_s("a", 1000) == 0


# --- what is new


async def test_the_answer_to_a_transaction_comes_with_its_block_or_soon(
    client: Client, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = world.propose(OPERATORS[2], 0)
    sent = asyncio.create_task(client.post([call(1), call(2, "eth_sendRawTransaction", to_hex(raw))]))
    await asyncio.sleep(0.1)
    assert not sent.done()
    assert await client.result("eth_getTransactionReceipt", to_hex(keccak256(raw))) is None
    world.decide(ledger, world.build(ledger))
    client.web.notify()
    assert (await sent).json()[1]["result"] == to_hex(keccak256(raw))
    assert (await client.result("eth_getTransactionReceipt", to_hex(keccak256(raw))))["blockNumber"] == "0x1"
    monkeypatch.setattr(web, "SENT_S", 0.05)
    waits = world.propose(OPERATORS[1], 0)
    assert await client.result("eth_sendRawTransaction", to_hex(waits)) == to_hex(keccak256(waits))
    assert "error" in await client.answer("eth_sendRawTransaction", "0x00")


async def test_filters_tell_what_came_since_the_last_question(client: Client, ledger: Ledger) -> None:
    world.grow(ledger, 2)
    heads = await client.result("eth_newBlockFilter")
    only = {"address": to_hex(RUNS), "topics": [to_hex(interface("Runs").topics["RunProposed"])], "fromBlock": "0x1"}
    logs = await client.result("eth_newFilter", only)
    other = await client.result("eth_newFilter", {"address": to_hex(CONSORTIUM)})
    waiting = await client.result("eth_newPendingTransactionFilter")
    assert [await client.result("eth_getFilterChanges", one) for one in (heads, logs, waiting)] == [[], [], []]

    raw = world.propose(OPERATORS[2], 0)
    await client.result("eth_sendRawTransaction", to_hex(raw))
    assert await client.result("eth_getFilterChanges", waiting) == [to_hex(keccak256(raw))]
    world.decide(ledger, world.build(ledger))
    assert await client.result("eth_getFilterChanges", heads) == [to_hex(ledger.head.hash)]
    [log] = await client.result("eth_getFilterChanges", logs)
    assert log["transactionHash"] == to_hex(keccak256(raw))
    assert [await client.result("eth_getFilterChanges", one) for one in (heads, logs, other, waiting)] == [[]] * 4
    assert len(await client.result("eth_getFilterLogs", logs)) == 3
    assert await client.result("eth_uninstallFilter", logs) is True
    assert await client.result("eth_uninstallFilter", logs) is False
    assert "filter not found" in (await client.error("eth_getFilterChanges", logs))["message"]
    assert "not of logs" in (await client.error("eth_getFilterLogs", heads))["message"]


async def test_a_filter_that_fell_far_behind_gets_everything_in_parts(client: Client, ledger: Ledger) -> None:
    client.configure(replace(OPEN_RPC, log_blocks_max=4, logs_max=3))
    logs = await client.result("eth_newFilter", {"topics": [to_hex(interface("Runs").topics["RunProposed"])]})
    world.grow(ledger, 11)
    blocks = []
    for _ in range(11):
        part = await client.result("eth_getFilterChanges", logs)
        assert len(part) <= 3
        blocks += [int(log["blockNumber"], 16) for log in part]
    assert blocks == list(range(1, 12))


async def test_filters_are_few_and_end_when_nobody_asks(client: Client, clock: Clock) -> None:
    first = await client.result("eth_newBlockFilter")
    for _ in range(rpc_news.FILTERS_OF_CLIENT_MAX - 1):
        await client.result("eth_newBlockFilter")
    error = await client.error("eth_newBlockFilter")
    assert (error["code"], "eth_uninstallFilter ends one" in error["message"]) == (-32005, True)
    clock.now_s += rpc_news.FILTER_LIFE_S
    assert await client.result("eth_getFilterChanges", first) == []
    clock.now_s += 1
    await client.result("eth_newBlockFilter")
    assert await client.result("eth_getFilterChanges", first) == []
    clock.now_s += rpc_news.FILTER_LIFE_S + 1
    assert (await client.error("eth_getFilterChanges", first))["code"] == -32000


def test_arrivals_are_numbered_and_the_oldest_are_forgotten() -> None:
    arrivals = rpc_news.Arrivals()
    digests = [keccak256(number.to_bytes(4, "big")) for number in range(rpc_news.ARRIVALS_KEPT + 10)]
    for digest in digests:
        arrivals.add(digest)
    assert arrivals.since(arrivals.count) == []
    assert arrivals.since(arrivals.count - 3) == digests[-3:]
    assert arrivals.since(0) == digests[10:]


async def test_a_subscription_is_told_from_where_it_began(ledger: Ledger) -> None:
    arrivals = rpc_news.Arrivals()
    ledger.on_waiting = arrivals.add
    mine = Subscriptions(ledger, arrivals, most=3)
    world.grow(ledger, 1)
    heads = mine.new("newHeads")
    world.grow(ledger, 2)
    logs = mine.new("logs", {"topics": [to_hex(interface("Runs").topics["RunProposed"])]})
    waiting = mine.new("newPendingTransactions", True)
    with pytest.raises(ValueError, match="3 subscriptions are open"):
        mine.new("newHeads")
    raw = world.propose(OPERATORS[3], 0)
    ledger.add_transaction(raw)
    told = list(mine.news())
    assert [one for one, _ in told] == [waiting, heads, heads], "the logs are wanted from the next block on"
    assert (told[0][1]["hash"], told[0][1]["blockHash"]) == (to_hex(keccak256(raw)), None)
    world.decide(ledger, world.build(ledger))
    assert [one for one, _ in mine.news()] == [heads, logs]
    assert mine.end(heads)
    assert not mine.end(heads)
    world.grow(ledger, 1)
    assert [one for one, _ in mine.news()] == [logs], "what waited stands in a block by now"
    with pytest.raises(ValueError, match="there are newHeads, logs and newPendingTransactions"):
        mine.new("syncing")


async def test_every_method_that_the_page_lists_is_there_and_no_other(client: Client) -> None:
    page = (Path(web.__file__).parent / "README.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`((?:eth|net|web3|rpc|swarm)_[A-Za-z0-9]+)`", row)}
    stateful = set(client.web._stateful("x", Subscriptions(client.web._ledger, rpc_news.Arrivals(), 1)))
    assert listed == set(client.web._rpc._methods) | stateful
    assert set(await client.result("rpc_modules")) == {name.split("_")[0] for name in listed}


async def test_a_long_batch_lets_the_node_work_in_between(client: Client) -> None:
    turns = 0

    async def work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    working = asyncio.create_task(work())
    await client.web.answer(json.dumps([call(number) for number in range(100)]), "x", None)
    working.cancel()
    assert turns >= 100
