"""`python -m tests.node.tampering --count 100`: a leader that tampers, by real processes on loopback, run after run.

One node of a consortium is `Tampers` of `tests.node.rule_breakers`, the others are `swarm node`; all keep one ledger
for the whole trial. Held against every run: every site has the bytes of one checkpoint, and each round's is the honest
merge; each tampering was refused, by evidence that proves it, or, where members merge parts and nobody was shown the
bytes, attested by nobody; another leader closed the round; nobody but the liar is suspended; no submission was struck.
At the end `swarm audit` passes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sim.tamper import UNSHOWN
from swarm.audit import audit
from swarm.audit.accusation import check, read_evidence
from swarm.audit.replay import Difference
from swarm.audit.retell import RunStory, runs_of
from swarm.cli.history import RoundHistory, rounds_of
from swarm.cli.ledger import contracts_of, names_of
from swarm.cli.run import agree
from swarm.config import Policy, load_site
from swarm.encoding import Digest, to_hex
from swarm.errors import SwarmError
from swarm.learn.attach import Node
from swarm.learn.seat import Place, Seat
from swarm.merge import Schema, Tensor, merge, write_file
from swarm.merge.evidence import Finding
from swarm.merkle import digest_of
from tests.node.hospitals import Hospitals

LIAR = "north"
RUN_S = 300.0
"""No run takes longer, however busy the machine is."""
HARMLESS = ("right_withheld", "right_digest_wrong_bytes")
"""The right digest: where every member merges everything, nobody needs the leader's bytes."""


class Failure(AssertionError):
    """A tampering came through, or somebody else was blamed for it."""


@dataclass(frozen=True)
class Setting:
    """A consortium and how its runs are verified."""

    names: tuple[str, ...]
    parameters: int
    parts: bool
    attest_s: float

    def policy(self, name: str, rounds: int) -> Policy:
        terms: dict[str, Any] = {"merge": "mean", "verify_all_members": 1, "verify_all_bytes": 0} if self.parts else {}
        return Policy(
            name, rounds, 1, submissions_min=len(self.names) - 1, submit_s=30.0, merge_s=20.0, attest_s=self.attest_s,
            **terms,
        )  # fmt: skip

    @property
    def schema(self) -> Schema:
        return Schema.of([Tensor("batches", "I64", ()), Tensor("weight", "F32", (self.parameters,))])


WHOLE = Setting(("north", "east", "south", "west"), 1_000, parts=False, attest_s=20.0)
"""Every member merges everything again."""
PARTS = Setting(("north", "east", "south", "west", "coast"), 750_000, parts=True, attest_s=6.0)
"""Three chunks, each merged again by two of the four that do not lead."""


@dataclass
class Told:
    """What came of one run."""

    run: int
    caught: Counter[str] = field(default_factory=Counter)
    """Tamperings that were refused, or held up, by kind."""
    harmless: Counter[str] = field(default_factory=Counter)
    """The right digest, published by the liar, in rounds that closed."""
    rounds: int = 0
    slow: int = 0
    """Turns of honest leaders that ended because time did: the machine was busy. Nobody is blamed for it."""
    proofs: int = 0
    """Refusals, each with evidence that proves the tampering."""
    took_s: float = 0.0


