"""Somebody else's chain: what is checked before it is trusted, what counts on it, and what lost links cost."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from web3 import AsyncWeb3

from swarm.cli.deploy import write_places
from swarm.config import ExternalConfig, Policy, SwarmConfig, load_swarm
from swarm.encoding import from_hex, keccak256, to_hex
from swarm.errors import ConfigError, RejectedError, UnavailableError
from swarm.ledger import deploy as deployment
from swarm.ledger import endpoint
from swarm.ledger.artifact import artifact
from swarm.ledger.besu import besu_genesis, extra_data
from swarm.ledger.client import Contracts
from swarm.ledger.confirmed import Confirmed
from swarm.ledger.connection import ANSWER_MAX_BYTES, Connection
from swarm.ledger.deploy import CODE_MAX_BYTES, INIT_CODE_MAX_BYTES, deploy
from swarm.ledger.external import Counted, ExternalNetwork, Places, counted, expected_code
from swarm.ledger.genesis import BLIND, CONSORTIUM, RUNS, consortium_creation
from swarm.ledger.provider import LedgerProvider
from tests.ledger import world
from tests.ledger.anvil import CHAIN, Anvil
from tests.ledger.served import Served
from tests.ledger.world import MEMBERS, OPERATORS

PATIENCE_S = 30.0
POLICY = Policy(name="hearts", rounds=2, sync_interval=8, submit_s=5.0, merge_s=5.0, attest_s=5.0)
GENESIS = keccak256(b"genesis")
ACCOUNTS = [one.address for one in (*MEMBERS, *OPERATORS)]


def settings(url: str, places: Places | None = None, *, confirmations: int = 0) -> SwarmConfig:
    external = ExternalConfig(url, confirmations=confirmations)
    if places is not None:
        external = dataclasses.replace(
            external, consortium=places.consortium, runs=places.runs, blind=places.blind, block=places.block
        )
    return dataclasses.replace(world.config(chain_id=CHAIN), external=external)


@pytest.fixture
def anvil() -> Iterator[Anvil]:
    with Anvil() as one:
        one.fund(*ACCOUNTS)
        yield one


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[Connection]:
    link = Connection(url)
    try:
        yield link
    finally:
        await link.disconnect()


async def deployed(anvil: Anvil, link: Connection) -> tuple[Places, Contracts]:
    places = await deploy(ExternalNetwork(link), settings(anvil.url), OPERATORS[0], timeout_s=PATIENCE_S)
    return places, contracts_at(link, places)


def contracts_at(link: Any, places: Places) -> Contracts:
    return Contracts(
        AsyncWeb3(link),
        consortium=places.consortium,
        runs=places.runs,
        blind=places.blind,
        since=places.block,
        free=False,
    )


class Deep:
    """A chain of which only what has some blocks on it counts."""

    def __init__(self, anvil: Anvil, link: Connection, confirmations: int) -> None:
        self.view = Confirmed(link)
        self.last: Counted | None = None
        self._anvil, self._network, self._confirmations = anvil, ExternalNetwork(link), confirmations

    async def mine(self, blocks: int = 1) -> int:
        """Some more blocks; the last one that counts then."""
        self._anvil.mine(blocks)
        _, self.last = await counted(self._network, self.last, self._confirmations)
        self.view.height = self.last.number
        return self.last.number


async def propose(contracts: Contracts, name: str = "hearts") -> int:
    call = contracts.propose(dataclasses.replace(POLICY, name=name), GENESIS)
    receipt = await contracts.transact(OPERATORS[0], call, timeout_s=PATIENCE_S)
    run: int = receipt.first("RunProposed").args["run"]
    return run


async def until(holds: Callable[[], object]) -> None:
    for _ in range(int(PATIENCE_S / 0.01)):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {PATIENCE_S} s")


# --- what is there


async def test_a_deployment_is_found_again_byte_for_byte(anvil: Anvil) -> None:
    async with linked(anvil.url) as link:
        places, contracts = await deployed(anvil, link)
        await ExternalNetwork(link).check(settings(anvil.url, places))
        assert [m.name for m in await contracts.members()] == [m.name for m in world.config().members]
        assert await contracts._ticks_per_second() == 1
        (run,) = [await propose(contracts)]
        assert (await contracts.run(run)).submit_s == 5.0


async def test_what_is_not_the_agreed_chain_is_told_apart(anvil: Anvil) -> None:
    async with linked(anvil.url) as link:
        places, _ = await deployed(anvil, link)
        network, good = ExternalNetwork(link), settings(anvil.url, places)
        swapped = Places(places.runs, places.consortium, places.blind, places.block)
        nowhere = Places(b"\x07" * 20, places.runs, places.blind, places.block)
        others = dataclasses.replace(good, members=world.config(5).members)
        patient = dataclasses.replace(good, standby_after_s=1e6)
        for config, words in [
            (dataclasses.replace(good, chain_id=7), f"is a node of chain {CHAIN}, but swarm.toml says chain_id = 7"),
            (settings(anvil.url, nowhere), "there is no contract at 0x0707"),
            (settings(anvil.url, swapped), "is not the Consortium that this installation and swarm.toml give"),
            (patient, "they differ from byte"),
            (others, "site 4 .* is in only one of the two"),
            (settings(anvil.url), "`swarm deploy SITE.toml` puts them there"),
        ]:
            with pytest.raises(ConfigError, match=words):
                await network.check(config)


async def test_other_code_with_the_right_face_is_refused(anvil: Anvil) -> None:
    async with linked(anvil.url) as link:
        places, _ = await deployed(anvil, link)
        code = bytearray(from_hex(anvil.ask("eth_getCode", to_hex(places.runs), "latest")))
        code[1000] ^= 1
        anvil.ask("anvil_setCode", to_hex(places.runs), to_hex(bytes(code)))
        with pytest.raises(ConfigError, match=r"is not the Runs .* they differ from byte 1000 on"):
            await ExternalNetwork(link).check(settings(anvil.url, places))


def test_the_contracts_are_as_small_as_other_networks_ask() -> None:
    places = Places(b"\x01" * 20, b"\x02" * 20, b"\x03" * 20, 0)
    for code in expected_code(world.config(8), places, ticks_per_second=1).values():
        assert len(code) <= CODE_MAX_BYTES
    assert len(consortium_creation(world.config(8), ticks_per_second=1)) <= INIT_CODE_MAX_BYTES
    assert len(artifact("Runs").bytecode) + 64 <= INIT_CODE_MAX_BYTES


async def test_a_deployment_that_cannot_be_says_why(anvil: Anvil, monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked(anvil.url) as link:
        network = ExternalNetwork(link)
        with pytest.raises(RejectedError, match=r"create Consortium: .*nsufficient|cannot pay"):
            await deploy(network, settings(anvil.url), world.STRANGER, timeout_s=PATIENCE_S)
        monkeypatch.setattr(deployment, "INIT_CODE_MAX_BYTES", 10_000)
        with pytest.raises(ConfigError, match=r"4 founders make a transaction of .* found the consortium with fewer"):
            await deploy(network, settings(anvil.url), OPERATORS[0], timeout_s=PATIENCE_S)
        monkeypatch.undo()
        monkeypatch.setattr(deployment, "CODE_MAX_BYTES", 1000)
        with pytest.raises(ConfigError, match=r"Consortium has .* bytes of code, and networks take 1000 \(EIP-170\)"):
            await deploy(network, settings(anvil.url), OPERATORS[0], timeout_s=PATIENCE_S)


async def test_a_deployment_goes_on_where_it_stopped(anvil: Anvil) -> None:
    async with linked(anvil.url) as link:
        places, _ = await deployed(anvil, link)
        again = await deploy(
            ExternalNetwork(link), settings(anvil.url), OPERATORS[1], timeout_s=PATIENCE_S, consortium=places.consortium
        )
        assert again.consortium == places.consortium
        assert again.runs != places.runs
        assert again.block == places.block, "the founders are told of in the consortium's own block"


# --- what counts


async def test_what_is_not_deep_enough_is_not_there_yet(anvil: Anvil) -> None:
    async with linked(anvil.url) as link:
        places, now = await deployed(anvil, link)
        deep = Deep(anvil, link, 3)
        last = await deep.mine(4)
        contracts = contracts_at(deep.view, places)
        await propose(now)
        assert len(await now.runs()) == 1
        assert await contracts.runs() == ()
        assert await contracts.events(0) == await now.events(0, last)
        assert await contracts.height() == last == anvil.height - 4
        waiting = asyncio.ensure_future(propose(contracts, "lungs"))
        await until(lambda: anvil.height >= last + 5)
        for _ in range(3):
            assert not waiting.done()
            await deep.mine()
            await asyncio.sleep(0.05)
        assert await asyncio.wait_for(waiting, PATIENCE_S) == 2
        assert [run.name for run in await contracts.runs()] == ["hearts", "lungs"]


async def test_a_block_that_counted_and_is_taken_back_stops_the_node(anvil: Anvil) -> None:
    async with linked(anvil.url) as link:
        network = ExternalNetwork(link)
        anvil.mine(6)
        _, deep = await counted(network, None, 2)
        anvil.reorg(2)
        anvil.mine(1)
        _, later = await counted(network, deep, 2)
        assert later.number == deep.number + 1
        anvil.reorg(4)
        with pytest.raises(ConfigError, match=f"took back block {later.number} .* raise `confirmations`"):
            await counted(network, later, 2)


async def test_a_chain_that_is_shorter_for_a_moment_is_waited_for(anvil: Anvil) -> None:
    async with linked(anvil.url) as link:
        network = ExternalNetwork(link)
        snapshot = anvil.ask("evm_snapshot")
        anvil.mine(3)
        _, deep = await counted(network, None, 0)
        anvil.ask("evm_revert", snapshot)
        _, still = await counted(network, deep, 0)
        assert still == deep


async def test_a_transaction_that_a_reorg_drops_is_sent_again(anvil: Anvil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "RESEND_S", 0.05)
    async with linked(anvil.url) as link:
        places, _ = await deployed(anvil, link)
        deep = Deep(anvil, link, 2)
        last = await deep.mine(4)
        contracts = contracts_at(deep.view, places)
        waiting = asyncio.ensure_future(propose(contracts))
        await until(lambda: anvil.height >= last + 3)
        anvil.reorg(1)
        for _ in range(60):
            await asyncio.sleep(0.05)
            await deep.mine()
            if waiting.done():
                break
        assert await asyncio.wait_for(waiting, PATIENCE_S) == 1
        assert len(await contracts.runs()) == 1


# --- links


@pytest.mark.parametrize("kind", ["http", "ws"])
async def test_a_link_comes_back_with_the_chain(anvil: Anvil, tmp_path: Path, kind: str) -> None:
    with Anvil(options=["--state", str(tmp_path / "state.json")]) as other:
        async with linked(other.url if kind == "http" else other.ws) as link:
            network = ExternalNetwork(link)
            before = await network.head()
            other.stop()
            with pytest.raises(UnavailableError, match="does not answer eth_getBlockByNumber"):
                await network.head()
            other.start()
            assert (await network.head()).hash == before.hash


async def test_a_node_tells_of_blocks_by_itself_where_it_can(anvil: Anvil) -> None:
    told = asyncio.Event()
    link = Connection(anvil.ws, on_head=told.set)
    try:
        await ExternalNetwork(link).head()
        told.clear()
        anvil.mine()
        await asyncio.wait_for(told.wait(), PATIENCE_S)
    finally:
        await link.disconnect()


async def test_a_call_whose_answer_was_lost_is_not_made_twice(anvil: Anvil) -> None:
    """The node took the transaction and the link broke before it said so."""

    class Lossy(Connection):
        lost = 0

        async def make_request(self, method: Any, params: Any) -> Any:
            answer = await super().make_request(method, params)
            if method == "eth_sendRawTransaction" and self.lost < 2:
                self.lost += 1
                raise ConnectionError("the link broke")
            return answer

    link = Lossy(anvil.url)
    try:
        places = await deploy(ExternalNetwork(link), settings(anvil.url), OPERATORS[0], timeout_s=PATIENCE_S)
        link.lost = 0
        contracts = contracts_at(link, places)
        assert await propose(contracts) == 1
        assert len(await contracts.runs()) == 1
    finally:
        await link.disconnect()


async def test_what_the_pool_forgot_is_sent_again_with_its_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "RESEND_S", 0.1)
    with Anvil(options=["--no-mining"]) as anvil:
        anvil.fund(*ACCOUNTS)
        async with linked(anvil.url) as link:
            mining = asyncio.create_task(_mine(anvil))
            _, contracts = await deployed(anvil, link)
            mining.cancel()
            waiting = asyncio.ensure_future(propose(contracts))
            await until(lambda: anvil.ask("txpool_content")["pending"])
            anvil.ask("anvil_dropAllTransactions")
            mining = asyncio.create_task(_mine(anvil))
            assert await asyncio.wait_for(waiting, PATIENCE_S) == 1
            assert len(await contracts.runs()) == 1
            mining.cancel()


async def _mine(anvil: Anvil, base_fee: int | None = None) -> None:
    while True:
        await asyncio.sleep(0.05)
        if base_fee is not None:
            anvil.ask("anvil_setNextBlockBaseFeePerGas", hex(base_fee))
        anvil.mine()


async def test_a_fee_that_rose_above_the_offer_is_met_with_the_same_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "RESEND_S", 0.05)
    monkeypatch.setattr(endpoint, "REPRICE_S", 0.3)
    with Anvil(options=["--no-mining"]) as anvil:
        anvil.fund(*ACCOUNTS, wei=10**24)
        async with linked(anvil.url) as link:
            mining = asyncio.create_task(_mine(anvil))
            _, contracts = await deployed(anvil, link)
            mining.cancel()
            waiting = asyncio.ensure_future(propose(contracts))
            await until(lambda: anvil.ask("txpool_content")["pending"])
            mining = asyncio.create_task(_mine(anvil, base_fee=100 * 10**9))
            assert await asyncio.wait_for(waiting, PATIENCE_S) == 1
            assert len(await contracts.runs()) == 1
            mining.cancel()
        sender = "0x" + OPERATORS[0].address.hex()
        assert int(anvil.ask("eth_getTransactionCount", sender, "latest"), 16) == 4, (
            "three for the contracts, one since"
        )


async def test_a_refused_call_costs_nothing(anvil: Anvil) -> None:
    async with linked(anvil.url) as link:
        _, contracts = await deployed(anvil, link)
        height = anvil.height
        with pytest.raises(RejectedError, match="stop run 9: only an operator that approved the run may stop it"):
            await contracts.transact(OPERATORS[0], contracts.stop(9), timeout_s=PATIENCE_S)
        anvil.fund(MEMBERS[0].address, wei=0)
        call = contracts.set_endpoint("/ip4/1.2.3.4/tcp/1")
        with pytest.raises(RejectedError, match="cannot pay the network's fee: send it some"):
            await contracts.transact(MEMBERS[0], call, timeout_s=PATIENCE_S)
        assert anvil.height == height


async def test_a_deadline_is_the_next_blocks_to_judge(tmp_path: Path) -> None:
    """An estimate at the last block's time would refuse for ever where blocks come on demand, as on our own ledger."""
    served = Served(tmp_path / "ledger")
    contracts = Contracts(AsyncWeb3(LedgerProvider(served.rpc)), free=False)
    await propose(contracts)
    for operator in OPERATORS[1:4]:
        await contracts.transact(operator, contracts.approve(1), timeout_s=PATIENCE_S)
    for member in MEMBERS[:4]:
        await contracts.transact(member, contracts.join(1, True), timeout_s=PATIENCE_S)
    for place, member in enumerate(MEMBERS[:2]):
        call = contracts.submit(1, 0, keccak256(bytes([place])), 1, {})
        await contracts.transact(member, call, timeout_s=PATIENCE_S)
    with pytest.raises(RejectedError, match="the deadline has not passed"):
        await contracts.transact(MEMBERS[0], contracts.advance(1, 0, 0), timeout_s=PATIENCE_S)
    served.ahead_ms = 6_000
    await contracts.transact(MEMBERS[0], contracts.advance(1, 0, 0), timeout_s=PATIENCE_S)
    assert (await contracts.round_state(1)).phase == 1
    served.close()


