"""Four ways to train a recipe: each site alone, all rows in one place, a fixed server, the swarm.

All see the same rows in orders drawn from the same seeds. A site that takes part in every round sees as many batches
alone as in the federation; all rows in one place get the batches of all sites together.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sim.study.experiment import Scenario
from swarm.config import Policy
from swarm.encoding import Digest
from swarm.learn.part import Part
from swarm.learn.recipes import Recipe, Site
from swarm.learn.state import Checkpoint, State, save_model
from swarm.merge import merge_files
from swarm.merkle import digest_of

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Peer:
    """A site that trains: its rows on the model's scale."""

    name: str
    number: int
    """Its place among all sites of the experiment: with the seed it orders the rows."""
    x: Tensor
    y: Tensor


class Study:
    """One recipe with the rows of some sites.

    Args:
        sites: all of the experiment, in order; those that train agree on the scaling.
        left_out: one that does not, this time.
    """

    def __init__(
        self, recipe: Recipe, policy: Policy, scenario: Scenario, sites: Sequence[Site], left_out: str = ""
    ) -> None:
        self.recipe, self.policy, self.scenario = recipe, policy, scenario
        here = [(i, site) for i, site in enumerate(sites) if site.trains and site.name != left_out]
        self.agreed: Any = recipe.agree([(site.train.x, site.train.y) for _, site in here])
        self.peers = [Peer(s.name, i, recipe.scaled(s.train.x, self.agreed), s.train.y) for i, s in here]
        self._sites = len(sites)

    def under(self, policy: Policy) -> Study:
        """The same rows on the same scale under another policy."""
        found = copy.copy(self)
        found.policy = policy
        return found

    def present(self, number: int) -> list[Peer]:
        """Who takes part in a round."""
        late, leaves = self.scenario.late, self.scenario.leaves
        return [p for p in self.peers if late.get(p.name, 0) <= number < leaves.get(p.name, self.policy.rounds)]

    def batches(self, peer: Peer) -> int:
        """How many a peer manages in a round."""
        return max(round(self.policy.sync_interval * self.scenario.slow.get(peer.name, 1.0)), 1)

    def order_of(self, seed: int, number: int, round_: int) -> int:
        """What orders a site's rows in a round."""
        return (seed * self._sites + number) * 1_000_003 + round_

    def train(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        order: int,
        batches: int,
        correct: Callable[[], None] = lambda: None,
    ) -> int:
        """So many batches, pass after pass; how many rows they had. `correct` comes before each step."""
        # Of dropout. torch.manual_seed would note a stack for each kind of device that is not there, and keep it.
        torch.default_generator.manual_seed(order)
        chance = torch.Generator().manual_seed(order)
        optimizer = self.recipe.new_optimizer(model)
        model.train()
        samples = 0
        for index in stream(len(y), self.recipe.BATCH, chance, batches):
            optimizer.zero_grad()
            loss = self.recipe.loss(model, x[index], y[index], self.agreed)
            loss.backward()  # type: ignore[no-untyped-call]
            correct()
            optimizer.step()
            samples += len(index)
        return samples

    def train_round(
        self, model: nn.Module, peer: Peer, seed: int, number: int, correct: Callable[[], None] = lambda: None
    ) -> int:
        """A peer's part of a round."""
        order = self.order_of(seed, peer.number, number)
        return self.train(model, peer.x, peer.y, order=order, batches=self.batches(peer), correct=correct)

    def part(self, seed: int) -> Part:
        """A site's model in the swarm, with what stays at the site from round to round."""
        return Part(self.recipe.new_model(seed), self.policy)

    @torch.no_grad()
    def outputs(self, model: nn.Module, x: Tensor) -> Tensor:
        """(rows, outputs) float64 of rows that are not yet scaled."""
        model.eval()
        found: Tensor = model(self.recipe.scaled(x, self.agreed))
        return found.reshape(len(x), -1).double()


def stream(rows: int, batch: int, chance: torch.Generator, batches: int) -> Iterator[Tensor]:
    """Row numbers of so many batches; each pass has its own order and may end with a smaller batch."""
    left = batches
    while left:
        for index in torch.split(torch.randperm(rows, generator=chance), batch)[:left]:
            left -= 1
            yield index


