"""Private steps against a plain reference, their chance against its distribution, and what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from swarm.config import Policy
from swarm.errors import ConfigError
from swarm.learn import replace_batchnorm, save_model
from swarm.learn.part import Part
from swarm.learn.private import Private
from swarm.learn.private_steps import Draws
from swarm.learn.state import Checkpoint

CLIP = 0.7
ROWS = 24
loss_of = nn.functional.binary_cross_entropy_with_logits


def policy(**settings: Any) -> Policy:
    given = {"rounds": 3, "sync_interval": 4, "epsilon": 0.8, "delta": 1e-3, "clip": CLIP} | settings
    return Policy("private", **given)


def net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.GroupNorm(2, 6), nn.Linear(6, 1))


def rows() -> TensorDataset:
    chance = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, 4, generator=chance) * 3
    return TensorDataset(x, (x[:, 0] > 0).float())


def private(
    path: Path, model: nn.Module, *, batch: int = 8, seed: int = 1, agreed: Policy | None = None, **settings: Any
) -> Private:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(rows(), batch_size=batch, shuffle=True)
    source = np.random.default_rng(seed)
    return Private(model, optimizer, loader, agreed or policy(), path / "1.privacy.json", source=source, **settings)


def step(one: Private, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    one.optimizer.zero_grad()
    loss_of(model(x).squeeze(1), y).backward()  # type: ignore[no-untyped-call]
    one.optimizer.step()


def by_hand(
    model: nn.Module, batches: list[Any], groups: list[list[int]], *, noise: float, rate: float, units: int, seed: int
) -> None:
    """DP-SGD as the paper's algorithm 1 says, one row after the other: learning rate 0.5."""
    source = np.random.default_rng(seed)
    parameters = list(model.parameters())
    for (x, y), places in zip(batches, groups, strict=True):
        source.random(units)  # who was in the batch
        total = [torch.zeros_like(p) for p in parameters]
        for unit in sorted(set(places)):
            whole = [torch.zeros_like(p) for p in parameters]
            for row in [i for i, place in enumerate(places) if place == unit]:
                loss = loss_of(model(x[row : row + 1]).squeeze(1), y[row : row + 1])
                for sum_, gradient in zip(whole, torch.autograd.grad(loss, parameters), strict=True):
                    sum_ += gradient
            length = math.sqrt(sum(float((g**2).sum()) for g in whole))
            for sum_, gradient in zip(total, whole, strict=True):
                sum_ += gradient * min(1.0, CLIP / (length + 1e-6))
        with torch.no_grad():
            for p, sum_ in zip(parameters, total, strict=True):
                draws = source.standard_normal((4, *p.shape)).sum(0) / 2
                p.sub_(0.5 * (sum_ + torch.from_numpy(noise * CLIP * draws).float()) / (rate * units))


