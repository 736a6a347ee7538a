"""Which trie nodes and codes a block makes superfluous: what lies at other places of the tries before it and after it.

Nodes are kept by hash, so one that is at several places is kept once; it is superfluous when no place of the head's
tries has it any more. A block's difference is therefore counted in places, and the database adds up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from swarm.encoding import Digest, data_of, list_of, unpack
from swarm.ledger.block import EMPTY_CODE_HASH, EMPTY_TRIE_ROOT
from swarm.ledger.trie import Node, Nodes, path_of

# No nibble has these values: below an account's place in the state trie lie its storage trie and its code.
_STORAGE, _CODE = b"\x10", b"\x11"

Child = bytes | Node


def replaced(
    nodes: Nodes, writes: Mapping[bytes, bytes], before: Digest, after: Digest
) -> tuple[Counter[Digest], Counter[Digest]]:
    """How many places lost a node or code, and how many got it, by hash, from the state at one root to another's.

    Only what differs is read. Children lie deeper than their parent, so going down by depth meets a place of both
    states before it is decided whether they differ there.

    Args:
        writes: new nodes, which `nodes` may not be able to read yet.
    """
    gone: Counter[Digest] = Counter()
    come: Counter[Digest] = Counter()
    levels: dict[int, dict[bytes, list[Child]]] = {0: {b"": [before, after]}}
    while levels:
        for place, pair in levels.pop(min(levels)).items():
            if pair[0] == pair[1]:
                continue
            below = []
            for child, count in zip(pair, (gone, come), strict=True):
                if isinstance(child, bytes) and child and child != EMPTY_TRIE_ROOT:
                    count[child] += 1
                below.append(_children(place, nodes, writes, child))
            for side, other in ((0, 1), (1, 0)):
                for deeper, child in below[side].items():
                    if below[other].get(deeper) != child:
                        levels.setdefault(len(deeper), {}).setdefault(deeper, [b"", b""])[side] = child
    return gone, come


def _children(place: bytes, nodes: Nodes, writes: Mapping[bytes, bytes], child: Child) -> dict[bytes, Child]:
    """What lies directly below a node, by place."""
    node = None if place.endswith(_CODE) else nodes.node(child, writes)
    if node is None:
        return {}
    if len(node) == 17:
        return {place + bytes((nibble,)): node[nibble] for nibble in range(16) if node[nibble]}
    step, leaf = path_of(node[0])
    if not leaf:
        return {place + step: node[1]}
    if _STORAGE in place:
        return {}
    _, _, storage_root, code_hash = map(data_of, list_of(unpack(node[1], max_bytes=len(node[1])), size=4))
    found = {place + step + _STORAGE: storage_root, place + step + _CODE: code_hash}
    return {at: digest for at, digest in found.items() if digest not in (EMPTY_TRIE_ROOT, EMPTY_CODE_HASH)}
