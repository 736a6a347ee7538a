"""What a member pays for a blind round beyond a visible one, beside the same sum under CKKS.

    python -m bench.blind [--members 10] [--millions 100] [--absent 2] [--folder DIR]

One member's CPU seconds, both threads counted, each part in a process of its own: joining (blob, opening the others'),
encoding and masking its update, unmasking and merging as everybody does to verify; and the visible `mean` of as many
updates. Half of the absent submit and then fall silent, so that their masks come off by shares; the others vanish with
their vectors. Bytes: vectors and blobs that a member takes, against plain updates; signed transactions of the calls
that a visible round has not, with what a member reveals.

CKKS is TenSEAL where `.others/tenseal` has it, measured on fewer coordinates and scaled up: its cost is linear.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from eth_account import Account
from rich.console import Console
from rich.table import Table

from bench.merge import alone
from swarm.blind import MaskSeat, MaskState, Stage
from swarm.config import Policy
from swarm.identity import Identity
from swarm.ledger.endpoint import Call
from swarm.ledger.masks import Masks
from swarm.merge import Schema, Tensor, merge, write_file
from swarm.merge import blind as rules

TENSEAL = Path(__file__).parents[1] / ".others" / "tenseal" / "bin" / "python"
CKKS_COORDINATES = 1_000_000
TENSORS = 50


@dataclass(frozen=True)
class Cost:
    """What was measured: CPU seconds of one member, bytes that it takes, and bytes of its transactions."""

    members: int
    millions: float
    join_s: float
    encode_s: float
    merge_s: float
    shares_s: float
    visible_s: float
    over_visible_s: float
    traffic: float
    blob_bytes: int
    ledger_bytes: int
    ledger_bytes_shares: int


@dataclass(frozen=True)
class Swarm:
    """Members of one attempt, their secrets drawn from their numbers."""

    members: int
    absent: int

    @property
    def secrets(self) -> dict[bytes, bytes]:
        """X25519, by member."""
        return {_drawn("member", n)[:20]: _drawn("key", n) for n in range(self.members)}

    @property
    def attempt(self) -> rules.Attempt:
        """The attempt that all take part in."""
        secrets = self.secrets
        seats = tuple(rules.Seat(name, 1, rules.public_key(secrets[name])) for name in sorted(secrets))
        return rules.Attempt(1, bytes(20), 1, 1, 1, bytes(32), bytes(32), seats)

    def of(self, place: int) -> tuple[rules.Keys, rules.Fresh]:
        """A member's secrets, by its place."""
        attempt = self.attempt
        name = attempt.members[place]
        return rules.Keys(attempt, name, self.secrets[name]), rules.Fresh.of(_drawn("seed", place), attempt)

    @property
    def frozen(self) -> rules.Frozen:
        """All of them joined."""
        return rules.freeze(self.attempt, dict.fromkeys(self.attempt.members, ()))

    @property
    def survivors(self) -> rules.Survivors:
        """All but the half of the absent who vanished."""
        names = self.attempt.members
        return rules.Survivors(self.frozen, frozenset(names[: len(names) - (self.absent + 1) // 2]))

    @property
    def silent(self) -> int:
        """How many survivors reveal nothing: the first ones."""
        return self.absent // 2

    def blobs(self) -> dict[bytes, rules.Blob]:
        """Everybody's."""
        return {name: rules.blob_of(*self.of(place)) for place, name in enumerate(self.attempt.members)}

    def unmasking(self) -> rules.Unmasking:
        """The masks to take off, after all that was said."""
        found = rules.unmasking(self.survivors, *self.said())
        assert isinstance(found, rules.Unmasking), found
        return found

    def said(self) -> tuple[dict[bytes, rules.Blob], list[rules.Said]]:
        """All blobs, and what everybody said who is there."""
        blobs, survivors = self.blobs(), self.survivors
        there = [place for place, name in enumerate(self.attempt.members) if name in survivors.members][self.silent :]
        said: list[rules.Said] = [rules.reveal_of(survivors, *self.of(place)) for place in there]
        missing = rules.unmasking(survivors, blobs, said)
        if isinstance(missing, rules.Missing):
            for place in there:
                keys, _ = self.of(place)
                wanted = (missing.self_seeds | missing.recovery_seeds) - {keys.me}
                held = {name: rules.open_blob(keys, blobs[name]) for name in wanted}
                said.append(rules.shares_of(survivors, missing, keys.me, held))
        return blobs, said


def _drawn(what: str, number: int) -> bytes:
    return hashlib.sha256(f"bench {what} {number}".encode()).digest()


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def inputs(folder: Path, parameters: int) -> None:
    """A base and an update."""
    size = parameters // TENSORS
    schema = Schema.of([Tensor(f"layer{number:02}.weight", "F32", (size,)) for number in range(TENSORS)])
    source = np.random.default_rng(0)
    for name, scale in (("base", 1.0), ("update", 0.01)):
        values = {t.name: source.standard_normal(t.shape, np.float32) * np.float32(scale) for t in schema.tensors}
        write_file(folder / name, schema, values)


def _encoding(folder: Path, swarm: Swarm) -> rules.Encoding:
    return rules.Encoding(swarm.members, rules.exponents_of(folder / "base"), 1000, 1e6)


def _encode(folder: str, swarm: Swarm, place: int) -> float:
    where = Path(folder)
    masks = rules.masks_of(swarm.frozen, *swarm.of(place))
    encoding = _encoding(where, swarm)
    return cpu_s(lambda: rules.encode(where / "update", 500 + place, encoding, masks, where / f"vector {place}"))


def _join(swarm: Swarm) -> float:
    blobs = swarm.blobs()

    def work() -> None:
        keys, fresh = swarm.of(0)
        rules.blob_of(keys, fresh).encode()
        for name, blob in blobs.items():
            if name != keys.me:
                rules.open_blob(keys, blob)

    return cpu_s(work)


def _shares(swarm: Swarm) -> float:
    blobs, said = swarm.said()
    return cpu_s(lambda: rules.unmasking(swarm.survivors, blobs, said))


def _merge(folder: str, swarm: Swarm) -> float:
    where, off = Path(folder), swarm.unmasking()
    vectors = [
        rules.Masked(name, where / f"vector {place}")
        for place, name in enumerate(swarm.attempt.members)
        if name in swarm.survivors.members
    ]

    def work() -> None:
        found = rules.merge(where / "base", vectors, off, _encoding(where, swarm), where / "merged")
        assert not found.refused, found.refused

    return cpu_s(work)


def _visible(folder: str, swarm: Swarm) -> float:
    where, count = Path(folder), len(swarm.survivors.members)
    # As many files as there are members: none of them is in a cache for the sake of another one.
    paths = [where / f"plain {place}" for place in range(count)]
    policy = Policy("bench", 1, 1, merge="mean")
    return cpu_s(
        lambda: merge(where / "base", paths, [500 + place for place in range(count)], policy, where / "visible")
    )


def ledger_bytes(swarm: Swarm) -> tuple[int, int]:
    """Signed bytes of a member's own transactions: join, confirm and reveal; and those of its shares besides."""
    names = swarm.attempt.members
    seats = tuple(MaskSeat(number, name, bytes(range(32)), 1) for number, name in enumerate(names))
    state = MaskState(1, 1, Stage.JOINING, 1, swarm.attempt.threshold, 0.0, 0, 0.0, False, seats)
    masks = Masks(b"\x10" * 20, _asks_nothing, _asks_nothing)
    _, said = swarm.said()
    reveal = next(part for part in said if isinstance(part, rules.Reveal))
    calls = [
        masks.join(state, _drawn("blob", 0), _drawn("self", 0), _drawn("recovery", 0)),
        masks.confirm(state, names),
        masks.reveal(state, names, reveal.self_seed, reveal.pair_seeds.values()),
    ]
    shares = [part for part in said if isinstance(part, rules.Shares)][:1]
    more = [masks.reveal_shares(state, part.self_shares, part.recovery_shares) for part in shares]
    return sum(map(_signed_bytes, calls)), sum(map(_signed_bytes, more))


async def _asks_nothing(*_: object) -> int:
    raise AssertionError("calls are encoded without asking")


def _signed_bytes(call: Call) -> int:
    terms = {"to": call.to, "data": call.data, "nonce": 1000, "gas": 10**6, "gasPrice": 0, "value": 0, "chainId": 1337}
    return len(Account.sign_transaction(terms, Identity(_drawn("member", 0)).secret).raw_transaction)


def measure(folder: Path, members: int, millions: float, absent: int, console: Console) -> Cost:
    """Everything for one number of members and parameters."""
    swarm = Swarm(members, absent)
    parameters = int(millions * 1e6)
    inputs(folder, parameters)
    console.print(f"masking {members} updates of {millions:g} million parameters …")
    encode_s = [alone(_encode, str(folder), swarm, place) for place in range(members)]
    console.print("merging them …")
    merge_s = alone(_merge, str(folder), swarm)
    vector_bytes = (folder / "vector 0").stat().st_size
    for place in range(members):
        (folder / f"vector {place}").unlink()
    data = (folder / "update").read_bytes()
    for place in range(len(swarm.survivors.members)):
        (folder / f"plain {place}").write_bytes(data)
    visible_s = alone(_visible, str(folder), swarm)
    update_bytes = len(data)
    join_s, shares_s = alone(_join, swarm), alone(_shares, swarm)
    blob_bytes = len(rules.blob_of(*swarm.of(0)).encode())
    ledger, more = ledger_bytes(swarm)
    encoded_s = sorted(encode_s)[len(encode_s) // 2]
    return Cost(
        members, millions, join_s, encoded_s, merge_s, shares_s, visible_s,
        join_s + encoded_s + shares_s + merge_s - visible_s, (vector_bytes + blob_bytes) / update_bytes, blob_bytes,
        ledger, more,
    )  # fmt: skip


def ckks(members: int, millions: float) -> dict[str, float] | None:
    """A member's CPU seconds and the ciphertext's size relative to float32, scaled up; None without TenSEAL."""
    if not TENSEAL.exists():
        return None
    script = Path(__file__).with_name("ckks.py")
    done = subprocess.run(
        [TENSEAL, script, str(members), str(CKKS_COORDINATES)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    scale = millions * 1e6 / found["coordinates"]
    return {
        "encrypt_s": found["encrypt_s"] * scale,
        "add_s": found["add_s"] * scale,
        "decrypt_s": found["decrypt_s"] * scale,
        "traffic": found["bytes"] / (4 * found["coordinates"]),
        "error": found["error"],
    }


def main(
    members: Annotated[int, typer.Option(help="how many members")] = 10,
    millions: Annotated[float, typer.Option(help="parameters, in millions")] = 100.0,
    absent: Annotated[int, typer.Option(help="members that vanish or fall silent")] = 2,
    folder: Annotated[Path | None, typer.Option(help="where the files are written")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write the numbers here")] = None,
) -> None:
    """Measure and print."""
    progress = Console(stderr=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        cost = measure(Path(scratch), members, millions, absent, progress)
    progress.print("the same sum under CKKS …")
    other = ckks(members, millions)
    table = Table("one member of", f"{members}, {millions:g} million parameters, {absent} absent")
    for words, value in (
        ("joining: blob, others' shares", f"{cost.join_s:.3f} s CPU"),
        ("encoding and masking", f"{cost.encode_s:.2f} s CPU"),
        ("secrets from shares", f"{cost.shares_s:.3f} s CPU"),
        ("sum, unmasking, checkpoint", f"{cost.merge_s:.2f} s CPU"),
        ("visible mean", f"{cost.visible_s:.2f} s CPU"),
        ("over the visible round", f"{cost.over_visible_s:.2f} s CPU"),
        ("traffic, relative", f"{cost.traffic:.6f} (a blob has {cost.blob_bytes} bytes)"),
        ("on the ledger", f"{cost.ledger_bytes} bytes; {cost.ledger_bytes_shares} more where shares are given"),
    ):
        table.add_row(words, value)
    if other is None:
        progress.print(f"TenSEAL is not in {TENSEAL}: `make bench-blind` installs it where it can")
    else:
        seconds = other["encrypt_s"] + other["add_s"] + other["decrypt_s"]
        table.add_row(
            f"CKKS (TenSEAL), from {CKKS_COORDINATES / 1e6:g} million",
            f"{seconds:.0f} s CPU ({other['encrypt_s']:.0f} + {other['add_s']:.0f} + {other['decrypt_s']:.0f}), "
            f"traffic {other['traffic']:.1f}, error {other['error']:.1e}",
        )
    Console().print(table)
    if json_ is not None:
        json_.write_text(json.dumps({"blind": asdict(cost), "ckks": other}, indent=1))


if __name__ == "__main__":
    typer.run(main)
