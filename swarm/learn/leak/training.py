"""A whole small swarm in one process, for attacks that need models trained to the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from swarm.config import Policy
from swarm.learn.leak.ground import Ground, Records, private, stream
from swarm.learn.part import Part
from swarm.learn.state import Checkpoint, State, save_model
from swarm.merge import merge_files

Watch = Callable[[str, nn.Module, nn.Module], None]
"""Called with a site, the model of the round's checkpoint, and the site's model after its training."""


def train(
    ground: Ground,
    rows: Mapping[str, Records],
    *,
    rounds: int,
    seed: int,
    policy: Policy | None = None,
    watch: Watch | None = None,
    merged: Callable[[nn.Module, nn.Module], None] | None = None,
    tell: Callable[[], None] = lambda: None,
) -> nn.Module:
    """The last checkpoint's model of a swarm of these sites, by the policy's own merge.

    A blind run's checkpoint is that of the plain mean, to the step of its fixed point, so the sum is made in the open
    here.

    Args:
        rows: of each site.
        policy: a private one makes every site's steps private; None: the ground's, not private.
        merged: hears of each round's model before and after the merge.
        tell: called after each site's part of a round.
    """
    policy = replace(policy or replace(ground.policy, epsilon=0.0, delta=0.0, clip=0.0), blind=False, norm_max=0.0)
    with TemporaryDirectory(prefix="swarm-leak-") as place, ExitStack() as stack:
        folder = Path(place)
        base = folder / "base"
        save_model(ground.recipe.new_model(ground.seed), base, policy=policy)
        sites = {
            name: _Trainee(ground, name, own, policy, seed * 1009 + number, stack)
            for number, (name, own) in enumerate(rows.items())
        }
        for _ in range(rounds):
            before = _model(ground, policy, base) if watch or merged else None
            paths, weights = [], []
            for name, site in sites.items():
                samples = site.round(base)
                if watch is not None:
                    assert before is not None
                    watch(name, before, site.part.model)
                path = folder / name
                site.part.write(path)
                paths.append(path)
                weights.append(min(samples, policy.weight_max) if policy.weights == "samples" else 1)
                tell()
            merge_files(base, paths, weights, policy, folder / "merged", threads=1)
            (folder / "merged").replace(base)
            if merged is not None:
                assert before is not None
                merged(before, _model(ground, policy, base))
        return _model(ground, policy, base)


class _Trainee:
    """One site from round to round."""

    def __init__(self, ground: Ground, name: str, rows: Records, policy: Policy, seed: int, stack: ExitStack) -> None:
        self._ground, self._policy, self._rows = ground, policy, rows
        self._chance = torch.Generator().manual_seed(seed)
        self.part = Part(ground.recipe.new_model(0), policy)
        self._private: tuple[Any, Any] | None = None
        if policy.private:
            source = np.random.default_rng(seed)
            made = private(ground, self.part.model, policy, ground.recipe.BATCH, source, rows)
            self._private = stack.enter_context(made)

    def round(self, base: Path) -> int:
        """Train from the checkpoint; how many records the batches had."""
        self.part.adopt(Checkpoint(base))
        model, recipe = self.part.model, self._ground.recipe
        model.train()
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=self._chance)))
        if self._private is not None:
            return self._private_round(*self._private)
        optimizer, samples = recipe.new_optimizer(model), 0
        for index in stream(len(self._rows), recipe.BATCH, self._chance, self._policy.sync_interval):
            optimizer.zero_grad()
            batch = self._rows.pick(index)
            recipe.loss(model, batch.x, batch.y, self._ground.agreed).backward()  # type: ignore[no-untyped-call]
            self.part.correct()
            optimizer.step()
            samples += len(index)
        return samples

    def _private_round(self, loader: Any, optimizer: Any) -> int:
        done = 0
        while done < self._policy.sync_interval:
            for x, y in loader:
                optimizer.zero_grad()
                if len(x):
                    loss = self._ground.recipe.loss(self.part.model, x, y, self._ground.agreed)
                    loss.backward()  # type: ignore[no-untyped-call]
                else:
                    (self.part.model(x).sum() * 0).backward()
                optimizer.step()
                done += 1
                if done == self._policy.sync_interval:
                    break
        return self._policy.sync_interval * min(self._ground.recipe.BATCH, len(self._rows))


def _model(ground: Ground, policy: Policy, base: Path) -> nn.Module:
    model = ground.recipe.new_model(0)
    State(model, policy).load(Checkpoint(base), scaffold=policy.scaffold)
    return model