async def test_an_answer_without_end_is_not_read(unused_tcp_port: int) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        try:
            while True:
                writer.write(bytes(1 << 20))
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(flood, "127.0.0.1", unused_tcp_port)
    async with server, linked(f"http://127.0.0.1:{unused_tcp_port}") as link:
        with pytest.raises(RejectedError, match=f"longer than {ANSWER_MAX_BYTES} bytes"):
            await ExternalNetwork(link).head()


@pytest.mark.parametrize("body", [b"<html>", b"[" * 100_000, b"\xff\xfe", b"[]", b"null", b""])
async def test_what_is_no_json_rpc_is_no_answer(unused_tcp_port: int, body: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 502 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", unused_tcp_port)
    async with server, linked(f"http://127.0.0.1:{unused_tcp_port}") as link:
        with pytest.raises(UnavailableError, match="HTTP status 502 and no JSON-RPC"):
            await ExternalNetwork(link).head()


# --- files


def test_where_the_contracts_are_is_written_into_the_table_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "swarm.toml"
    members = "".join(
        f'[[members]]\nname = "{m.name}"\naddress = "{to_hex(m.address)}"\noperator = "{to_hex(m.operator)}"\n'
        f'endpoint = "{m.endpoint}"\n'
        for m in world.config().members
    )
    head = '# agreed\n[consortium]\nname = "x"\nchain_id = 5\ncreated_ms = 7\n\n[ledger]  # of the ministry\n'
    path.write_text(head + 'endpoint = "ws://h:1"  # here\nconfirmations = 4\n' + members)
    write_places(path, Places(b"\x01" * 20, b"\x02" * 20, b"\x03" * 20, 77))
    external = load_swarm(path).external
    assert external == ExternalConfig("ws://h:1", b"\x01" * 20, b"\x02" * 20, b"\x03" * 20, 77, 4)
    assert path.read_text().startswith(head + "consortium = ")
    assert path.read_text().endswith('block = 77\nendpoint = "ws://h:1"  # here\nconfirmations = 4\n' + members)
    assert [one.name for one in tmp_path.iterdir()] == ["swarm.toml"]


def test_besu_reads_its_validators_from_the_contract(tmp_path: Path) -> None:
    config = dataclasses.replace(world.config(5, validators=4), chain_id=CHAIN)
    document = besu_genesis(config)
    # As Besu's documentation has it, for contract validator selection.
    assert to_hex(extra_data()) == "0xe5a0" + 64 * "0" + "c0c080c0" == document["extraData"]
    assert document["config"]["qbft"]["validatorcontractaddress"] == to_hex(CONSORTIUM)
    path = tmp_path / "genesis.json"
    path.write_text(json.dumps(document))
    with Anvil(base_fee=0, options=["--init", str(path)]) as anvil:

        async def read() -> None:
            async with linked(anvil.url) as link:
                contracts = contracts_at(link, Places(CONSORTIUM, RUNS, BLIND, 0))
                assert await contracts.validators() == tuple(one.address for one in MEMBERS[:4])
                external = ExternalConfig(anvil.url, CONSORTIUM, RUNS, BLIND)
                await ExternalNetwork(link).check(dataclasses.replace(config, external=external))
                assert await propose(contracts) == 1

        asyncio.run(read())


def test_a_genesis_is_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text("mine")
    swarm = tmp_path / "swarm.toml"
    swarm.write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "swarm", "export", "besu-genesis", str(swarm), str(out)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert out.read_text() == "mine"
