"""The Merkle-Patricia trie (yellow paper, appendix D): many changes at once, each touched node hashed once.

Nodes are what RLP decodes to, and are never changed in place: `[path, value]`, `[path, child]` or 16 children and a
value. A child is a 32-byte hash, a node written in its parent because it is shorter than that, or empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rlp

from swarm.encoding import Digest, keccak256, pack

Node = list[Any]
_EMPTY_ROOT = keccak256(b"\x80")
_NIBBLES = [bytes((byte >> 4, byte & 15)) for byte in range(256)]
# Decoded nodes of a busy ledger's hot paths; about 1 KB each.
_CACHE_MAX = 20_000


class MissingNodeError(KeyError):
    """A node that the trie needs is not in the database: the database is damaged."""


class Nodes:
    """Trie nodes by hash: read through a cache, new ones gathered by whoever updates."""

    def __init__(self, read: Callable[[Digest], bytes | None]) -> None:
        self._read = read
        self._cache: dict[Digest, Node] = {}

    def node(self, child: bytes | Node, writes: Mapping[bytes, bytes] | None = None) -> Node | None:
        """The node that a parent names; None where there is none.

        Args:
            writes: new nodes, where the database may not have them yet.
        """
        if not child:
            return None
        if isinstance(child, list):
            return child
        node = self._cache.get(child)
        if node is None:
            if child == _EMPTY_ROOT:
                return None
            data = writes.get(child) if writes else None
            if data is None:
                data = self._read(child)
            if data is None:
                raise MissingNodeError(f"trie node {child.hex()} is not in the database")
            node = rlp.decode(data)
            assert isinstance(node, list)
            self.remember(child, node)
        return node

    def remember(self, digest: Digest, node: Node) -> None:
        """Keep a decoded node at hand."""
        if len(self._cache) >= _CACHE_MAX:
            self._cache.clear()
        self._cache[digest] = node

    def get(self, root: Digest, key: bytes) -> bytes:
        """The value at `key`, empty where there is none."""
        path = _nibbles(key)
        node, depth = self.node(root), 0
        while node is not None:
            if len(node) == 17:
                if depth == len(path):
                    return bytes(node[16])
                node = self.node(node[path[depth]])
                depth += 1
                continue
            step, leaf = path_of(node[0])
            if leaf:
                return bytes(node[1]) if path[depth:] == step else b""
            if path[depth : depth + len(step)] != step:
                return b""
            depth += len(step)
            node = self.node(node[1])
        return b""

    def update(self, root: Digest, changes: Mapping[bytes, bytes], writes: dict[bytes, bytes]) -> Digest:
        """The root after `changes` (an empty value removes); new nodes go into `writes`."""
        if not changes:
            return root
        items = sorted((_nibbles(key), value) for key, value in changes.items())
        node = self._changed(self.node(root), 0, items, writes)
        if node is None:
            return _EMPTY_ROOT
        encoded = _encode(node)
        digest = keccak256(encoded)
        writes[digest] = encoded
        self.remember(digest, node)
        return digest

    def proof(self, root: Digest, key: bytes) -> list[bytes]:
        """The encoded nodes from the root to `key`, or to where it would be (EIP-1186)."""
        path = _nibbles(key)
        nodes: list[bytes] = []
        child: bytes | Node = root
        depth = 0
        while (node := self.node(child)) is not None:
            if not isinstance(child, list):
                nodes.append(_encode(node))
            if len(node) == 17:
                if depth == len(path):
                    break
                child = node[path[depth]]
                depth += 1
                continue
            step, leaf = path_of(node[0])
            if leaf or path[depth : depth + len(step)] != step:
                break
            depth += len(step)
            child = node[1]
        return nodes

    def _changed(
        self, node: Node | None, depth: int, items: Sequence[tuple[bytes, bytes]], writes: dict[bytes, bytes]
    ) -> Node | None:
        if node is None:
            return self._built(depth, [item for item in items if item[1]], writes)
        if len(node) == 17:
            return self._branch_changed(list(node), depth, items, writes)
        step, leaf = path_of(node[0])
        if leaf:
            key = items[0][0][:depth] + step
            merged = {key: bytes(node[1])}
            merged.update(items)
            return self._built(depth, sorted((k, v) for k, v in merged.items() if v), writes)
        shared = min(_shared(step, key, depth) for key, _ in items)
        if shared == len(step):
            child = self._changed(self.node(node[1]), depth + shared, items, writes)
            return self._extended(step, child, writes)
        branch: Node = [b""] * 17
        rest = step[shared + 1 :]
        branch[step[shared]] = self._child([_pack_path(rest, leaf=False), node[1]], writes) if rest else node[1]
        return self._extended(step[:shared], self._branch_changed(branch, depth + shared, items, writes), writes)

    def _branch_changed(
        self, branch: Node, depth: int, items: Sequence[tuple[bytes, bytes]], writes: dict[bytes, bytes]
    ) -> Node | None:
        start = 0
        while start < len(items):
            key, value = items[start]
            if len(key) == depth:
                branch[16] = value
                start += 1
                continue
            nibble, end = key[depth], start + 1
            while end < len(items) and items[end][0][depth] == nibble:
                end += 1
            child = self._changed(self.node(branch[nibble]), depth + 1, items[start:end], writes)
            branch[nibble] = b"" if child is None else self._child(child, writes)
            start = end
        filled = [index for index in range(17) if branch[index]]
        if len(filled) > 1:
            return branch
        if not filled:
            return None
        index = filled[0]
        if index == 16:
            return [_pack_path(b"", leaf=True), branch[16]]
        return self._extended(bytes([index]), self.node(branch[index]), writes, known=branch[index])

    def _extended(
        self, step: bytes, child: Node | None, writes: dict[bytes, bytes], known: bytes | Node | None = None
    ) -> Node | None:
        """`child` reached by `step`: paths in a row become one."""
        if child is None or not step:
            return child
        if len(child) == 17:
            return [_pack_path(step, leaf=False), self._child(child, writes) if known is None else known]
        further, leaf = path_of(child[0])
        return [_pack_path(step + further, leaf=leaf), child[1]]

    def _built(self, depth: int, items: Sequence[tuple[bytes, bytes]], writes: dict[bytes, bytes]) -> Node | None:
        if not items:
            return None
        first = items[0][0]
        if len(items) == 1:
            return [_pack_path(first[depth:], leaf=True), items[0][1]]
        # Sorted: what the first and the last share, all share.
        shared = _shared(first[depth:], items[-1][0], depth)
        branch = self._branch_changed([b""] * 17, depth + shared, items, writes)
        return self._extended(first[depth : depth + shared], branch, writes)

    def _child(self, node: Node, writes: dict[bytes, bytes]) -> bytes | Node:
        encoded = _encode(node)
        if len(encoded) < 32:
            return node
        digest = keccak256(encoded)
        writes[digest] = encoded
        self.remember(digest, node)
        return digest


def ordered_root(values: Sequence[bytes]) -> Digest:
    """The root of the trie from RLP-encoded position to value: of a block's transactions, or its receipts."""
    changes = {pack(index): value for index, value in enumerate(values)}
    return Nodes(lambda _: None).update(_EMPTY_ROOT, changes, {})


