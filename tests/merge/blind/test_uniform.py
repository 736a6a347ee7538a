"""What one member and the leader see of another's update in a round, against random bytes: more than 100 MB of it."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from swarm.merge import Schema, Tensor, write_file
from swarm.merge.blind import Encoding, Fresh, Keys, encode, freeze, masks_of
from swarm.merge.blind.masks import Mask, apply
from tests.merge.blind.adversary import byte_score
from tests.merge.blind.world import attempt_of

Words = NDArray[np.uint32]
# Some fifty statistics a vector: one beyond six standard deviations comes by chance once in ten million such tests.
SCORE_MAX = 6.0
CHUNK_WORDS = 1 << 18


def scores(words: Words, *, others: tuple[Words, ...] = ()) -> dict[str, float]:
    """Statistics of a vector in standard deviations from what uniform words give."""
    data = words.view(np.uint8)
    found = {"bytes": byte_score(data)}
    for place in range(4):
        found[f"byte {place} of the words"] = byte_score(data[place::4])
    for bit in range(32):
        ones = int(np.count_nonzero(words & np.uint32(1 << bit)))
        found[f"bit {bit}"] = (ones - words.size / 2) / math.sqrt(words.size / 4)
    for lag in (1, 2, 16, 1024, CHUNK_WORDS):
        if lag < words.size:
            found[f"correlation {lag} words apart"] = correlation(words[:-lag], words[lag:])
            found[f"bytes of the difference {lag} words apart"] = byte_score(
                (words[lag:] - words[:-lag]).view(np.uint8)
            )
    for number, other in enumerate(others):
        found[f"correlation with vector {number}"] = correlation(words, other)
        found[f"bytes of the sum with vector {number}"] = byte_score((words + other).view(np.uint8))
        found[f"bytes of the difference from vector {number}"] = byte_score((words - other).view(np.uint8))
    return found


def correlation(one: Words, other: Words) -> float:
    a = one.astype(np.float64) - (2.0**31 - 0.5)
    b = other.astype(np.float64) - (2.0**31 - 0.5)
    return float(np.einsum("i,i->", a, b)) / (2.0**64 / 12) / math.sqrt(one.size)


def beyond(found: dict[str, float]) -> dict[str, float]:
    return {name: score for name, score in found.items() if abs(score) > SCORE_MAX}


def masked_vectors(folder: Path, coordinates: int) -> list[Words]:
    """Of three honest members of four, as the fourth, who leads, sees them: without the masks that it shares."""
    schema = Schema.of([Tensor("x", "F32", (coordinates,))])
    # The same update at all, and nothing but zeros in most of it: whatever is not hidden shows.
    update = np.zeros(coordinates, np.float32)
    update[:: 1 << 10] = 1e-3
    write_file(folder / "update", schema, {"x": update})
    secrets = {bytes([number]) * 20: bytes([number]) * 32 for number in range(1, 5)}
    attempt = attempt_of(secrets)
    *honest, leader = sorted(secrets)
    frozen = freeze(attempt, dict.fromkeys(secrets, ()))
    found = []
    for name in honest:
        keys, fresh = Keys(attempt, name, secrets[name]), Fresh.of(bytes(31) + name[:1], attempt)
        encode(folder / "update", 1, Encoding(4, (0,)), masks_of(frozen, keys, fresh), folder / "vector")
        words = np.fromfile(folder / "vector", np.uint32)[-coordinates:]
        seed = Keys(attempt, leader, secrets[leader]).pair_seed(name)
        # The weight's coordinate comes first in the file: "swarm.blind.weight" < "x".
        apply([Mask(seed, leader < name)], 1, words)
        found.append(words)
    return found


def check(folder: Path, coordinates: int) -> None:
    vectors = masked_vectors(folder, coordinates)
    for number, words in enumerate(vectors):
        others = tuple(vectors[:number] + vectors[number + 1 :])
        assert beyond(scores(words, others=others)) == {}, f"vector {number}"
        assert len(zlib.compress(words[: 1 << 20].tobytes(), 1)) >= 4 << 20


def test_a_masked_update_looks_random(tmp_path: Path) -> None:
    check(tmp_path, 1_200_000)


@pytest.mark.slow
def test_a_hundred_megabytes_of_masked_update_look_random(tmp_path: Path) -> None:
    check(tmp_path, 30_000_000)


@pytest.mark.parametrize(
    "mistake", ["no self mask", "one stream in every chunk", "one key for two members", "31 bits of mask"]
)
def test_the_statistics_see_a_planted_mistake(mistake: str) -> None:
    size = 2 * CHUNK_WORDS + 5
    plain = np.full(size, 70_000, np.uint32)
    key = Mask(b"k" * 32, True)
    words, other = plain.copy(), plain.copy()
    if mistake == "no self mask":
        found = scores(words)
    elif mistake == "one stream in every chunk":
        for start in range(0, size, CHUNK_WORDS):
            apply([key], 0, words[start : start + CHUNK_WORDS])
        found = scores(words)
    elif mistake == "one key for two members":
        apply([key], 0, words)
        apply([key], 0, other)
        found = scores(words, others=(other,))
    else:
        apply([key], 0, other)
        found = scores(plain + (other & np.uint32(0x7FFFFFFF)))
    assert beyond(found)
