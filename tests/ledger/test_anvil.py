"""anvil executes the blocks of our ledger: the same receipts, answers and state, to the last unit of gas."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import rlp
from trie import HexaryTrie
from web3 import AsyncWeb3

from swarm.config import Policy
from swarm.encoding import ZERO_ADDRESS, Address, Digest, from_hex, keccak256, to_hex
from swarm.identity import Identity
from swarm.ledger import evm
from swarm.ledger.abi import interface
from swarm.ledger.artifact import artifact
from swarm.ledger.client import Contracts
from swarm.ledger.endpoint import Call
from swarm.ledger.genesis import CONSORTIUM, RUNS, allocations
from swarm.ledger.ledger import Ledger
from swarm.ledger.provider import LedgerProvider
from swarm.ledger.rpc import Rpc, RpcError
from swarm.rounds import Phase
from tests.ledger import world
from tests.ledger.anvil import CHAIN, Anvil
from tests.ledger.world import BY_ADDRESS, CREATED_MS, MEMBERS, OPERATORS

CALLS = int(os.environ.get("ANVIL_CALLS", "240"))
GAS_LIMIT = 400_000_000
SAME_IN_RECEIPTS = ("status", "gasUsed", "cumulativeGasUsed", "logsBloom", "from", "to", "type", "transactionIndex")
SAME_IN_BLOCKS = ("receiptsRoot", "transactionsRoot", "logsBloom", "gasUsed", "gasLimit", "timestamp")
WORDS = ("", "site 1", "hearts", "a name of thirty-two characters..", "/ip4/10.0.0.1/tcp/1/p2p/x")


def genesis_of(folder: Path) -> Path:
    """Our block 0 as anvil reads it."""
    alloc = {
        to_hex(address): {
            "nonce": hex(one.nonce),
            "balance": hex(one.balance),
            "code": to_hex(one.code),
            "storage": {f"0x{slot:064x}": f"0x{value:064x}" for slot, value in one.storage.items()},
        }
        for address, one in allocations(world.config(chain_id=CHAIN)).items()
    }
    path = folder / "genesis.json"
    path.write_text(
        json.dumps(
            {
                "config": {"chainId": CHAIN}, "alloc": alloc, "gasLimit": hex(GAS_LIMIT),
                "timestamp": hex(CREATED_MS), "difficulty": "0x0", "baseFeePerGas": "0x0", "nonce": "0x0",
            }
        )
    )  # fmt: skip
    return path


@dataclass
class Duel:
    """Our ledger and anvil, block by block."""

    anvil: Anvil
    ledger: Ledger
    rng: random.Random
    sent: int = 0
    refused: int = 0
    exhausted: int = 0
    pending: list[tuple[bytes, Identity, Call, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rpc = Rpc(self.ledger, self.ledger.add_transaction)

    def send(self, sender: Identity, call: Call, *, gas: int = 5_000_000) -> None:
        """Put a call into the next block."""
        assert call.to is not None
        if sender.address not in self.admitted():
            return  # its key was rotated: our pool does not take its calls
        waiting = sum(one is sender for _, one, _, _ in self.pending)
        nonce = self.ledger.nonce(sender.address) + waiting
        kind = self.rng.randrange(3)
        raw = world.signed(sender, nonce, call.to, call.data, kind=kind, gas=gas, chain_id=CHAIN)
        self.pending.append((raw, sender, call, gas))

    def admitted(self) -> set[Address]:
        """Who may send: members and their operators."""
        view = interface("Consortium")
        roster = view.result("roster", self.ledger.call(to=CONSORTIUM, data=view.call("roster")).output)
        return {address for member, record in roster for address in (member, record[0])}

    def decide(self) -> None:
        """Decide the block here, mine it there, and compare."""
        if not self.pending:
            return
        for _, sender, call, gas in self.pending:
            self._same_answer(sender, call, gas)
        calls, self.pending = self.pending, []
        world.decide(self.ledger, world.build(self.ledger, *[raw for raw, *_ in calls]))
        header = self.ledger.head
        for raw, *_ in calls:
            self.anvil.ask("eth_sendRawTransaction", to_hex(raw))
        self.anvil.ask("evm_setNextBlockTimestamp", hex(header.timestamp_ms))
        self.anvil.ask("evm_mine")
        number = hex(header.number)
        ours, theirs = (
            self.ours("eth_getBlockByNumber", number, True),
            self.anvil.ask("eth_getBlockByNumber", number, True),
        )
        assert [one["hash"] for one in ours["transactions"]] == [one["hash"] for one in theirs["transactions"]]
        for transaction in ours["transactions"]:
            self._same_receipt(transaction["hash"])
        for name in SAME_IN_BLOCKS:
            assert ours[name] == theirs[name], f"block {header.number}: {name}"

    def compare_states(self) -> None:
        """Every account and slot. Not the root: anvil keeps empty accounts and zeros in its tries."""
        dump = json.loads(gzip.decompress(from_hex(self.anvil.ask("anvil_dumpState"))))
        for address, account in dump["accounts"].items():
            ours = self.ours("eth_getProof", address, [], "latest")
            assert (ours["nonce"], ours["balance"]) == (hex(int(account["nonce"])), account["balance"]), address
            assert self.ours("eth_getCode", address, "latest") == account["code"], address
            slots = HexaryTrie({})
            for slot, value in account["storage"].items():
                if int(value, 16):
                    slots[keccak256(from_hex(slot))] = rlp.encode(int(value, 16))
            assert ours["storageHash"] == to_hex(slots.root_hash), address

    def ours(self, method: str, *params: object) -> Any:
        return self.rpc.handle(method, list(params))

    def _same_answer(self, sender: Identity, call: Call, gas: int) -> None:
        """What the call would answer right now: return data, or revert data."""
        message = {"from": to_hex(sender.address), "to": to_hex(call.to or b""), "data": to_hex(call.data)}
        message["gas"] = hex(gas)
        try:
            found = ("answered", self.ours("eth_call", message, "latest"))
        except RpcError as error:
            found = ("refused", error.data if error.code == 3 else None)
        assert found == self._theirs(message), f"{call.what}: eth_call"

    def _theirs(self, message: dict[str, str]) -> tuple[str, object]:
        answer = self.anvil.answer("eth_call", message, "latest")
        if "error" not in answer:
            return "answered", answer["result"]
        data = answer["error"].get("data")
        return "refused", data if answer["error"]["code"] == 3 else None

    def _same_receipt(self, digest: str) -> None:
        ours, theirs = (
            self.ours("eth_getTransactionReceipt", digest),
            self.anvil.ask("eth_getTransactionReceipt", digest),
        )
        for name in SAME_IN_RECEIPTS:
            assert _plain(ours[name]) == _plain(theirs[name]), f"transaction {digest}: {name}"
        logs = [
            [(_plain(log["address"]), log["topics"], log["data"], log["logIndex"]) for log in one["logs"]]
            for one in (ours, theirs)
        ]
        assert logs[0] == logs[1], f"transaction {digest}: logs"
        self.sent += 1
        self.refused += ours["status"] == "0x0"
        self.exhausted += ours["status"] == "0x0" and not ours.get("revertReason")


def _plain(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


@pytest.fixture
def duel(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Duel]:
    genesis = genesis_of(tmp_path)
    options = [
        "--init",
        str(genesis),
        "--no-mining",
        "--gas-limit",
        str(GAS_LIMIT),
        "--order",
        "fifo",
        "--disable-default-create2-deployer",
    ]
    with Anvil(base_fee=0, options=options) as anvil:
        ledger = Ledger.open(tmp_path / "ledger", world.genesis(4, None, CHAIN))
        yield Duel(anvil, ledger, random.Random(7))
        ledger.close()


def random_call(rng: random.Random) -> tuple[Identity, Call]:
    """Any call of either contract, with arguments that are sometimes right."""
    name = rng.choice(("Consortium", "Runs"))
    functions = [one for one in artifact(name).abi if one["type"] == "function"]
    # A recovery comes from the blocks' own rules, never from the pool.
    entries = [one for one in functions if one["stateMutability"] == "nonpayable" and one["name"] != "recover"]
    entry = rng.choice(entries)
    arguments = [_argument(part["type"], rng) for part in entry["inputs"]]
    data = interface(name).call(entry["name"], *arguments)
    if rng.random() < 0.05:
        data = data[: rng.randint(0, len(data))]
    call = Call(CONSORTIUM if name == "Consortium" else RUNS, data, f"{name}.{entry['name']}")
    return rng.choice((*MEMBERS, *OPERATORS)), call


def _argument(kind: str, rng: random.Random) -> object:
    if kind.endswith("[]"):
        return [_argument(kind[:-2], rng) for _ in range(rng.randint(0, 3))]
    if kind.startswith("bytes") and kind != "bytes":
        return keccak256(bytes([rng.randint(0, 3)])) if rng.random() < 0.9 else bytes(32)
    match kind:
        case "uint256":
            return rng.choice((0, 0, 1, 1, 1, 2, 3, 1000, 2**64, 2**256 - 1))
        case "address":
            return rng.choice((*(one.address for one in (*MEMBERS, *OPERATORS)), ZERO_ADDRESS))
        case "bool":
            return rng.random() < 0.5
        case "string":
            return rng.choice(WORDS)
        case "bytes":
            return rng.randbytes(rng.choice((0, 2, 65, 130)))
    raise AssertionError(f"no argument of kind {kind}")


async def honest(duel: Duel, contracts: Contracts, run: int) -> None:
    """What members owe in the run's present round, as one block; the rest of it is random calls."""
    state = await contracts.round_state(run)
    checkpoint = keccak256(b"checkpoint" + bytes([state.round]))
    if state.phase is Phase.SUBMIT:
        for place, member in enumerate(MEMBERS[:4]):
            digest: Digest = keccak256(bytes([state.round, place]))
            duel.send(member, contracts.submit(run, state.round, digest, 10 + place, {"auc": 0.5}))
    elif state.phase is Phase.MERGE:
        duel.send(BY_ADDRESS[state.leader], contracts.publish(run, state.round, state.view, checkpoint))
    else:
        assert state.published is not None
        for member in MEMBERS[:4]:
            if member.address not in {state.leader, *state.attested, *state.refused}:
                duel.send(member, contracts.attest(run, state.round, state.view, state.published))


