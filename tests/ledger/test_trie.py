"""Our trie against py-trie's, which changes one key at a time."""

from __future__ import annotations

import random

import pytest
import rlp
from trie import HexaryTrie

from swarm.encoding import Digest, keccak256
from swarm.ledger.block import EMPTY_TRIE_ROOT
from swarm.ledger.trie import MissingNodeError, Nodes, ordered_root


def keys_of(rng: random.Random, *, crowded: bool) -> bytes:
    return bytes(rng.choice([0, 1, 0x10, 0x11]) for _ in range(4)) if crowded else rng.randbytes(32)


@pytest.mark.parametrize("seed", range(24))
def test_batches_of_changes_give_the_root_that_single_changes_give(seed: int) -> None:
    rng = random.Random(seed)
    database: dict[Digest, bytes] = {}
    root, oracle, keys = EMPTY_TRIE_ROOT, HexaryTrie({}), [b"\x00" * 4 if seed % 2 else bytes(32)]
    nodes = Nodes(database.get)
    for step in range(30):
        changes = {}
        for _ in range(rng.randint(1, 8)):
            key = rng.choice(keys) if rng.random() < 0.5 else keys_of(rng, crowded=seed % 2 == 1)
            keys.append(key)
            changes[key] = b"" if rng.random() < 0.45 else rng.randbytes(rng.choice([1, 2, 20, 40]))
        root = nodes.update(root, changes, database)
        for key, value in changes.items():
            if value:
                oracle[key] = value
            elif key in oracle:
                del oracle[key]
        assert root == oracle.root_hash, (seed, step)
        # Read back by someone who has nothing but the database.
        fresh = Nodes(database.get)
        for key in keys[-8:]:
            assert fresh.get(root, key) == oracle.get(key), (seed, step)


@pytest.mark.parametrize("seed", range(6))
def test_a_proof_shows_presence_and_absence(seed: int) -> None:
    rng = random.Random(seed)
    database: dict[Digest, bytes] = {}
    nodes = Nodes(database.get)
    values = {keys_of(rng, crowded=seed % 2 == 1): rng.randbytes(33) for _ in range(50)}
    root = nodes.update(EMPTY_TRIE_ROOT, values, database)
    for key in [*values, *(keys_of(rng, crowded=seed % 2 == 1) for _ in range(50))]:
        proof = [rlp.decode(node) for node in nodes.proof(root, key)]
        assert HexaryTrie.get_from_proof(root, key, proof) == values.get(key, b""), seed


def test_an_emptied_trie_has_the_empty_root() -> None:
    database: dict[Digest, bytes] = {}
    nodes = Nodes(database.get)
    root = nodes.update(EMPTY_TRIE_ROOT, {bytes([i]) * 32: b"x" for i in range(20)}, database)
    assert nodes.update(root, {bytes([i]) * 32: b"" for i in range(20)}, database) == EMPTY_TRIE_ROOT


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 127, 128, 129, 200, 256, 300])
def test_a_list_has_the_root_that_ethereum_gives_it(count: int) -> None:
    values = [keccak256(bytes([i & 255, i >> 8])) * (i % 3 + 1) for i in range(count)]
    oracle = HexaryTrie({})
    for index, value in enumerate(values):
        oracle[rlp.encode(index)] = value
    assert ordered_root(values) == oracle.root_hash


def test_a_missing_node_is_an_error_and_not_an_absence() -> None:
    database: dict[Digest, bytes] = {}
    keys = [bytes([i]) * 32 for i in range(20)]
    root = Nodes(database.get).update(EMPTY_TRIE_ROOT, dict.fromkeys(keys, b"x" * 40), database)
    for digest in database:
        rest = {known: node for known, node in database.items() if known != digest}
        with pytest.raises(MissingNodeError):
            _read_all(Nodes(rest.get), root, keys)


def _read_all(nodes: Nodes, root: Digest, keys: list[bytes]) -> None:
    for key in keys:
        nodes.get(root, key)
