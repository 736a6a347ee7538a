"""Nodes that break a rule, as real processes: `python -m tests.node.rule_breakers SITE.toml KIND`.

Dying nodes kill themselves with SIGKILL when they lead the round `DIE_IN_ROUND`, at the step that their kind names.
Lying nodes publish, when they lead that round, a checkpoint that is not the merge. `Tampers:SEED` does so in every
round that it leads, each time in another of the ways of `sim.tamper`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from sim import tamper
from swarm.blind import MaskDuty
from swarm.cli.node import set_up_log
from swarm.config import EPSILON
from swarm.encoding import Address, Digest, data_of, list_of, pack, sha256, to_hex, unpack
from swarm.errors import UnavailableError
from swarm.net.transfer import PROTOCOL
from swarm.net.transport import MESSAGE_MAX_BYTES, Handler
from swarm.node.participation import Participation
from swarm.node.process import run_node
from swarm.rounds import Attest, Duty, Merge, Phase, Publish, Refuse, Submit, same_work
from swarm.store import Store

DIE_IN_ROUND = 2


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Dying(Participation):
    """Knows whether it leads the round in which it dies."""

    def leads_the_last(self) -> bool:
        """This node leads the round it dies in, in the round's first view."""
        states = [effort.state for effort in self.efforts.values() if effort.state is not None]
        return any(s.round == DIE_IN_ROUND and s.leader == self._me and s.view == 0 for s in states)


class DiesAfterSubmit(_Dying):
    """Dies as soon as it knows that it leads: before it fetches or merges."""

    def _start_duties(self) -> None:
        if self.leads_the_last():
            _die()
        super()._start_duties()


class DiesDuringFetch(_Dying):
    """Dies with every update fetched and the merge begun."""

    async def _perform(self, duty: Duty | MaskDuty) -> None:
        if isinstance(duty, Merge) and self.leads_the_last():
            await asyncio.sleep(0.01)
            _die()
        await super()._perform(duty)


class DiesAfterPublish(_Dying):
    """Dies when its publication is on the ledger."""

    async def _perform(self, duty: Duty | MaskDuty) -> None:
        await super()._perform(duty)
        if isinstance(duty, Publish) and duty.round == DIE_IN_ROUND:
            _die()


class DiesDuringAttest(_Dying):
    """Dies a moment after its publication is decided: the others' attestations are under way."""

    def _start_duties(self) -> None:
        if self.leads_the_last() and any(e.state and e.state.phase is Phase.ATTEST for e in self.efforts.values()):
            asyncio.get_running_loop().call_later(0.02, _die)
        super()._start_duties()


def _is_turn(duty: Duty | MaskDuty) -> TypeGuard[Publish]:
    """Whoever leads that round first breaks the rule; every node here is of the same kind."""
    return isinstance(duty, Publish) and duty.round == DIE_IN_ROUND and duty.view == 0


class PublishesAnother(Participation):
    """Publishes a digest that is not its merge's."""

    async def _perform(self, duty: Duty | MaskDuty) -> None:
        await super()._perform(replace(duty, checkpoint=sha256(duty.checkpoint)) if _is_turn(duty) else duty)


class PublishesOneBit(Participation):
    """Publishes, and serves, a checkpoint with one bit changed."""

    async def _perform(self, duty: Duty | MaskDuty) -> None:
        if _is_turn(duty):
            data = bytearray(self._store.read(duty.checkpoint, 0, self._store.size(duty.checkpoint)))
            data[-1] ^= 1
            duty = replace(duty, checkpoint=self._store.put(bytes(data)))
        await super()._perform(duty)


class SubmitsNonsense(Participation):
    """Submits, and serves, an update whose last value is not a number; its weight would spoil every merge."""

    async def _perform(self, duty: Duty | MaskDuty) -> None:
        if isinstance(duty, Submit) and duty.round == DIE_IN_ROUND:
            data = bytearray(self._store.read(duty.update.digest, 0, self._store.size(duty.update.digest)))
            data[-4:] = b"\x00\x00\xc0\x7f"
            duty = replace(duty, update=replace(duty.update, digest=self._store.put(bytes(data))))
        await super()._perform(duty)


class Overspends(Participation):
    """After its first round it declares that it spent more of its privacy budget than the members agreed on."""

    async def _perform(self, duty: Duty | MaskDuty) -> None:
        if isinstance(duty, Submit) and duty.round:
            metrics = {**duty.update.metrics, EPSILON: 100.0 * duty.update.metrics[EPSILON]}
            duty = replace(duty, update=replace(duty.update, metrics=metrics))
        await super()._perform(duty)


class Credulous(Participation):
    """Attests what the leader published even where its own merge gave something else."""

    async def _perform(self, duty: Duty | MaskDuty) -> None:
        said = duty
        if isinstance(duty, Refuse):
            said = Attest(duty.run, duty.round, duty.view, duty.published)
        await super()._perform(said)
        self._running.pop(same_work(duty), None)