class Trial:
    """Real nodes, one of which tampers, and runs on them.

    Args:
        hospitals: nobody started yet.
        seed: of what the liar does, of the models and of the numbers of rounds.
    """

    def __init__(self, hospitals: Hospitals, setting: Setting, seed: int) -> None:
        self.setting = setting
        self.seed = seed
        self._hospitals = hospitals
        self._operators = threading.Lock()
        self._honest = [name for name in setting.names if name != LIAR]

    def start(self, *, others: str | None = None) -> None:
        """Start every node, and wait until it answers; `others` is the kind of those that are not the liar."""
        for name in self.setting.names:
            self._hospitals.start(name, kind=f"Tampers:{self.seed}" if name == LIAR else others)
        for name in self.setting.names:
            self._hospitals.ask(name, "swarm_status")

    def run(self, number: int, rounds: int) -> Told:
        """One run, trained to its end and held against the rules.

        Raises:
            Failure: with the story of the run.
        """
        began_s = time.monotonic()
        rng = np.random.default_rng((self.seed, number))
        with tempfile.TemporaryDirectory(dir=self._hospitals.folder) as folder:
            model = Path(folder) / "genesis.safetensors"
            self._write(model, rng, 1.0)
            policy = self.setting.policy(f"run {number}", rounds)
            sites = [load_site(self._hospitals.sites[name]) for name in self.setting.names]
            with self._operators:  # an operator signs one call after the other
                first_block = int(self._hospitals.ask(self._honest[0], "swarm_status")["height"])
                run = asyncio.run(agree(sites, policy, model))
            with ThreadPoolExecutor(len(self.setting.names)) as pool:
                work = [pool.submit(self._train, run, name, rng.spawn(1)[0]) for name in self.setting.names]
                finals = {name: one.result() for name, one in zip(self.setting.names, work, strict=True)}
            found = Verdict(self._hospitals, self.setting, policy, run, finals)
            told = found.of(asyncio.run(found.read(first_block)), Path(folder))
        told.took_s = time.monotonic() - began_s
        return told

    def end(self) -> str:
        """Stop the nodes and audit the folder; what the audit said."""
        self._hospitals.stop()
        report = audit(self._hospitals.folder)
        if not report.ok:
            raise Failure(f"swarm audit: {report.first_difference}")
        return "\n".join(report.lines[: len(self.setting.names)])

    def _train(self, run: int, name: str, rng: np.random.Generator) -> Place:
        """Training that does not train."""
        until_s = time.monotonic() + RUN_S
        with Node(load_site(self._hospitals.sites[name]), patience_s=60) as node:
            seat = Seat(node, str(run))
            place = seat.take()
            while not place.finished:
                if time.monotonic() > until_s:
                    raise Failure(f"run {run}: {name} is in round {place.round} after {RUN_S} s")
                with seat.update_file() as path:
                    self._write(path, rng, 1e-2)
                    samples = int(rng.integers(1, 1000))
                    place = seat.exchange(place, path, samples=samples, metrics={"loss": 1.0})
        return place

    def _write(self, path: Path, rng: np.random.Generator, scale: float) -> None:
        values: dict[str, np.ndarray[Any, Any]] = {
            "batches": np.array(1, np.int64),
            "weight": rng.normal(0, scale, self.setting.parameters).astype(np.float32),
        }
        write_file(path, self.setting.schema, values)


@dataclass(frozen=True)
class Ledger:
    """What an honest site's ledger says of one run."""

    story: RunStory
    rounds: list[RoundHistory]
    suspended: frozenset[str]
    published: dict[tuple[int, int], str]
    """What the liar published, by round and view."""
    checkpoints: dict[str, str]
    """Of the run, by every site's node."""