@pytest.mark.parametrize("unit", ["record", "patient"])
def test_private_steps_are_those_of_a_plain_loop_over_rows(tmp_path: Path, unit: str) -> None:
    model = net()
    reference = copy.deepcopy(model)
    patients = [row // 4 for row in range(ROWS)] if unit == "patient" else None
    one = private(tmp_path, model, agreed=policy(unit=unit), patients=patients)
    units = ROWS if patients is None else 6
    batches, groups = [], []
    for batch in one.loader:
        batches.append(batch)
        groups.append(one.loader.groups.tolist())
        step(one, model, batch)
    assert len(batches) == 3
    assert any(len(set(found)) < len(found) for found in groups) == (unit == "patient")
    by_hand(reference, batches, groups, noise=one.noise, rate=one.rate, units=units, seed=1)
    for found, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


class Sums:
    """The clipped sum of a step's gradients, before noise."""

    def __init__(self, path: Path, model: nn.Module, **settings: Any) -> None:
        self.model = model
        self.one = private(path, model, **settings)

    def of(self, x: Tensor, y: Tensor, groups: list[int]) -> Tensor:
        self.one.optimizer.zero_grad()
        self.one.loader.groups = torch.tensor(groups, dtype=torch.int64)
        loss_of(self.model(x).squeeze(1), y).backward()  # type: ignore[no-untyped-call]
        self.one.optimizer.clip_and_accumulate()
        return torch.cat([p.summed_grad.flatten() for p in self.model.parameters()])  # type: ignore[attr-defined]


def test_a_patient_moves_a_step_by_no_more_than_the_clip_however_many_rows_it_has(tmp_path: Path) -> None:
    agreed = policy(unit="patient")
    sums = Sums(tmp_path, net(), agreed=agreed, patients=[row // 4 for row in range(ROWS)])
    x, y = rows().tensors
    for rows_of_last in (1, 4, 12):
        count = 6 + rows_of_last
        alone = sums.of(x[:6], y[:6], [0, 0, 0, 1, 1, 2])
        joined = sums.of(x[:count], y[:count], [0, 0, 0, 1, 1, 2, *[3] * rows_of_last])
        assert float((joined - alone).norm()) <= CLIP * (1 + 1e-4)
    # Clipped row by row, twelve rows of one patient move it further: what the test above is there to see.
    wrong = sums.of(x[:18], y[:18], list(range(18))) - sums.of(x[:6], y[:6], list(range(6)))
    assert float(wrong.norm()) > 1.5 * CLIP


def test_noise_is_gaussian_of_the_agreed_size_and_new_for_every_step(tmp_path: Path) -> None:
    model = nn.Linear(400, 25)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    data = TensorDataset(torch.zeros(30, 400), torch.zeros(30, 25))
    one = Private(
        model, optimizer, DataLoader(data, batch_size=10), policy(), tmp_path / "1.privacy.json",
        source=np.random.default_rng(7),
    )  # fmt: skip
    seen = []
    for (x, _), _ in zip(one.loader, range(4), strict=False):
        before = model.weight.detach().clone()
        one.optimizer.zero_grad()
        (model(x) * 0).sum().backward()
        one.optimizer.step()
        seen.append((model.weight.detach() - before).double().flatten() * 10 / (one.noise * CLIP))
    values = torch.cat(seen).sort().values
    count = len(values)
    assert abs(float(values.mean())) < 4 / math.sqrt(count)
    assert abs(float(values.var()) - 1) < 4 * math.sqrt(2 / count)
    ideal = torch.special.ndtr(values)
    distance = float((ideal - (torch.arange(count) + 0.5) / count).abs().max())
    assert distance < 1.95 / math.sqrt(count)  # Kolmogorov and Smirnov, one in a thousand
    assert abs(float(torch.corrcoef(torch.stack(seen[:2]))[0, 1])) < 4 / math.sqrt(len(seen[0]))


def test_each_unit_is_drawn_by_itself_and_a_patient_whole_or_as_far_as_agreed() -> None:
    units = [[0], [1, 2], [3, 4, 5, 6, 7]]
    draws = iter(drawn := Draws(units, 0.3, 3, np.random.default_rng(2)))
    seen = np.zeros((20_000, 3))
    for number in range(len(seen)):
        batch = next(draws)
        places = drawn.drawn.popleft().tolist()
        assert len(set(batch)) == len(batch)
        sizes = [len(set(batch) & set(unit)) for unit in units]
        assert all(size in (0, min(len(unit), 3)) for size, unit in zip(sizes, units, strict=True))
        assert [sum(place == p for place in places) for p in range(len(set(places)))] == [
            size for size in sizes if size
        ]
        seen[number] = [size > 0 for size in sizes]
    assert np.abs(seen.mean(0) - 0.3).max() < 4 * math.sqrt(0.21 / len(seen))
    assert np.abs(np.corrcoef(seen.T) - np.eye(3)).max() < 4 / math.sqrt(len(seen))


def test_chance_is_not_that_of_a_seed_or_of_a_state_that_is_put_back(tmp_path: Path) -> None:
    def noisy() -> Tensor:
        torch.manual_seed(1)
        np.random.seed(1)
        model = nn.Linear(4, 1)
        one = Private(
            model, torch.optim.SGD(model.parameters(), lr=1.0), DataLoader(rows(), batch_size=8), policy(),
            tmp_path / "1.privacy.json",
        )  # fmt: skip
        step(one, model, next(iter(one.loader)))
        return model.weight.detach()

    assert not torch.equal(noisy(), noisy())


def test_an_empty_batch_is_a_step_of_noise_alone(tmp_path: Path) -> None:
    model = net()
    one = private(tmp_path, model, batch=1)
    sizes = set()
    for batch, _ in zip(one.loader, range(20), strict=False):
        before = [p.detach().clone() for p in model.parameters()]
        step(one, model, batch)
        sizes.add(len(batch[0]))
        assert all(bool(p.isfinite().all()) for p in model.parameters())
        assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert 0 in sizes
    assert len(sizes) > 1


def test_a_step_that_would_not_be_private_is_refused(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    one = Private(model, optimizer, DataLoader(rows(), batch_size=8), policy(), tmp_path / "1.privacy.json")
    with pytest.raises(ConfigError, match="a step without noise"):
        optimizer.step()
    batches = iter(one.loader)
    x, y = next(batches)
    step(one, model, (x, y))
    with pytest.raises(ValueError, match="each batch has one"):
        step(one, model, (x, y))
    x, y = next(batches)
    with pytest.raises(ValueError, match=rf"gradients of {len(x) + 1} rows, but the loader drew {len(x)}"):
        step(one, model, (torch.cat([x, x[:1]]), torch.cat([y, y[:1]])))
    x, y = next(batches)
    model.eval()
    with pytest.raises(ValueError, match=r"trains after model.train\(\)"):
        step(one, model, (x, y))
    with torch.no_grad():
        assert model(x).shape == (len(x), 1)


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(1)


@pytest.mark.parametrize(
    ("data", "settings", "given", "reason"),
    [
        (Endless(), {}, {}, "a dataset with a length"),
        (TensorDataset(torch.zeros(0, 4), torch.zeros(0)), {}, {}, "no rows"),
        (TensorDataset(torch.zeros(200, 4), torch.zeros(200)), {"delta": 0.005}, {}, "less than 1/200"),
        (rows(), {}, {"patients": [1] * ROWS}, "protects records"),
        (rows(), {"unit": "patient"}, {}, "say whose each row is"),
        (rows(), {"unit": "patient"}, {"patients": [1, 2]}, "2 patient ids for 24 rows"),
    ],
)
def test_a_loader_that_does_not_fit_the_policy_is_refused(
    tmp_path: Path, data: Dataset[Any], settings: dict[str, Any], given: dict[str, Any], reason: str
) -> None:
    model = net()
    loader: DataLoader[Any] = DataLoader(data, batch_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with pytest.raises(ConfigError, match=reason):
        Private(model, optimizer, loader, policy(**settings), tmp_path / "1.privacy.json", **given)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm1d(6), r"1: a BatchNorm mixes the rows.*replace_batchnorm = true"),
        (nn.BatchNorm1d(6, affine=False), r"1: a BatchNorm mixes"),
        (nn.LSTM(6, 6), r"1 \(LSTM\)"),
        (nn.RNN(6, 6), r"1 \(RNN\)"),
        (nn.InstanceNorm1d(6, track_running_stats=True, affine=True), r"1 \(InstanceNorm1d\)"),
    ],
)
def test_layers_that_cannot_be_private_are_refused_by_name(tmp_path: Path, layer: nn.Module, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        private(tmp_path, nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(6, 1)))


def test_batchnorm_is_replaced_in_what_a_run_starts_from_and_in_the_model_with_the_optimizers_parameters(
    tmp_path: Path,
) -> None:
    agreed = policy(replace_batchnorm=True)
    torch.manual_seed(2)
    mine = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.BatchNorm1d(6)), nn.Linear(6, 1))
    save_model(mine, tmp_path / "genesis", policy=agreed)
    assert isinstance(mine.get_submodule("1.0"), nn.BatchNorm1d)
    names = set(Checkpoint(tmp_path / "genesis").tensors)
    assert names == {"0.weight", "0.bias", "1.0.weight", "1.0.bias", "2.weight", "2.bias"}
    optimizer = torch.optim.SGD(mine.parameters(), lr=1.0)
    part = Part(mine, agreed)
    part.adopt(Checkpoint(tmp_path / "genesis"))
    new = mine.get_submodule("1.0")
    assert isinstance(new, nn.GroupNorm)
    assert new.num_groups == 2
    assert any(p is new.weight for p in optimizer.param_groups[0]["params"])
    one = Private(mine, optimizer, DataLoader(rows(), batch_size=8), agreed, tmp_path / "1.privacy.json")
    step(one, mine, next(iter(one.loader)))
    assert part.write(tmp_path / "update") == []
    with pytest.raises(ConfigError, match="a BatchNorm1d and nothing else"):
        replace_batchnorm(nn.BatchNorm1d(3))


def test_a_buffer_that_learns_without_noise_is_not_submitted(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 1)
            self.mean = nn.Buffer(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.mean.add_(x.sum(0))
            found: Tensor = self.inner(x)
            return found

    model = Counting()
    save_model(model, tmp_path / "genesis")
    part = Part(model, policy())
    part.adopt(Checkpoint(tmp_path / "genesis"))
    one = private(tmp_path, model)
    for batch in one.loader:
        step(one, model, batch)
    with pytest.raises(ConfigError, match="mean changed in a private run"):
        part.write(tmp_path / "update")


def test_a_site_without_opacus_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'swarm-ledger\[privacy\]'"):
        private(tmp_path, net())
