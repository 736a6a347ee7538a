"""Files of strangers: each one of a corpus is refused with a word, and mutated headers never pass for another file."""

from __future__ import annotations

import os
import random
import tracemalloc
from pathlib import Path

import pytest

from swarm.errors import SwarmError
from swarm.merge import BadUpdate, Schema, Tensor, check_update
from tests.merge.make_corpus import CORPUS, MODEL, corpus
from tests.merge.reference import policy

NAMES = sorted(path.name for path in CORPUS.iterdir())


def base_in(folder: Path) -> Path:
    path = folder / "base"
    path.write_bytes(MODEL.header + bytes(MODEL.data_bytes))
    return path


def test_the_corpus_is_what_its_program_writes() -> None:
    assert {name: (CORPUS / name).read_bytes() for name in NAMES} == dict(corpus())


def test_the_file_that_the_corpus_spoils_is_taken(tmp_path: Path) -> None:
    assert check_update(base_in(tmp_path), base_in(tmp_path), policy()).norm == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_is_refused_and_takes_no_memory(tmp_path: Path, name: str) -> None:
    base = base_in(tmp_path)
    check_update(base, base, policy())
    tracemalloc.start()
    try:
        with pytest.raises(BadUpdate, match="update 0: ") as caught:
            check_update(base, CORPUS / name, policy())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not isinstance(caught.value, SwarmError)
    assert len(str(caught.value)) < 1500
    assert peak < 16 << 20, "the merge's own blocks, and nothing for what the file claims"


def mutated(source: random.Random, header: bytes) -> bytes:
    """The header with a few bytes changed, put in, taken out, doubled or swapped; its length may tell the truth."""
    found = bytearray(header)
    for _ in range(source.randint(1, 4)):
        at, to = sorted(source.randrange(8, len(found) + 1) for _ in range(2))
        match source.randrange(6):
            case 0 if at < len(found):
                found[at] ^= 1 << source.randrange(8)
            case 1:
                found[at:at] = source.choice([b"0", b'"', b"}", b"{", b",", b" ", b"-", b"\\u0061", b"\xff", b"9" * 30])
            case 2:
                del found[at : min(to, at + 8)]
            case 3:
                found[to:to] = found[at:to][:200]
            case 4 if at < len(found):
                found[at] = source.choice(b"0123456789")
            case 5:
                size = source.choice([len(found) - 8, len(found), 0, 2**63, source.getrandbits(24)])
                found[:8] = size.to_bytes(8, "little")
        if len(found) < 12:
            found += header
    if source.random() < 0.7:
        found[:8] = (len(found) - 8).to_bytes(8, "little")
    return bytes(found)


def fuzz(seed: int, count: int) -> tuple[int, int]:
    """How many mutated headers were refused and how many are headers of their own."""
    source = random.Random(seed)
    schemas = [
        MODEL,
        Schema.of([Tensor(f"layer.{i}.weight", "F32", (3, 4)) for i in range(6)]),
        Schema.of([Tensor('a"\n\\é🙂', "BF16", ()), Tensor("z", "U8", (0, 3))]),
    ]
    refused = taken = 0
    for _ in range(count):
        header = mutated(source, source.choice(schemas).header)
        try:
            found = Schema.of_bytes(header)
        except ValueError:
            refused += 1
            continue
        assert header.startswith(found.header), (seed, header)
        assert found.size_bytes < 1 << 49
        taken += 1
    return refused, taken


def test_a_mutated_header_is_refused_or_canonical() -> None:
    refused, taken = fuzz(0, 5000)
    assert refused > 3000
    assert taken > 10, "some mutations make another file's header"


@pytest.mark.slow
def test_a_hundred_thousand_mutated_headers_are_refused_or_canonical() -> None:
    for seed in range(1, 11):
        fuzz(seed, int(os.environ.get("SWARM_FUZZ", "12000")))
