"""An object's digest binds every byte, its place and the size; the leaves prove each chunk on its own."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from swarm.merkle import CHUNK_BYTES, chunk_count, chunks_of, digest_of, digest_of_chunks, leaf, prove, root

leaf_lists = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=40)


def recursive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1 as it is written: split at the largest power of two below n."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return blake3(b"\x01" + recursive_root(leaves[:k]) + recursive_root(leaves[k:])).digest()


@given(leaf_lists, st.integers(0, CHUNK_BYTES - 1))
def test_the_tree_is_rfc_6962s_with_the_size_on_top(leaves: list[bytes], cut: int) -> None:
    size = len(leaves) * CHUNK_BYTES - cut
    assert root(leaves, size) == blake3(b"\x02" + size.to_bytes(8, "big") + recursive_root(leaves)).digest()


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 5 * CHUNK_BYTES + 7]
)
def test_all_ways_to_name_an_object_agree(size: int) -> None:
    data = random.Random(size).randbytes(size)
    leaves = [leaf(chunk) for chunk in chunks_of(data)]
    assert len(leaves) == chunk_count(size)
    assert digest_of(data) == root(leaves, size)
    assert digest_of_chunks(chunks_of(data)) == (digest_of(data), size)
    assert digest_of(memoryview(data)) == digest_of(data)
    assert b"".join(chunks_of(data)) == data


def test_digests_are_what_they_always_were() -> None:
    """Golden: a change here renames every object that a ledger names."""
    # The first is from BLAKE3's own test vectors.
    assert blake3(b"").hexdigest() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert digest_of(b"").hex() == "2ad8271432fb83a7d13be28019fb6f837eed45a0cc51b593dba892a1faf8a47d"
    assert digest_of(b"abc").hex() == "cd9e61fb63d42072099d868601a78cddea7a0039b2e7727f342c2dd769958bb5"
    three = bytes(range(256)) * 8192 + b"x"
    assert digest_of(three).hex() == "beeb142a0d0cd78d97fe8ed0d99727358529b6c40c8901d49a20c43bb070a03b"


@given(leaf_lists, st.data())
def test_another_leaf_order_or_size_is_another_object(leaves: list[bytes], data: st.DataObject) -> None:
    size = len(leaves) * CHUNK_BYTES
    at = data.draw(st.integers(0, len(leaves) - 1))
    changed = list(leaves)
    changed[at] = blake3(changed[at]).digest()
    assert root(changed, size) != root(leaves, size)
    assert root(leaves, size - 1) != root(leaves, size)
    turned = leaves[1:] + leaves[:1]
    assert (root(turned, size) == root(leaves, size)) == (turned == leaves)


@given(leaf_lists, st.integers(0, 2**63 - 1))
def test_leaves_that_do_not_fit_the_size_are_refused(leaves: list[bytes], size: int) -> None:
    if chunk_count(size) == len(leaves):
        root(leaves, size)
        return
    with pytest.raises(ValueError, match=f"{len(leaves)} leaves for {size} bytes, {chunk_count(size)} belong"):
        root(leaves, size)


def test_an_inner_node_is_no_leaf() -> None:
    """The planted mistake of trees without separate domains: two leaves' bytes as one chunk would have their node."""
    left, right = leaf(b"a"), leaf(b"b")
    node = blake3(b"\x01" + left + right).digest()
    assert leaf(left + right) != node


def test_an_odd_leaf_moves_up_and_is_not_doubled() -> None:
    """The planted mistake of Bitcoin's tree (CVE-2012-2459): the last leaf twice had the same root."""
    leaves = [blake3(bytes([i])).digest() for i in range(3)]
    size = 4 * CHUNK_BYTES
    assert root([*leaves, leaves[-1]], size) != root(leaves, size - CHUNK_BYTES)
    level = recursive_root(leaves)
    assert level == blake3(b"\x01" + recursive_root(leaves[:2]) + leaves[2]).digest()


def test_only_the_last_chunk_may_be_short() -> None:
    with pytest.raises(ValueError, match="only the last chunk may be short"):
        digest_of_chunks([b"x" * CHUNK_BYTES, b"short", b"x"])


def test_a_chunk_longer_than_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError):
        digest_of_chunks([b"x" * (CHUNK_BYTES + 1)])
    with pytest.raises(ValueError):
        digest_of_chunks([b"x" * (2 * CHUNK_BYTES), b"x"])


@pytest.mark.parametrize("count", [*range(1, 18), 31, 33, 64, 100])
def test_a_proof_names_the_object_for_its_own_leaf_and_place_only(count: int) -> None:
    size = count * CHUNK_BYTES - 5
    leaves = [leaf(bytes([i])) for i in range(count)]
    digest = root(leaves, size)
    for index in range(count):
        proof = prove(leaves, size, index)
        assert proof.digest(leaves[index]) == digest
        assert proof.digest(leaf(b"another")) != digest
        assert replace(proof, size=size - 1).digest(leaves[index]) != digest
        for bad in (replace(proof, index=count), replace(proof, siblings=(*proof.siblings, leaves[0]))):
            with pytest.raises(ValueError, match=r"no chunk|too long"):
                bad.digest(leaves[index])
        if count > 1:
            other = replace(proof, index=(index + 1) % count)
            with suppress(ValueError):
                assert other.digest(leaves[index]) != digest
            with pytest.raises(ValueError, match="too short"):
                replace(proof, siblings=proof.siblings[:-1]).digest(leaves[index])


def test_an_empty_object_has_no_chunk_to_prove() -> None:
    with pytest.raises(ValueError, match="no leaf"):
        prove([], 0, 0)
