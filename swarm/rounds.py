"""What a member owes in a round, as a pure function of what the ledger says and what this node has.

A node keeps nothing about a round that it could not read again: it asks `duties`, starts what is not running,
and asks again after every block, every arrival and every deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from swarm.encoding import Address, Digest


class RunState(IntEnum):
    """Where a run is; the numbers are the contract's."""

    PROPOSED = 0
    OPEN = 1
    FINISHED = 2
    STOPPED = 3


class Phase(IntEnum):
    """Where an open run's current round is; the numbers are the contract's."""

    SUBMIT = 0
    MERGE = 1
    ATTEST = 2


@dataclass(frozen=True)
class Submission:
    """The ledger's record of one update."""

    member: Address
    digest: Digest
    weight: int
    struck: bool = False
    """Left out of the merge: too many members reported that its bytes never came."""


@dataclass(frozen=True)
class RoundState:
    """The current round of a run, as the contract shows it. Times are Unix seconds by the ledger's clock."""

    run: int
    state: RunState
    round: int
    phase: Phase
    view: int
    leader: Address
    """Whose turn it is to merge; zero while the round takes submissions."""
    base: Digest
    """The checkpoint that this round starts from."""
    seed: Digest
    opened_s: float
    deadline_s: float
    """When anybody may call `advance`; 0 where no deadline runs."""
    expected: tuple[Address, ...]
    """Members that the round waits for."""
    submissions: tuple[Submission, ...] = ()
    """In the order in which the members joined the run."""
    published: Digest | None = None
    attested: frozenset[Address] = frozenset()
    refused: frozenset[Address] = frozenset()
    missing: frozenset[tuple[Address, Address]] = frozenset()
    """(reporter, member) of every report that a submission's bytes never came."""

    @property
    def merged(self) -> tuple[Submission, ...]:
        """The submissions that the merge takes."""
        return tuple(s for s in self.submissions if not s.struck)


@dataclass(frozen=True)
class Update:
    """An update that this node's training produced and that is in the store."""

    round: int
    digest: Digest
    weight: int
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
