"""What is attacked: the updates that one site's training gives away, made as training makes them."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils.data import DataLoader, TensorDataset

from swarm.config import Policy
from swarm.errors import ConfigError, StorageError
from swarm.learn.leak import blind
from swarm.learn.leak.inversion import Gradient, GradientOf, quiet, trained
from swarm.learn.leak.measures import is_image
from swarm.learn.private import Private
from swarm.learn.recipes import Recipe, Site
from swarm.learn.state import Checkpoint, State, save_model, write_update

NO_LOSS_OF_ONE = "survival"
"""The kind of recipe whose loss compares records with each other: one alone has none."""

RIVALS_MIN = 50
"""Records of the attacked site that a true one has to stand out from; with fewer its test rows are taken too."""


@dataclass(frozen=True)
class Records:
    """Some records on the model's scale."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def pick(self, index: Tensor) -> Records:
        return Records(self.x[index], self.y[index])


@dataclass(frozen=True)
class Seen:
    """What somebody can see of an update, and what it was made of."""

    gradient: Gradient
    """The update upside down, float64: the direction in which the loss grew."""
    records: Records
    """The attacked site's records in it: the ones that are looked for."""
    rows: int
    """Records of all sites in it."""


@dataclass(frozen=True)
class Trained:
    """What a site's training made of the checkpoint."""

    site: str
    model: nn.Module
    records: Records
    """All that it trained on."""
    samples: int
    """How many the batches had together: a record counts as often as it came."""


