"""How many of n validators must agree, and how many may be wrong.

Any two quorums share at least f + 1 validators, so at least one honest one; the n - f honest ones are a quorum.
With two or three validators f is 0: three go on when one is off, but none of them may lie.
"""

from __future__ import annotations


def quorum(validators: int) -> int:
    """Two thirds of the validators, rounded up."""
    if validators < 1:
        raise ValueError("a ledger has at least one validator")
    return (2 * validators + 2) // 3


def faults_max(validators: int) -> int:
    """f: how many validators may lie while the others still agree."""
    if validators < 1:
        raise ValueError("a ledger has at least one validator")
    return (validators - 1) // 3