def local(study: Study, seed: int) -> dict[str, nn.Module]:
    """Each site's own model, by name."""
    models: dict[str, nn.Module] = {}
    for peer in study.peers:
        models[peer.name] = study.recipe.new_model(seed)
        batches = study.policy.rounds * study.batches(peer)
        study.train(
            models[peer.name], peer.x, peer.y, order=study.order_of(seed, peer.number, 0), batches=batches
        )  # fmt: skip
    return models


def pooled(study: Study, seed: int) -> nn.Module:
    """One model of all training rows in one place."""
    model = study.recipe.new_model(seed)
    batches = study.policy.rounds * sum(map(study.batches, study.peers))
    x, y = torch.cat([peer.x for peer in study.peers]), torch.cat([peer.y for peer in study.peers])
    study.train(model, x, y, order=study.order_of(seed, 0, 0), batches=batches)
    return model


def federated(study: Study, seed: int) -> nn.Module:
    """FedAvg with a fixed server in one process: float arithmetic, weighted by the rows seen in the round.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.
    """
    model = study.recipe.new_model(seed)
    for number in range(study.policy.rounds):
        states: list[tuple[int, Parameters]] = []
        for peer in study.present(number):
            site = copy.deepcopy(model)
            samples = study.train_round(site, peer, seed, number)
            states.append((samples if study.policy.weights == "samples" else 1, site.state_dict()))
        whole = sum(weight for weight, _ in states)
        mean = {name: sum(weight / whole * state[name].double() for weight, state in states) for name in states[0][1]}
        model.load_state_dict(mean)
    return model


@dataclass(frozen=True)
class Trained:
    """What the swarm ends with: the model and the name of its last checkpoint."""

    model: nn.Module
    """What a site has that never trained: where tensors stay at the sites, these are as they began."""
    checkpoint: Digest
    at_home: Mapping[str, nn.Module] = field(default_factory=dict)
    """Each site's own model, by name, where tensors stay at the sites."""


def swarm(study: Study, seed: int) -> Trained:
    """The swarm's own updates and merges, one after the other, without nodes, ledger and network between them.

    `sim.study.ledgered` has them; the checkpoints are the same bytes.
    """
    with scratch() as folder:
        base = folder / "base"
        save_model(study.recipe.new_model(seed), base, policy=study.policy)
        digest = digest_of(base.read_bytes())
        parts = {peer.name: study.part(seed) for peer in study.peers}
        for number in range(study.policy.rounds):
            made = [
                update(study, peer, seed, number, base, folder / peer.name, parts[peer.name])
                for peer in study.present(number)
            ]
            paths, weights = [path for path, _ in made], [weight for _, weight in made]
            digest = merge_files(base, paths, weights, study.policy, folder / "merged", threads=1)
            (folder / "merged").replace(base)
        return trained(study, seed, digest, base, parts)


def trained(study: Study, seed: int, digest: Digest, base: Path, parts: Mapping[str, Part]) -> Trained:
    """The models that a last checkpoint gives."""
    model = study.recipe.new_model(seed)
    State(model, study.policy).load(Checkpoint(base), scaffold=study.policy.scaffold)
    if study.policy.personal:
        for part in parts.values():
            part.adopt(Checkpoint(base))
    return Trained(model, digest, {name: part.model for name, part in parts.items()} if study.policy.personal else {})


def update(
    study: Study, peer: Peer, seed: int, number: int, base: Path, path: Path, part: Part | None = None
) -> tuple[Path, int]:
    """A peer's part of a round, from the round's checkpoint to an update's file and the weight it is submitted with.

    Args:
        part: the site's from round to round; None where the policy leaves nothing at the sites.
    """
    if part is None:
        if study.policy.personal or study.policy.scaffold or study.policy.encoded:
            raise ValueError(f"the policy {study.policy.name} leaves something at each site from round to round")
        part = study.part(seed)
    part.adopt(Checkpoint(base))
    samples = study.train_round(part.model, peer, seed, number, part.correct)
    part.write(path)
    return path, min(samples, study.policy.weight_max) if study.policy.weights == "samples" else 1


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards, in memory where there is one."""
    folder = Path(tempfile.mkdtemp(prefix="swarm-study-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
