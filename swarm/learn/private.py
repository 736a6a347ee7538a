"""Differential privacy in the user's loop: what `SwarmCallback.private` gives, and what it refuses.

The noise is solved once, before the first step, from what the members agreed (rounds, sync interval, clip, epsilon,
delta) and from this site's sampling rate. What is spent is written down before an update leaves (`private_budget.py`).
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Hashable, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from swarm.config import Policy
from swarm.encoding import sha256
from swarm.errors import ConfigError, StorageError
from swarm.learn import private_budget
from swarm.learn.private_budget import Spent, Steps, epsilon_by_rdp, epsilon_of, noise_for
from swarm.learn.private_model import check_trainable

logger = logging.getLogger(__name__)


class Private:
    """One site's private training in one run.

    Args:
        path: where what is spent is written down.
        told: the most that the ledger says this site has spent.
        done: rounds of the run that are over.
        patients: whose each row of the loader's data is, where the run's unit is the patient.
        rows_max: how many rows of one patient are in a batch at most.
        assume_spent: the operator's word that `path` is lost: all rounds until now count as trained in full.
        source: of chance; only tests give one.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: DataLoader[Any],
        policy: Policy,
        path: Path,
        *,
        told: float = 0.0,
        done: int = 0,
        patients: Sequence[Hashable] | None = None,
        rows_max: int = 16,
        assume_spent: bool = False,
        source: np.random.Generator | None = None,
    ) -> None:
        if importlib.util.find_spec("opacus") is None:
            raise ConfigError(
                "this run is private, and Opacus, which private steps need, is not installed: pip install "
                "'swarm-ledger[privacy]'"
            )
        check_trainable(model)
        units = _units(loader, policy, patients)
        rows = sum(map(len, units))
        assert loader.batch_size is not None
        self.rate = min(loader.batch_size / rows, 1.0)
        self.samples = loader.batch_size
        """Rows of a batch as everybody may know it: how many were drawn is a secret."""
        if policy.delta * len(units) >= 1:
            raise ConfigError(
                f"delta = {policy.delta:g} at a site of {len(units)} {policy.unit}s: it would let one of them be told "
                f"in full; the members agree on less than 1/{len(units)}"
            )
        self._policy = policy
        self._path = path
        self._pending = 0
        self._plan = policy.rounds * policy.sync_interval
        self.spent = self._recall(told, done, assume_spent)
        """What was given away so far."""
        left = self._plan - sum(one.count for one in self.spent.steps)
        self.noise = self._kept_noise() or self._noise(self.spent.steps, max(left, 1))
        source = source or _chance()
        self.loader, self.optimizer = self._steps(model, optimizer, loader, units, rows_max, source)
        logger.info(
            "%s: noise %.3f for %d steps, each with one in %.1f of %d %ss; spent: epsilon %.3f of %g at delta %g",
            policy.name, self.noise, self._plan, 1 / self.rate, len(units), policy.unit, self.epsilon, policy.epsilon,
            policy.delta,
        )  # fmt: skip

    @property
    def epsilon(self) -> float:
        """What this site has given away so far."""
        return epsilon_of(self.spent.steps, self._policy.delta)

    @property
    def epsilon_rdp(self) -> float:
        """The same by the RDP accountant."""
        return epsilon_by_rdp(self.spent.steps, self._policy.delta)

    def released(self, round_: int) -> bool:
        """Whether an update for this round was given away before."""
        return self.spent.round >= round_

    def release(self, round_: int) -> float:
        """Write down that all steps until now are about to be given away; the epsilon with them.

        Raises:
            ConfigError: no step was private, or the members' epsilon does not reach so far.
            StorageError: it cannot be written down; then nothing may be given away.
        """
        if not self._pending:
            raise ConfigError("no private step since the last update: step with the optimizer that `private` gave")
        after = self.spent.after(Steps(self.noise, self.rate, self._pending))
        epsilon = epsilon_of(after.steps, self._policy.delta)
        if epsilon > self._policy.epsilon:
            raise ConfigError(
                f"the privacy budget of run {self._policy.name} is spent: with round {round_} epsilon would be "
                f"{epsilon:.3f} of {self._policy.epsilon:g}; this site submits no more in this run"
            )
        after = Spent(after.policy, round_, after.steps)
        private_budget.write(self._path, after)
        self.spent, self._pending = after, 0
        logger.info(
            "%s round %d: epsilon %.3f of %g at delta %g (by RDP %.3f)",
            self._policy.name, round_, epsilon, self._policy.epsilon, self._policy.delta, self.epsilon_rdp,
        )  # fmt: skip
        return epsilon

    def _recall(self, told: float, done: int, assume_spent: bool) -> Spent:
        """What is written down, if the ledger does not know of more."""
        policy = self._policy
        digest = sha256(policy.encode()).hex()
        try:
            spent, fault = private_budget.read(self._path), ""
        except StorageError as error:
            spent, fault = None, str(error)
        if spent is not None and spent.policy != digest:
            raise ConfigError(f"{self._path} is of another run; move it away if that run's consortium is gone")
        if not fault and (epsilon_of(spent.steps, policy.delta) if spent else 0.0) < 0.999 * told:
            fault = f"the ledger says that this site declared epsilon {told:.3f} in this run, and {self._path} " + (
                "is not there" if spent is None else f"knows of {epsilon_of(spent.steps, policy.delta):.3f}"
            )
        if not fault:
            return spent or Spent(digest)
        if not assume_spent:
            raise StorageError(
                f"{fault}. Restore the file as it was, or, where it is lost, say `private(…, assume_spent=True)`: "
                "all rounds until now then count as trained in full"
            )
        steps = min((done + 1) * policy.sync_interval, self._plan)
        spent = Spent(digest).after(Steps(self._noise((), self._plan), self.rate, steps))
        private_budget.write(self._path, spent)
        return spent

    def _kept_noise(self) -> float | None:
        """That of the plan before a restart, if the data are as many as then."""
        last = self.spent.steps[-1] if self.spent.steps else None
        return last.noise if last is not None and last.rate == self.rate else None

    def _noise(self, spent: Sequence[Steps], steps: int) -> float:
        policy = self._policy
        return noise_for(epsilon=policy.epsilon, delta=policy.delta, rate=self.rate, steps=steps, spent=spent)

    def _steps(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: DataLoader[Any],
        units: Sequence[Sequence[int]],
        rows_max: int,
        source: np.random.Generator,
    ) -> tuple[Any, Any]:
        from opacus.grad_sample.grad_sample_module import GradSampleHooks

        from swarm.learn.private_steps import Draws, PrivateLoader, PrivateOptimizer

        model.register_forward_pre_hook(_refuse_unprepared)
        hooks = GradSampleHooks(model, strict=False)
        hooks.forbid_grad_accumulation()
        batches = PrivateLoader(loader, Draws(units, self.rate, rows_max, source), max(round(1 / self.rate), 1))
        private = PrivateOptimizer(
            optimizer, batches, source,
            noise=self.noise, clip=self._policy.clip, units=self.rate * len(units), step_done=self._count,
        )  # fmt: skip
        return batches, private

    def _count(self) -> None:
        self._pending += 1


