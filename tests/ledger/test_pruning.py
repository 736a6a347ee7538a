"""What the ledger keeps of the state: that of the last heights, nothing that none of them needs; or all of it."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import rlp

from swarm.encoding import Digest, keccak256
from swarm.ledger.block import EMPTY_CODE_HASH, EMPTY_TRIE_ROOT
from swarm.ledger.database import PRUNED_EVERY, STATES_KEPT, BlockRow, Database
from swarm.ledger.genesis import CONSORTIUM
from swarm.ledger.ledger import Ledger
from swarm.ledger.pruning import replaced
from swarm.ledger.state import Changes
from swarm.ledger.trie import Nodes, path_of
from tests.ledger import world


def places(rows: dict[bytes, bytes], root: Digest, *, accounts: bool = True) -> Counter[Digest]:
    """How often each hash stands in the tries below a root: read node by node, as nobody would in a hurry."""
    found: Counter[Digest] = Counter()

    def walk(child: Any, storage: bool) -> None:
        node = child
        if isinstance(child, bytes):
            if child in (b"", EMPTY_TRIE_ROOT):
                return
            found[child] += 1
            node = rlp.decode(rows[child])
        assert isinstance(node, list)
        if len(node) == 17:
            for one in node[:16]:
                walk(one, storage)
            return
        assert isinstance(node[0], bytes)
        if not path_of(node[0])[1]:
            walk(node[1], storage)
        elif not storage:
            _, _, storage_root, code_hash = rlp.decode(node[1])
            walk(storage_root, True)
            if code_hash != EMPTY_CODE_HASH:
                found[code_hash] += 1

    walk(root, not accounts)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_difference_is_counted_as_two_whole_walks_differ(seed: int) -> None:
    """Short keys with few values: subtrees that are equal, paths that split and join, tries that empty."""
    rng = random.Random(seed)
    rows: dict[bytes, bytes] = {}
    nodes = Nodes(rows.get)
    account = rlp.encode([b"\x01", b"", EMPTY_TRIE_ROOT, EMPTY_CODE_HASH])
    root, counted = EMPTY_TRIE_ROOT, Counter[Digest]()
    for _ in range(60):
        keys = [bytes(rng.choice((0, 1, 16, 17, 255)) for _ in range(4)) for _ in range(rng.randrange(1, 6))]
        values = [b"", account, account[:-1] + b"\x00"]
        writes: dict[bytes, bytes] = {}
        after = nodes.update(root, {key: rng.choice(values) for key in keys}, writes)
        gone, come = replaced(nodes, writes, root, after)
        rows |= writes
        counted.update(come)
        counted.subtract(gone)
        assert +counted == places(rows, after), seed
        assert min(counted.values(), default=0) >= 0
        root = after


def rows_of(folder: Path) -> dict[bytes, tuple[bytes, int]]:
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as file:
        return {
            digest: (value, count) for digest, value, count in file.execute("SELECT hash, value, places FROM state")
        }


def test_what_is_kept_is_the_last_states_and_nothing_else(tmp_path: Path) -> None:
    blocks = STATES_KEPT + 2 * PRUNED_EVERY
    with contextlib.closing(world.open_ledger(tmp_path / "pruned")) as pruned:
        world.grow(pruned, blocks)
        roots = [pruned.block(number).header.state_root for number in range(blocks + 1)]
        first = blocks - STATES_KEPT
        for number in (first, first + 1, blocks):
            assert pruned.nonce(CONSORTIUM, number) == 1
            assert pruned.proof(world.OPERATORS[0].address, [], number).account.nonce
        with pytest.raises(ValueError, match=f"no longer kept here, the first is that after block {first}"):
            pruned.nonce(CONSORTIUM, first - 1)
        pruned.block(1)
        pruned.certificate(1)
    kept = rows_of(tmp_path / "pruned")
    values = {digest: value for digest, (value, _) in kept.items()}
    assert all(keccak256(value) == digest for digest, value in values.items())
    needed = Counter[Digest]()
    for root in roots[first:]:
        needed |= places(values, root)
    assert set(kept) == set(needed)
    assert {digest: count for digest, (_, count) in kept.items() if count} == places(values, roots[-1])


def test_an_archive_keeps_every_state(tmp_path: Path) -> None:
    blocks = STATES_KEPT + PRUNED_EVERY
    with contextlib.closing(Ledger.open(tmp_path, world.genesis(), archive=True)) as ledger:
        world.grow(ledger, blocks)
        for number in range(blocks + 1):
            assert ledger.nonce(world.OPERATORS[0].address, number) == (number + 3) // 4


def changes(*, come: dict[bytes, int] | None = None, gone: dict[bytes, int] | None = None) -> Changes:
    """What a block did, where a node's hash is its name and its bytes too."""
    return Changes(b"", {}, {}, {name: name for name in come or {}}, gone or {}, come or {})


def test_a_node_goes_when_its_last_place_is_gone_long_enough(tmp_path: Path) -> None:
    story = {
        1: changes(come={b"twice": 2, b"once": 1, b"back": 1}),
        2: changes(gone={b"twice": 1, b"once": 1, b"back": 1}),
        3: changes(come={b"back": 1}),
        40: changes(gone={b"back": 1}),
    }
    found: dict[int, set[bytes]] = {}
    with contextlib.closing(Database(tmp_path)) as file:
        file.begin(BlockRow(0, b"0", b"", b"", b"", b""), changes())
        for number in range(1, STATES_KEPT + 50):
            row = BlockRow(number, b"%d" % number, b"", b"", b"", b"")
            file.append(row, state=story.get(number, changes()), transactions=[], parent_certificate=b"")
            found[number] = {name for name in (b"twice", b"once", b"back") if file.state(name) is not None}
    everything = {b"twice", b"once", b"back"}
    assert found[STATES_KEPT] == everything
    assert found[STATES_KEPT + PRUNED_EVERY] == everything - {b"once"}
    assert found[STATES_KEPT + 39] == everything - {b"once"}, "what came back is kept as long as anything else"
    assert found[STATES_KEPT + 3 * PRUNED_EVERY] == {b"twice"}
