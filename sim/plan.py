"""What one simulated run is made of: a seed and a few numbers. Equal plans are equal runs, to the last event."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

from swarm.config import Policy
from swarm.quorum import faults_max
from swarm.rounds import submissions_needed

LIARS = ("wrong", "bit", "withhold", "refuse", "silent", "slander", "collude", "babble", "poison")
"""What a dishonest member may do; `sim.adversaries` says how."""
MISTAKES = ("credulous", "careless", "forgetful")
"""What honest members may do wrong on purpose, to see that the simulator notices; `sim.adversaries` says how."""


@dataclass(frozen=True)
class Plan:
    """One simulated run. Times are virtual seconds; troubles last from 0 to `trouble_s`, then the network is calm."""

    seed: int = 0
    members: int = 4
    rounds: int = 3
    followers: int = 0
    """So many members do not vote on blocks: they follow."""
    delay_s: float = 0.01
    """Mean of every message's delay (exponential); troubles do not change it."""
    loss: float = 0.0
    """Share of messages and answers that are lost while troubles last."""
    crashes: int = 0
    """Nodes killed and started again a few seconds later."""
    power_cuts: int = 0
    """Machines that lose power: node and training die, and the last blocks that were written are lost; votes stay."""
    blackouts: int = 0
    """Times that the power fails everywhere at once."""
    partitions: int = 0
    """Times that the network falls into two parts and heals."""
    gone: int = 0
    """Members that are killed in the middle of a round and never come back: at most what the swarm tolerates."""
    leaves: int = 0
    """Validators that stand down, are off for a while, and resume; one after the other."""
    lost: int = 0
    """Validators that are gone for good at once, more than the swarm tolerates: the operators replace them by the
    members that are left. In the end the lost machines turn up again."""
    absent: int = 0
    """1: a validator is off until the others put it on standby, and comes back."""
    standby_s: float = 604_800.0
    """How long a validator is silent before the others put it on standby."""
    newcomers: int = 0
    """1: a new member is admitted in the middle, starts from nothing and joins the run."""
    liar: str = ""
    """One of `LIARS`: the last members are dishonest in this way."""
    liars: int = 1
    """How many, if there is a kind of liar."""
    mistake: str = ""
    """One of `MISTAKES`: every honest member makes it."""
    verify_all: int = 7
    """Where more submitted than this, each member merges again only what it was assigned."""
    submissions_min: int = 0
    """Of the run's policy; 0: the fewest of which members that may be dishonest are no quorum."""
    skew_s: float = 0.2
    """Members' clocks are up to this much wrong."""
    patience: float = 1.0
    """Factor on the policy's deadlines (12, 4 and 4 seconds)."""
    train_s: float = 2.0
    """Mean of the virtual time that a site trains for a round."""
    trouble_s: float = 30.0

    def __post_init__(self) -> None:
        if self.liar and self.liar not in LIARS:
            raise ValueError(f"there is no liar {self.liar!r}; there are {', '.join(LIARS)}")
        if self.mistake and self.mistake not in MISTAKES:
            raise ValueError(f"there is no mistake {self.mistake!r}; there are {', '.join(MISTAKES)}")
        if self.newcomers not in (0, 1):
            raise ValueError("there is one newcomer at most")
        faulty = self.gone + (self.liars if self.liar else 0)
        if faulty > faults_max(self.members):
            raise ValueError(
                f"{self.members} members tolerate {faults_max(self.members)} that fail for good, not {faulty}"
            )
        if self.lost and (self.liar or self.gone or self.power_cuts or self.blackouts or self.absent or self.leaves):
            raise ValueError(
                "where validators are lost, nobody lies, leaves, or loses blocks: operators vouch for that"
            )
        if self.lost > self.members - max(self.policy.submissions_min, 1):
            raise ValueError(f"of {self.members} members {self.lost} are lost: the others are too few for a round")
        if self.absent not in (0, 1) or (self.absent and self.members - self.followers < 5):
            raise ValueError("one validator is absent at most, of five or more")
        if not 1 <= self.members <= 64 or self.rounds < 1:
            raise ValueError("a run has 1 to 64 members and at least one round")

    @property
    def policy(self) -> Policy:
        """The run's policy."""
        return Policy(
            name="simulated",
            rounds=self.rounds,
            sync_interval=10,
            merge="mean",
            weight_ratio_max=1e9,
            verify_all_members=self.verify_all,
            verify_all_bytes=0,
            submissions_min=self.submissions_min or max(min(2, self.members), submissions_needed(self.members)),
            submit_s=12.0 * self.patience,
            merge_s=4.0 * self.patience,
            attest_s=4.0 * self.patience,
        )

    @property
    def calm_s(self) -> float:
        """How long after the troubles the run may take. Of 1,000 seeds with three rounds one took 74 s, the others at
        most 46: a consensus that was asleep for long waits up to a minute."""
        return (60.0 + 30.0 * self.rounds) * max(self.patience, 1.0)

    def rng(self, purpose: str) -> random.Random:
        """A source of chance for one purpose: what one part draws does not move what another does."""
        return random.Random(f"{self.seed}/{purpose}")

    def command(self) -> str:
        """The command that runs exactly this plan again."""
        words = ["python -m sim", f"--seed {self.seed}"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "seed" and value != field.default:
                words.append(f"{option(field.name)} {value}")
        return " ".join(words)


def option(field: str) -> str:
    """A field of a plan as the command line's option."""
    return "--" + field.removesuffix("_s").replace("_", "-")


def draw(seed: int, *, rounds: int = 3, members: tuple[int, int] = (4, 7)) -> Plan:
    """A plan from a seed: 4 to 7 members, mixed troubles, a liar in some.

    Never more members are faulty for good than the swarm tolerates; any number may be down for a while.
    """
    rng = random.Random(f"{seed}/plan")
    count = rng.randint(*members)
    followers = rng.choice([0, 0, 0, 1, 2, 3]) if count > 4 else 0
    followers = min(followers, count - 4)
    faults = faults_max(count - followers)
    liar = rng.choice(LIARS) if faults and rng.random() < 0.4 else ""
    liars = rng.randint(1, faults) if liar else 1
    gone = rng.randint(0, faults - (liars if liar else 0)) if rng.random() < 0.25 else 0
    return Plan(
        seed=seed,
        members=count,
        rounds=rounds,
        followers=followers,
        delay_s=round(rng.choice([0.001, 0.01, 0.05, 0.15]), 3),
        loss=rng.choice([0.0, 0.0, 0.02, 0.1, 0.25]),
        crashes=rng.choice([0, 0, 1, 2, 3]),
        power_cuts=rng.choice([0, 0, 0, 1, 2]),
        blackouts=rng.choice([0, 0, 0, 0, 0, 1]),
        partitions=rng.choice([0, 0, 0, 1, 2]),
        gone=gone,
        leaves=rng.choice([0, 0, 1, 2]) if count - followers > 4 else 0,
        newcomers=rng.choice([0, 0, 0, 1]),
        liar=liar,
        liars=liars,
        skew_s=rng.choice([0.0, 0.2, 1.0]),
        patience=rng.choice([0.4, 1.0, 1.0]),
        train_s=rng.choice([0.5, 2.0, 4.0]),
        trouble_s=rng.choice([15.0, 30.0]),
        verify_all=rng.choice([7, 7, 3]),
    )
