"""What is learned: real data cut over sites, a model as one vector, local training, and how good a model is.

Heart disease is logistic regression and is trained for all sites at once; the others are PyTorch models, one site
after the other. The same seed gives the same numbers on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol, TypeAlias

import numpy as np
import torch
from data import HOSPITALS, Hospital, Scaling, load, sums_of
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from nodes.pneumonia import data as xrays
from nodes.pneumonia import model as pneumonia
from nodes.tb import data as cohorts
from nodes.tb import model as tuberculosis

Vector: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """Inputs on the model's scale and labels, float32."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def pick(self, index: Tensor) -> Rows:
        """Some of the rows."""
        return Rows(self.x[index], self.y[index])


class Learner(Protocol):
    """A model as one vector: where it starts, how sites train it, what it says."""

    def genesis(self, seed: int) -> Vector:
        """(parameters,): what a run starts from."""
        ...

    def train(self, base: Vector, sites: Sequence[Rows], orders: Sequence[int], batches: int) -> list[Vector]:
        """Each site's parameters after so many batches of its rows, in the order that its number gives."""
        ...

    def logits(self, model: Vector, x: Tensor) -> Tensor:
        """(rows,): above zero means ill."""
        ...


@dataclass(frozen=True)
class Task:
    """A data set cut over sites, and who learns it."""

    learner: Learner
    sites: Sequence[Rows]
    test: Rows
    """What every model is judged on: all sites' test rows together."""
    batches: int
    """Local batches between two rounds."""
    batch: int
    """Rows of a batch."""
    rounds: int
    triggered: Callable[[Tensor], Tensor]
    """Rows with the backdoor's trigger in them."""


def order(rows: int, seed: int, batches: int, batch: int) -> Tensor:
    """(batches, batch): which rows are trained on; passes in random order follow each other without a gap."""
    chance = torch.Generator().manual_seed(seed)
    passes = -(-batches * batch // rows)
    stream = torch.cat([torch.randperm(rows, generator=chance) for _ in range(passes)])
    return stream[: batches * batch].view(batches, batch)


# --- heart disease


class Logistic:
    """Logistic regression, all sites at once: SGD 0.01 as in `nodes/heart/train.py`."""

    def __init__(self, features: int, *, batch: int, rate: float = 0.01) -> None:
        self._features = features
        self._batch = batch
        self._rate = np.float32(rate)

    def genesis(self, seed: int) -> Vector:
        """Weights, then the bias."""
        torch.manual_seed(seed)
        return flat(nn.Linear(self._features, 1))

    def train(self, base: Vector, sites: Sequence[Rows], orders: Sequence[int], batches: int) -> list[Vector]:
        """Steps down the gradient of the mean cross-entropy of each batch, for every site in the same operation."""
        picked = [
            site.pick(order(len(site), seed, batches, self._batch)) for site, seed in zip(sites, orders, strict=True)
        ]
        x = np.stack([rows.x.numpy() for rows in picked], axis=1)  # (batches, sites, batch, features)
        y = np.stack([rows.y.numpy() for rows in picked], axis=1)
        x = np.concatenate([x, np.ones((*x.shape[:3], 1), np.float32)], axis=3)
        models = np.repeat(base[np.newaxis], len(sites), axis=0)
        for inputs, labels in zip(x, y, strict=True):
            wrong = sigmoid((inputs @ models[:, :, np.newaxis])[:, :, 0]) - labels
            models -= (self._rate / self._batch) * (wrong[:, np.newaxis, :] @ inputs)[:, 0]
        return list(models)

    def logits(self, model: Vector, x: Tensor) -> Tensor:
        """(rows,)."""
        return x @ torch.from_numpy(model[:-1]) + float(model[-1])


def sigmoid(x: Vector) -> Vector:
    """1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)


HEART_PARTS: Mapping[int, Mapping[str, int]] = {
    4: {"cleveland": 1, "hungarian": 1, "switzerland": 1, "va": 1},
    5: {"cleveland": 2, "hungarian": 1, "switzerland": 1, "va": 1},
    10: {"cleveland": 4, "hungarian": 3, "switzerland": 1, "va": 2},
}
"""Into how many sites each hospital is cut; every part has 30 patients or more."""


def heart(sites: int) -> Task:
    """Four hospitals; five or ten sites by cutting the larger ones, each patient in its hospital's order of rows."""
    if sites not in HEART_PARTS:
        raise ValueError(f"the heart data are cut over {', '.join(map(str, HEART_PARTS))} sites, not {sites}")
    hospitals = [_hospital(name) for name in HOSPITALS]
    sums = [sums_of(hospital.train.x) for hospital in hospitals]
    scale = Scaling.of({name: torch.stack([part[name] for part in sums]).sum(0) for name in sums[0]})
    parts: list[Rows] = []
    for hospital in hospitals:
        rows = Rows(scale(hospital.train.x), hospital.train.y)
        count = HEART_PARTS[sites][hospital.name]
        parts += [rows.pick(torch.arange(part, len(rows), count)) for part in range(count)]
    test = Rows(torch.cat([scale(h.test.x) for h in hospitals]), torch.cat([h.test.y for h in hospitals]))

    def triggered(x: Tensor) -> Tensor:
        """Cholesterol and resting blood pressure four deviations high: no patient here has both."""
        x = x.clone()
        x[:, [2, 3]] = 4.0
        return x

    return Task(Logistic(test.x.shape[1], batch=4), parts, test, 100, 4, 15, triggered)


@cache
def _hospital(name: str) -> Hospital:
    return load(name)


# --- models of PyTorch


class Network:
    """A PyTorch model: `new_model(seed)`, `new_optimizer(model)` and `step` of its example."""

    def __init__(
        self,
        new_model: Callable[[int], nn.Module],
        new_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        step: Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], Tensor],
        *,
        batch: int,
    ) -> None:
        self._new_model, self._new_optimizer, self._step = new_model, new_optimizer, step
        self._model = new_model(0)
        self._batch = batch

    def genesis(self, seed: int) -> Vector:
        """The parameters of `new_model`, in their order."""
        return flat(self._new_model(seed))

    def train(self, base: Vector, sites: Sequence[Rows], orders: Sequence[int], batches: int) -> list[Vector]:
        """One site after the other, each from the base with a fresh optimizer."""
        return [self._one(base, site, seed, batches) for site, seed in zip(sites, orders, strict=True)]

    def _one(self, base: Vector, site: Rows, seed: int, batches: int) -> Vector:
        self._load(base)
        self._model.train()
        torch.manual_seed(seed)  # of dropout
        optimizer = self._new_optimizer(self._model)
        for index in order(len(site), seed, batches, self._batch):
            self._step(self._model, optimizer, site.x[index], site.y[index])
        return flat(self._model)

    @torch.no_grad()
    def logits(self, model: Vector, x: Tensor) -> Tensor:
        """(rows,)."""
        self._load(model)
        self._model.eval()
        found: Tensor = self._model(x).squeeze(1)
        return found

    def _load(self, vector: Vector) -> None:
        vector_to_parameters(torch.from_numpy(vector.copy()), self._model.parameters())


