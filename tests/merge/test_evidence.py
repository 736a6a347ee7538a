"""A wrong merge is proven by a file, a right one cannot be, and a file that says something else proves nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from swarm.config import Policy
from swarm.encoding import Digest, sha256
from swarm.merge import Schema, Tensor, merge, write_file
from swarm.merge.evidence import Claim, Evidence, Finding, decode, encode, judge, of_chunk, of_whole
from swarm.merkle import CHUNK_BYTES, digest_of, leaf, root

BY_CHUNKS = Policy("test", 1, 1, merge="mean", verify_all_members=0, verify_all_bytes=0)
SCHEMA = Schema.of([Tensor("steps", "I64", ()), Tensor("weight", "F32", (3 * CHUNK_BYTES // 4,))])


@dataclass(frozen=True)
class Round:
    """Files of one merge, and what the ledger would say of it."""

    claim: Claim
    base: Path
    updates: list[Path]
    out: Path

    def inputs(self) -> dict[Digest, tuple[Path, list[Digest]]]:
        return {
            digest_of(path.read_bytes()): (path, leaves_of(path.read_bytes())) for path in (self.base, *self.updates)
        }

    def chunk_evidence(self, data: bytes, chunk: int) -> Evidence:
        """That `chunk` of these published bytes is wrong."""
        claim = replace(self.claim, published=digest_of(data))
        found = leaves_of(self.out.read_bytes())[chunk]
        return of_chunk(claim, found, chunk, leaves_of(data), len(data), self.inputs())

    def whole_evidence(self, published: Digest) -> Evidence:
        """The same, with the inputs whole."""
        claim = replace(self.claim, published=published)
        return of_whole(claim, self.claim.published, self.base, self.updates, "")


def leaves_of(data: bytes) -> list[Digest]:
    return [leaf(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)]


@pytest.fixture(scope="module")
def round_(tmp_path_factory: pytest.TempPathFactory) -> Round:
    return made(tmp_path_factory.mktemp("round"), BY_CHUNKS)


def made(folder: Path, policy: Policy) -> Round:
    chance = np.random.default_rng(1)
    paths = [folder / name for name in ("base", "north", "east", "south")]
    for path in paths:
        values = {"steps": np.int64(chance.integers(100)), "weight": chance.normal(0, 0.1, SCHEMA.tensors[1].count)}
        write_file(
            path, SCHEMA, {name: np.asarray(v, "<i8" if name == "steps" else "<f4") for name, v in values.items()}
        )
    digests = [digest_of(path.read_bytes()) for path in paths]
    weights = [3, 5, 2]
    right = merge(paths[0], paths[1:], weights, policy, folder / "right").digest
    submissions = tuple((bytes([i]) * 20, digest, weights[i]) for i, digest in enumerate(digests[1:]))
    claim = Claim(1, 4, 2, b"\x01" * 20, right, digests[0], submissions, policy)
    return Round(claim, paths[0], paths[1:], folder / "right")


def found(evidence: Evidence, folder: Path) -> Finding:
    """The finding, after a journey as bytes."""
    folder.mkdir(exist_ok=True)
    assert decode(encode(evidence)) == evidence
    return judge(evidence, folder).finding


@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_one_bit_is_proven_by_its_chunk(round_: Round, tmp_path: Path, chunk: int) -> None:
    data = bytearray(round_.out.read_bytes())
    data[min(chunk * CHUNK_BYTES + 5000, len(data) - 1)] ^= 4
    evidence = round_.chunk_evidence(bytes(data), chunk)
    assert found(evidence, tmp_path) is Finding.GUILTY
    assert judge(evidence, tmp_path).right == evidence.found
    assert len(encode(evidence)) < 6.01 * CHUNK_BYTES


def test_other_inputs_are_proven(round_: Round, tmp_path: Path) -> None:
    """A stale base, one submission fewer, weights swapped: each changes every chunk."""
    paths, weights = [round_.base, *round_.updates], [3, 5, 2]
    for base, updates, counts in (
        (paths[1], paths[1:], weights),
        (paths[0], paths[1:3], weights[:2]),
        (paths[0], paths[1:], weights[::-1]),
    ):
        merge(base, updates, counts, round_.claim.policy, tmp_path / "wrong")
        data = (tmp_path / "wrong").read_bytes()
        assert found(round_.chunk_evidence(data, 2), tmp_path / "scratch") is Finding.GUILTY


def test_an_object_of_another_size_is_proven(round_: Round, tmp_path: Path) -> None:
    data = round_.out.read_bytes()
    for wrong in (data[:-4], data + b"\0", data[:CHUNK_BYTES]):
        assert found(round_.chunk_evidence(wrong, 1), tmp_path) is Finding.GUILTY
    assert found(round_.chunk_evidence(b"", 1), tmp_path) is Finding.UNPROVEN


def test_a_right_merge_is_never_proven_wrong(round_: Round, tmp_path: Path) -> None:
    right = round_.out.read_bytes()
    for chunk in range(len(leaves_of(right))):
        evidence = replace(round_.chunk_evidence(right, chunk), found=sha256(b"I found"))
        assert found(evidence, tmp_path) is Finding.FALSE
    assert found(round_.whole_evidence(round_.claim.published), tmp_path) is Finding.FALSE


def test_whole_inputs_prove_a_digest_that_nobody_has_the_bytes_of(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    round_ = made(folder, Policy("test", 1, 1))
    assert found(round_.whole_evidence(sha256(b"no merge")), tmp_path) is Finding.GUILTY
    assert found(round_.whole_evidence(round_.claim.published), tmp_path) is Finding.FALSE
    assert found(round_.chunk_evidence(round_.base.read_bytes(), 1), tmp_path) is Finding.UNPROVEN


def test_a_leader_that_merged_what_no_merge_takes_is_guilty(round_: Round, tmp_path: Path) -> None:
    data = bytearray(round_.updates[0].read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"
    poisoned = tmp_path / "poisoned"
    poisoned.write_bytes(data)
    entry = (round_.claim.submissions[0][0], digest_of(bytes(data)), 3)
    claim = replace(round_.claim, submissions=(entry, *round_.claim.submissions[1:]))
    other = replace(round_, claim=claim, updates=[poisoned, *round_.updates[1:]])
    assert found(other.chunk_evidence(round_.out.read_bytes(), 3), tmp_path / "scratch") is Finding.GUILTY


def test_forged_evidence_proves_nothing(round_: Round, tmp_path: Path) -> None:
    """Whatever is bent in a false accusation, it never becomes proof."""
    chance = random.Random(5)
    honest = round_.chunk_evidence(round_.out.read_bytes(), 1)
    for trial in range(60):
        pieces = list(honest.pieces)
        place = chance.randrange(len(pieces))
        piece = pieces[place]
        assert piece.proof is not None
        assert honest.proof is not None
        data = bytearray(piece.data)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        bent = chance.choice([
            replace(piece, data=bytes(data)),
            replace(piece, data=piece.data[:-1]),
            replace(piece, proof=replace(piece.proof, index=piece.proof.index ^ 1)),
            replace(piece, proof=replace(piece.proof, size=piece.proof.size - 8)),
            replace(piece, proof=replace(piece.proof, siblings=piece.proof.siblings[1:])),
        ])  # fmt: skip
        pieces[place] = bent
        forged = chance.choice([
            replace(honest, pieces=tuple(pieces)),
            replace(honest, pieces=tuple(pieces[:place] + pieces[place + 1 :])),
            replace(honest, leaf=sha256(b"another")),
            replace(honest, chunk=2),
            replace(honest, proof=replace(honest.proof, size=honest.proof.size - 8)),
            replace(honest, proof=None),
        ])  # fmt: skip
        assert found(forged, tmp_path) is Finding.UNPROVEN, f"trial {trial}: {forged.claim}"


def test_what_is_no_evidence_is_refused(round_: Round) -> None:
    good = encode(round_.whole_evidence(sha256(b"x")))
    line = good[: good.index(b"\n")]
    for bad in (
        b"",
        line,
        good[:-1],
        good + b"x",
        b"{}\n",
        b"[]\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        good.replace(b'"weight', b'"width', 1)[:200],
        good.replace(b'"run":1', b'"run":-1', 1),
        good.replace(b'"run":1', b'"run":true', 1),
        good.replace(b"swarm evidence 1", b"swarm evidence 9", 1),
        b" " * (1 << 21),
    ):
        with pytest.raises(ValueError, match=r"."):
            decode(bad)


def test_the_root_of_the_published_leaves_is_what_is_proven(round_: Round) -> None:
    data = round_.out.read_bytes()
    assert root(leaves_of(data), len(data)) == round_.claim.published
