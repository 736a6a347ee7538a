"""What befalls one small world of validators until it heals, and after it; drawn from the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

from swarm.consensus.messages import Commit, Message, Prepare, Proposal, RoundChange
from swarm.quorum import faults_max, quorum


@dataclass(frozen=True)
class Weather:
    """What the network, the disks and the members do to each other in one world, until it heals."""

    heal_s: float
    delay_s: float
    """Half of the messages need less than half of this."""
    slow: float
    """The share of messages that need some seconds."""
    loss: dict[type[Message], float]
    loss_after: float
    """A healed network may still lose some."""
    least_after_s: float
    """A healed network may still be slower than the first views are long: nobody knows its bound."""
    double: float
    divisions: int
    divided_s: float
    """How long each division lasts."""
    crash: float
    """The chance of a crash between two effects, and in the middle of a write."""
    torn: float
    """The chance that a crash takes the last block with it; the votes were synced and stay."""
    disk_s: float
    """A vote may be on its way to the disk for as long; its validator does nothing else meanwhile."""
    nothing_to_build: float
    news_s: float
    """A decided block reaches a laggard within this time: a slow help lets a broken lock show."""
    changes: bool
    """Blocks exchange a validator for the one that sits out."""
    traitors: int
    lost_for_good: int

    @classmethod
    def drawn(cls, rng: random.Random, validators: int, *, traitors: bool) -> Weather:
        """One of many: from calm to terrible."""
        terrible = rng.random()
        base = rng.choice((0.0, 0.1, 0.4)) * terrible
        kinds: tuple[type[Message], ...] = (Proposal, Prepare, Commit, RoundChange)
        loss = {kind: min(base + rng.choice((0.0, 0.0, 0.7)) * terrible, 0.9) for kind in kinds}
        if rng.random() < 0.4:  # who has decided is alone with it: only then a broken lock forks
            loss[Commit] = rng.uniform(0.4, 0.8)
            if rng.random() < 0.5:  # and several are locked on different blocks: only then the highest lock matters
                loss[Prepare], loss[RoundChange] = rng.uniform(0.2, 0.5), rng.uniform(0.1, 0.4)
        liars = faults_max(validators) if traitors and rng.random() < 0.7 else 0
        spare = validators - quorum(validators) - liars
        return cls(
            heal_s=rng.choice((5.0, 15.0, 30.0)),
            delay_s=rng.choice((0.01, 0.1, 0.5)),
            slow=rng.choice((0.0, 0.0, 0.1)) * terrible,
            loss=loss,
            loss_after=rng.choice((0.0, 0.0, 0.1)),
            least_after_s=rng.choice((0.0, 0.0, 0.0, 0.0, 1.2)),
            double=rng.choice((0.0, 0.1)),
            divisions=rng.choice((0, 0, 1, 3)),
            divided_s=rng.choice((2.0, 10.0)),
            crash=rng.choice((0.0, 0.0, 0.02, 0.1)) * terrible,
            torn=rng.choice((0.0, 0.5)),
            disk_s=rng.choice((0.0, 0.0, 0.0, 0.1, 1.0)),
            nothing_to_build=rng.choice((0.0, 0.0, 0.3)),
            news_s=rng.choice((0.2, 6.0, 20.0)),
            changes=rng.random() < 0.4,
            traitors=liars,
            lost_for_good=rng.randint(0, spare) if rng.random() < 0.3 else 0,
        )

    def told(self) -> str:
        """One line for a story."""
        loss = ", ".join(f"{kind.__name__} {share:.2f}" for kind, share in self.loss.items())
        others = [f"{f.name} {getattr(self, f.name):g}" for f in fields(self) if f.name != "loss"]
        return f"weather: {', '.join(others)}; lost before it heals: {loss}"
