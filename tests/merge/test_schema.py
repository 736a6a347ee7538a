"""One file for the same tensors, that any safetensors reader opens, and a plain word for every other file."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from swarm.merge import Schema, Tensor, check_same, write_file
from swarm.merge.schema import ELEMENT_BYTES, HEADER_BYTES_MAX, TENSORS_MAX
from tests.merge.reference import read_file

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
tensors = st.lists(
    st.builds(
        Tensor,
        names,
        st.sampled_from(sorted(ELEMENT_BYTES)),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
    ),
    max_size=8,
    unique_by=lambda tensor: tensor.name,
)


def compact(document: object) -> str:
    return json.dumps(document, separators=(",", ":"))


def header(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(8, "little") + data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@given(tensors, st.randoms())
def test_a_schema_is_its_header_whatever_the_order(found: list[Tensor], source: random.Random) -> None:
    schema = Schema.of(found)
    source.shuffle(found)
    assert Schema.of(found) == schema
    assert Schema.of_bytes(schema.header) == schema
    assert len(schema.header) % 8 == 0
    for tensor, start, stop in schema.placed:
        assert start % ELEMENT_BYTES[tensor.dtype] == 0
        assert stop - start == tensor.size_bytes
    assert schema.size_bytes == len(schema.header) + schema.data_bytes


@given(tensors)
@settings(max_examples=50)
def test_safetensors_itself_reads_every_file(found: list[Tensor]) -> None:
    schema = Schema.of([t for t in found if t.dtype != "BF16"])
    content = safetensors.numpy.load(schema.header + bytes(schema.data_bytes))
    assert {name: array.shape for name, array in content.items()} == {t.name: t.shape for t in schema.tensors}


def test_an_ordinary_models_file_is_what_safetensors_writes(tmp_path: Path) -> None:
    """With floats of one width besides integer counters both orders are the same, so the bytes are."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 2), torch.nn.BatchNorm2d(3), torch.nn.Linear(3, 2))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    spelled = {torch.float32: "F32", torch.int64: "I64"}
    schema = Schema.of(Tensor(name, spelled[v.dtype], tuple(v.shape)) for name, v in state.items())
    path = tmp_path / "checkpoint"
    write_file(path, schema, {name: value.numpy() for name, value in state.items()})
    assert path.read_bytes() == save(state)
    back = load_file(path)
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_scalars_empty_tensors_and_strange_names_are_kept(tmp_path: Path) -> None:
    schema = Schema.of([Tensor('a"\n\\é🙂', "I64", ()), Tensor("none", "F32", (0, 3)), Tensor("b", "BF16", (2, 1))])
    values = {'a"\n\\é🙂': np.array(7), "none": np.empty((0, 3), np.float32), "b": np.array([[1], [2]], np.uint16)}
    write_file(tmp_path / "x", schema, values)
    back = read_file(tmp_path / "x")
    assert {name: array.tolist() for name, array in back.items()} == {'a"\n\\é🙂': 7, "none": [], "b": [[1], [2]]}
    assert Schema.of_file(tmp_path / "x") == schema


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "begins with b'\\['"),
        ("{ ", "at the beginning, at byte 1, stands b' '"),
        ("{}  x", "has 5 bytes, its canonical form 8|at byte"),
        ("[" * 1_000_000, "begins with"),
        ('{"a":' * 1_000_000, "at the beginning, at byte 1, stands"),
        ('{"a":NaN}', "stands b'\"a\":NaN}'"),
        ('{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "at the beginning, at byte 1"),
        (compact({"a": entry()})[:-1] + "," + compact({"a": entry(offsets=[8, 16])})[1:], "two tensors are called 'a'"),
        (compact({"__metadata__": {"format": "pt"}}), "has __metadata__, which no canonical file has"),
        (compact({"__metadata__": entry()}), "__metadata__"),
        (compact({"a": entry()})[:-1] + ',"__metadata__":{"format":"pt"}}', "has __metadata__"),
        ('{"a":3}', "in its canonical form"),
        (compact({"a": entry() | {"more": 1}}), "in its canonical form"),
        (json.dumps({"a": entry()}), "a tensor is written"),
        ('{"a":{"shape":[2],"dtype":"F32","data_offsets":[0,8]}}  ', "at byte 1, stands"),
        (compact({"a": entry(shape=[-2])}), "in its canonical form"),
        (compact({"a": entry(shape=[2.0])}), "in its canonical form"),
        (compact({"a": entry(shape=[True])}), "in its canonical form"),
        (compact({"a": entry(shape=2)}), "in its canonical form"),
        (compact({"a": entry(shape=[10**4000])}), "in its canonical form"),
        (compact({"a": entry()})[:-1] + ";" + compact({"b": entry(offsets=[8, 16])})[1:], "after a, at byte 53"),
        (compact({"a": entry(shape=[2]), "b": 3}), "after a, at byte 53"),
        (compact({"a": entry(dtype="F8_E4M3")}), "the dtype 'F8_E4M3'; there are F64, "),
        (compact({"a": entry(shape=[1] * 17)}), "17 dimensions"),
        (compact({"a": entry(shape=[2**40, 2**40])}), "take more than"),
        (compact({"a": entry(shape=[2**49])}), "negative or above"),
        (compact({"a": entry(offsets=[0, 9])}), r"has the offsets \(0, 9\), but \(0, 8\) belong there"),
        (compact({"a": entry(offsets=[8, 16])}), "has the offsets"),
        (compact({"a": entry(), "b": entry(offsets=[12, 20])}), "b has the offsets"),
        (compact({"b": entry(), "a": entry(offsets=[8, 16])}), "a stands after b"),
        (
            compact({"a": entry(), "b": entry("F64", [1], [8, 16])}),
            "b stands after a; tensors stand by element size",
        ),
        (compact({"": entry()}), "a name of 0 bytes"),
        (compact({"\ud800": entry()}), "no Unicode text"),
        (compact({"é": entry()}) + "  ", "not in its canonical form: at byte 2"),
        (compact({"a": entry()}).replace('"a"', '"\\q"'), "Invalid .escape"),
        (compact({"a": entry()}).replace('"a"', '"\n"'), "Invalid control character"),
        (compact({"x" * 2000: entry()}), "a name of 2000 bytes"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "has 54 bytes, its canonical form 56"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}          ', "has 64 bytes, its canonical form 56"),
        ('{"a":{"dtype":"F32","shape":[02],"data_offsets":[0,8]}} ', "not in its canonical form: at byte 29"),
    ],
)
def test_a_strange_header_is_refused_with_what_differs(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Schema.of_bytes(header(text))


def test_sizes_are_bounded_before_anything_is_read(tmp_path: Path) -> None:
    for prefix, words in [
        (b"", "too few"),
        (b"1234567", "too few"),
        ((1).to_bytes(8, "little"), "a header of 1 bytes"),
        ((HEADER_BYTES_MAX + 1).to_bytes(8, "little"), f"a header of {HEADER_BYTES_MAX + 1} bytes"),
        (b"\xff" * 8, "a header of 18446744073709551615 bytes"),
        ((50).to_bytes(8, "little") + b"{}", "a header of 50 bytes, found 2"),
        (header("{}")[:8] + b"\xff\xfe", r"begins with b'\\xff'"),
    ]:
        path = tmp_path / "hostile"
        path.write_bytes(prefix)
        with pytest.raises(ValueError, match=rf"hostile is not a canonical safetensors file.*{words}"):
            Schema.of_file(path)


@pytest.mark.parametrize("change", [-1, 1, 4])
def test_a_file_has_exactly_the_length_of_its_tensors(tmp_path: Path, change: int) -> None:
    schema = Schema.of([Tensor("a", "F32", (2,))])
    path = tmp_path / "file"
    path.write_bytes(schema.header + bytes(8 + change))
    with pytest.raises(ValueError, match=f"{schema.size_bytes + change} bytes, but its tensors take"):
        Schema.of_file(path)


@given(st.data())
@settings(max_examples=200)
def test_a_changed_header_is_another_schema_or_refused(data: st.DataObject) -> None:
    schema = Schema.of([Tensor("a", "F32", (2, 3)), Tensor("n", "I64", ()), Tensor("z", "U8", (5,))])
    changed = bytearray(schema.header)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    try:
        found = Schema.of_bytes(bytes(changed))
    except ValueError:
        return
    assert found.header == bytes(changed)[: len(found.header)]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_schema_or_a_value_error(data: bytes) -> None:
    try:
        schema = Schema.of_bytes(data)
    except ValueError:
        return
    assert data.startswith(schema.header)


def test_too_many_tensors_are_refused() -> None:
    many = [Tensor(str(i), "U8", ()) for i in range(TENSORS_MAX + 1)]
    with pytest.raises(ValueError, match=f"{TENSORS_MAX + 1} tensors, at most"):
        Schema.of(many)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([Tensor("a", "F32", ()), Tensor("a", "U8", ())], "two tensors are called 'a'"),
        ([Tensor("a", "float32", ())], "there are F64, I64"),
        ([Tensor("a", "F32", (2**48, 2**48))], "take more than"),
    ],
)
def test_tensors_that_make_no_file_are_named(wrong: list[Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Schema.of(wrong)


def test_what_differs_between_two_models_is_listed() -> None:
    ours = Schema.of([Tensor("a", "F32", (2,)), Tensor("b", "F32", (3,)), Tensor("c", "I64", ())])
    theirs = Schema.of([Tensor("a", "F32", (2,)), Tensor("b", "F16", (3, 1)), Tensor("d", "I64", ())])
    check_same(ours, Schema.of(ours.tensors))
    message = "c I64[] is missing; d I64[] is unknown; b is F16[3, 1] where F32[3] belongs"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_same(ours, theirs)
    many = Schema.of([Tensor(f"t{i}", "U8", ()) for i in range(9)])
    with pytest.raises(ValueError, match="and 8 more"):
        check_same(many, ours)


def test_values_that_do_not_fit_are_named(tmp_path: Path) -> None:
    schema = Schema.of([Tensor("a", "F32", (2,))])
    for values, words in [
        ({}, "tensor 'a' is missing"),
        ({"a": bytes(8), "b": bytes(8)}, "no tensor 'b'"),
        ({"a": bytes(7)}, r"a F32\[2\] has 8 bytes, found 7"),
    ]:
        with pytest.raises(ValueError, match=words):
            write_file(tmp_path / "x", schema, values)


@pytest.mark.parametrize("before", [b"", b"\xff" * 10, b"\xff" * 500])
def test_what_a_file_held_before_is_gone_also_where_the_values_do_not_fit(tmp_path: Path, before: bytes) -> None:
    schema, path = Schema.of([Tensor("a", "F32", (2,)), Tensor("b", "F32", (2,))]), tmp_path / "x"
    values = {"a": bytes(8), "b": bytes(range(8))}
    write_file(tmp_path / "new", schema, values)
    path.write_bytes(before)
    write_file(path, schema, values)
    assert path.read_bytes() == (tmp_path / "new").read_bytes()
    path.write_bytes(before)
    with pytest.raises(ValueError, match="tensor 'b' is missing"):
        write_file(path, schema, {"a": bytes(8)})
    assert path.read_bytes() == b""


def test_every_byte_of_the_data_has_its_element() -> None:
    schema = Schema.of(
        [Tensor("a", "F32", (2,)), Tensor("b", "F32", (0,)), Tensor("c", "F32", ()), Tensor("d", "U8", (1,))]
    )
    head = len(schema.header)
    found = [(tensor.name, index) for tensor, index in map(schema.locate, range(head, schema.size_bytes))]
    assert found == [("a", 0)] * 4 + [("a", 1)] * 4 + [("c", 0)] * 4 + [("d", 0)]
    for outside in (head - 1, schema.size_bytes):
        with pytest.raises(ValueError, match="no tensor has byte"):
            schema.locate(outside)
    assert schema.runs == (("F32", head, head + 12), ("U8", head + 12, head + 13))
