"""Nodes that break a rule, as real processes: `python -m tests.node.rule_breakers SITE.toml KIND`.

Dying nodes kill themselves with SIGKILL when they lead the round `DIE_IN_ROUND`, at the step that their kind names.
Lying nodes publish, when they lead that round, a checkpoint that is not the merge.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

from swarm.cli.node import set_up_log
from swarm.encoding import sha256
from swarm.node.participation import Participation
from swarm.node.process import run_node
from swarm.rounds import Duty, Merge, Phase, Publish, Submit

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

    async def _perform(self, duty: Duty) -> None:
        if isinstance(duty, Merge) and self.leads_the_last():
            await asyncio.sleep(0.01)
            _die()
        await super()._perform(duty)


class DiesAfterPublish(_Dying):
    """Dies when its publication is on the ledger."""

    async def _perform(self, duty: Duty) -> None:
        await super()._perform(duty)
        if isinstance(duty, Publish) and duty.round == DIE_IN_ROUND:
            _die()


class DiesDuringAttest(_Dying):
    """Dies a moment after its publication is decided: the others' attestations are under way."""

    def _start_duties(self) -> None:
        if self.leads_the_last() and any(e.state and e.state.phase is Phase.ATTEST for e in self.efforts.values()):
            asyncio.get_running_loop().call_later(0.02, _die)
        super()._start_duties()


def _is_turn(duty: Duty) -> TypeGuard[Publish]:
    """Whoever leads that round first breaks the rule; every node here is of the same kind."""
    return isinstance(duty, Publish) and duty.round == DIE_IN_ROUND and duty.view == 0


class PublishesAnother(Participation):
    """Publishes a digest that is not its merge's."""

    async def _perform(self, duty: Duty) -> None:
        await super()._perform(replace(duty, checkpoint=sha256(duty.checkpoint)) if _is_turn(duty) else duty)


class PublishesOneBit(Participation):
    """Publishes, and serves, a checkpoint with one bit changed."""

    async def _perform(self, duty: Duty) -> None:
        if _is_turn(duty):
            data = bytearray(self._store.read(duty.checkpoint, 0, self._store.size(duty.checkpoint)))
            data[-1] ^= 1
            duty = replace(duty, checkpoint=self._store.put(bytes(data)))
        await super()._perform(duty)


class SubmitsNonsense(Participation):
    """Submits, and serves, an update whose last value is not a number; its weight would spoil every merge."""

    async def _perform(self, duty: Duty) -> None:
        if isinstance(duty, Submit) and duty.round == DIE_IN_ROUND:
            data = bytearray(self._store.read(duty.update.digest, 0, self._store.size(duty.update.digest)))
            data[-4:] = b"\x00\x00\xc0\x7f"
            duty = replace(duty, update=replace(duty.update, digest=self._store.put(bytes(data))))
        await super()._perform(duty)


class NeverSpeaks(Participation):
    """Merges, and does not publish."""

    async def _perform(self, duty: Duty) -> None:
        if _is_turn(duty):
            await asyncio.sleep(3600)
        await super()._perform(duty)


KINDS: dict[str, type[Participation]] = {
    kind.__name__: kind
    for kind in (
        DiesAfterSubmit,
        DiesDuringFetch,
        DiesAfterPublish,
        DiesDuringAttest,
        PublishesAnother,
        PublishesOneBit,
        NeverSpeaks,
        SubmitsNonsense,
    )
}

if __name__ == "__main__":
    set_up_log(None, verbose=False)
    run_node(Path(sys.argv[1]), participation=KINDS[sys.argv[2]])
