"""Members that lie about merges and updates, and honest ones that make a known mistake.

Each is the real `Participation` that follows another rule than `swarm.rounds.duties`. What dishonest validators may
do to blocks is in `sim.traitors`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from swarm.config import Policy
from swarm.encoding import Digest, pack, sha256
from swarm.ledger.ledger import Ledger
from swarm.net.transfer import PROTOCOL as OBJECT
from swarm.node.agreement import CONSENSUS, DECIDED, HEAD, TRANSACTIONS
from swarm.node.participation import CUSTODY, Participation
from swarm.node.sync import BLOCKS
from swarm.rounds import Attest, Duty, Have, Phase, Publish, Refuse, ReportMissing, RoundState, Submit
from swarm.store import Store

PROTOCOLS = (BLOCKS, CONSENSUS, CUSTODY, DECIDED, HEAD, OBJECT, TRANSACTIONS)

# --- liars


class WrongDigest(Participation):
    """Publishes a digest that is no merge of anything, and serves no bytes for it."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(
            replace(duty, checkpoint=sha256(b"no merge" + duty.checkpoint)) if isinstance(duty, Publish) else duty
            for duty in owed
        )


class FlippedBit(Participation):
    """Publishes its merge with one bit of one parameter changed, and serves those bytes."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(
            replace(duty, checkpoint=self._flipped(duty.checkpoint)) if isinstance(duty, Publish) else duty
            for duty in owed
        )

    def _flipped(self, checkpoint: Digest) -> Digest:
        data = bytearray(self._store.read(checkpoint, 0, self._store.size(checkpoint)))
        data[-1] ^= 1
        return self._store.put(bytes(data))


class Withholder(Participation):
    """Submits a digest whose bytes it gives to nobody; for the rest it does as it should."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(
            replace(duty, update=replace(duty.update, digest=sha256(b"hidden" + duty.update.digest)), custodians_min=0)
            if isinstance(duty, Submit)
            else duty
            for duty in owed
        )


class Refuser(Participation):
    """Refuses every merge of others, right or not."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(
            Refuse(duty.run, duty.round, duty.view, state.leader, duty.checkpoint, sha256(b"I found" + duty.checkpoint))
            if isinstance(duty, Attest)
            else duty
            for duty in owed
        )


class Silent(Participation):
    """Submits, then says nothing: it neither publishes nor attests."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(duty for duty in owed if not isinstance(duty, Publish | Attest))


class Slanderer(Participation):
    """Reports every other submission missing as soon as the merge begins."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        submitters = {s.member for s in state.merged}
        if state.phase is not Phase.MERGE or self._me not in submitters or not owed:
            return owed
        reported = {member for reporter, member in state.missing if reporter == self._me}
        victims = submitters - reported - {self._me}
        return owed | {ReportMissing(state.run, state.round, member) for member in victims}


class Colluder(FlippedBit):
    """Publishes another merge, attests its fellows' other merges and refuses right ones."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        return frozenset(self._turned(duty, state) for duty in super()._owed(state, have, now_s, policy))

    def _turned(self, duty: Duty, state: RoundState) -> Duty:
        match duty:
            case Refuse(run=run, round=round_, view=view, published=published):
                return Attest(run, round_, view, published)
            case Attest(run=run, round=round_, view=view, checkpoint=checkpoint):
                return Refuse(run, round_, view, state.leader, checkpoint, sha256(b"I found" + checkpoint))
        return duty


class Babbler(Participation):
    """Does its duties, and sends everybody nonsense all the time: noise, and messages that are almost right."""

    def run(self) -> None:
        """Begin to babble too."""
        super().run()
        self._babble = asyncio.get_running_loop().create_task(self._babbling())

    async def close(self) -> None:
        """Stop that too."""
        self._babble.cancel()
        await asyncio.gather(self._babble, return_exceptions=True)
        await super().close()

    async def _babbling(self) -> None:
        chance = random.Random(self._me)
        while True:
            await asyncio.sleep(chance.uniform(0.05, 0.3))
            noise = chance.randbytes(chance.choice([0, 1, 20, 300]))
            lists = pack([chance.randbytes(32) for _ in range(chance.randint(0, 5))])
            number = pack(chance.choice([0, 1, 2**40, 2**64 - 1]))
            custody = pack([1, chance.randint(0, 3), chance.randbytes(32)])
            message = chance.choice([noise, lists, number, custody])
            for member in sorted(self._transport.connected()):
                self._transport.send(member, chance.choice(PROTOCOLS), message)


class Poisoner(Store):
    """A store that gives wrong bytes of checkpoints and updates; its own merges read the files."""

    def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """The bytes asked for, with one bit changed; JSON, a policy, is given as it is."""
        data = bytearray(super().read(digest, offset, length))
        if data and not data.startswith(b"{"):
            data[-1] ^= 1
        return bytes(data)


@dataclass(frozen=True)
class Behaviour:
    """What a member's node is made of."""

    participation: type[Participation] = Participation
    ledger: type[Ledger] = Ledger
    store: type[Store] = Store


LIES: Mapping[str, Behaviour] = {
    "wrong": Behaviour(WrongDigest),
    "bit": Behaviour(FlippedBit),
    "withhold": Behaviour(Withholder),
    "refuse": Behaviour(Refuser),
    "silent": Behaviour(Silent),
    "slander": Behaviour(Slanderer),
    "collude": Behaviour(Colluder),
    "babble": Behaviour(Babbler),
    "poison": Behaviour(store=Poisoner),
}

# --- mistakes, planted into every honest member


class Credulous(Participation):
    """Attests what the leader published without having merged."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        submitters = {s.member for s in state.merged}
        silent = self._me in submitters - state.attested - state.refused
        if state.phase is not Phase.ATTEST or state.published is None or not silent:
            return owed
        kept = frozenset(duty for duty in owed if not isinstance(duty, Refuse))
        return kept | {Attest(state.run, state.round, state.view, state.published)}


class Careless(Participation):
    """Submits although nobody else holds the update."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(replace(duty, custodians_min=0) if isinstance(duty, Submit) else duty for duty in owed)


class Forgetful(Ledger):
    """Keeps no vote: after a restart its validator may say something else."""

    def save_vote(self, height: int, record: bytes) -> None:
        """Nothing is written."""

    def saved_vote(self, height: int) -> bytes | None:
        """Nothing was."""
        return None


MISTAKES: Mapping[str, Behaviour] = {
    "": Behaviour(),
    "credulous": Behaviour(Credulous),
    "careless": Behaviour(Careless),
    "forgetful": Behaviour(ledger=Forgetful),
}


def behaviour(*, liar: str, mistake: str, dishonest: bool) -> Behaviour:
    """What a member runs: the liar's rule if it is a dishonest one, else the mistake that all the others make."""
    return LIES[liar] if dishonest else MISTAKES[mistake]
