"""Equal values have equal bytes, and a stranger's bytes are bounded before they are decoded."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
import rlp
from Crypto.Hash import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.encoding import (
    DEPTH_MAX,
    ITEMS_MAX,
    Unpacked,
    data_of,
    from_hex,
    keccak256,
    list_of,
    number,
    pack,
    sha256,
    short,
    to_hex,
    unpack,
)

BOUND = 1 << 20
numbers = st.integers(0, 2**256 - 1)
items: st.SearchStrategy[Any] = st.recursive(
    st.binary(max_size=80) | numbers | st.text(max_size=20) | st.booleans(),
    lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner),
    max_leaves=30,
)


def plain(item: Any) -> Any:
    """What is left of a value once it is bytes and lists."""
    match item:
        case bool():
            return b"\x01" if item else b""
        case int():
            return item.to_bytes((item.bit_length() + 7) // 8, "big")
        case str():
            return item.encode()
        case bytes():
            return item
    return [plain(part) for part in item]


@given(items)
def test_what_was_packed_unpacks_to_its_bytes(item: Any) -> None:
    assert unpack(pack(item), max_bytes=BOUND) == plain(item)


@given(items)
def test_packing_is_the_rlp_packages(item: Any) -> None:
    assert pack(item) == rlp.encode(plain(item))


@given(st.binary(max_size=60))
@settings(max_examples=500)
def test_unpacking_takes_and_refuses_what_the_rlp_package_does(data: bytes) -> None:
    try:
        expected = plain(rlp.decode(data, strict=True))
    except rlp.exceptions.RLPException:
        with pytest.raises(ValueError):
            unpack(data, max_bytes=60)
        return
    assert unpack(data, max_bytes=60) == expected


@given(st.binary(max_size=300))
def test_any_bytes_have_one_value_or_none(data: bytes) -> None:
    """RLP is canonical: what decodes encodes to the same bytes, so no value has two digests."""
    try:
        found = unpack(data, max_bytes=300)
    except ValueError:
        return
    assert pack(found) == data


@given(items, st.data())
@settings(max_examples=150)
def test_a_changed_message_is_another_value_or_none(item: Any, data: st.DataObject) -> None:
    packed = bytearray(pack(item))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(bytes(packed), max_bytes=BOUND)
    except ValueError:
        return
    assert found != plain(item)


# Ethereum's RLP test vectors (ethereum/tests, RLPTests/rlptest.json and invalidRLPTest.json).


@pytest.mark.parametrize(
    ("item", "encoded"),
    [
        ("", "80"),
        ("dog", "83646f67"),
        (["dog", "god", "cat"], "cc83646f6783676f6483636174"),
        ("Lorem ipsum dolor sit amet, consectetur adipisicing elit", "b838" + (
            "4c6f72656d20697073756d20646f6c6f722073697420616d65742c20636f6e7365637465747572206164697069736963696e6720656c6974"
        )),
        (0, "80"),
        (1, "01"),
        (16, "10"),
        (127, "7f"),
        (128, "8180"),
        (1000, "8203e8"),
        (100000, "830186a0"),
        (2**256 - 1, "a0" + "ff" * 32),
        ([], "c0"),
        ([[], [[]], [[], [[]]]], "c7c0c1c0c3c0c1c0"),
        (["zw", [4], 1], "c6827a77c10401"),
    ],
)  # fmt: skip
def test_published_vectors_hold(item: Any, encoded: str) -> None:
    assert pack(item).hex() == encoded
    assert unpack(bytes.fromhex(encoded), max_bytes=1000) == plain(item)


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "bf0f000000000000021111",
        "ff0f000000000000021111",
        "f80180",
        "8100",
        "8101",
        "817f",
        "b800",
        "b80100",
        "b837" + "00" * 0x37,
        "b90040" + "00" * 0x40,
        "b90000",
        "f90000",
        "f90180",
        "a0000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e",
        "c330",
        "c0c0",
        "0000",
        "81",
        "c1",
        "b8",
        "f8",
        "bfffffffffffffffff",
        "ffffffffffffffffff",
    ],
)
def test_what_is_not_canonical_is_refused(encoded: str) -> None:
    with pytest.raises(ValueError):
        unpack(bytes.fromhex(encoded), max_bytes=1000)


def test_size_is_checked_before_anything_else() -> None:
    data = pack(b"x" * 1000)
    assert unpack(data, max_bytes=len(data)) == b"x" * 1000
    with pytest.raises(ValueError, match=f"message of {len(data)} bytes, at most {len(data) - 1} are read"):
        unpack(data, max_bytes=len(data) - 1)


def nested(depth: int) -> bytes:
    data = b"\xc0"
    for _ in range(depth - 1):
        data = pack_list(data)
    return data


def pack_list(payload: bytes) -> bytes:
    if len(payload) < 56:
        return bytes([0xC0 + len(payload)]) + payload
    size = len(payload).to_bytes((len(payload).bit_length() + 7) // 8, "big")
    return bytes([0xF7 + len(size)]) + size + payload


def test_depth_is_bounded_before_the_decoder_recurses() -> None:
    unpack(nested(DEPTH_MAX), max_bytes=BOUND)
    for depth in (DEPTH_MAX + 1, 1000, 100_000):
        with pytest.raises(ValueError, match=f"nested deeper than {DEPTH_MAX}"):
            unpack(nested(depth), max_bytes=BOUND)


def test_the_number_of_items_is_bounded() -> None:
    for inner in (b"\x80", b"\xc0", b"\x01"):
        assert len(unpack(pack_list(inner * (ITEMS_MAX - 1)), max_bytes=BOUND)) == ITEMS_MAX - 1
        with pytest.raises(ValueError, match=f"more than {ITEMS_MAX} items"):
            unpack(pack_list(inner * ITEMS_MAX), max_bytes=BOUND)
    with pytest.raises(ValueError, match=f"more than {ITEMS_MAX} items"):
        unpack(pack_list(pack_list(b"\x80" * 60) * (ITEMS_MAX // 60)), max_bytes=BOUND)


@pytest.mark.parametrize("item", [1.5, None, {1, 2}, object(), bytearray(b"x"), [None], {"a": 1}])
def test_what_has_no_encoding_is_refused(item: Any) -> None:
    with pytest.raises(ValueError, match="bytes, text, whole numbers and lists"):
        pack(item)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1" * BOUND,
        b"\xff" * BOUND,
        b"\xf8" * BOUND,
        b"\xc0" * BOUND,
        pack_list(b"\xc0" * (BOUND - 5)),
        pack_list(b"\x80" * (BOUND - 5)),
        b"\xbf" + b"\xff" * 8,
        b"\xff" + b"\xff" * 8 + b"\xc0" * 100,
    ],
)
def test_a_hostile_megabyte_takes_no_long_time(data: bytes) -> None:
    before = time.process_time()
    with suppress(ValueError):
        unpack(data, max_bytes=BOUND)
    assert time.process_time() - before < 5


@given(st.integers(max_value=-1))
def test_a_negative_number_has_no_encoding(value: int) -> None:
    with pytest.raises(ValueError, match="only whole numbers from 0"):
        pack([value])


@given(numbers)
def test_a_number_comes_back_within_its_width(value: int) -> None:
    found = unpack(pack(value), max_bytes=40)
    assert number(found, bits=256) == value
    if value >= 2**64:
        with pytest.raises(ValueError, match="at most 8 are read"):
            number(found)
    else:
        assert number(found) == value


def test_a_wrong_kind_of_item_is_said_in_words() -> None:
    cases: list[tuple[Unpacked, str]] = [
        (b"\x00", "leading zeros"),
        (b"\x00\x01", "leading zeros"),
        ([], "a list stands where a number"),
    ]
    for wrong, words in cases:
        with pytest.raises(ValueError, match=words):
            number(wrong)
    with pytest.raises(ValueError, match="a list stands where bytes belong"):
        data_of([])
    with pytest.raises(ValueError, match="3 bytes where 4 belong"):
        data_of(b"abc", size=4)
    with pytest.raises(ValueError, match="bytes stand where a list belongs"):
        list_of(b"")
    with pytest.raises(ValueError, match="a list of 2 where 3 belong"):
        list_of([b"", b""], size=3)
    with pytest.raises(ValueError, match="a list of 2, at most 1 are read"):
        list_of([b"", b""], size_max=1)
    assert data_of(b"abc", size=3) == b"abc"
    assert list_of([b""], size=1, size_max=1) == [b""]


@given(st.binary(max_size=64))
def test_hexadecimal_goes_both_ways(data: bytes) -> None:
    assert from_hex(to_hex(data), size=len(data)) == data
    assert from_hex(data.hex()) == data
    assert short(data) == data.hex()[:8]


@pytest.mark.parametrize("text", ["0x1", "0xzz", "0x 11", "0x11 22", "x11", "0x0x11", "1 1", "\n11", "0X11", "é"])
def test_what_is_not_hexadecimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not hexadecimal"):
        from_hex(text)


def test_the_wrong_number_of_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="'0x1122' has 2 bytes where 20 belong"):
        from_hex("0x1122", size=20)


def test_hashes_are_the_published_ones() -> None:
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert sha256(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_another_library_hashes_the_same_at_every_length_around_a_block() -> None:
    """Keccak-256 takes 136 bytes at a time."""
    data = bytes(range(256)) * 3
    for size in (*range(0, 140), *range(270, 275), 700):
        assert keccak256(data[:size]) == keccak.new(data=data[:size], digest_bits=256).digest(), size