class Ground:
    """One site of a recipe at one checkpoint.

    Args:
        site: whose updates are attacked; the other sites are the attackers, with records of their own.
        checkpoint: what training starts from; None: the recipe's fresh model.
    Raises:
        ConfigError: no such site, a model that trains nothing, or one that does not fit the checkpoint.
    """

    def __init__(
        self, recipe: Recipe, policy: Policy, sites: Sequence[Site], site: str, *, seed: int, checkpoint: Path | None
    ) -> None:
        self.recipe, self.policy, self.seed = recipe, policy, seed
        training = [one for one in sites if one.trains]
        if site not in {one.name for one in training}:
            raise ConfigError(f"the recipe has no site {site!r}; there are {', '.join(s.name for s in training)}")
        self.agreed: Any = recipe.agree([(one.train.x, one.train.y) for one in training])
        self.site = site
        self.rows: dict[str, Records] = {
            one.name: Records(recipe.scaled(one.train.x, self.agreed), one.train.y) for one in training
        }
        self.rows = {site: self.rows[site], **self.rows}  # the attacked one first
        own = next(one for one in training if one.name == site)
        self.own_test = Records(recipe.scaled(own.test.x, self.agreed), own.test.y)
        """The attacked site's test rows."""
        self.test = Records(
            torch.cat([recipe.scaled(one.test.x, self.agreed) for one in sites]), torch.cat([s.test.y for s in sites])
        )
        if not self.rows[site].x.is_floating_point():
            raise ConfigError(f"the inputs are {self.rows[site].x.dtype}: no gradient leads back to what is no number")
        self.model = recipe.new_model(seed)
        if not self.parameters(self.model):
            raise ConfigError("the recipe's model has no parameters that are trained: its updates say nothing")
        if checkpoint is not None:
            State(self.model, policy).load(Checkpoint(checkpoint), scaffold=policy.scaffold)
        others = [rows.x for name, rows in self.rows.items() if name != site]
        self.known_x = torch.cat(others) if others else self.test.x
        """Of the same kind, and not the attacked site's: what the attackers have themselves."""

    @property
    def mine(self) -> Records:
        """The attacked site's records."""
        return self.rows[self.site]

    def rivals(self, inside: Records) -> Records:
        """Records of the attacked site that are not in an update: its others, and its test rows where they are few."""
        taken = {row.numpy().tobytes() for row in inside.x}
        found = self.mine.pick(torch.tensor([row.numpy().tobytes() not in taken for row in self.mine.x]))
        if len(found) < RIVALS_MIN:
            found = Records(torch.cat([found.x, self.own_test.x]), torch.cat([found.y, self.own_test.y]))
        return found

    @property
    def is_image(self) -> bool:
        return is_image(self.mine.x)

    def chance(self, number: int) -> torch.Generator:
        """A generator of this check's own, for each purpose another."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Of a model of this recipe: what is trained and travels, in the order of a gradient."""
        shared = {id(parameter) for parameter in State(model, self.policy).parameters.values()}
        return [parameter for parameter in trained(model) if id(parameter) in shared]

    # --- updates

    def step(self, site: str, records: Records) -> Trained:
        """One step of a site's own optimizer on one batch."""
        model = copy.deepcopy(self.model).train()
        self._step(model, self.recipe.new_optimizer(model), records)
        return Trained(site, model, records, len(records))

    def interval(self, site: str, chance: torch.Generator) -> Trained:
        """A sync interval of a site's training, all its batches: what a round takes."""
        rows = self.rows[site]
        model = copy.deepcopy(self.model).train()
        optimizer = self.recipe.new_optimizer(model)
        used = []
        for index in stream(len(rows), self.recipe.BATCH, chance, self.policy.sync_interval):
            self._step(model, optimizer, rows.pick(index))
            used.append(index)
        every = torch.cat(used)
        return Trained(site, model, rows.pick(every.unique()), len(every))  # type: ignore[no-untyped-call]

    def private_step(self, size: int, policy: Policy, source: np.random.Generator) -> Trained:
        """One step with differential privacy, on a batch of about `size` records."""
        model = copy.deepcopy(self.model).train()
        with private(self, model, policy, size, source) as (loader, optimizer):
            while True:
                x, y = next(iter(loader))
                if len(x):
                    break
            self._step(model, optimizer, Records(x, y))
        return Trained(self.site, model, Records(x, y), len(x))

    def _step(self, model: nn.Module, optimizer: Any, records: Records) -> None:
        optimizer.zero_grad()
        self.recipe.loss(model, records.x, records.y, self.agreed).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    # --- what is seen of them

    def plain(self, own: Trained) -> Seen:
        """The update itself, as every member of a visible round has it."""
        pairs = zip(self.parameters(self.model), self.parameters(own.model), strict=True)
        difference = [(before.detach() - after.detach()).double() for before, after in pairs]
        return Seen(difference, own.records, len(own.records))

    def of_file(self, path: Path) -> Seen:
        """An update that training wrote: any of the site's records may be in it.

        Raises:
            ConfigError: the file is no update of this model.
        """
        try:
            tensors = Checkpoint(path).tensors
        except StorageError as error:
            raise ConfigError(f"{path} is no update: {error}") from error
        gradient = []
        for name, parameter in State(self.model, self.policy).parameters.items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise ConfigError(f"{path} is no update of this model: {name} is missing, or has another shape")
            gradient.append((id(parameter), -tensors[name].double()))
        by_parameter = dict(gradient)
        rows = min(self.policy.sync_interval * self.recipe.BATCH, len(self.mine))
        return Seen([by_parameter[id(one)] for one in self.parameters(self.model)], self.mine, rows)

    def blind(self, parts: Sequence[Trained], source: np.random.Generator, *, masked: bool = False) -> Seen:
        """What the leader of a blind round sees: the sum, its own update taken off; the last site leads.

        Args:
            parts: one for each site, the attacked one first.
            masked: see only the attacked site's masked vector, before anything is summed.
        """
        with tempfile.TemporaryDirectory(prefix="swarm-leak-") as place:
            folder = Path(place)
            base = folder / "base"
            save_model(State(self.model, self.policy).tensors, base)
            updates = []
            for part in parts:
                path = folder / f"update-{part.site}"
                write_update(State(part.model, self.policy).tensors, Checkpoint(base), path, range_max=float("inf"))
                updates.append(blind.Update(part.site, path, part.samples))
            sight = blind.seen_by_leader(base, updates, parts[-1].site, self.policy, source, folder)
        values = sight.masked if masked else sight.others
        names = {id(value): name for name, value in State(self.model, self.policy).parameters.items()}
        gradient = [
            -torch.from_numpy(values[names[id(parameter)]]).reshape(parameter.shape)
            for parameter in self.parameters(self.model)
        ]
        seen = parts[:1] if masked else parts[:-1]
        return Seen(gradient, parts[0].records, sum(len(part.records) for part in seen))

    # --- what the attacker computes

    def gradient_of(self, y: Tensor) -> GradientOf:
        """The gradient of a batch with these labels, in float64, by its inputs; dropout is off: it is secret."""
        model = quiet(copy.deepcopy(self.model).double())
        parameters = self.parameters(model)
        labels = y.double() if y.is_floating_point() else y
        agreed = self.agreed.double() if isinstance(self.agreed, Tensor) else self.agreed

        def gradient(x: Tensor) -> Gradient:
            loss = self.recipe.loss(model, x, labels, agreed)
            return torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)

        return gradient

    @torch.no_grad()
    def losses(self, model: nn.Module, records: Records) -> Tensor:
        """The loss of each record by itself, (records,) float64.

        Raises:
            ConfigError: this recipe's loss knows none.
        """
        if self.recipe.KIND == NO_LOSS_OF_ONE:
            raise ConfigError("this recipe's loss compares records with each other: one record has none")
        was = model.training
        model.eval()

        def one(x: Tensor, y: Tensor) -> Tensor:
            return self.recipe.loss(model, x[None], y[None], self.agreed)

        found = torch.cat(
            [vmap(one)(records.x[at], records.y[at]) for at in torch.split(torch.arange(len(records)), 1024)]
        )
        model.train(was)
        return found.double()


def stream(rows: int, batch: int, chance: torch.Generator, batches: int) -> Iterator[Tensor]:
    """Row numbers of so many batches; each pass has its own order and may end with a smaller batch."""
    left = batches
    while left:
        for index in torch.split(torch.randperm(rows, generator=chance), batch)[:left]:
            left -= 1
            yield index


@contextmanager
def private(
    ground: Ground,
    model: nn.Module,
    policy: Policy,
    batch: int,
    source: np.random.Generator,
    rows: Records | None = None,
) -> Iterator[tuple[Any, Any]]:
    """A site's loader and optimizer as `swarm.private` makes them; its budget is written to a folder that goes away."""
    rows = ground.mine if rows is None else rows
    with tempfile.TemporaryDirectory(prefix="swarm-leak-") as folder:
        loader = DataLoader(TensorDataset(rows.x, rows.y), batch_size=min(batch, len(rows)))
        made = Private(
            model, ground.recipe.new_optimizer(model), loader, policy, Path(folder) / "spent.json", source=source
        )
        yield made.loader, made.optimizer


def with_privacy(policy: Policy, epsilon: float, records: int) -> Policy:
    """The policy itself where it is private, and otherwise the same with records protected to this epsilon."""
    if policy.private:
        return policy
    return replace(policy, epsilon=epsilon, delta=min(1e-5, 0.1 / records), clip=1.0, unit="record")
