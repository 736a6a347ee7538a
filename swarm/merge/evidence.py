"""That a leader published something else than the merge, as one file that anybody can check.

The file names what the ledger says (who published what, from which submissions, under which policy) and holds the bytes
to merge again: one chunk of every input with its proof, or the inputs whole where they are small or where the rule
looks at whole updates. Its first line is JSON; the bytes follow, in the order in which the JSON names them. Only the
digests have to be compared with the ledger; the rest proves itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from swarm.config import MEMBERS_MAX, POLICY_BYTES_MAX, Policy
from swarm.encoding import Address, Digest, from_hex, short, to_hex
from swarm.errors import ConfigError
from swarm.merge.files import BadUpdate, merge, merge_chunks
from swarm.merge.schema import HEADER_BYTES_MAX, Schema, header_size
from swarm.merkle import CHUNK_BYTES, Proof, chunk_count, digest_of, leaf, prove

FORMAT = "swarm evidence 1"
WHOLE_MAX_BYTES = 32 << 20
"""Inputs are shown whole up to here, all together."""
LINE_MAX_BYTES = 1 << 20
"""The JSON: 128 submissions, each with a proof of 26 digests, take some 300 KB."""
EVIDENCE_MAX_BYTES = LINE_MAX_BYTES + max(WHOLE_MAX_BYTES, (MEMBERS_MAX + 2) * CHUNK_BYTES + HEADER_BYTES_MAX)
SIZE_MAX = 1 << 48


@dataclass(frozen=True)
class Claim:
    """What the ledger says about a publication: the accuser's word until it was compared."""

    run: int
    round: int
    view: int
    leader: Address
    published: Digest
    base: Digest
    submissions: tuple[tuple[Address, Digest, int], ...]
    """(member, digest, weight) of what the merge takes, in the ledger's order."""
    policy: Policy


@dataclass(frozen=True)
class Piece:
    """Bytes of an input: one chunk with its proof, or, without a proof, the whole object."""

    object: Digest
    data: bytes
    proof: Proof | None = None


@dataclass(frozen=True)
class Evidence:
    """An accusation and its proof."""

    claim: Claim
    found: Digest
    """What the accuser's merge gave: the checkpoint's digest, or the leaf of `chunk`."""
    difference: str = ""
    """For people."""
    chunk: int | None = None
    """Which chunk is shown; None where the inputs are whole, or where nothing is."""
    leaf: Digest | None = None
    """Of the chunk, as published."""
    proof: Proof | None = None
    """That `leaf` is in what was published."""
    pieces: tuple[Piece, ...] = ()


class Finding(Enum):
    """What an accusation comes to."""

    GUILTY = "the leader published wrong bytes"
    FALSE = "the accusation is false"
    UNPROVEN = "nothing is proven"


@dataclass(frozen=True)
class Verdict:
    """What an accusation comes to, and why."""

    finding: Finding
    reason: str
    right: Digest | None = None
    """What belongs in the place of the wrong bytes: the checkpoint's digest, or the leaf of the chunk."""

    def __str__(self) -> str:
        return f"{self.finding.value}: {self.reason}"


# --- making


def of_whole(claim: Claim, found: Digest, base: Path, updates: Sequence[Path], difference: str) -> Evidence:
    """Evidence that holds the inputs whole, if they are small enough; else it only names them.

    Args:
        base, updates: files of the claim's base and submissions, in its order.
    """
    inputs = {
        claim.base: base,
        **{digest: path for (_, digest, _), path in zip(claim.submissions, updates, strict=True)},
    }
    if sum(path.stat().st_size for path in inputs.values()) > WHOLE_MAX_BYTES:
        return Evidence(claim, found, difference)
    pieces = tuple(Piece(digest, path.read_bytes()) for digest, path in inputs.items())
    return Evidence(claim, found, difference, pieces=pieces)


def of_chunk(
    claim: Claim,
    found: Digest,
    chunk: int,
    published: Sequence[Digest],
    published_size: int,
    inputs: Mapping[Digest, tuple[Path, Sequence[Digest]]],
) -> Evidence:
    """Evidence that one chunk is wrong.

    Args:
        found: the leaf that belongs there.
        published, published_size: leaves and size of what the leader published.
        inputs: file and leaves of the base and of every submission; the chunk and the base's header have to be there.
    """
    path, _ = inputs[claim.base]
    if not published:
        return Evidence(claim, found, "what was published is empty")
    size = path.stat().st_size
    with path.open("rb") as file:
        header = chunk_count(8 + header_size(file.read(8)))
    wanted = [(claim.base, index) for index in sorted({*range(header), chunk})]
    wanted += [(digest, chunk) for digest in dict.fromkeys(digest for _, digest, _ in claim.submissions)]
    pieces = tuple(_piece(digest, index, size, *inputs[digest]) for digest, index in wanted)
    proof = prove(published, published_size, min(chunk, len(published) - 1))
    return Evidence(claim, found, f"chunk {chunk}", chunk, published[proof.index], proof, pieces)


