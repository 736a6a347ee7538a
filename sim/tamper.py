"""`python -m sim tamper`: leaders that publish something else than the merge, by the thousand.

In every round the first leader tampers with its merge in one of the ways of `KINDS`; the others follow `duties`, merge
again by `swarm.merge`, make and hear evidence, and the `Runs` contract decides in the real EVM. Left out are network,
votes and disks: what a member asks for it has at once, unless the leader withholds it. Members that merge the same
inputs share the result.

Held against every round: nothing closes but the merge; who tampered is not the leader that closes it; proven liars are
suspended and nobody else; every refusal's evidence proves the tampering, to somebody with the ledger alone.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from sim.court import Call, Court
from swarm.audit.accusation import check
from swarm.audit.retell import runs_of
from swarm.config import Policy
from swarm.encoding import Address, Digest, sha256, short
from swarm.merge import Schema, Tensor, merge, merge_chunks, write_file
from swarm.merge.evidence import Claim, Finding, decode, encode, of_chunk, of_whole
from swarm.merkle import CHUNK_BYTES, chunk_count, digest_of, leaf
from swarm.quorum import faults_max
from swarm.rounds import (
    Attest,
    Duty,
    Have,
    Hear,
    Merge,
    Phase,
    Publish,
    Refuse,
    ReportMissing,
    RoundState,
    Shares,
    Submission,
    Verify,
    chunks_of_parts,
    duties,
    next_change_s,
)

SMALL = Schema.of([Tensor("batches", "I64", ()), Tensor("layer.weight", "F32", (6, 8)), Tensor("norm", "F64", (3,))])
LARGE = Schema.of([Tensor("batches", "I64", ()), Tensor("layer.weight", "F32", (640, 1000))])
"""Three chunks."""
LARGE_SHARE = 0.01
"""Of the runs; one merge of it costs as much as a hundred of the small one."""
STEPS_MAX = 40


Key: TypeAlias = tuple[Address, Digest, tuple[Submission, ...]]
"""A member, what was published, and what it had to be merged from: a checkpoint that was right once may be replayed."""


class Failure(AssertionError):
    """A tampering came through, or somebody else was blamed for it."""


@dataclass
class Objects:
    """Every object by its digest, as a file; what is withheld nobody but its maker has."""

    folder: Path
    withheld: set[Digest] = field(default_factory=set)

    def put(self, data: bytes) -> Digest:
        digest = digest_of(data)
        self.path(digest).write_bytes(data)
        return digest

    def path(self, digest: Digest) -> Path:
        return self.folder / digest.hex()

    def read(self, digest: Digest) -> bytes | None:
        """The bytes as they arrive: those that are not what their name says are dropped by hashing."""
        if digest in self.withheld or not self.path(digest).is_file():
            return None
        data = self.path(digest).read_bytes()
        return data if digest_of(data) == digest else None


def leaves_of(data: bytes) -> list[Digest]:
    return [leaf(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)]


# --- what leaders do


@dataclass(frozen=True)
class Turn:
    """What a leader could tamper with."""

    chance: random.Random
    state: RoundState
    right: bytes
    earlier: Sequence[Digest]
    """Checkpoints of closed rounds, and the first one."""
    objects: Objects
    policy: Policy

    def merged(self, base: Digest, entries: Sequence[tuple[Digest, int]]) -> bytes:
        out = self.objects.folder / "tampered"
        paths = [self.objects.path(digest) for digest, _ in entries]
        merge(self.objects.path(base), paths, [weight for _, weight in entries], self.policy, out)
        return out.read_bytes()

    @property
    def entries(self) -> list[tuple[Digest, int]]:
        return [(s.digest, s.weight) for s in self.state.merged]


def _bit(turn: Turn) -> bytes:
    data = bytearray(turn.right)
    data[turn.chance.randrange(len(data))] ^= 1 << turn.chance.randrange(8)
    return bytes(data)


def _set(turn: Turn) -> bytes:
    entries = turn.entries
    dropped = entries.pop(turn.chance.randrange(len(entries)))
    if turn.chance.random() < 0.5:
        entries[turn.chance.randrange(len(entries))] = dropped
    return turn.merged(turn.state.base, entries)


def _stale(turn: Turn) -> bytes:
    return turn.merged(turn.chance.choice(turn.earlier), turn.entries)


def _replay(turn: Turn) -> bytes:
    return turn.objects.path(turn.chance.choice([*turn.earlier, turn.state.base])).read_bytes()


def _permuted(turn: Turn) -> bytes:
    entries = turn.entries
    weights = [weight for _, weight in entries]
    turn.chance.shuffle(weights)
    return turn.merged(turn.state.base, [(d, w) for (d, _), w in zip(entries, weights, strict=True)])


def _swapped(turn: Turn) -> bytes:
    half = len(turn.right) // 2
    return turn.right[half:] + turn.right[:half]


def _nan(turn: Turn) -> bytes:
    data = bytearray(turn.right)
    at = len(data) - 4 * turn.chance.randint(1, 20)
    data[at : at + 4] = b"\x00\x00\xc0\x7f"
    return bytes(data)


def _truncated(turn: Turn) -> bytes:
    return turn.right[: turn.chance.randrange(1, len(turn.right))]


def _longer(turn: Turn) -> bytes:
    return turn.right + turn.chance.randbytes(turn.chance.randint(1, 64))


KINDS: Mapping[str, Callable[[Turn], bytes]] = {
    "bit": _bit,
    "set": _set,
    "stale": _stale,
    "replay": _replay,
    "permuted": _permuted,
    "swapped": _swapped,
    "nan": _nan,
    "truncated": _truncated,
    "longer": _longer,
    "nothing": lambda turn: b"",
    "withheld": _bit,
    "right_withheld": lambda turn: turn.right,
    "right_digest_wrong_bytes": lambda turn: turn.right,
}
"""`nothing` publishes a digest that no bytes have; `withheld` shows a wrong checkpoint to nobody; the last two publish
the right digest, and give nobody its bytes or everybody else ones. Those harm nobody where all merged everything
themselves; where they did not, the leader is replaced."""
UNSHOWN = ("nothing", "withheld", "right_withheld", "right_digest_wrong_bytes")


# --- a run of tampered rounds


@dataclass(frozen=True)
class Plan:
    """One run: in each of its rounds the first leader tampers."""

    seed: int
    members: int
    parts: bool
    """Members merge again what they were assigned."""
    colluders: int
    """So many others attest every wrong checkpoint and refuse every right one."""
    large: bool
    mistake: str = ""


def draw(seed: int, mistake: str = "") -> Plan:
    """A plan from a seed."""
    chance = random.Random(f"{seed}/tamper")
    members = chance.choice([4, 4, 4, 5, 7, 7, 10])
    parts = chance.random() < 0.5
    colluders = chance.randint(0, max(faults_max(members) - 1, 0))
    return Plan(seed, members, parts, colluders, chance.random() < LARGE_SHARE, mistake)


@dataclass
class Result:
    """What came of a run."""

    plan: Plan
    tampered: Counter[str] = field(default_factory=Counter)
    proofs: int = 0
    """Refusals whose evidence proves the tampering."""
    false_accusations: int = 0
    failure: str = ""


class Campaign:
    """One run of tampered rounds."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.result = Result(plan)
        self._chance = random.Random(f"{plan.seed}/run")
        self._numbers = np.random.default_rng(plan.seed)
        self._objects = Objects(folder)
        self._court = Court(plan.members)
        self._schema = LARGE if plan.large else SMALL
        self._policy = Policy(
            "tamper", 2 * plan.members + 1, 1, merge="mean" if plan.parts else "norm_bounded_mean", submissions_min=2,
            merge_s=4.0, attest_s=4.0, verify_all_members=0 if plan.parts else 128, verify_all_bytes=0,
        )  # fmt: skip
        self._merges: dict[object, Digest] = {}
        self._leaves: dict[object, dict[int, Digest]] = {}
        self._colluders = set(self._chance.sample(self._court.members, plan.colluders))
        self._verified: dict[Key, int] = {}
        self._wrong: dict[Key, tuple[Digest, Digest]] = {}
        self._heard: dict[Key, frozenset[Address]] = {}
        self._proven: set[Address] = set()
        self._slanderers: set[Address] = set()
        self._events: list[tuple[str, Mapping[str, Any]]] = []
        self._earlier = [self._model(1.0), self._model(1.0)]

    def run(self) -> Result:
        """Rounds until one member is left that was never suspended: else all would lead again."""
        run, told = self._court.open_run(self._policy, self._earlier[-1])
        self._events += told
        for _ in range(2 * self.plan.members):
            if len(self._proven | self._slanderers) >= self.plan.members - 1:
                break
            self._round(run)
        return self.result

    def _model(self, scale: float) -> Digest:
        values: dict[str, np.ndarray[Any, Any]] = {}
        for tensor in self._schema.tensors:
            drawn = self._numbers.normal(0, scale, tensor.shape)
            kind = {"I64": "<i8", "F32": "<f4", "F64": "<f8"}[tensor.dtype]
            values[tensor.name] = np.asarray(drawn * 100 if tensor.dtype == "I64" else drawn).astype(kind)
        path = self._objects.folder / "drawn"
        write_file(path, self._schema, values)
        return self._objects.put(path.read_bytes())

    def _round(self, run: int) -> None:
        members, number = self._court.members, len(self._earlier) - 2
        self._decide(
            [Call(m, "submit", (run, number, self._model(0.1), self._chance.randint(1, 1000), b"{}")) for m in members]
        )
        before = self._court.state(run)
        liar, kind = before.leader, self._chance.choice(list(KINDS))
        right = self._merged(before)
        tampered = self._tampered(kind, before, right)
        self.result.tampered[kind] += 1
        for _ in range(STEPS_MAX):
            state = self._court.state(run)
            if state.round != before.round:
                break
            if state.view > 0:
                self._objects.withheld.discard(right)  # another leader publishes it, and gives it
            self._step(state, liar, tampered)
        else:
            raise self._failure(kind, "the round did not close")
        self._check(run, before, kind, liar, tampered, right)
        self._objects.withheld.clear()
        self._earlier.append(right)

    def _tampered(self, kind: str, state: RoundState, right: Digest) -> Digest:
        if kind == "nothing":
            return sha256(b"nothing" + right)
        data = self._objects.path(right).read_bytes()
        turn = Turn(self._chance, state, data, self._earlier, self._objects, self._policy)
        found = KINDS[kind](turn)
        if kind not in ("right_withheld", "right_digest_wrong_bytes"):
            for _ in range(20):
                if found != data:
                    break
                found = _bit(turn)  # the same weights, say, or the same base: nothing was changed
        digest = self._objects.put(found)
        if kind in UNSHOWN:
            self._objects.withheld.add(digest)
        return digest

    def _merged(self, state: RoundState) -> Digest:
        key = state.base, state.merged
        if key not in self._merges:
            out = self._objects.folder / "merged"
            paths = [self._objects.path(s.digest) for s in state.merged]
            merge(self._objects.path(state.base), paths, [s.weight for s in state.merged], self._policy, out)
            self._merges[key] = self._objects.put(out.read_bytes())
        return self._merges[key]

    # --- what members do

    def _step(self, state: RoundState, liar: Address, tampered: Digest) -> None:
        """Everybody does what it owes by this state; if nobody owes anything, time passes."""
        calls: list[Call] = []
        worked = False
        changes = []
        now_s = self._court.now_ms / 1000
        for member in self._chance.sample(self._court.members, len(self._court.members)):
            shares = self._shares()
            have = self._have(member, state, shares)
            terms = {"merge_s": 4.0, "submissions_min": 2}
            for duty in duties(state, member, have, now_s, shares=shares, **terms):  # type: ignore[arg-type]
                call = self._perform(member, duty, state, liar, tampered)
                worked |= call is None and isinstance(duty, Verify | Hear | Merge) and self._moved
                if call is not None:
                    calls.append(call)
            change = next_change_s(state, member, have, now_s, shares=shares, **terms)  # type: ignore[arg-type]
            changes += [change] if change is not None else []
        if calls:
            self._decide(calls)
        elif not worked:
            if not changes:
                raise self._failure("", f"nobody owes anything, and no time is awaited: {state}")
            self._court.now_ms = max(self._court.now_ms, round(min(changes) * 1000) + 1)

    def _shares(self) -> Shares | None:
        return Shares(chunk_count(self._schema.size_bytes), self._policy.attest_s) if self.plan.parts else None

    def _have(self, member: Address, state: RoundState, shares: Shares | None) -> Have:
        whole = shares is None or member == state.leader
        key = member, state.published or b"", state.merged
        return Have(
            objects=frozenset({state.base, *(s.digest for s in state.submissions)}),
            merged=self._merged(state) if whole and state.phase is not Phase.SUBMIT else None,
            verified=self._verified.get(key, 0),
            wrong=self._wrong.get(key),
            heard=self._heard.get(key, frozenset()),
        )

    def _perform(self, member: Address, duty: Duty, state: RoundState, liar: Address, tampered: Digest) -> Call | None:
        self._moved = False
        place = (state.run, state.round, state.view)
        lies = member in self._colluders
        match duty:
            case Publish(checkpoint=checkpoint):
                shown = tampered if member == liar and state.view == 0 else checkpoint
                return Call(member, "publish", (*place, shown))
            case Verify(published=published) if (lies and published == tampered) or self.plan.mistake == "credulous":
                return Call(member, "attest", (*place, duty.published))
            case Verify():
                self._verify(member, duty)
            case Hear():
                self._hear(member, duty, state)
            case Attest(checkpoint=checkpoint, parts=parts):
                if lies and checkpoint != tampered:
                    return Call(member, "refuse", (*place, sha256(b"I found" + checkpoint), self._slander(state)))
                return Call(member, "attestParts", (*place, checkpoint, parts))
            case Refuse(found=found, evidence=evidence, published=published):
                if (lies and published == tampered) or self.plan.mistake == "credulous":
                    return Call(member, "attest", (*place, published))
                proof = evidence or self._proof(state, found)
                return Call(member, "refuse", (*place, found, proof))
            case ReportMissing(member=target):
                return Call(member, "reportMissing", (state.run, state.round, target))
            case _ if type(duty).__name__ == "Advance":
                return Call(member, "advance", place)
        return None

    def _claim(self, state: RoundState) -> Claim:
        assert state.published is not None
        submissions = tuple((s.member, s.digest, s.weight) for s in state.merged)
        return Claim(
            state.run, state.round, state.view, state.leader, state.published, state.base, submissions, self._policy
        )

    def _proof(self, state: RoundState, found: Digest) -> Digest:
        """Evidence with the inputs whole."""
        paths = [self._objects.path(s.digest) for s in state.merged]
        return self._objects.put(encode(of_whole(self._claim(state), found, self._objects.path(state.base), paths, "")))

    def _slander(self, state: RoundState) -> Digest:
        return self._proof(state, sha256(b"I found"))

    def _verify(self, member: Address, duty: Verify) -> None:
        """What a node does with the parts that it was assigned."""
        data = self._objects.read(duty.published)
        if data is None:
            return
        chunks = chunks_of_parts(duty.parts, chunk_count(self._schema.size_bytes))
        right = self._right_leaves(duty, chunks)
        published = leaves_of(data)
        size = self._schema.size_bytes
        wrong = [c for c in chunks if len(data) != size or c >= len(published) or published[c] != right[c]]
        key = member, duty.published, duty.submissions
        self._moved = True
        if not wrong:
            self._verified[key] = self._verified.get(key, 0) | duty.parts
            return
        claim_state = self._court.state(duty.run)
        inputs = {
            digest: (self._objects.path(digest), leaves_of(self._objects.path(digest).read_bytes()))
            for digest in (duty.base, *(s.digest for s in duty.submissions))
        }
        evidence = of_chunk(self._claim(claim_state), right[wrong[0]], wrong[0], published, len(data), inputs)
        self._wrong[key] = right[wrong[0]], self._objects.put(encode(evidence))

    def _right_leaves(self, duty: Verify, chunks: Sequence[int]) -> Mapping[int, Digest]:
        known = self._leaves.setdefault((duty.base, duty.submissions), {})
        missing = [chunk for chunk in chunks if chunk not in known]
        if missing:
            paths = [self._objects.path(s.digest) for s in duty.submissions]
            weights = [s.weight for s in duty.submissions]
            known |= merge_chunks(self._objects.path(duty.base), paths, weights, self._policy, missing)
        return known

    def _hear(self, member: Address, duty: Hear, state: RoundState) -> None:
        assert state.published is not None
        key = member, state.published, state.merged
        for name, args in self._events:
            told = (args.get("run"), args.get("round"), args.get("view"))
            if name != "Refused" or told != (duty.run, duty.round, duty.view) or args["member"] not in duty.accusers:
                continue
            self._moved = True
            self._heard[key] = self._heard.get(key, frozenset()) | {args["member"]}
            evidence = decode(self._objects.path(args["evidence"]).read_bytes())
            if evidence.claim != self._claim(state):
                continue
            verdict = check(evidence, None)
            if verdict.finding is Finding.GUILTY and verdict.right is not None:
                self._wrong[key] = verdict.right, args["evidence"]

    def _decide(self, calls: Sequence[Call]) -> None:
        self._events += self._court.decide(calls)

    # --- what has to hold

    def _check(self, run: int, before: RoundState, kind: str, liar: Address, tampered: Digest, right: Digest) -> None:
        closed, leader, *_ = self._court.ask("closedRound", run, before.round)
        if closed != right:
            raise self._failure(kind, f"the round closed with {short(closed)}, the merge is {short(right)}")
        harmless = tampered == right and not self.plan.parts
        if leader == liar and not harmless:
            raise self._failure(kind, "who tampered closed the round")
        mine = [(n, a) for n, a in self._events if a.get("run") == run and a.get("round") == before.round]
        refusals = [a for n, a in mine if n == "Refused" and a["published"] == tampered != right]
        if kind not in UNSHOWN and not refusals:
            raise self._failure(kind, "nobody refused it")
        if any(n == "LeaderReplaced" and a["reason"] == 3 and a["replaced"] == liar for n, a in mine):
            self._proven.add(liar)
        elif tampered != right and (kind not in UNSHOWN or not self.plan.parts):
            raise self._failure(kind, "the leader was not suspended")
        failed = {a["accuser"] for n, a in mine if n == "AccusationFailed"}
        if failed - self._colluders:
            raise self._failure(kind, "an honest member is called a false accuser")
        self._slanderers |= failed
        self.result.false_accusations += len(failed)
        blamed = {m for m in self._court.members if self._court.ask("suspended", run, m)}
        if blamed != self._proven | self._slanderers:
            raise self._failure(kind, f"{[short(m) for m in blamed]} are suspended")
        if any(n in ("Struck", "MissingReported") for n, _ in mine):
            raise self._failure(kind, "an honest submission was reported")
        self._check_proofs(run, kind, refusals)
        for key in [k for k in self._merges if k[0] != right]:  # type: ignore[index]
            del self._merges[key]

    def _check_proofs(self, run: int, kind: str, refusals: Sequence[Mapping[str, Any]]) -> None:
        publications = runs_of(self._events)[run].publications
        for digest in {a["evidence"] for a in refusals}:
            verdict = check(decode(self._objects.path(digest).read_bytes()), publications)
            if verdict.finding is not Finding.GUILTY:
                raise self._failure(kind, f"a refusal proves nothing: {verdict}")
            self.result.proofs += 1

    def _failure(self, kind: str, what: str) -> Failure:
        return Failure(f"{kind}, {self.plan}: {what}")


