"""How much privacy was lost at least, if somebody guessed so well? Bounds from counts of right guesses.

Source: Steinke, Nasr, Jagielski, Privacy Auditing with One (1) Training Run, NeurIPS 2023, the number
of right guesses is at most a binomial one, and with delta a little more, as in the paper's own procedure.
"""

from __future__ import annotations

import math
from collections.abc import Callable

EPSILON_MAX = 40.0
CONFIDENCE = 0.95


def epsilon_at_least(right: int, guesses: int, records: int, *, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest epsilon that so many right guesses refute; 0 where they refute none.

    Args:
        right: of `guesses` that were made, out of `records` that were in or out by a fair coin each.
        delta: of the (epsilon, delta) that is refuted.
        confidence: with which the true epsilon is larger.
    Raises:
        ValueError: more right than guessed, more guessed than there are records, or no confidence between 0 and 1.
    """
    if not 0 <= right <= guesses <= records:
        raise ValueError(f"{right} right of {guesses} guesses at {records} records")
    if not (0 < confidence < 1 and 0 <= delta < 1):
        raise ValueError(f"confidence {confidence:g}, delta {delta:g}; both lie between 0 and 1")
    low, high = 0.0, EPSILON_MAX
    if p_value(right, guesses, records, epsilon=0.0, delta=delta) > 1 - confidence:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if p_value(right, guesses, records, epsilon=middle, delta=delta) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def p_value(right: int, guesses: int, records: int, *, epsilon: float, delta: float) -> float:
    """How likely so many right guesses are at most, if training was (epsilon, delta)-private."""
    share = 1 / (1 + math.exp(-epsilon))
    beta = sum(_pmf(k, guesses, share) for k in range(right, guesses + 1))
    alpha, below = 0.0, 0.0
    for steps in range(1, right + 1):
        below += _pmf(right - steps, guesses, share)
        alpha = max(alpha, below / steps)
    return min(beta + 2 * records * delta * alpha, 1.0)


def at_least(right: int, of: int, share: float) -> float:
    """How likely so many or more are right, each by itself with probability `share`."""
    return min(sum(_pmf(k, of, share) for k in range(right, of + 1)), 1.0)


def interval(right: int, of: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Between which shares the true one lies: exact, both sides alike.

    Raises:
        ValueError: more right than there are, or none at all.
    Source: Clopper and Pearson, Biometrika 1934.
    """
    if not 0 <= right <= of or not of:
        raise ValueError(f"{right} right of {of}")
    tail = (1 - confidence) / 2

    def where(below: Callable[[float], bool]) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if below(middle) else (low, middle)
        return low

    least = where(lambda share: at_least(right, of, share) < tail) if right else 0.0
    most = where(lambda share: 1 - at_least(right + 1, of, share) > tail) if right < of else 1.0
    return least, most


def _pmf(k: int, n: int, share: float) -> float:
    if share >= 1.0 or share <= 0.0:
        return float(k == (n if share else 0))
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(share) + (n - k) * math.log1p(-share))
