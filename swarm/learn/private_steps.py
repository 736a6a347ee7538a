"""Steps of DP-SGD: Poisson batches of units, gradients clipped by unit, Gaussian noise.

A unit is a record, or a patient with all its records. Opacus gives the gradient of every row; where units are patients,
the gradients of a patient's rows are added up before they are clipped, so that a step moves by no more than the
clipping length because of one patient, however many rows it has.

What is drawn here is secret and comes from the operating system's entropy, never from generators that a loop seeds or
that are put back after a restart: who knows the seed takes the noise off again, and noise that is used for two updates
falls out of their difference.

Source: Abadi et al., Deep Learning with Differential Privacy, CCS 2016, algorithm 1.
"""

from __future__ import annotations

import secrets
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Sampler, default_collate

from swarm.errors import ConfigError

# Of the hook with which Opacus hears of rows' gradients: it has what it needs without the input's.
warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")


def chance() -> np.random.Generator:
    """A secret source of chance: counters under 256 random bits (Philox; quick, and no cipher)."""
    return np.random.Generator(np.random.Philox(secrets.randbits(256)))


class Draws(Sampler[list[int]]):
    """Batches for ever: each unit is in each by itself with the same chance.

    Args:
        units: for each unit the numbers of its rows.
        rows_max: of a unit with more rows, so many are drawn each time.
    """

    def __init__(self, units: Sequence[Sequence[int]], rate: float, rows_max: int, source: np.random.Generator) -> None:
        self._units = units
        self._rate = rate
        self._rows_max = rows_max
        self._source = source
        self.drawn: deque[Tensor] = deque()
        """Of batches that were drawn and not yet given out: (rows,) int64, each row's unit, counted in the batch."""

    def __iter__(self) -> Iterator[list[int]]:
        self.drawn.clear()
        while True:
            chosen = np.flatnonzero(self._source.random(len(self._units)) < self._rate).tolist()
            rows = [self._some(self._units[unit]) for unit in chosen]
            self.drawn.append(torch.tensor([place for place, own in enumerate(rows) for _ in own], dtype=torch.int64))
            yield [row for own in rows for row in own]

    def _some(self, rows: Sequence[int]) -> Sequence[int]:
        if len(rows) <= self._rows_max:
            return rows
        found: list[int] = self._source.choice(rows, self._rows_max, replace=False).tolist()
        return found


class PrivateLoader:
    """A data loader's rows in Poisson batches, which may be empty; a pass is as many as the loader's was.

    Attributes:
        groups: of the batch that was given out last and not yet stepped on, as in `Draws.drawn`; None if there is none.
    """

    def __init__(self, loader: DataLoader[Any], draws: Draws, passes: int) -> None:
        self._draws = draws
        self._batches = passes
        self.dataset = loader.dataset
        self.groups: Tensor | None = None
        self._inner: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_sampler=draws,
            collate_fn=_Collate(loader.collate_fn or default_collate, loader.dataset),
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
        )

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Any]:
        for _, batch in zip(range(self._batches), self._inner, strict=False):
            self.groups = self._draws.drawn.popleft()
            yield batch


class _Collate:
    """Rows as the user's own function puts them together; of no rows, tensors of that form with none."""

    def __init__(self, inner: Callable[[list[Any]], Any], dataset: Any) -> None:
        self._inner = inner
        self._dataset = dataset

    def __call__(self, rows: list[Any]) -> Any:
        return self._inner(rows) if rows else tree_map(_none_of, self._inner([self._dataset[0]]))


def _none_of(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.dim():
        raise ConfigError(f"a batch holds a {type(value).__name__}; an empty one can only be made of tensors with rows")
    return value[:0]


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """The loop's optimizer, whose every step is clipped by unit and noised.

    Args:
        units: expected in a batch; the sum of clipped gradients is divided by it.
        step_done: hears of each step before the parameters move.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        loader: PrivateLoader,
        source: np.random.Generator,
        *,
        noise: float,
        clip: float,
        units: float,
        step_done: Callable[[], None],
    ) -> None:
        super().__init__(optimizer, noise_multiplier=noise, max_grad_norm=clip, expected_batch_size=units)
        self._loader = loader
        self._source = source
        self._step_done = step_done
        self._inside = False
        optimizer.register_step_pre_hook(self._refuse_bare)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One private step on the batch that the loader gave last.

        Raises:
            ValueError: there is none, it was stepped on before, or the gradients are of other rows.
        """
        if closure is not None:
            raise ValueError("a private step takes no closure: a batch is evaluated once")
        self._inside = True
        try:
            super().step()
        finally:
            self._inside = False
        return None

    def clip_and_accumulate(self) -> None:
        """The sum of all units' clipped gradients."""
        groups, self._loader.groups = self._loader.groups, None
        if groups is None:
            raise ValueError("a private step needs a batch of the loader that `private` gave, and each batch has one")
        units = int(groups[-1]) + 1 if len(groups) else 0
        for parameter in self.params:
            rows = getattr(parameter, "grad_sample", None)
            if not isinstance(rows, Tensor):
                raise ValueError("no gradients of single rows: forward and backward once a batch, before each step")
            if len(rows) != len(groups):
                raise ValueError(
                    f"gradients of {len(rows)} rows, but the loader drew {len(groups)}: a step takes the whole batch "
                    "as it was drawn"
                )
            if units != len(rows):
                added = torch.zeros((units, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
                parameter.grad_sample = added.index_add_(0, groups.to(rows.device), rows)
        self._step_done()
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Noise on the sum, of deviation noise x clip.

        Four draws of half the deviation are added up, as in Opacus' secure mode: the lowest bits of one draw tell of
        what was added to it (Holohan and Braghin, 2021).
        """
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            draws = self._source.standard_normal((4, *parameter.shape)).sum(0) / 2
            noise = torch.from_numpy(np.asarray(deviation * draws)).to(parameter.device, parameter.summed_grad.dtype)
            parameter.grad = (parameter.summed_grad + noise).view_as(parameter)

    def _refuse_bare(self, *_: Any) -> None:
        if not self._inside:
            raise ConfigError(
                "a step without noise: call step() of the optimizer that `private` gave, not of the first one"
            )