async def play(duel: Duel, calls: int) -> None:
    """A run from its proposal on, and so many random calls around it."""
    contracts = Contracts(AsyncWeb3(LedgerProvider(duel.rpc)))
    policy = Policy(name="hearts", rounds=1000, sync_interval=1, submit_s=0.5, merge_s=0.5, attest_s=0.5)
    duel.send(OPERATORS[0], contracts.propose(policy, keccak256(b"genesis")))
    duel.decide()
    for operator in OPERATORS[1:4]:
        duel.send(operator, contracts.approve(1))
    duel.decide()
    for member in MEMBERS[:4]:
        duel.send(member, contracts.join(1, True))
    duel.decide()
    while duel.sent < calls:
        if duel.rng.random() < 0.5:
            await honest(duel, contracts, 1)
        for _ in range(duel.rng.randint(1, 4)):
            sender, call = random_call(duel.rng)
            duel.send(sender, call, gas=duel.rng.choice((30_000, 60_000, 150_000, 5_000_000, 5_000_000)))
        duel.decide()
        if duel.ledger.head.number % 20 == 0:
            duel.compare_states()
    duel.compare_states()


async def test_anvil_gives_every_receipt_answer_and_slot_that_we_give(duel: Duel) -> None:
    await play(duel, CALLS)
    print(f"{duel.sent} calls: {duel.refused} refused, {duel.exhausted} of them out of gas")
    assert duel.sent >= CALLS
    taken = duel.sent - duel.refused
    assert taken >= duel.sent // 5, f"{duel.sent} calls, {duel.refused} refused: too few do anything"
    assert duel.refused >= duel.sent // 5
    assert duel.exhausted > 0, "no call ran out of gas"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_anvil_agrees_over_many_seeds(duel: Duel, seed: int) -> None:
    duel.rng.seed(seed)
    await play(duel, 1000)


@pytest.mark.parametrize(
    ("where", "name", "wrong"), [(evm, "_REFUND_SHARE", 10**9), (evm, "TRANSACTION_GAS_MIN", 21_001)]
)
async def test_a_planted_mistake_in_our_gas_is_noticed(
    duel: Duel, monkeypatch: pytest.MonkeyPatch, where: ModuleType, name: str, wrong: int
) -> None:
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError, match=r"gasUsed|status|answered"):
        await play(duel, CALLS)