@dataclass(frozen=True)
class Verdict:
    """Whether what happened in a run is what has to happen."""

    hospitals: Hospitals
    setting: Setting
    policy: Policy
    run: int
    finals: dict[str, Place]

    async def read(self, first_block: int) -> Ledger:
        """The run, by its events since `first_block`."""
        honest = next(name for name in self.setting.names if name != LIAR)
        checkpoints = {}
        for name in self.setting.names:
            async with contracts_of(load_site(self.hospitals.sites[name])) as contracts:
                checkpoints[name] = to_hex((await contracts.run(self.run)).checkpoint)
        async with contracts_of(load_site(self.hospitals.sites[honest])) as contracts:
            events = [e for e in await contracts.events(first_block) if e.args.get("run") == self.run]
            name_of = await names_of(contracts)
            members = await contracts.members()
            suspended = {name_of(m.address) for m in members if await contracts.suspended(self.run, m.address)}
        published = {
            (int(e.args["round"]), int(e.args["view"])): to_hex(e.args["checkpoint"])
            for e in events
            if e.name == "Published" and name_of(e.args["leader"]) == LIAR
        }
        try:
            story = runs_of((e.name, e.args) for e in events)[self.run]
        except Difference as difference:
            raise Failure(f"run {self.run}: {difference}") from difference
        return Ledger(
            story=story,
            rounds=rounds_of(events, self.run, name_of),
            suspended=frozenset(suspended),
            published=published,
            checkpoints=checkpoints,
        )

    def of(self, ledger: Ledger, scratch: Path) -> Told:
        """What came of the run; Failure if it is not what has to come of it."""
        try:
            return self._of(ledger, scratch)
        except Failure as failure:
            story = "\n".join(json.dumps(asdict(one)) for one in ledger.rounds)
            did = "\n".join(json.dumps(one) for one in self._tamperings().values())
            raise Failure(f"run {self.run}: {failure}\n{story}\nthe liar: {did}") from failure

    def _of(self, ledger: Ledger, scratch: Path) -> Told:
        ends = [end for one in ledger.rounds for end in one.replaced if end["leader"] != LIAR]
        if any(end["reason"] not in ("silent", "unattested") for end in ends):
            raise Failure(f"an honest leader was blamed: {ends}")
        told = Told(self.run, rounds=len(ledger.story.closed), slow=len(ends))
        self._same_everywhere(ledger)
        self._merges(ledger.story, scratch)
        for one in ledger.rounds:
            if one.struck or one.absent or one.false_accusers:
                raise Failure(f"round {one.round}: struck {one.struck}, late {one.absent}, called false accusers "
                              f"{one.false_accusers}")  # fmt: skip
        if self.setting.parts != any(one.verified for one in ledger.rounds):
            raise Failure("members verified " + ("everything, not parts" if self.setting.parts else "parts only"))
        caught = set()
        did = self._tamperings()
        for (round_, view), digest in ledger.published.items():
            record = did.get((round_, view))
            if record is None or record["published"] != digest:
                raise Failure(f"round {round_} view {view}: {LIAR} published {digest}, and says {record}")
            reason = self._came_of(record, ledger.rounds[round_])
            caught |= {digest} if reason == "refused" else set()
            (told.caught if reason else told.harmless)[record["kind"]] += 1
        if ledger.suspended != ({LIAR} if caught else set()):
            raise Failure(f"{sorted(ledger.suspended)} are suspended")
        told.proofs = self._proofs(ledger, caught)
        return told

    def _came_of(self, record: dict[str, Any], round_: RoundHistory) -> str:
        """Why the liar's turn ended; empty where the round closed with it, and that does no harm."""
        view, kind = record["view"], record["kind"]
        ends = [one for one in round_.replaced if one["view"] == view]
        if kind in HARMLESS and not self.setting.parts:
            if ends or round_.leader != LIAR:
                raise Failure(f"{record}: the right checkpoint was not attested")
            return ""
        wanted = "unattested" if kind in UNSHOWN and self.setting.parts else "refused"
        if ends != [{"leader": LIAR, "view": view, "reason": wanted}]:
            raise Failure(f"{record}: the leader should have been replaced ({wanted}), but {ends}")
        if not round_.closed or (round_.leader == LIAR and round_.view == view):
            raise Failure(f"{record}: no other leader closed the round")
        if wanted == "refused" and round_.leader == LIAR:
            raise Failure(f"{record}: {LIAR} closed the round that it tampered with")
        refusers = {one["name"] for one in round_.refusals if one["view"] == view}
        if wanted == "refused" and len(refusers) < 2:
            raise Failure(f"{record}: refused by {sorted(refusers)} alone")
        return wanted

    def _proofs(self, ledger: Ledger, caught: set[str]) -> int:
        """How many refusals there are; each is of a tampering, and its evidence proves it."""
        refusals = [refusal for one in ledger.rounds for refusal in one.refusals]
        for refusal in refusals:
            if refusal["leader"] != LIAR or refusal["name"] == LIAR or refusal["published"] not in caught:
                raise Failure(f"refused without a tampering: {refusal}")
            verdict = check(
                read_evidence(self._object(refusal["name"], refusal["evidence"])), ledger.story.publications
            )
            if verdict.finding is not Finding.GUILTY:
                raise Failure(f"{refusal}: {verdict}")
        return len(refusals)

    def _same_everywhere(self, ledger: Ledger) -> None:
        last = to_hex(ledger.story.closed[-1][2])
        said = {*ledger.checkpoints.values(), *(place.checkpoint for place in self.finals.values())}
        bytes_ = {to_hex(digest_of(place.path.read_bytes())) for place in self.finals.values()}
        if said | bytes_ != {last} or len(ledger.story.closed) != self.policy.rounds:
            raise Failure(f"the sites end with {said | bytes_} after {len(ledger.story.closed)} rounds")

    def _merges(self, story: RunStory, scratch: Path) -> None:
        out = scratch / "merged"
        site = self.setting.names[-1]
        for number, (base, submissions, checkpoint) in enumerate(story.closed):
            if len(submissions) != len(self.setting.names):
                raise Failure(f"round {number} has {len(submissions)} submissions")
            updates = [self._object(site, to_hex(s.digest)) for s in submissions]
            merge(self._object(site, to_hex(base)), updates, [s.weight for s in submissions], self.policy, out)
            found: Digest = digest_of(out.read_bytes())
            if found != checkpoint:
                raise Failure(f"round {number} closed with {to_hex(checkpoint)}, the merge is {to_hex(found)}")

    def _object(self, site: str, digest: str) -> Path:
        return Path(self.hospitals.ask(site, "swarm_object", digest=digest)["path"])

    def _tamperings(self) -> dict[tuple[int, int], dict[str, Any]]:
        """What the liar says that it did in this run, by round and view."""
        said = [json.loads(line) for line in self.hospitals.log(LIAR).splitlines() if line.startswith("{")]
        return {(one["round"], one["view"]): one for one in said if one["run"] == self.run}