def _piece(digest: Digest, index: int, size: int, path: Path, leaves: Sequence[Digest]) -> Piece:
    with path.open("rb") as file:
        file.seek(index * CHUNK_BYTES)
        return Piece(digest, file.read(CHUNK_BYTES), prove(leaves, size, index))


# --- judging


def judge(evidence: Evidence, scratch: Path) -> Verdict:
    """What the evidence proves, if the ledger says what it claims.

    Args:
        scratch: an empty folder to lay the inputs out in.
    """
    try:
        return _judge_whole(evidence, scratch) if evidence.chunk is None else _judge_chunk(evidence, scratch)
    except _Unproven as fault:
        return Verdict(Finding.UNPROVEN, str(fault))


class _Unproven(Exception):
    """Something is missing from the proof."""


def _judge_whole(evidence: Evidence, scratch: Path) -> Verdict:
    claim = evidence.claim
    if not evidence.pieces:
        raise _Unproven("it holds no bytes; who has the objects that it names can merge them again")
    data = {piece.object: piece.data for piece in evidence.pieces if piece.proof is None}
    for digest, found in data.items():
        if digest_of(found) != digest:
            raise _Unproven(f"the bytes of {short(digest)} are others")
    files: dict[Digest, Path] = {}
    for digest in _inputs(claim):
        if digest not in data:
            raise _Unproven(f"the bytes of {short(digest)} are missing")
        files[digest] = scratch / to_hex(digest)
        files[digest].write_bytes(data[digest])
    updates = [files[digest] for _, digest, _ in claim.submissions]
    weights = [weight for _, _, weight in claim.submissions]
    try:
        right = merge(files[claim.base], updates, weights, claim.policy, None).digest
    except BadUpdate as error:
        return Verdict(Finding.GUILTY, f"it merged what no merge takes: {error}")
    except ValueError as error:
        raise _Unproven(str(error)) from error
    return _compared(claim.published, right, f"the merge is {short(right)}")


def _judge_chunk(evidence: Evidence, scratch: Path) -> Verdict:
    claim, chunk, proof = evidence.claim, evidence.chunk, evidence.proof
    assert chunk is not None
    if not claim.policy.by_chunks:
        raise _Unproven(f"one chunk does not show what merge = {claim.policy.merge!r} gives")
    if proof is None or evidence.leaf is None or _digest(proof, evidence.leaf) != claim.published:
        raise _Unproven("the published chunk is not proven to be of what was published")
    chunks = {(piece.object, piece.proof.index): piece for piece in evidence.pieces if piece.proof is not None}
    for piece in chunks.values():
        assert piece.proof is not None
        if _digest(piece.proof, leaf(piece.data)) != piece.object:
            raise _Unproven(f"a chunk of {short(piece.object)} is not proven to be of it")
    schema = _schema(claim.base, chunks)
    if proof.size != schema.size_bytes:
        return Verdict(Finding.GUILTY, f"it has {proof.size} bytes where {schema.size_bytes} belong")
    if not 0 <= chunk < chunk_count(schema.size_bytes) or proof.index != chunk:
        raise _Unproven(f"the published chunk is number {proof.index}, chunk {chunk} is spoken of")
    files: dict[Digest, Path] = {}
    for digest in _inputs(claim):
        shown = chunks.get((digest, chunk))
        if shown is None or shown.proof is None:
            raise _Unproven(f"chunk {chunk} of {short(digest)} is missing")
        if shown.proof.size != schema.size_bytes:
            return Verdict(Finding.GUILTY, f"it merged {short(digest)}, which has {shown.proof.size} bytes")
        files[digest] = _laid_out(scratch / to_hex(digest), schema, chunk, shown.data)
    updates = [files[digest] for _, digest, _ in claim.submissions]
    weights = [weight for _, _, weight in claim.submissions]
    try:
        right = merge_chunks(files[claim.base], updates, weights, claim.policy, [chunk])[chunk]
    except BadUpdate as error:
        return Verdict(Finding.GUILTY, f"it merged what no merge takes: {error}")
    except ValueError as error:
        raise _Unproven(str(error)) from error
    return _compared(evidence.leaf, right, f"chunk {chunk} of the merge has the leaf {short(right)}")


def _compared(published: Digest, right: Digest, what: str) -> Verdict:
    if published == right:
        return Verdict(Finding.FALSE, f"{what}, as published", right)
    return Verdict(Finding.GUILTY, f"{what}, {short(published)} was published", right)


def _inputs(claim: Claim) -> list[Digest]:
    return list(dict.fromkeys((claim.base, *(digest for _, digest, _ in claim.submissions))))


def _digest(proof: Proof, leaf_: Digest) -> Digest | None:
    try:
        return proof.digest(leaf_)
    except ValueError:
        return None


