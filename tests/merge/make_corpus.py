"""Writes the corpus of hostile files: `python -m tests.merge.make_corpus` fills `corpus/` beside this file.

Each file says by its name what is wrong with it; all would be the update of a model with `a` F32[2] and `n` I64[].
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from swarm.merge import Schema, Tensor

CORPUS = Path(__file__).with_name("corpus")
MODEL = Schema.of([Tensor("a", "F32", (2,)), Tensor("n", "I64", ())])
A = '"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}'
N = '"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]}'


def file(header: str | bytes, data: bytes = bytes(16), *, padded: bool = True) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    text += b" " * (-len(text) % 8 if padded else 0)
    return len(text).to_bytes(8, "little") + text + data


def like(tensors: list[Tensor]) -> bytes:
    schema = Schema.of(tensors)
    return schema.header + bytes(schema.data_bytes)


def corpus() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every hostile file."""
    good = "{" + N + "," + A + "}"
    yield "empty", b""
    yield "seven-bytes", b"\x08\0\0\0\0\0\0"
    yield "header-longer-than-the-file", (1 << 20).to_bytes(8, "little") + good.encode()
    yield "header-of-2-to-the-64", b"\xff" * 8 + good.encode()
    yield "header-above-the-bound", (1 << 24).to_bytes(8, "little") + b"{"
    yield "header-of-one-byte", file("{", padded=False)
    yield "no-json", file("hello world, this is no JSON")
    calls = b"\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94."
    yield "pickle", b"\x80\x04\x95\x1c" + bytes(7) + calls
    yield "torch-zip", b"PK\x03\x04" + bytes(60)
    yield "key-twice", file("{" + N + "," + A + "," + A + "}")
    yield (
        "name-twice-escaped",
        file("{" + N + "," + A + ',"\\u0061":{"dtype":"F32","shape":[0],"data_offsets":[16,16]}}'),
    )
    yield "dtype-twice", file("{" + N + ',"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[8,16]}}')
    yield "metadata", file('{"__metadata__":{"format":"pt"},' + N + "," + A + "}")
    yield "deep-nesting", file("[" * 20_000)
    yield "long-number", file("{" + N + ',"a":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[8,16]}}')
    yield "negative-extent", file("{" + N + "," + A.replace("[2]", "[-2]") + "}")
    yield "float-extent", file("{" + N + "," + A.replace("[2]", "[2.0]") + "}")
    yield "extents-that-overflow", file("{" + N + "," + A.replace("[2]", "[4294967296,4294967296,1]") + "}")
    yield "offsets-that-overlap", file("{" + N + "," + A.replace("[8,16]", "[0,8]") + "}")
    yield "offsets-with-a-hole", file("{" + N + "," + A.replace("[8,16]", "[16,24]") + "}", bytes(24))
    yield "offsets-backwards", file("{" + N + "," + A.replace("[8,16]", "[16,8]") + "}")
    yield "offsets-beyond-the-file", file("{" + N + "," + A.replace("[8,16]", "[8,999999999999]") + "}")
    yield "unknown-dtype", file("{" + N + "," + A.replace("F32", "F8_E4M3") + "}")
    yield "other-order-of-keys", file("{" + N + ',"a":{"shape":[2],"dtype":"F32","data_offsets":[8,16]}}')
    yield "other-order-of-tensors", file("{" + A + "," + N + "}")
    yield "spaces", file(json.dumps(json.loads(good)))
    yield "tabs-as-padding", len(good).to_bytes(8, "little") + good.encode() + b"\t" * 8 + bytes(16)
    yield "more-padding-than-needed", file(good + " " * 16)
    yield "not-utf-8", file(good.replace('"a"', '"\udcff"').encode(errors="surrogateescape"))
    yield "half-a-surrogate", file(good.replace('"a"', '"\\ud800"'))
    yield "empty-name", file(good.replace('"a"', '""'))
    yield "name-of-2000-bytes", file(good.replace('"a"', '"' + "x" * 2000 + '"'))
    yield "seventeen-dimensions", file("{" + N + "," + A.replace("[2]", "[" + ",".join("1" * 17) + "]") + "}")
    yield "many-tensors", like([Tensor(f"{i}", "U8", ()) for i in range(300)])
    yield "one-byte-short", MODEL.header + bytes(15)
    yield "one-byte-more", MODEL.header + bytes(17)
    yield "another-shape", like([Tensor("a", "F32", (1, 2)), Tensor("n", "I64", ())])
    yield "another-dtype", like([Tensor("a", "I32", (2,)), Tensor("n", "I64", ())])
    yield "another-name", like([Tensor("b", "F32", (2,)), Tensor("n", "I64", ())])
    yield "a-tensor-more", like([*MODEL.tensors, Tensor("z", "F32", (1,))])
    yield "a-tensor-less", like([MODEL.tensors[0]])
    yield "state-of-an-optimizer", like([*MODEL.tensors, Tensor("swarm.server.momentum.a", "F32", (2,))])
    for name, value in [("nan", float("nan")), ("infinity", float("inf")), ("minus-infinity", float("-inf"))]:
        yield name, MODEL.header + bytes(8) + struct.pack("<ff", 0.0, value)
    yield "signalling-nan", MODEL.header + bytes(12) + b"\x01\x00\xa0\x7f"


if __name__ == "__main__":
    CORPUS.mkdir(exist_ok=True)
    for name, content in corpus():
        (CORPUS / name).write_bytes(content)