@contextmanager
def consortium(setting: Setting, seed: int, folder: Path) -> Iterator[Trial]:
    """Running nodes; those of them that still run are killed at the end."""
    with Hospitals(folder, list(setting.names)) as hospitals:
        trial = Trial(hospitals, setting, seed)
        trial.start()
        yield trial


def tamper(trial: Trial, count: int, *, at_once: int, tell: Callable[[Told, Counter[str]], None]) -> list[Told]:
    """Runs until so many tamperings were caught, and the audit; what came of each run.

    Raises:
        Failure: the first one.
    """
    chance = random.Random(f"{trial.seed}/rounds")
    done: list[Told] = []
    caught: Counter[str] = Counter()
    begun = 0
    with ThreadPoolExecutor(at_once) as pool:
        running: set[Future[Told]] = set()
        while caught.total() < count or running:
            while len(running) < at_once and caught.total() < count:
                running.add(pool.submit(trial.run, begun, chance.randint(3, 6)))
                begun += 1
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for one in ended:
                done.append(one.result())
                caught += done[-1].caught
                tell(done[-1], caught)
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.node.tampering", description="A leader that tampers.")
    parser.add_argument("--count", type=int, default=100, help="tamperings that were caught, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=2, metavar="RUNS", help="runs side by side")
    parser.add_argument("--parts", action="store_true", help="five members verify a larger model by assigned parts")
    given = parser.parse_args(arguments)
    began_s = time.monotonic()

    def tell(told: Told, caught: Counter[str]) -> None:
        did = ", ".join(sorted((told.caught + told.harmless).elements())) or "the liar did not lead"
        print(
            f"run {told.run}: {told.rounds} rounds in {told.took_s:.1f} s; {did}; {caught.total()} caught", flush=True
        )

    try:
        with (
            tempfile.TemporaryDirectory(prefix="swarm-tampering-") as folder,
            consortium(PARTS if given.parts else WHOLE, given.seed, Path(folder)) as trial,
        ):
            done = tamper(trial, given.count, at_once=given.at_once, tell=tell)
            runs_s = time.monotonic() - began_s
            print(trial.end())
    except (Failure, SwarmError, AssertionError) as failure:
        print(f"seed {given.seed}: {type(failure).__name__}: {failure}")
        return 1
    _sum_up(done, runs_s, time.monotonic() - began_s)
    return 0


def _sum_up(done: Sequence[Told], runs_s: float, took_s: float) -> None:
    caught = sum((told.caught for told in done), Counter[str]())
    harmless = sum((told.harmless for told in done), Counter[str]())
    rounds, proofs, slow = (sum(getattr(told, of) for told in done) for of in ("rounds", "proofs", "slow"))
    print(
        f"{caught.total()} tamperings in {len(done)} runs of {rounds} rounds, all caught, nobody else blamed; {proofs} "
        f"proofs checked; honest leaders were too slow {slow} times; {runs_s / len(done):.1f} s a run, {took_s:.0f} s "
        "with the audit, which passed"
    )
    print(", ".join(f"{kind} {number}" for kind, number in sorted(caught.items())))
    if harmless:
        print("right digests, closed: " + ", ".join(f"{kind} {number}" for kind, number in sorted(harmless.items())))


if __name__ == "__main__":
    sys.exit(main())