def _nibbles(key: bytes) -> bytes:
    return b"".join([_NIBBLES[byte] for byte in key])


def _shared(step: bytes, key: bytes, depth: int) -> int:
    count = 0
    for nibble, other in zip(step, key[depth:], strict=False):
        if nibble != other:
            break
        count += 1
    return count


def path_of(packed: bytes) -> tuple[bytes, bool]:
    """The nibbles of a hex-prefix path, and whether it ends in a value."""
    nibbles = _nibbles(packed)
    return nibbles[1 if nibbles[0] & 1 else 2 :], nibbles[0] >= 2


def _pack_path(nibbles: bytes, *, leaf: bool) -> bytes:
    flag = 2 if leaf else 0
    padded = bytes([flag + 1]) + nibbles if len(nibbles) & 1 else bytes([flag, 0]) + nibbles
    return bytes([padded[i] << 4 | padded[i + 1] for i in range(0, len(padded), 2)])


def _encode(node: Node) -> bytes:
    parts = []
    for item in node:
        if not item:
            parts.append(b"\x80")
        elif isinstance(item, list):
            parts.append(_encode(item))
        elif len(item) == 32:
            parts.append(b"\xa0" + item)
        elif len(item) == 1 and item[0] < 0x80:
            parts.append(item)
        else:
            parts.append(_head(0x80, len(item)) + item)
    body = b"".join(parts)
    return _head(0xC0, len(body)) + body


def _head(offset: int, size: int) -> bytes:
    if size < 56:
        return bytes([offset + size])
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([offset + 55 + len(length)]) + length
