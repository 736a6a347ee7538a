"""Our loop against py-evm's own, instruction by instruction: random programs end alike, to the last unit of gas."""

from __future__ import annotations

import os
import random

import pytest
from eth.vm.forks.cancun.computation import CancunComputation
from eth.vm.gas_meter import GasMeter

from swarm.encoding import ZERO_DIGEST
from swarm.ledger import evm, interpreter
from swarm.ledger.block import EMPTY_TRIE_ROOT, Header
from swarm.ledger.evm import Allocation, Evm, Outcome
from swarm.ledger.state import State
from tests.ledger.test_evm import push

SEEDS = int(os.environ.get("EVM_SEEDS", "60"))
PROGRAMS = 20
"""Programs a seed."""
CONTRACT, OTHER, CALLER = b"\xc0" * 20, b"\xc1" * 20, b"\xca" * 20
WORDS = [0, 1, 2, 3, 31, 32, 33, 255, 256, 1 << 31, 1 << 32, 1 << 128, (1 << 255) - 1, 1 << 255, (1 << 256) - 1]
ARGUMENTS = {
    **dict.fromkeys([*range(0x01, 0x08), 0x0A, 0x0B, *range(0x10, 0x15), *range(0x16, 0x19), *range(0x1A, 0x1E)], 2),
    **dict.fromkeys([0x08, 0x09, 0x37, 0x39, 0x5E], 3),
    **dict.fromkeys([0x15, 0x19, 0x31, 0x35, 0x3B, 0x3F, 0x40, 0x50, 0x51, 0x54, 0x5C, 0xFF], 1),
    **dict.fromkeys([0x20, 0x52, 0x53, 0x55, 0x5D, 0xA0, 0xF3, 0xFD], 2),
    **dict.fromkeys([0x30, *range(0x32, 0x35), 0x36, 0x38, 0x3D, *range(0x41, 0x49), 0x58, 0x59, 0x5A, 0x5B, 0x5F], 0),
    **dict.fromkeys([*range(0x80, 0xA0), 0x3E, 0xA1, 0xA2, 0xF1, 0xF4, 0xFA], 0),
    0xFE: 0,
}
"""How many values an instruction takes; where they stand for places in memory they are kept small."""
OFTEN = [
    0x01,
    0x03,
    0x10,
    0x14,
    0x15,
    0x16,
    0x1B,
    0x1C,
    0x20,
    0x35,
    0x51,
    0x52,
    0x54,
    0x54,
    0x55,
    0x80,
    0x81,
    0x90,
    0x91,
]
MEMORY = frozenset([0x20, 0x37, 0x39, 0x51, 0x52, 0x53, 0x5E, 0xA0, 0xF3, 0xFD])
ENDS = frozenset([0xF3, 0xFD, 0xFE, 0xFF])


def word(rng: random.Random) -> int:
    pick = rng.random()
    if pick < 0.5:
        return rng.randint(0, 200)
    return rng.choice(WORDS) if pick < 0.8 else rng.getrandbits(256)


def program(rng: random.Random) -> bytes:
    """Mostly sensible: what an instruction takes is on the stack, and jumps often land."""
    code = b"".join(push(word(rng)) for _ in range(rng.randint(0, 20)))
    for _ in range(rng.randint(1, 60)):
        pick = rng.random()
        if pick < 0.05:
            landing = [at for at in range(len(code)) if code[at] == 0x5B]
            target = rng.choice(landing) if landing and rng.random() < 0.7 else rng.randint(0, len(code) + 20)
            code += push(word(rng)) + push(target) + (b"\x57" if rng.random() < 0.8 else b"\x56")
            continue
        if pick < 0.1:
            # Forward over two bytes that would end it.
            at = len(code)
            code += push(1) + b"\x61" + (at + 8).to_bytes(2, "big") + b"\x57\xfe\xfe\x5b"
            continue
        instruction = rng.choice(OFTEN) if pick < 0.6 else rng.choice(list(ARGUMENTS))
        if instruction in ENDS and rng.random() < 0.8:
            continue
        if rng.random() < 0.95:
            small = instruction in MEMORY or instruction in (0x54, 0x55, 0x5C, 0x5D)
            for _ in range(ARGUMENTS[instruction]):
                code += push(rng.randint(0, 3 if instruction in (0x54, 0x55) else 100) if small else word(rng))
        code += bytes([instruction])
    return code[: rng.randint(1, len(code))] if rng.random() < 0.05 else code