def _schema(base: Digest, chunks: Mapping[tuple[Digest, int], Piece]) -> Schema:
    """The schema in the base's first chunks."""
    first = chunks.get((base, 0))
    if first is None or first.proof is None:
        raise _Unproven("the first chunk of the base is missing")
    try:
        count = chunk_count(8 + header_size(first.data[:8]))
        schema = Schema.of_bytes(b"".join(chunks[base, index].data for index in range(count)))
    except (KeyError, ValueError) as error:
        raise _Unproven(f"the base's header cannot be read: {error}") from error
    if schema.size_bytes != first.proof.size:
        raise _Unproven(f"the base has {first.proof.size} bytes, its tensors take {schema.size_bytes}")
    return schema


def _laid_out(path: Path, schema: Schema, chunk: int, data: bytes) -> Path:
    """A file with this one chunk in its place; the header is the base's, unless the chunk says otherwise."""
    with path.open("wb") as file:
        file.write(schema.header)
        file.seek(chunk * CHUNK_BYTES)
        file.write(data)
        file.truncate(schema.size_bytes)
    return path


# --- as bytes


def encode(evidence: Evidence) -> bytes:
    """The file: a line of JSON, then the pieces' bytes."""
    claim = evidence.claim
    document = {
        "format": FORMAT,
        "run": claim.run,
        "round": claim.round,
        "view": claim.view,
        "leader": to_hex(claim.leader),
        "published": to_hex(claim.published),
        "base": to_hex(claim.base),
        "submissions": [[to_hex(member), to_hex(digest), weight] for member, digest, weight in claim.submissions],
        "policy": claim.policy.encode().decode(),
        "found": to_hex(evidence.found),
        "first_difference": evidence.difference,
        "chunk": evidence.chunk,
        "leaf": to_hex(evidence.leaf) if evidence.leaf is not None else None,
        "proof": _shown(evidence.proof),
        "pieces": [[to_hex(piece.object), len(piece.data), _shown(piece.proof)] for piece in evidence.pieces],
    }
    line = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return b"".join((line, b"\n", *(piece.data for piece in evidence.pieces)))


def decode(data: bytes) -> Evidence:
    """The evidence in a file.

    Raises:
        ValueError: it is none; says why.
    """
    if len(data) > EVIDENCE_MAX_BYTES:
        raise ValueError(f"{len(data)} bytes, evidence has at most {EVIDENCE_MAX_BYTES}")
    end = data.find(b"\n", 0, LINE_MAX_BYTES)
    if end < 0:
        raise ValueError(f"no line of JSON in the first {LINE_MAX_BYTES} bytes")
    try:
        return _decoded(json.loads(data[:end]), memoryview(data)[end + 1 :])
    except (KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise ValueError(f"not evidence: {type(error).__name__}: {error}") from error


def _decoded(document: Mapping[str, Any], rest: memoryview) -> Evidence:
    if document["format"] != FORMAT:
        raise ValueError(f"the format is {document['format']!r}, {FORMAT!r} is read")
    submissions = document["submissions"]
    if not 1 <= len(submissions) <= MEMBERS_MAX:
        raise ValueError(f"{len(submissions)} submissions, 1 to {MEMBERS_MAX} are read")
    policy = str(document["policy"]).encode()
    if len(policy) > POLICY_BYTES_MAX:
        raise ValueError(f"a policy of {len(policy)} bytes")
    claim = Claim(
        run=_whole(document["run"]),
        round=_whole(document["round"]),
        view=_whole(document["view"]),
        leader=from_hex(document["leader"], size=20),
        published=from_hex(document["published"], size=32),
        base=from_hex(document["base"], size=32),
        submissions=tuple(
            (from_hex(member, size=20), from_hex(digest, size=32), _whole(weight))
            for member, digest, weight in submissions
        ),
        policy=Policy.decode(policy),
    )
    pieces, at = [], 0
    for digest, size, proof in document["pieces"]:
        if _whole(size) > len(rest) - at:
            raise ValueError(f"{len(rest)} bytes follow the JSON, it names more")
        pieces.append(Piece(from_hex(digest, size=32), bytes(rest[at : at + size]), _read(proof)))
        at += size
    if at != len(rest):
        raise ValueError(f"{len(rest)} bytes follow the JSON, it names {at}")
    return Evidence(
        claim,
        from_hex(document["found"], size=32),
        str(document["first_difference"]),
        None if document["chunk"] is None else _whole(document["chunk"]),
        None if document["leaf"] is None else from_hex(document["leaf"], size=32),
        _read(document["proof"]),
        tuple(pieces),
    )


def _shown(proof: Proof | None) -> object:
    return proof and [proof.size, proof.index, [to_hex(sibling) for sibling in proof.siblings]]


def _read(shown: Any) -> Proof | None:
    if shown is None:
        return None
    size, index, siblings = shown
    if _whole(size) > SIZE_MAX:
        raise ValueError(f"an object of {size} bytes")
    return Proof(size, _whole(index), tuple(from_hex(sibling, size=32) for sibling in siblings))


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} stands where a whole number belongs")
    return value
