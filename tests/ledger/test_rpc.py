"""The ledger through the eyes of web3: blocks, calls, reverts and logs as Ethereum's tools expect them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rlp
from trie import HexaryTrie
from web3 import AsyncWeb3
from web3.exceptions import BlockNotFound, ContractLogicError, TransactionNotFound
from web3.logs import DISCARD

from swarm.encoding import from_hex, keccak256, to_hex
from swarm.identity import checksum
from swarm.ledger.abi import interface
from swarm.ledger.artifact import artifact
from swarm.ledger.genesis import CONSORTIUM, RUNS
from swarm.ledger.ledger import Ledger
from swarm.ledger.provider import LedgerProvider
from swarm.ledger.rpc import Limits, Rpc, RpcError
from tests.ledger import world
from tests.ledger.world import CHAIN, OPERATORS, STRANGER


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = world.open_ledger(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def rpc(ledger: Ledger) -> Rpc:
    return Rpc(ledger, ledger.add_transaction)


@pytest.fixture
def web3(rpc: Rpc) -> Any:
    return AsyncWeb3(LedgerProvider(rpc))


def runs(web3: Any) -> Any:
    return web3.eth.contract(address=checksum(RUNS), abi=artifact("Runs").abi)


async def test_web3_reads_what_the_chain_is(web3: Any) -> None:
    assert await web3.is_connected()
    assert await web3.eth.chain_id == CHAIN
    assert await web3.net.version == str(CHAIN)
    assert await web3.eth.gas_price == 0
    assert await web3.eth.max_priority_fee == 0
    assert await web3.eth.syncing is False
    assert list(await web3.eth.accounts) == []
    assert "swarm" in await web3.client_version


async def test_a_transaction_goes_in_by_web3_and_its_block_receipt_and_log_come_out(web3: Any, ledger: Ledger) -> None:
    raw = world.propose(OPERATORS[0], 0)
    digest = await web3.eth.send_raw_transaction(raw)
    assert await web3.eth.get_transaction_count(checksum(OPERATORS[0].address)) == 0
    assert await web3.eth.get_transaction_count(checksum(OPERATORS[0].address), "pending") == 1
    assert (await web3.eth.get_transaction(digest)).get("blockNumber") is None
    with pytest.raises(TransactionNotFound):
        await web3.eth.get_transaction_receipt(digest)
    payload = ledger.build(world.now_ms(ledger), ledger.proposers()[0])
    assert payload is not None
    head = world.decide(ledger, payload)

    assert await web3.eth.block_number == 1
    for tag in ("latest", "safe", "finalized", "pending", 1):
        block = await web3.eth.get_block(tag, full_transactions=True)
        assert block["hash"] == head.hash
    assert block["timestamp"] == head.timestamp_ms
    assert block["miner"] == checksum(head.coinbase)
    assert block["parentHash"] == ledger.genesis_hash
    assert block["transactions"][0] == await web3.eth.get_transaction(digest)
    assert block["transactions"][0]["from"] == checksum(OPERATORS[0].address)
    assert await web3.eth.get_block(head.hash) == await web3.eth.get_block("latest")
    receipt = await web3.eth.get_transaction_receipt(digest)
    assert receipt["status"] == 1
    assert receipt["blockHash"] == head.hash
    events = runs(web3).events.RunProposed().process_receipt(receipt, errors=DISCARD)
    assert [event["args"]["name"] for event in events] == ["hearts"]
    assert await runs(web3).functions.count().call() == 1
    assert await runs(web3).functions.count().call(block_identifier=0) == 0
    with pytest.raises(BlockNotFound):
        await web3.eth.get_block(2)


@pytest.mark.parametrize("kind", [0, 1, 2])
async def test_every_kind_of_transaction_is_taken_and_shown_as_it_was_signed(
    web3: Any, ledger: Ledger, kind: int
) -> None:
    raw = world.propose(OPERATORS[0], 0, kind=kind)
    world.decide(ledger, world.build(ledger, raw))
    shown = await web3.eth.get_transaction(keccak256(raw))
    assert shown["type"] == kind
    assert shown["gasPrice"] == 0
    assert shown["chainId"] == CHAIN
    assert (shown["v"] in (0, 1)) == (kind != 0)
    assert (await web3.eth.get_transaction_receipt(keccak256(raw)))["type"] == kind
    raw_back = await web3.eth.get_block(1, full_transactions=True)
    assert raw_back["transactions"][0] == shown


async def test_web3_signs_fills_and_sends_by_itself(web3: Any, ledger: Ledger) -> None:
    arguments = ("lungs", b"\x01" * 32, b"\x02" * 32, 10, 2, 60_000, 60_000, 60_000, 1_000_000)
    sender = checksum(OPERATORS[1].address)
    filled = (
        await runs(web3)
        .functions.propose(*arguments)
        .build_transaction({"from": sender, "nonce": await web3.eth.get_transaction_count(sender)})
    )
    assert filled["maxFeePerGas"] == 0
    signed = web3.eth.account.sign_transaction(filled, OPERATORS[1].secret)
    digest = await web3.eth.send_raw_transaction(signed.raw_transaction)
    payload = ledger.build(world.now_ms(ledger), ledger.proposers()[0])
    assert payload is not None
    world.decide(ledger, payload)
    assert (await web3.eth.get_transaction_receipt(digest))["status"] == 1


async def test_a_revert_carries_the_contracts_reason(web3: Any, rpc: Rpc) -> None:
    call = runs(web3).functions.approve(7)
    with pytest.raises(ContractLogicError, match="execution reverted: "):
        await call.call({"from": checksum(OPERATORS[0].address)})
    with pytest.raises(ContractLogicError):
        await call.estimate_gas({"from": checksum(OPERATORS[0].address)})
    fields = {"to": to_hex(RUNS), "data": to_hex(interface("Runs").call("approve", 7))}
    with pytest.raises(RpcError) as caught:
        rpc.handle("eth_call", [{**fields, "from": to_hex(OPERATORS[0].address)}, "latest"])
    assert caught.value.code == 3
    assert str(caught.value.data).startswith("0x08c379a0")


async def test_a_failed_transactions_receipt_keeps_the_reason(rpc: Rpc, ledger: Ledger) -> None:
    raw = world.call(OPERATORS[0], 0, "approve", 7)
    world.decide(ledger, world.build(ledger, raw))
    receipt = rpc.handle("eth_getTransactionReceipt", [to_hex(keccak256(raw))])
    assert receipt["status"] == "0x0"
    assert receipt["revertReason"].startswith("0x08c379a0")


async def test_the_estimate_is_enough_and_not_wasteful(rpc: Rpc, ledger: Ledger) -> None:
    fields = {
        "from": to_hex(OPERATORS[0].address),
        "to": to_hex(RUNS),
        "data": to_hex(
            interface("Runs").call("propose", "x", b"\x01" * 32, b"\x02" * 32, 10, 2, 60_000, 60_000, 60_000, 1_000_000)
        ),
    }
    gas = int(rpc.handle("eth_estimateGas", [fields]), 16)
    raw = world.propose(OPERATORS[0], 0, "x", gas=gas)
    world.decide(ledger, world.build(ledger, raw))
    receipt = rpc.handle("eth_getTransactionReceipt", [to_hex(keccak256(raw))])
    assert receipt["status"] == "0x1"
    assert int(receipt["gasUsed"], 16) <= gas < 1.5 * int(receipt["gasUsed"], 16)


async def test_logs_are_found_by_range_address_and_topics(web3: Any, rpc: Rpc, ledger: Ledger) -> None:
    world.grow(ledger, 4)
    world.decide(ledger, world.build(ledger, world.call(OPERATORS[0], 1, "approve", 2)))
    topics = interface("Runs").topics
    everything = await web3.eth.get_logs({"fromBlock": 0, "toBlock": "latest"})
    proposed = [log for log in everything if log["topics"][0] == topics["RunProposed"]]
    assert [log["blockNumber"] for log in proposed] == [1, 2, 3, 4]

    async def found(**wanted: Any) -> list[int]:
        return [log["blockNumber"] for log in await web3.eth.get_logs({"fromBlock": 0, **wanted})]

    only = to_hex(topics["RunProposed"])
    run_2 = to_hex((2).to_bytes(32, "big"))
    assert await found(topics=[only]) == [1, 2, 3, 4]
    assert await found(topics=[only, run_2]) == [2]
    assert set(await found(topics=[None, run_2])) == {2, 5}
    assert set(await found(topics=[[only, to_hex(topics["RunApproved"])], run_2])) == {2, 5}
    assert await found(topics=[only], fromBlock=2, toBlock=3) == [2, 3]
    assert await found(topics=[only], address=checksum(RUNS)) == [1, 2, 3, 4]
    assert await found(address=checksum(CONSORTIUM)) == []
    assert await found(topics=[only], fromBlock=9) == []
    by_hash = await web3.eth.get_logs({"blockHash": ledger.block(4).header.hash})
    assert by_hash == await web3.eth.get_logs({"fromBlock": 4, "toBlock": 4})
    assert [log["logIndex"] for log in by_hash] == list(range(len(by_hash)))


def test_a_search_through_too_much_is_refused_and_told_how_to_ask(rpc: Rpc, ledger: Ledger) -> None:
    world.grow(ledger, 3)
    rpc.limits = Limits(log_blocks_max=3, logs_max=2)
    with pytest.raises(RpcError, match=r"4 blocks, at most 3 .* ask for 0 to 2 \(0x0 to 0x2\)"):
        rpc.handle("eth_getLogs", [{"fromBlock": "0x0"}])
    with pytest.raises(RpcError, match="more than 2 logs"):
        rpc.handle("eth_getLogs", [{"fromBlock": "0x1"}])


def test_a_proof_holds_against_the_state_root(rpc: Rpc, ledger: Ledger) -> None:
    world.grow(ledger, 2)
    slot = next(slot for slot in range(64) if ledger.storage(CONSORTIUM, slot))
    proof = rpc.handle("eth_getProof", [to_hex(CONSORTIUM), [hex(slot)], "latest"])
    block = rpc.handle("eth_getBlockByNumber", ["latest", False])
    account = rlp.decode(_proven(block["stateRoot"], keccak256(CONSORTIUM), proof["accountProof"]))
    assert to_hex(account[2]) == proof["storageHash"]
    assert to_hex(account[3]) == proof["codeHash"] == to_hex(keccak256(ledger.code(CONSORTIUM)))
    [storage] = proof["storageProof"]
    value = _proven(proof["storageHash"], keccak256(slot.to_bytes(32, "big")), storage["proof"])
    assert int.from_bytes(rlp.decode(value), "big") == int(storage["value"], 16) == ledger.storage(CONSORTIUM, slot)


def _proven(root: str, key: bytes, nodes: list[str]) -> bytes:
    decoded = [rlp.decode(from_hex(node)) for node in nodes]
    return bytes(HexaryTrie.get_from_proof(from_hex(root), key, decoded))


def test_fees_are_zero_through_all_of_history(rpc: Rpc, ledger: Ledger) -> None:
    world.grow(ledger, 2)
    history = rpc.handle("eth_feeHistory", ["0x5", "latest", [10, 90]])
    assert history["oldestBlock"] == "0x0"
    assert history["baseFeePerGas"] == ["0x0"] * 4
    assert len(history["gasUsedRatio"]) == len(history["reward"]) == 3
    assert all(ratio < 0.5 for ratio in history["gasUsedRatio"])


def test_the_certificate_of_a_block_is_readable(rpc: Rpc, ledger: Ledger) -> None:
    [(_, first), (_, second)] = world.grow(ledger, 2)
    assert rpc.handle("swarm_getCertificate", ["0x0"]) == "0x"
    assert rpc.handle("swarm_getCertificate", ["0x1"]) == to_hex(first.encode())
    assert rpc.handle("swarm_getCertificate", ["latest"]) == to_hex(second.encode())


def test_the_past_stays_readable(rpc: Rpc, ledger: Ledger) -> None:
    world.grow(ledger, 3)
    data = to_hex(interface("Runs").call("count"))
    counts = [rpc.handle("eth_call", [{"to": to_hex(RUNS), "data": data}, hex(number)]) for number in range(4)]
    assert [int(count, 16) for count in counts] == [0, 1, 2, 3]
    by_hash = {"blockHash": to_hex(ledger.block(2).header.hash)}
    assert int(rpc.handle("eth_call", [{"to": to_hex(RUNS), "data": data}, by_hash]), 16) == 2
    assert rpc.handle("eth_getTransactionCount", [to_hex(OPERATORS[0].address), "0x1"]) == "0x1"
    assert rpc.handle("eth_getTransactionCount", [to_hex(OPERATORS[0].address), "earliest"]) == "0x0"
    assert rpc.handle("eth_getBalance", [to_hex(STRANGER.address), "latest"]) == "0x0"
    assert rpc.handle("eth_getCode", [to_hex(STRANGER.address), "latest"]) == "0x"


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("eth_mine", [], -32601),
        ("eth_getBalance", [], -32602),
        ("eth_getBalance", ["0x12", "latest"], -32602),
        ("eth_getBalance", [1], -32602),
        ("eth_getBlockByNumber", ["soon"], -32602),
        ("eth_getBlockByNumber", {"a": 1}, -32602),
        ("eth_getBlockByHash", ["0x" + "00" * 31], -32602),
        ("eth_getTransactionReceipt", [None], -32602),
        ("eth_getStorageAt", ["0x" + "00" * 20, "-0x1"], -32602),
        ("eth_call", [{"to": "0x" + "00" * 20}, "0xffffff"], -32602),
        ("eth_call", [{"to": "0x" + "00" * 20}, {"blockHash": "0x" + "11" * 32}], -32602),
        ("eth_call", [{"to": "0x" + "00" * 20}, "latest", {"0x": {}}], -32602),
        ("eth_call", ["x"], -32602),
        ("eth_getLogs", [{"topics": ["0x12"]}], -32602),
        ("eth_feeHistory", ["0x1", "latest", "x", 1], -32602),
        ("eth_sendRawTransaction", ["0x00"], -32000),
        ("eth_sendRawTransaction", ["hello"], -32602),
        ("swarm_getCertificate", ["0x9"], -32602),
    ],
)
def test_a_request_that_cannot_be_answered_is_an_error_and_nothing_worse(
    rpc: Rpc, method: str, params: Any, code: int
) -> None:
    with pytest.raises(RpcError) as caught:
        rpc.handle(method, params)
    assert caught.value.as_json()["code"] == code
    assert caught.value.as_json()["message"]


def test_what_the_ledger_does_not_have_is_null(rpc: Rpc) -> None:
    nothing = "0x" + "12" * 32
    assert rpc.handle("eth_getBlockByHash", [nothing]) is None
    assert rpc.handle("eth_getBlockByNumber", ["0x77"]) is None
    assert rpc.handle("eth_getTransactionByHash", [nothing]) is None
    assert rpc.handle("eth_getTransactionReceipt", [nothing]) is None


def test_a_call_that_runs_out_of_gas_is_no_revert(rpc: Rpc) -> None:
    fields = {"to": to_hex(RUNS), "data": to_hex(interface("Runs").call("count")), "gas": hex(21_500)}
    with pytest.raises(RpcError, match="OutOfGas") as caught:
        rpc.handle("eth_call", [fields, "latest"])
    assert caught.value.code == -32000