class NeverSpeaks(Participation):
    """Merges, and does not publish."""

    async def _perform(self, duty: Duty | MaskDuty) -> None:
        if _is_turn(duty):
            await asyncio.sleep(3600)
        await super()._perform(duty)


@dataclass
class _Shelf(tamper.Objects):
    """A node's store, for the ways to tamper of the simulator."""

    store: Store | None = None

    def path(self, digest: Digest) -> Path:
        assert self.store is not None
        return self.store.path(digest)


def _others(data: bytes) -> bytes:
    return bytes(255 - byte for byte in data)


class Tampers(Participation):
    """Tampers whenever it leads, and prints what it does as one line of JSON.

    The ways are those of `sim.tamper`: all of them in random order, and all again.
    """

    seed = 0

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._chance = random.Random(self.seed)
        self._left: list[str] = []
        self._bases: dict[int, list[Digest]] = {}
        self._said: dict[tuple[int, int, int], Digest] = {}
        self._withheld: set[Digest] = set()
        self._spoilt: set[Digest] = set()

    def start(self) -> None:
        super().start()
        serve = self._transport.serve

        def serve_falsely(protocol: str, handler: Handler) -> None:
            serve(protocol, self._falsely(handler) if protocol == PROTOCOL else handler)

        self._transport.serve = serve_falsely  # type: ignore[method-assign]

    def _falsely(self, handler: Handler) -> Handler:
        """Objects as this node shows them: some not at all, some with other bytes than their names say."""

        async def answer(member: Address, payload: bytes) -> bytes:
            what, digest, *_ = list_of(unpack(payload, max_bytes=128), size_max=4)
            if digest in self._withheld:
                raise UnavailableError("this node shows it to nobody")
            given = await handler(member, payload)
            if digest not in self._spoilt:
                return given
            if what == b"range":
                return _others(given)
            size, leaves, inline = list_of(unpack(given, max_bytes=MESSAGE_MAX_BYTES), size=3)
            return pack([size, leaves, _others(data_of(inline))])

        return answer

    async def _perform(self, duty: Duty | MaskDuty) -> None:
        told = duty
        try:
            if isinstance(duty, Merge) and duty.base not in self._bases.setdefault(duty.run, []):
                self._bases[duty.run].append(duty.base)
            if isinstance(duty, Publish):
                told = replace(duty, checkpoint=await self._tampered(duty))
        except Exception as error:
            self._on_failure(error)
        await super()._perform(told)
        self._running.pop(same_work(duty), None)

    async def _tampered(self, duty: Publish) -> Digest:
        """What this node publishes in a view; asked again, it says the same."""
        place = duty.run, duty.round, duty.view
        if place not in self._said:
            kind = self._next_kind(duty.run)
            digest = await asyncio.to_thread(self._make, kind, duty)
            if kind == "right_digest_wrong_bytes":
                self._spoilt.add(digest)
            elif kind in tamper.UNSHOWN:
                self._withheld.add(digest)
            self._said[place] = digest
            told = {"run": duty.run, "round": duty.round, "view": duty.view, "kind": kind}
            print(json.dumps({**told, "published": to_hex(digest), "right": to_hex(duty.checkpoint)}), flush=True)
        return self._said[place]

    def _next_kind(self, run: int) -> str:
        no_stale_base = len(self._bases[run]) == 1
        if set(self._left) <= ({"stale"} if no_stale_base else set()):
            self._left += self._chance.sample(list(tamper.KINDS), len(tamper.KINDS))
        kind = next(kind for kind in self._left if kind != "stale" or not no_stale_base)
        self._left.remove(kind)
        return kind

    def _make(self, kind: str, duty: Publish) -> Digest:
        if kind == "nothing":
            return sha256(b"nothing" + duty.checkpoint)
        if kind in ("right_withheld", "right_digest_wrong_bytes"):
            return duty.checkpoint
        effort = self.efforts[duty.run]
        assert effort.state is not None
        assert effort.policy is not None
        right = self._store.path(duty.checkpoint).read_bytes()
        earlier = [base for base in self._bases[duty.run] if base != effort.state.base]
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            objects = _Shelf(Path(folder), store=self._store)
            turn = tamper.Turn(self._chance, effort.state, right, earlier, objects, effort.policy)
            found = tamper.KINDS[kind](turn)
            return self._store.put(found if found != right else tamper.KINDS["bit"](turn))


KINDS: dict[str, type[Participation]] = {
    kind.__name__: kind
    for kind in (
        DiesAfterSubmit,
        DiesDuringFetch,
        DiesAfterPublish,
        DiesDuringAttest,
        PublishesAnother,
        PublishesOneBit,
        Credulous,
        NeverSpeaks,
        SubmitsNonsense,
        Overspends,
        Tampers,
    )
}

if __name__ == "__main__":
    set_up_log(None, verbose=False)
    name, _, seed = sys.argv[2].partition(":")
    Tampers.seed = int(seed or 0)
    run_node(Path(sys.argv[1]), participation=KINDS[name])