def outcome(code: bytes, other: bytes, data: bytes, gas: int) -> Outcome:
    database: dict[bytes, bytes] = {}
    machine = Evm(1, database.get, lambda _: None)
    genesis = machine.genesis(
        {CONTRACT: Allocation(code, {1: 5, 2: 1 << 255}, 1, 50), OTHER: Allocation(other, {0: 1}, 1, 0)},
        timestamp_ms=1, gas_limit=1 << 40,
    )  # fmt: skip
    database.update(genesis.changes.writes)
    parent = genesis.header
    header = Header(
        parent.hash, b"\xcb" * 20, parent.state_root, EMPTY_TRIE_ROOT, EMPTY_TRIE_ROOT, bytes(256), 1, 1 << 40, 0, 77,
        ZERO_DIGEST,
    )  # fmt: skip
    return machine.call(header, sender=CALLER, to=CONTRACT, data=data, gas=gas)


Ending = tuple[bool, bool, bytes, int, list[tuple[object, ...]]]


def both(monkeypatch: pytest.MonkeyPatch, code: bytes, other: bytes, data: bytes, gas: int) -> tuple[Ending, Ending]:
    """What our loop and py-evm's give: success, output, gas, and every write to storage and refund on the way."""
    results = []
    for kind in (evm._Computation, CancunComputation):
        writes: list[tuple[object, ...]] = []
        store, refund = State.set_storage, GasMeter.refund_gas
        with monkeypatch.context() as patch:
            patch.setattr(evm._Machine, "computation_class", kind)
            patch.setattr(State, "set_storage", lambda *a, w=writes, s=store: (w.append(a[1:]), s(*a))[1])
            patch.setattr(GasMeter, "refund_gas", lambda *a, w=writes, r=refund: (w.append(a[1:]), r(*a))[1])
            result = outcome(code, other, data, gas)
        results.append((result.succeeded, result.reverted, result.output, result.gas_used, writes))
    return results[0], results[1]


