"""What a site may spend of its privacy budget, what it has spent, and the file that never forgets it.

The mechanism is the Gaussian one on a Poisson sample of the site's units (records, or patients), once a step. Two
databases are neighbours if one unit, with all that belongs to it, is in one and not in the other. Epsilon is that of
everything that left the site in the run: steps count before an update is given away, and those of a process that died
before it gave anything away do not, because nothing of them is left.

Epsilon is the upper end of the PRV accountant's interval (Gopi, Lee, Wutschitz, Numerical composition of differential
privacy, NeurIPS 2021); that of the RDP accountant (Mironov, Talwar, Zhang 2019) stands beside it for comparison. Both
are Opacus'.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from swarm.errors import ConfigError, StorageError

NOISE_MAX = 1e6
TOLERANCE = 0.01
"""How far below the agreed epsilon the plan may end; the accountant's own error is as large."""
FILE_BYTES_MAX = 1 << 20
STEPS_MAX = 1 << 40


@dataclass(frozen=True)
class Steps:
    """Steps of one kind."""

    noise: float
    """The noise's deviation over the clipping length."""
    rate: float
    """With what chance a unit is in a step's batch, each by itself."""
    count: int


@dataclass(frozen=True)
class Spent:
    """What a site gave away in one run."""

    policy: str
    """The digest of the run's policy, in hexadecimal."""
    round: int = -1
    """The last round for which an update was given away; -1: none."""
    steps: tuple[Steps, ...] = ()
    """Steps of one kind after another stand together."""

    def after(self, more: Steps) -> Spent:
        """This, and more steps."""
        if not more.count:
            return self
        *before, last = self.steps or (replace(more, count=0),)
        if (last.noise, last.rate) == (more.noise, more.rate):
            return replace(self, steps=(*before, replace(last, count=last.count + more.count)))
        return replace(self, steps=(*self.steps, more))


def epsilon_of(steps: Sequence[Steps], delta: float) -> float:
    """What these steps spend at `delta`, by the PRV accountant: an upper bound."""
    return _epsilon("prv", tuple(steps), delta)


def epsilon_by_rdp(steps: Sequence[Steps], delta: float) -> float:
    """The same by the RDP accountant: looser, from another calculation."""
    return _epsilon("rdp", tuple(steps), delta)


def noise_for(*, epsilon: float, delta: float, rate: float, steps: int, spent: Sequence[Steps] = ()) -> float:
    """The least noise with which so many steps more end at or just below `epsilon`.

    Args:
        spent: what was spent before.
    Raises:
        ConfigError: what was spent leaves nothing for these steps.
    """

    def reached(noise: float) -> float:
        return epsilon_of([*spent, Steps(noise, rate, steps)], delta)

    if spent and epsilon_of(spent, delta) >= epsilon:
        raise _spent_up(epsilon, delta, steps, spent)
    low = high = 1.0
    above = below = reached(1.0)
    while below > epsilon:
        low, above, high = high, below, 2 * high
        if high > NOISE_MAX:
            raise _spent_up(epsilon, delta, steps, spent)
        below = reached(high)
    while above <= epsilon:
        high, below, low = low, above, low / 2
        above = reached(low)
    while epsilon - below > TOLERANCE and high - low > 1e-4 * high:
        # Between the two epsilon falls about as a power of the noise.
        share = math.log(above / (epsilon - TOLERANCE / 2)) / math.log(above / below) if math.isfinite(above) else 0.5
        middle = low * (high / low) ** min(max(share, 0.1), 0.9)
        found = reached(middle)
        if found > epsilon:
            low, above = middle, found
        else:
            high, below = middle, found
    return high


def _spent_up(epsilon: float, delta: float, steps: int, spent: Sequence[Steps]) -> ConfigError:
    before = f" after {epsilon_of(spent, delta):.3f} was spent" if spent else ""
    return ConfigError(f"no noise lets {steps} steps more end at epsilon {epsilon:g} and delta {delta:g}{before}")


@cache
def _epsilon(mechanism: str, steps: tuple[Steps, ...], delta: float) -> float:
    if not steps:
        return 0.0
    from opacus.accountants import create_accountant

    accountant = create_accountant(mechanism)
    accountant.history = [(one.noise, one.rate, one.count) for one in steps]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an order at the end of the list was the best one, and of small steps
        found = float(accountant.get_epsilon(delta))
    return found if math.isfinite(found) else math.inf


# --- the file


def read(path: Path) -> Spent | None:
    """What a site gave away, None where there is no file.

    Raises:
        StorageError: it cannot be read, or is damaged.
    """
    if not path.exists():
        return None
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ValueError(f"{path.stat().st_size} bytes")
        document = json.loads(path.read_text())
        steps = tuple(Steps(float(noise), float(rate), int(count)) for noise, rate, count in document["steps"])
        for one in steps:
            if not (0 < one.noise < math.inf and 0 < one.rate <= 1 and 0 < one.count <= STEPS_MAX):
                raise ValueError(f"{one} are no steps")
        return Spent(str(document["policy"]), int(document["round"]), steps)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"what this site spent of its privacy budget cannot be read from {path}: {error}") from error


def write(path: Path, spent: Spent) -> None:
    """Put this in place of what was there, on the disk before this returns.

    Raises:
        StorageError: it cannot be written.
    """
    document = {
        "policy": spent.policy,
        "round": spent.round,
        "steps": [[one.noise, one.rate, one.count] for one in spent.steps],
    }
    draft = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageError(
            f"what this site spends of its privacy budget cannot be written to {path}: {error}"
        ) from error
