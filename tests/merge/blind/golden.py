"""Fixed secrets and updates, and what comes of them on every machine: `python -m tests.merge.blind.golden` prints it.

Nothing in `golden.json` changes unless blind rounds are meant to change.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from swarm.merge import write_file
from swarm.merge.blind import (
    Attempt,
    Encoding,
    Fresh,
    Keys,
    Masked,
    Seat,
    Survivors,
    Unmasking,
    blob_of,
    encode,
    exponents_of,
    freeze,
    masks_of,
    merge,
    public_key,
    reveal_of,
    unmasking,
)
from swarm.merge.server import server_of
from swarm.merkle import digest_of
from tests.merge.golden import MEMBERS, SCHEMA, WEIGHTS, bits_of
from tests.merge.reference import policy

GOLDEN = Path(__file__).with_name("golden.json")


def secret(what: str, number: int) -> bytes:
    return hashlib.sha256(f"{what} {number}".encode()).digest()


def found() -> dict[str, object]:
    """Every step of a round of seven, of whom the fourth vanishes, and of a second one."""
    secrets = {secret("member", number)[:20]: secret("key", number) for number in range(MEMBERS)}
    names = sorted(secrets)
    seats = tuple(Seat(name, place + 1, public_key(secrets[name])) for place, name in enumerate(names))
    attempt = Attempt(2024, b"\x10\x04" * 10, 5, 6, 7, secret("policy", 0), secret("base", 0), seats)
    keys = {name: Keys(attempt, name, secrets[name]) for name in names}
    fresh = {name: Fresh.of(secret("seed", place), attempt) for place, name in enumerate(names)}
    blobs = {name: blob_of(keys[name], fresh[name]) for name in names}
    frozen = freeze(attempt, {names[1]: [names[2]]} | {name: () for name in names if name != names[1]})
    survivors = Survivors(frozen, frozenset(names) - {names[3]})
    said = [reveal_of(survivors, keys[name], fresh[name]) for name in survivors.in_order]
    off = unmasking(survivors, blobs, said)
    assert isinstance(off, Unmasking)
    result: dict[str, object] = {
        "context": attempt.context.hex(),
        "root": keys[names[0]].root(names[1]).hex(),
        "pair seed": keys[names[0]].pair_seed(names[1]).hex(),
        "sealing key": keys[names[0]].sealing_key(names[0], names[1]).hex(),
        "self seed": fresh[names[0]].self_seed.hex(),
        "recovery seed": fresh[names[0]].recovery_seed.hex(),
        "blob": digest_of(blobs[names[0]].encode()).hex(),
        "blob bytes": len(blobs[names[0]].encode()),
        "masks": [mask.key.hex()[:16] for mask in masks_of(frozen, keys[names[1]], fresh[names[1]])],
        "reveal": said[0].self_seed.hex(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        result |= _merged(Path(scratch), frozen, keys, fresh, off)
    return result


def _merged(folder: Path, frozen, keys, fresh, off: Unmasking) -> dict[str, object]:  # type: ignore[no-untyped-def]
    for number in range(MEMBERS + 1):
        write_file(folder / f"{number}", SCHEMA, {t.name: bits_of(number, t) for t in SCHEMA.tensors})
    base, result, vectors = folder / "0", dict[str, object](), list[Masked]()
    rule = server_of(policy(server="fedadam", server_rate=0.01))
    # No update is as long as a million, or its last digits would be each machine's own.
    for turn, norm_max in enumerate((float("inf"), 1e6)):
        encoding, vectors = Encoding(MEMBERS, exponents_of(base), 1000, norm_max), []
        for place, name in enumerate(sorted(keys)):
            path = folder / f"vector {place}"
            update = folder / f"{1 + place}"
            written = encode(update, WEIGHTS[place], encoding, masks_of(frozen, keys[name], fresh[name]), path)
            result[f"vector {turn} {place}"] = written.digest.hex()
            if name in off.survivors.members:
                vectors.append(Masked(name, path))
        merged = merge(base, vectors, off, encoding, folder / f"merged {turn}", server=rule)
        assert not merged.refused
        result[f"merged {turn}"] = merged.digest.hex()
        result[f"weight {turn}"] = merged.weight
        base = folder / f"merged {turn}"
        result[f"exponents {turn}"] = list(exponents_of(base))
    return result


if __name__ == "__main__":
    json.dump(found(), sys.stdout, indent=1)
    print()