def play(plan: Plan) -> Result:
    """One run of tampered rounds, as many as members."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None, prefix="swarm-tamper-") as folder:
        campaign = Campaign(plan, Path(folder))
        try:
            return campaign.run()
        except Failure as failure:
            campaign.result.failure = str(failure)
            return campaign.result


TELL_S = 10.0
"""How often the campaign says how far it is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sim tamper", description="Leaders that tamper, by the thousand.")
    parser.add_argument("--count", type=int, default=10_000, help="tamperings, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--mistake", choices=["credulous"], default="", help="every verifier attests without merging")
    given = parser.parse_args(arguments)
    plans: list[Plan] = []
    tamperings = 0
    while tamperings < given.count:
        plans.append(draw(given.seed + len(plans), given.mistake))
        tamperings += plans[-1].members - 1 - plans[-1].colluders
    began_s = time.perf_counter()
    kinds: Counter[str] = Counter()
    failures, proofs, slanders = [], 0, 0
    told_s = began_s
    with ProcessPoolExecutor(given.jobs) as pool:
        for result in pool.map(play, plans, chunksize=4):
            kinds += result.tampered
            proofs, slanders = proofs + result.proofs, slanders + result.false_accusations
            if result.failure:
                failures.append(result.failure)
                print(result.failure, flush=True)
            if time.perf_counter() - told_s > TELL_S:
                told_s = time.perf_counter()
                rate = kinds.total() / (told_s - began_s)
                print(
                    f"{kinds.total()} tamperings, {len(failures)} came through, {rate:.0f} a second, "
                    f"{max(given.count - kinds.total(), 0) / rate:.0f} s left",
                    flush=True,
                )
    took_s = time.perf_counter() - began_s
    print(
        f"{kinds.total()} tamperings in {took_s:.1f} s ({kinds.total() / took_s:.0f} a second): {len(failures)} came "
        f"through or blamed another; {proofs} proofs checked, {slanders} false accusations held against the accuser"
    )
    print(", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
