"""How many of n members must agree, and how many may be wrong: the same rule for blocks, rounds and votes of operators.

Any two quorums share at least f + 1 members, so at least one honest one; the n - f honest ones are a quorum.
With two or three members f is 0: three go on when one is off, but none of them may lie.
"""

from __future__ import annotations


def quorum(members: int) -> int:
    """Two thirds of the members, rounded up."""
    _check(members)
    return (2 * members + 2) // 3


def faults_max(members: int) -> int:
    """f: how many members may be faulty while the others still agree; below a third."""
    _check(members)
    return (members - 1) // 3


def _check(members: int) -> None:
    if members < 1:
        raise ValueError(f"nobody agrees among {members} members")
