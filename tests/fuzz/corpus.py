"""Where the nonsense starts from: what members really send each other, and bytes that are almost that."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any
from unittest.mock import patch

from sim.plan import Plan
from sim.world import run
from swarm.encoding import Address, Item, Unpacked, pack, unpack
from swarm.net.memory import MemoryTransport
from swarm.net.transport import Handler

PER_PROTOCOL_MAX = 64
PLAN = Plan(seed=2, members=4, rounds=3, loss=0.1, crashes=2, partitions=1, leaves=1)
"""Weather that makes nodes change views, ask for blocks and fetch objects again."""


def recorded(plan: Plan = PLAN) -> tuple[dict[str, list[bytes]], dict[str, list[bytes]]]:
    """The requests and the answers of a simulated swarm, by protocol, without repetition."""
    requests: dict[str, dict[bytes, None]] = defaultdict(dict)
    answers: dict[str, dict[bytes, None]] = defaultdict(dict)
    serve = MemoryTransport.serve

    def listen(self: MemoryTransport, protocol: str, handler: Handler) -> None:
        async def overheard(member: Address, payload: bytes) -> bytes:
            requests[protocol][payload] = None
            answer = await handler(member, payload)
            answers[protocol][answer] = None
            return answer

        serve(self, protocol, overheard)

    with patch.object(MemoryTransport, "serve", listen):
        outcome = run(plan)
    assert not outcome.failure, outcome.failure
    return _thinned(requests), _thinned(answers)


def _thinned(found: dict[str, dict[bytes, None]]) -> dict[str, list[bytes]]:
    """Some of each, from all of the run."""
    thinned = {}
    for protocol, payloads in found.items():
        all_of_it = list(payloads)
        stride = max(len(all_of_it) // PER_PROTOCOL_MAX, 1)
        thinned[protocol] = all_of_it[::stride][:PER_PROTOCOL_MAX]
    return thinned


def reshaped(chance: random.Random, corpus: list[bytes]) -> bytes:
    """One of the corpus that is RLP, with one to three of its items replaced: canonical bytes, another meaning."""
    try:
        item = _tree(unpack(chance.choice(corpus), max_bytes=1 << 24))
    except ValueError:
        return mutated(chance, corpus)
    for _ in range(chance.randint(1, 3)):
        item = _replaced(chance, item)
    return pack(item)


def reworded(chance: random.Random, corpus: list[bytes]) -> bytes:
    """One of the corpus that is JSON, with one to three of its values or keys replaced."""
    value: Any = json.loads(chance.choice(corpus))
    for _ in range(chance.randint(1, 3)):
        value = _other(chance, value)
    return json.dumps(value).encode()


def _other(chance: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        lot = chance.random()
        if lot < 0.1:
            return {name: kept for name, kept in value.items() if name != key}
        if lot < 0.2:
            return {(name + "s" if name == key else name): kept for name, kept in value.items()}
        return value | {key: _other(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], _other(chance, value[at]), *value[at + 1 :]]
    edges: list[Any] = [
        None, True, 0, -1, 1.5, 1e308, 1 << 70, "", "0x", "0x0", "0x00", "0xg", "0x" + "f" * 64, "0x" + "f" * 65,
        "latest", "pending", "earliest", "\ud800", [], {}, [[[]]], {"a": {}}, "0x" + "00" * 20, {"fromBlock": "0x0"},
        ["0x1"] * 200,
    ]  # fmt: skip
    return chance.choice(edges)


def _tree(item: Unpacked) -> Item:
    return [_tree(one) for one in item] if isinstance(item, list) else item


def _replaced(chance: random.Random, item: Item) -> Item:
    if isinstance(item, list) and item and chance.random() < 0.85:
        at = chance.randrange(len(item))
        lot = chance.random()
        if lot < 0.7:
            return [*item[:at], _replaced(chance, item[at]), *item[at + 1 :]]
        if lot < 0.8:
            return [*item[:at], *item[at + 1 :]]
        if lot < 0.9:
            return [*item[: at + 1], *item[at:]]
        return list(reversed(item))
    if isinstance(item, bytes) and item and chance.random() < 0.5:
        at = chance.randrange(len(item))
        return item[:at] + bytes([item[at] ^ 1 << chance.randrange(8)]) + item[at + 1 :]
    edges: list[Item] = [
        b"", [], 0, 1, (1 << 32) - 1, 1 << 32, (1 << 64) - 1, 1 << 64, 1 << 300, bytes(20), bytes(32), b"\xff" * 32,
        bytes(65), [[]], [b""] * 129, chance.randbytes(32), chance.randbytes(65),
    ]  # fmt: skip
    return chance.choice(edges)


def mutated(chance: random.Random, corpus: list[bytes]) -> bytes:
    """One of the corpus with one to four changes: bits, bytes, numbers at the edge, lengths, cuts, parts of others."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        lot = chance.randrange(8)
        if lot == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif lot == 1 and data:
            data[at % len(data)] = chance.choice([0, 1, 0x7F, 0x80, 0xB7, 0xB8, 0xBF, 0xC0, 0xF7, 0xF8, 0xFF])
        elif lot == 2:
            data[at:at] = chance.randbytes(chance.randint(1, 9))
        elif lot == 3:
            del data[at : at + chance.randint(1, 40)]
        elif lot == 4:
            del data[at:]
        elif lot == 5:
            other = chance.choice(corpus)
            start = chance.randrange(len(other) + 1)
            data[at : at + chance.choice([0, 8, 32])] = other[start : start + chance.randint(1, 64)]
        elif lot == 6:
            data[at : at + 8] = chance.choice([bytes(8), b"\xff" * 8, (1 << 63).to_bytes(8, "big"), b"\xfb" + bytes(7)])
        else:
            data = bytearray(chance.randbytes(chance.choice([0, 1, 3, 40, 400])))
    return bytes(data)