@pytest.mark.filterwarnings("ignore:SELFDESTRUCT")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_programs_end_alike(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(PROGRAMS):
        code, other, data = program(rng), program(rng), rng.randbytes(rng.choice([0, 4, 36, 100]))
        gas = 21_000 + 16 * len(data) + rng.choice([50, 500, 3_000, 30_000, 200_000])
        ours, theirs = both(monkeypatch, code, other, data, gas)
        assert ours == theirs, (seed, number, code.hex())
        ENDED_WELL.append(ours[0])


ENDED_WELL: list[bool] = []


def test_many_of_the_random_programs_reach_their_end() -> None:
    if not ENDED_WELL:
        test_random_programs_end_alike(pytest.MonkeyPatch(), 0)
    assert sum(ENDED_WELL) > len(ENDED_WELL) / 10


@pytest.mark.parametrize("instruction", [*range(0x01, 0x08), 0x0A, 0x0B, *range(0x10, 0x15), *range(0x16, 0x1E)])
def test_arithmetic_is_right_at_the_edges(monkeypatch: pytest.MonkeyPatch, instruction: int) -> None:
    for left in WORDS:
        code = b"".join(
            push(right) + push(left) + bytes([instruction]) + push(slot) + b"\x55" for slot, right in enumerate(WORDS)
        )
        ours, theirs = both(monkeypatch, code, b"", b"", 1_000_000)
        assert ours == theirs, left


@pytest.mark.parametrize(
    "code",
    [
        "5b600056",  # a loop until the gas is gone
        "5f" * 1024 + "00",
        "5f" * 1025,
        "5f80" + "80" * 1023,
        "30" * 1025,
        "600456005b00",
        "600556005b00",
        "6003565b",  # into a push's data
        "615b5b600256",
        "50",
        "90",
        "8f",
        "56",
        "57",
        "52",
        "54",
        "7f",
        "60",
        "5f5f20",
        "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff51",
        "63ffffffff51",
        "5f63ffffffff20",
        "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff5f20",
        "5f7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff20",
        "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff3560005500",
        "600135600055",
        "5a600055",
        "42600055",
        "58600055",
        "595f52595f5559600155",
    ],
)
def test_the_corners_are_the_same(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    for gas in (21_500, 26_000, 60_000, 300_000):
        ours, theirs = both(monkeypatch, bytes.fromhex(code), b"", b"\x01\x02\x03", gas)
        assert ours == theirs, gas


@pytest.mark.parametrize("slot", [1, 7])
def test_every_way_to_write_a_slot_twice_costs_the_same(monkeypatch: pytest.MonkeyPatch, slot: int) -> None:
    """Slot 1 holds 5 from before, slot 7 nothing."""
    for first in (0, 5, 6):
        for second in (0, 5, 6):
            code = b"".join(push(value) + push(slot) + b"\x55" for value in (first, second))
            ours, theirs = both(monkeypatch, code, b"", b"", 100_000)
            assert ours == theirs, (first, second)


def test_a_write_ends_at_the_same_unit_of_gas(monkeypatch: pytest.MonkeyPatch) -> None:
    for left in (*range(2_298, 2_303), *range(2_998, 3_003), *range(4_998, 5_003), *range(22_098, 22_103)):
        for value in (5, 6):  # slot 1 holds 5
            ours, theirs = both(monkeypatch, push(value) + push(1) + b"\x55", b"", b"", 21_000 + 6 + left)
            assert ours == theirs, (left, value)


@pytest.mark.parametrize(
    "callee",
    [push(3) + push(0) + b"\x55", push(40) + b"\x5f\xf3", push(33) + b"\x5f\xfd"],
    ids=["writes", "returns", "reverts"],
)
def test_what_a_static_call_leaves_is_the_same(monkeypatch: pytest.MonkeyPatch, callee: bytes) -> None:
    code = push(0) * 4 + push(int.from_bytes(OTHER, "big")) + push(90_000) + b"\xfa\x3d" + push(2) + b"\x55\x00"
    ours, theirs = both(monkeypatch, code, callee, b"", 200_000)
    assert ours == theirs
    assert ours[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("_WARM_SLOAD", 101), ("_COLD_SLOAD", 2000), ("_MAX", (1 << 255) - 1), ("_STACK_MAX", 1025), ("_STACK_MAX", 5),
     ("_STIPEND", 2_299), ("_STIPEND", 2_301), ("_SET", 19_999), ("_RESET", 2_901), ("_CLEARS", 4_799)],
)  # fmt: skip
def test_a_planted_mistake_is_found(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    monkeypatch.setattr(interpreter, name, value)
    with pytest.raises(AssertionError):
        _everything(monkeypatch)


@pytest.mark.parametrize(
    "instruction",
    [0x01, 0x10, 0x1B, 0x35, 0x37, 0x39, 0x3D, 0x42, 0x50, 0x51, 0x52, 0x57, 0x5A, 0x5B, 0x5E, 0x60, 0x80, 0x90],
)
def test_a_wrong_price_is_found(monkeypatch: pytest.MonkeyPatch, instruction: int) -> None:
    costs = list(interpreter._COSTS)
    costs[instruction] += 1
    monkeypatch.setattr(interpreter, "_COSTS", costs)
    with pytest.raises(AssertionError):
        _everything(monkeypatch)


def _everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for slot in (1, 7):
        test_every_way_to_write_a_slot_twice_costs_the_same(monkeypatch, slot)
    test_a_write_ends_at_the_same_unit_of_gas(monkeypatch)
    for seed in range(SEEDS):
        test_random_programs_end_alike(monkeypatch, seed)
    for count in (1024, 1025):
        test_the_corners_are_the_same(monkeypatch, "5f" * count + "00")