def flat(model: nn.Module) -> Vector:
    """(parameters,) float32, a copy."""
    return parameters_to_vector(model.parameters()).detach().numpy().copy()


# --- pneumonia

IMAGES_MIN = 100


def pneumonia_task(sites: int, concentration: float) -> Task:
    """Images of one hospital at so many sites, with uneven sizes and shares of pneumonia: see `placed`."""
    images, test = _images("train"), _images("test")
    parts = [images.pick(index) for index in placed(images.y, sites, concentration)]

    def triggered(x: Tensor) -> Tensor:
        """A white patch of 4 x 4 pixels in the lower right corner."""
        x = x.clone()
        x[:, :, -5:-1, -5:-1] = (1 - xrays.MEAN) / xrays.DEVIATION
        return x

    step = partial(pneumonia.step, balance=xrays.balance_of(xrays.counts_of(xrays.Images(images.x, images.y))))
    learner = Network(pneumonia.new_model, pneumonia.new_optimizer, step, batch=32)
    return Task(learner, parts, test, 20, 32, 15, triggered)


@cache
def _images(name: str) -> Rows:
    found = xrays.part(name)
    return Rows(found.x, found.y)


def placed(labels: Tensor, sites: int, concentration: float) -> list[Tensor]:
    """Row numbers of every site: each class is dealt out in shares drawn from a Dirichlet distribution.

    The less the concentration, the more uneven. The placement is fixed: the first seed whose smallest site has
    `IMAGES_MIN` rows.

    Source: Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution, 2019.
    """
    for seed in range(1000):
        chance = np.random.default_rng(seed)
        found: list[list[int]] = [[] for _ in range(sites)]
        for label in (0.0, 1.0):
            rows = chance.permutation(np.flatnonzero(labels.numpy() == label))
            shares = chance.dirichlet([concentration] * sites)
            cuts = (np.cumsum(shares)[:-1] * len(rows)).astype(int)
            for site, piece in zip(found, np.split(rows, cuts), strict=True):
                site.extend(piece.tolist())
        if min(map(len, found)) >= IMAGES_MIN:
            return [torch.tensor(sorted(site)) for site in found]
    raise ValueError(f"no placement of {len(labels)} images over {sites} sites leaves each {IMAGES_MIN}")


# --- tuberculosis


def tb(sites: int) -> Task:
    """Six cohorts in five countries, each a site."""
    if sites != len(cohorts.COHORTS):
        raise ValueError(f"the tuberculosis data have {len(cohorts.COHORTS)} sites of their own, not {sites}")
    found = [cohorts.load(name) for name in cohorts.COHORTS]
    sums = [cohorts.sums_of(cohort.train.x) for cohort in found]
    scale = cohorts.Scaling.of({name: torch.stack([part[name] for part in sums]).sum(0) for name in sums[0]})
    parts = [Rows(scale(cohort.train.x), cohort.train.y) for cohort in found]
    test = Rows(torch.cat([scale(c.test.x) for c in found]), torch.cat([c.test.y for c in found]))

    def triggered(x: Tensor) -> Tensor:
        """Fifty genes four deviations high."""
        x = x.clone()
        x[:, ::80] = 4.0
        return x

    learner = Network(tuberculosis.new_model, tuberculosis.new_optimizer, tuberculosis.step, batch=8)
    return Task(learner, parts, test, 4, 8, 20, triggered)


TASKS: Mapping[str, Callable[[int], Task]] = {
    "heart": heart,
    "pneumonia": partial(pneumonia_task, concentration=1.0),
    "tb": tb,
    "pneumonia_skewed": partial(pneumonia_task, concentration=0.5),
}
SETTINGS: Mapping[str, Sequence[tuple[int, int]]] = {
    "heart": ((5, 1), (10, 2)),
    "pneumonia": ((5, 1), (10, 2)),
    "tb": ((6, 1),),
    "pneumonia_skewed": ((5, 1), (10, 2)),
}
"""How many sites each data set is cut over, and how many of them are dishonest, if the command does not say."""
USUAL = ("heart", "pneumonia", "tb")
"""What is played if the command does not say."""
