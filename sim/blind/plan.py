"""What befalls a blind run, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from swarm.config import Policy
from swarm.quorum import faults_max
from swarm.rounds import submissions_needed

STEPS = (
    "set_key", "join", "confirm", "freeze", "made", "logged", "submit", "reveal", "reveal_shares", "publish",
    "attest", "report_missing", "advance",
)  # fmt: skip
"""Where members die. Calls: before and right after others can see them; `made` and `logged`: between a vector's
bytes, its log entry and its submission."""
LIARS = (
    "wrong secret", "mute", "bad shares", "outside", "withholds", "hides blob", "drops edges", "wrong seeds",
    "false shares", "two sets", "other kind", "garbage", "wrong sum", "slander",
)  # fmt: skip


@dataclass(frozen=True)
class Ambush:
    """A member dies at a step."""

    site: int
    step: str
    before: bool
    """Right before others see it, or right after."""
    skip: int
    """So many times it goes well."""
    down_s: float
    """How long it is away; infinite where it is gone for good."""
    restored: bool = False
    """It comes back with the disk that it had earlier."""


@dataclass(frozen=True)
class Plan:
    """A run and its troubles."""

    seed: int
    members: int = 4
    rounds: int = 1
    liars: dict[int, str] = field(default_factory=dict)
    """By site."""
    ambushes: tuple[Ambush, ...] = ()
    partitions: tuple[tuple[float, float, frozenset[int]], ...] = ()
    """When, for how long, and who is apart."""
    loss: float = 0.0
    skew_s: float = 0.0
    quick_s: float = 2.0
    """Training takes so long at most."""
    again: float = 0.7
    """How often training gives another update after a crash."""
    mistake: str = ""
    """What every honest member, or the contract, does wrong."""

    @property
    def policy(self) -> Policy:
        """The run's policy."""
        return Policy(
            name="blind", rounds=self.rounds, sync_interval=1, merge="mean", blind=True, weight_max=1000,
            submissions_min=max(3, submissions_needed(self.members)), submit_s=6.0, merge_s=3.0, attest_s=3.0,
        )  # fmt: skip

    def rng(self, purpose: str) -> random.Random:
        """A source of chance for one purpose."""
        return random.Random(f"{self.seed}/{purpose}")


def draw(seed: int, *, mistake: str = "") -> Plan:
    """A plan from a seed: never more members lie, go back to a backup or are gone than may."""
    rng = random.Random(f"{seed}/blind plan")
    members = rng.choice([4, 4, 4, 4, 5, 6, 7])
    faulty = rng.sample(range(members), rng.randint(0, faults_max(members)))
    rounds = rng.choice([1, 1, 2])
    liars: dict[int, str] = {}
    ambushes: list[Ambush] = []
    for site in faulty:
        kind = rng.choice(["liar", "liar", "gone", "restored"])
        if kind == "liar":
            liars[site] = rng.choice(LIARS)
        else:
            down_s = float("inf") if kind == "gone" else rng.uniform(0.1, 5.0)
            ambushes.append(_ambush(rng, site, rounds, down_s, restored=kind == "restored"))
    honest = [site for site in range(members) if site not in faulty]
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        ambushes.append(_ambush(rng, rng.choice(honest), rounds, rng.choice([0.1, 1.0, 5.0]) * rng.uniform(0.5, 2.0)))
    partitions = tuple(
        (rng.uniform(0.0, 6.0), rng.uniform(0.5, 6.0), frozenset(s for s in range(members) if rng.random() < 0.4))
        for _ in range(rng.choice([0, 0, 0, 1]))
    )
    return Plan(
        seed, members, rounds, liars, tuple(ambushes), partitions,
        loss=rng.choice([0.0, 0.0, 0.02, 0.1]), skew_s=rng.choice([0.0, 0.5]), quick_s=rng.choice([0.1, 2.0, 8.0]),
        mistake=mistake,
    )  # fmt: skip


def _ambush(rng: random.Random, site: int, rounds: int, down_s: float, *, restored: bool = False) -> Ambush:
    return Ambush(site, rng.choice(STEPS), rng.random() < 0.5, rng.choice([0, 0, rounds - 1]), down_s, restored)
