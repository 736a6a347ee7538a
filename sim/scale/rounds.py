"""The rounds of a run: every institution asks the swarm's own rule what it owes, and does it on the shared ledger.

What is shared and what each does for itself is in sim/README.md; a disagreement between members ends the run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from sim.scale.chain import Chain, Member, Refusal
from sim.scale.engines import Engine
from sim.scale.prepared import Institution, Prepared
from sim.scale.work import Parts
from sim.study import metrics
from swarm.encoding import Address, Digest, sha256
from swarm.identity import Identity
from swarm.learn import save_model
from swarm.learn.recipes import together
from swarm.learn.state import Checkpoint, State
from swarm.ledger.client import Run
from swarm.ledger.endpoint import Call
from swarm.merge import merge
from swarm.merkle import digest_of
from swarm.rounds import (
    Advance,
    Attest,
    Duty,
    Have,
    Merge,
    Publish,
    RoundState,
    RunState,
    Submission,
    Submit,
    Update,
    duties,
    next_change_s,
)
from swarm.store import Store

ROUNDS = "rounds.jsonl"
PLACES = 6
"""Decimals of what is written down."""


class Broken(Exception):
    """Honest members do not agree, or nobody knows how to go on: a mistake of this program, not of the experiment."""


@dataclass(frozen=True)
class Closed:
    """A round that is over."""

    round: int
    checkpoint: str
    """Its digest in hex."""
    institutions: int
    """That submitted."""
    sites: int
    """Virtual sites that trained."""
    samples: int
    """Rows that they saw."""
    measures: dict[str, float | None]
    """The checkpoint on all test rows; None where a metric is not defined."""


class Swarm:
    """A run of all institutions, in a folder.

    Args:
        verifiers: how many members merge for themselves in a round, the leader among them. All others take over what
            the first one found, as they have the same inputs.
        tell: hears how many institutions of a round have trained, and of how many.
    """

    def __init__(
        self,
        prepared: Prepared,
        folder: Path,
        engine: Engine,
        *,
        verifiers: int,
        store_max_bytes: int,
        tell: Callable[[int, int, int], None] = lambda number, done, of: None,
    ) -> None:
        self.prepared = prepared
        self.folder = folder
        self.chain = Chain(folder, [Member.of(one.number, one.name) for one in prepared.institutions])
        self._engine = engine
        self._verifiers = verifiers
        self._tell = tell
        self._store = Store(folder / "store", store_max_bytes, durable=False)
        self._inputs: tuple[Digest, tuple[Submission, ...]] | None = None
        self._found: dict[Address, Digest] = {}
        """What each member has as its merge of these inputs."""
        self._tests = together(list(prepared.tests.values()))
        self.merged_themselves = 0
        """How often a member merged for itself so far."""
        self.refusals: list[Refusal] = []
        """Calls that came too late: the block that has them had closed the round before."""

    def close(self) -> None:
        """Let go of the folder."""
        self.chain.close()

    def play(self) -> Iterator[Closed]:
        """Go on to the end of the run; every round that was closed, those of earlier processes too."""
        run = self._agree()
        yield from (told := self._told())
        settled = len(told)
        while True:
            state = self.chain.ask(self.chain.contracts.round_state(run.id))
            if state.round > settled:
                yield self._settle(settled, state.base)
                settled += 1
            for left in (self.folder / "parts").glob("*"):
                if int(left.name) < settled:
                    shutil.rmtree(left)
            if state.state is not RunState.OPEN:
                break
            self._play_round(state)

    # --- agreeing on the run

    def _agree(self) -> Run:
        """The run, proposed and approved, and joined by all whose sites are there in the first round."""
        contracts, prepared, members = self.chain.contracts, self.prepared, self.chain.members
        if not self.chain.ask(contracts.runs()):
            first = self.folder / "genesis"
            save_model(prepared.recipe.new_model(prepared.request.seed), first)
            genesis = self._store.put_file(first, move=True)
            self._store.put(prepared.policy.encode())
            self._decide([(members[0].operator, contracts.propose(prepared.policy, genesis))])
        (run,) = self.chain.ask(contracts.runs())
        if run.state is RunState.PROPOSED:
            consents = self.chain.ask(contracts.approvals(run.id))
            wanted = [member for member in members if member.node.address not in consents]
            self._decide([(member.operator, contracts.approve(run.id)) for member in wanted])
        (run,) = self.chain.ask(contracts.runs())
        return run

    # --- one round

    def _play_round(self, state: RoundState) -> None:
        number, run = state.round, state.run
        updates = self._updates(state)
        self._join(state, updates)
        while True:
            state = self.chain.ask(self.chain.contracts.round_state(run))
            if state.round != number or state.state is not RunState.OPEN:
                return
            self._step(state, updates)

    def _updates(self, state: RoundState) -> dict[Address, Update]:
        """What each institution whose sites take part submits; trained now, unless it was before."""
        parts = self._parts(state.round)
        there = [one for one in self.prepared.institutions if self.prepared.present(one, state.round)]
        missing = [one for one in there if not self._has(parts, one)]
        done = len(there) - len(missing)
        self._tell(state.round, done, len(there))
        base = self._store.path(state.base)
        for _ in self._engine.train(missing, state.round, base, parts):
            done += 1
            self._tell(state.round, done, len(there))
        made = [(one, part) for one in there if (part := parts.read(one.number)) is not None]
        assert len(made) == len(there), "an engine left an institution out"
        self._store.pin_only({state.base, *(part.digest for _, part in made)}, "round")
        updates = {}
        for one, part in made:
            if not self._store.has(part.digest):
                found = self._store.put_file(parts.path(one.number), move=True)
                assert found == part.digest
            updates[self._address(one)] = Update(state.round, part.digest, part.weight, {"samples": part.samples})
        return updates

    def _has(self, parts: Parts, institution: Institution) -> bool:
        """Whether an institution's update was made before, and is whole: a machine may have lost power since."""
        part, path = parts.read(institution.number), parts.path(institution.number)
        if part is None:
            return False
        return self._store.has(part.digest) or (path.exists() and digest_of(path.read_bytes()) == part.digest)

    def _join(self, state: RoundState, updates: dict[Address, Update]) -> None:
        """Who comes for the first time, or again, takes a seat before anybody submits: the round waits for it."""
        joined = set(self.chain.ask(self.chain.contracts.participants(state.run))) & set(state.expected)
        coming = [m for m in self.chain.members if m.node.address in updates and m.node.address not in joined]
        if not state.submissions:
            self._decide([(member.node, self.chain.contracts.join(state.run, True)) for member in coming])

    def _step(self, state: RoundState, updates: dict[Address, Update]) -> None:
        """Everybody does what it owes by now; where nobody owes anything, the clock goes on to when somebody will."""
        policy, now_s = self.prepared.policy, self.chain.now_s
        objects = frozenset({state.base, *(s.digest for s in state.submissions)} & self._store.digests())
        if self._inputs != (state.base, state.merged):
            self._inputs, self._found = (state.base, state.merged), {}
        calls: list[tuple[Identity, Call]] = []
        idle, again_s = True, list[float]()
        there = {*state.expected, *(s.member for s in state.submissions)}
        for member in self.chain.members:
            me = member.node.address
            if me not in there:
                continue
            have = Have(objects=objects, update=updates.get(me), merged=self._found.get(me))
            owed = duties(state, me, have, now_s, merge_s=policy.merge_s, submissions_min=policy.submissions_min)
            for duty in sorted(owed, key=repr):
                idle = False
                if isinstance(duty, Merge):
                    self._found[me] = self._merged_for(me, state, duty)
                else:
                    calls.append((member.node, self._call(member, duty)))
            later_s = next_change_s(
                state, me, have, now_s, merge_s=policy.merge_s, submissions_min=policy.submissions_min
            )  # fmt: skip
            again_s += [] if later_s is None else [later_s]
        if calls:
            self._decide(calls, state)
        elif idle:
            if not again_s:
                raise Broken(f"round {state.round}: nobody owes anything, and no deadline runs")
            self.chain.wait_until(min(again_s))

    def _call(self, member: Member, duty: Duty) -> Call:
        contracts = self.chain.contracts
        match duty:
            case Submit(run=run, round=number, update=update):
                return contracts.submit(run, number, update.digest, update.weight, update.metrics)
            case Publish(run=run, round=number, view=view, checkpoint=checkpoint):
                return contracts.publish(run, number, view, checkpoint)
            case Attest(run=run, round=number, view=view, checkpoint=checkpoint, parts=parts):
                return contracts.attest(run, number, view, checkpoint, parts)
            case Advance(run=run, round=number, view=view):
                return contracts.advance(run, number, view)
        raise Broken(f"{member.name} is honest and has everything, and yet it owes {duty}")

    def _decide(self, calls: list[tuple[Identity, Call]], before: RoundState | None = None) -> None:
        refused = self.chain.decide(calls) if calls else []
        if not refused:
            return
        if before is not None:
            after = self.chain.ask(self.chain.contracts.round_state(before.run))
            if (after.round, after.view, after.phase) != (before.round, before.view, before.phase):
                self.refusals += refused
                return
        first = refused[0]
        raise Broken(f"the contract refuses {first.sender}'s call ({first.what}): {first.reason}")

    # --- merging

    def _merged_for(self, me: Address, state: RoundState, duty: Merge) -> Digest:
        """What a member has as its merge: made by itself, or taken over from the first of those who did."""
        first, *others = self._verifying(state)
        who = me if me in others else first
        if who not in self._found:
            self._found[who] = self.merge(who, duty)
            self.merged_themselves += 1
        return self._found[who]

    def _verifying(self, state: RoundState) -> list[Address]:
        """The submitters that merge for themselves in this view: some drawn by the round's seed, then the leader."""
        submitters = [s.member for s in state.merged if s.member != state.leader]
        draw = state.seed + state.view.to_bytes(4, "big")
        drawn = sorted(submitters, key=lambda member: sha256(draw + member))
        return [*drawn[: self._verifiers - 1], state.leader]

    def merge(self, who: Address, duty: Merge) -> Digest:
        """Merge the round's submissions and keep the result; its name."""
        base = self._store.path(duty.base)
        inputs = [self._store.path(s.digest) for s in duty.submissions]
        weights = [s.weight for s in duty.submissions]
        with self._store.draft(self._store.size(duty.base)) as out:
            merged = merge(base, inputs, weights, self.prepared.policy, out)
            self._store.pin(merged.digest, "merged")
            return self._store.put_file(out, move=True)

    # --- what comes of it

    def _settle(self, number: int, checkpoint: Digest) -> Closed:
        """Judge the checkpoint that a round closed with, and write down what the round was."""
        parts = self._parts(number)
        made = [part for one in self.prepared.institutions if (part := parts.read(one.number)) is not None]
        closed = Closed(
            round=number,
            checkpoint=checkpoint.hex(),
            institutions=len(made),
            sites=sum(part.sites for part in made),
            samples=sum(part.samples for part in made),
            measures=self._measures(checkpoint),
        )
        with open(self.folder / ROUNDS, "a") as file:
            file.write(json.dumps(asdict(closed)) + "\n")
        parts.clear()
        self._store.pin_only({checkpoint}, "merged")
        return closed

    def _told(self) -> list[Closed]:
        """The rounds that were written down; a line that was being written when the process ended does not count."""
        path = self.folder / ROUNDS
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if whole != lines:
            path.write_text("".join(whole))
        return [Closed(**json.loads(line)) for line in whole]

    def _measures(self, checkpoint: Digest) -> dict[str, float | None]:
        kind, y = self.prepared.recipe.KIND, self._tests.y.numpy()
        outputs = self.prepared.study.outputs(self.model(checkpoint), self._tests.x).numpy()
        found = metrics.measure(kind, y, outputs, np.ones((1, len(y))))
        return {name: rounded(float(value[0])) for name, value in found.items()}

    def model(self, checkpoint: Digest) -> torch.nn.Module:
        """A model with a checkpoint's parameters; the last one is always kept."""
        model = self.prepared.recipe.new_model(self.prepared.request.seed)
        State(model).load(Checkpoint(self._store.path(checkpoint)))
        return model

    def _address(self, institution: Institution) -> Address:
        return self.chain.members[institution.number].node.address

    def _parts(self, number: int) -> Parts:
        return Parts(self.folder / "parts" / str(number))


def rounded(value: float) -> float | None:
    """As it is written down; None where it is not defined."""
    return round(value, PLACES) if np.isfinite(value) else None
