"""The swarm's weighted mean beside FedAvg in a plain loop: which of its bits are the same.

Four real nodes train on the heart data through `SwarmCallback`; a loop of this process trains the same model on the
same rows in the same orders. Three servers average in that loop:

    fixed    the merge's documented arithmetic: changes in whole steps of 2**-32, a whole-number sum, one rounding.
             EQUAL TO THE SWARM TO THE LAST BIT, in every tensor, after every round.
    exact    the true weighted mean of the sites' parameters, in fractions, rounded once to float32.
             Not equal everywhere: a change is rounded to 2**-32 before it is summed.
    torch    sum(n_i / n * w_i) in float32, as a FedAvg server is usually written: several roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from swarm import SwarmCallback
from swarm.learn.recipes import load_recipe, sites_of
from tests.learn.runs import NAMES, Operators, everywhere
from tests.node.hospitals import Hospitals

ROUNDS, BATCHES, SEED = 4, 6, 7
BATCH = {"north": 8, "east": 5, "south": 3, "west": 11}
HEART = load_recipe(Path(__file__).parents[2] / "nodes" / "heart")
Weights = dict[str, Tensor]
Server = Callable[[Weights, list[Weights], list[int]], Weights]


def rows_of() -> dict[str, tuple[Tensor, Tensor]]:
    sites = [(site.train.x, site.train.y) for site in sites_of(HEART)]
    agreed = HEART.agree(sites)
    return {name: (HEART.scaled(x, agreed), y) for name, (x, y) in zip(NAMES, sites, strict=True)}


def new_model() -> nn.Module:
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 1))


def train_round(
    model: nn.Module, name: str, rows: tuple[Tensor, Tensor], number: int, after: Callable[[int], object]
) -> int:
    """One site's part of a round with its own order of rows; the samples it saw."""
    order = torch.Generator().manual_seed(SEED * 1000 + NAMES.index(name) * 100 + number)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    size = BATCH[name]
    index = torch.randperm(len(rows[1]), generator=order)
    for batch in range(BATCHES):
        chosen = index[torch.arange(batch * size, (batch + 1) * size) % len(index)]
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(rows[0][chosen]).squeeze(1), rows[1][chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        after(size)
    return BATCHES * size


def fedavg(server: Server) -> list[Weights]:
    """The global model after each round."""
    state, found = dict(new_model().state_dict()), []
    rows = rows_of()
    for number in range(ROUNDS):
        ends, samples = [], []
        for name in NAMES:
            model = new_model()
            model.load_state_dict(state)
            samples.append(train_round(model, name, rows[name], number, lambda _: None))
            ends.append(model.state_dict())
        state = server(state, ends, samples)
        found.append(state)
    return found


def fixed(state: Weights, ends: list[Weights], samples: list[int]) -> Weights:
    after = {}
    for name, base in state.items():
        changes = [(end[name] - base).flatten().tolist() for end in ends]
        sums = [
            sum(n * round(Fraction(change) * 2**32) for n, change in zip(samples, column, strict=True))
            for column in zip(*changes, strict=True)
        ]
        moved = torch.tensor(sums, dtype=torch.float64) * float(Fraction(1, sum(samples) * 2**32))
        after[name] = (base.double().flatten() + moved).float().view_as(base)
    return after


def exact(state: Weights, ends: list[Weights], samples: list[int]) -> Weights:
    after = {}
    for name, base in state.items():
        columns = zip(*(end[name].flatten().tolist() for end in ends), strict=True)
        means = [
            sum(n * Fraction(w) for n, w in zip(samples, column, strict=True)) / sum(samples) for column in columns
        ]
        after[name] = torch.tensor([float(mean) for mean in means], dtype=torch.float64).float().view_as(base)
    return after


def in_torch(state: Weights, ends: list[Weights], samples: list[int]) -> Weights:
    shares = [n / sum(samples) for n in samples]
    return {
        name: torch.stack([share * end[name] for share, end in zip(shares, ends, strict=True)]).sum(0) for name in state
    }


def distance(one: Weights, other: Weights) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_four_nodes_mean_is_a_plain_fedavg_loop_to_the_last_bit(hospitals: Hospitals, operators: Operators) -> None:
    operators.open_run(
        "fedavg", new_model(), NAMES,
        rounds=ROUNDS, sync_interval=BATCHES, merge="mean", weight_ratio_max=1e6,
    )  # fmt: skip
    rows = rows_of()

    def work(name: str) -> list[Weights]:
        model, found = nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 1)), []
        with SwarmCallback(model, hospitals.sites[name], run="fedavg") as swarm:
            while not swarm.finished:
                train_round(model, name, rows[name], swarm.round, swarm.on_batch_end)
                found.append({key: value.clone() for key, value in model.state_dict().items()})
        return found

    everybody = everywhere(work)
    expected = fedavg(fixed)
    for found in everybody.values():
        assert len(found) == ROUNDS
        for here, there in zip(found, expected, strict=True):
            assert all(torch.equal(value, there[name]) for name, value in here.items())
    one_round = next(iter(everybody.values()))[0]
    assert distance(one_round, fedavg(exact)[0]) <= 2**-24  # half a unit of float32 below 1, at most
    assert distance(expected[-1], fedavg(exact)[-1]) < 1e-6
    assert distance(expected[-1], fedavg(in_torch)[-1]) < 1e-6


@pytest.mark.parametrize("mistake", ["equal weights", "another batch"])
def test_a_planted_mistake_changes_the_bits(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fedavg(fixed)[-1]
    if mistake == "equal weights":
        wrong = fedavg(lambda state, ends, samples: fixed(state, ends, [1] * len(samples)))[-1]
    else:
        monkeypatch.setitem(BATCH, "east", 4)
        wrong = fedavg(fixed)[-1]
    assert not torch.equal(right["0.weight"], wrong["0.weight"])