def _refuse_unprepared(model: nn.Module, _: object) -> None:
    if torch.is_grad_enabled() and not model.training:
        raise ValueError("a private model trains after model.train(), and is judged under torch.no_grad()")


def _chance() -> np.random.Generator:
    from swarm.learn.private_steps import chance

    return chance()


def _units(loader: DataLoader[Any], policy: Policy, patients: Sequence[Hashable] | None) -> Sequence[Sequence[int]]:
    """For each unit the numbers of its rows."""
    if isinstance(loader.dataset, IterableDataset) or not isinstance(loader.dataset, Sized) or not loader.batch_size:
        raise ConfigError(
            "a private run draws its own batches: give a DataLoader of a dataset with a length and a batch_size"
        )
    rows = len(loader.dataset)
    if not rows:
        raise ConfigError("the loader has no rows")
    if policy.unit == "record":
        if patients is not None:
            raise ConfigError(f"run {policy.name} protects records (unit = 'record'); leave `patients` out")
        return [[row] for row in range(rows)]
    if patients is None:
        raise ConfigError(f"run {policy.name} protects patients: say whose each row is, `private(…, patients=IDS)`")
    if len(patients) != rows:
        raise ConfigError(f"{len(patients)} patient ids for {rows} rows; each row has one")
    found: dict[Hashable, list[int]] = {}
    for row, patient in enumerate(patients):
        found.setdefault(patient.item() if isinstance(patient, (Tensor, np.generic)) else patient, []).append(row)
    return list(found.values())
