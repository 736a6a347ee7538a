"""Updates that travel as less than they are: what is lost comes later, at real nodes and over restarts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swarm import SwarmCallback
from swarm.config import Policy
from swarm.errors import ConfigError
from swarm.learn import save_model
from swarm.learn.part import Part
from swarm.learn.state import Checkpoint
from swarm.merge import Schema, check_update, merge_files, update_size
from swarm.merge.encoding import SCALE, Encoded, decode
from tests.learn.runs import NAMES, Operators, everywhere
from tests.learn.test_fedavg import BATCHES, ROUNDS, SEED, Weights, rows_of, train_round
from tests.learn.test_resume import Died, Net, train
from tests.node.hospitals import Hospitals

ENCODINGS = ["bfloat16", "float16", "int8"]


def new_model() -> nn.Module:
    """Its first weights are more than one block of 256, its others fewer."""
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Linear(13, 40), nn.Tanh(), nn.Linear(40, 1))


# --- four real nodes, beside a loop that has nothing of ours


def as_int8(x: Tensor) -> Tensor:
    """Blocks of 256, each in whole numbers of its largest magnitude over 127."""
    if x.numel() < 256:
        return x
    found = []
    for block in torch.split(x.flatten(), 256):
        scale = block.abs().max() / 127
        found.append((block / scale).round() * scale)
    return torch.cat(found).view_as(x)


TRAVELS: dict[str, Callable[[Tensor], Tensor]] = {
    "bfloat16": lambda x: x.to(torch.bfloat16).float(),
    "float16": lambda x: x.to(torch.float16).float(),
    "int8": as_int8,
}


def fedavg(encoding: str) -> list[Weights]:
    """The global model after each round, with error feedback at each site."""
    state, found, rows = dict(new_model().state_dict()), [], rows_of()
    lost = {site: {name: torch.zeros_like(value) for name, value in state.items()} for site in NAMES}
    for number in range(ROUNDS):
        changes, samples = [], []
        for site in NAMES:
            model = new_model()
            model.load_state_dict(state)
            samples.append(train_round(model, site, rows[site], number, lambda _: None))
            meant = {name: value - state[name] + lost[site][name] for name, value in model.state_dict().items()}
            sent = {name: TRAVELS[encoding](value) for name, value in meant.items()}
            lost[site] = {name: meant[name] - sent[name] for name in meant}
            changes.append(sent)
        state = {name: moved(base, [c[name] for c in changes], samples) for name, base in state.items()}
        found.append(state)
    return found


def moved(base: Tensor, changes: list[Tensor], samples: list[int]) -> Tensor:
    """The merge's documented arithmetic: whole steps of 2**-32, one rounding."""
    columns = zip(*(change.flatten().tolist() for change in changes), strict=True)
    sums = [sum(n * round(Fraction(c) * 2**32) for n, c in zip(samples, column, strict=True)) for column in columns]
    step = torch.tensor(sums, dtype=torch.float64) * float(Fraction(1, sum(samples) * 2**32))
    return (base.double().flatten() + step).float().view_as(base)


@pytest.mark.parametrize(
    "encoding", ["int8", *(pytest.param(other, marks=pytest.mark.slow) for other in ("bfloat16", "float16"))]
)
def test_four_nodes_are_a_plain_loop_with_error_feedback_to_the_last_bit(
    hospitals: Hospitals, operators: Operators, encoding: str
) -> None:
    operators.open_run(
        encoding, new_model(), NAMES,
        rounds=ROUNDS, sync_interval=BATCHES, merge="mean", weight_ratio_max=1e6, encoding=encoding,
    )  # fmt: skip
    rows = rows_of()

    def work(name: str) -> list[Weights]:
        model, found = nn.Sequential(nn.Linear(13, 40), nn.Tanh(), nn.Linear(40, 1)), []
        with SwarmCallback(model, hospitals.sites[name], run=encoding) as swarm:
            while not swarm.finished:
                train_round(model, name, rows[name], swarm.round, swarm.on_batch_end)
                found.append({key: value.clone() for key, value in model.state_dict().items()})
        return found

    expected = fedavg(encoding)
    for found in everywhere(work).values():
        assert len(found) == ROUNDS
        for here, there in zip(found, expected, strict=True):
            assert all(torch.equal(value, there[name]) for name, value in here.items())
    _check_sizes(hospitals, encoding)


def _check_sizes(hospitals: Hospitals, run: str) -> None:
    shown = json.loads(hospitals.swarm("run", "show", str(hospitals.sites["north"]), run, "--json"))
    last = shown["closed_rounds"][-1]
    assert len(last["submissions"]) == len(NAMES)
    base = Path(hospitals.ask("north", "swarm_object", digest=last["checkpoint"])["path"])
    agreed = Policy("x", 1, 1, encoding=run)
    for submission in last["submissions"]:
        update = hospitals.ask("north", "swarm_object", digest=submission["digest"])
        assert update["size"] == update_size(base, agreed)
        check_update(base, Path(update["path"]), agreed)


# --- what is lost comes later


def tall() -> nn.Module:
    """One layer of three blocks; the first value of each drowns the others in int8."""
    return nn.Linear(256, 3, bias=False)


class Lone:
    """One site whose training changes the model by the same every round, and what its updates meant together."""

    def __init__(self, folder: Path, policy: Policy, change: Tensor) -> None:
        self.part = Part(tall(), policy)
        self._change = change
        self._folder = folder
        self._base = folder / "base"
        save_model(tall(), self._base)
        self.part.adopt(Checkpoint(self._base))
        self.meant, self.sent = torch.zeros(2, 768, dtype=torch.float64)

    def go(self) -> None:
        with torch.no_grad():
            self.part.model.weight.copy_(self.part.base.tensors["weight"] + self._change)  # type: ignore[operator]
            self.meant += (self.part.model.weight - self.part.base.tensors["weight"]).flatten().double()  # type: ignore[operator]
        path = self._folder / "update"
        self.part.write(path)
        self.sent += meaning(path).double()
        merge_files(self._base, [path], [1], self.part.policy, self._folder / "next")
        (self._folder / "next").replace(self._base)
        self.part.adopt(Checkpoint(self._base))


def meaning(path: Path) -> Tensor:
    """What the update of `tall` in a file means."""
    schema = Schema.of_file(path)
    dtypes = {"I8": np.int8, "BF16": np.uint16, "F16": np.float16, "F32": np.float32}
    start = len(schema.header)
    found = {t.name: np.fromfile(path, dtypes[t.dtype], t.count, offset=start + first) for t, first, _ in schema.placed}
    kinds = {t.name: t.dtype for t in schema.tensors}
    return torch.from_numpy(decode(Encoded(found["weight"], found.get(SCALE + "weight")), kinds["weight"]))


def drowned() -> Tensor:
    change = torch.full((3, 256), 1e-4)
    change[:, 0] = 0.1
    return change


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_was_sent_together_is_what_was_meant_but_for_the_last_loss(tmp_path: Path, encoding: str) -> None:
    policy = Policy("lone", 99, 1, merge="mean", encoding=encoding)
    site = Lone(tmp_path, policy, drowned())
    for _ in range(40):
        site.go()
    # Change and loss are added in float32, 40 times.
    assert (site.sent + site.part.lost["weight"].double() - site.meant).abs().max() < 40 * 2.0**-27
    assert site.part.lost["weight"].abs().max() <= 0.1 / 127


def test_without_feedback_what_is_small_never_arrives(tmp_path: Path) -> None:
    """The planted mistake: the same site that forgets what was lost."""
    site = Lone(tmp_path, Policy("lone", 99, 1, merge="mean", encoding="int8"), drowned())
    for _ in range(40):
        site.go()
        site.part.lost = {}
    assert site.sent[1] == 0, "40 rounds of 1e-4 are 4e-3"


def test_what_is_beyond_the_range_is_cut_and_not_sent_later(tmp_path: Path) -> None:
    change = drowned()
    change[0, 5] = 3.0
    site = Lone(tmp_path, Policy("lone", 99, 1, merge="mean", encoding="int8", range=0.5), change)
    site.go()
    assert site.part.lost["weight"].abs().max() <= 0.5 / 127
    assert meaning(tmp_path / "update")[5] == 0.5


def test_an_update_that_was_not_taken_leaves_what_was_lost_before_it(tmp_path: Path) -> None:
    site = Lone(tmp_path, Policy("lone", 99, 1, merge="mean", encoding="int8"), drowned())
    site.go()
    before = site.part.lost["weight"].clone()
    site.part.write(tmp_path / "late")
    site.part.forget_update()
    site.part.adopt(site.part.base)
    assert torch.equal(site.part.lost["weight"], before)
    site.part.write(tmp_path / "dropped")
    site.part.restart()
    site.part.adopt(site.part.base)
    assert torch.equal(site.part.lost["weight"], before)


def test_training_that_diverged_is_named_and_loses_nothing(tmp_path: Path) -> None:
    site = Lone(tmp_path, Policy("lone", 99, 1, merge="mean", encoding="int8"), drowned())
    site.go()
    before = dict(site.part.lost)
    with torch.no_grad():
        site.part.model.weight[1, 7] = float("nan")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"not finite in weight \(1 of 768 values\)"):
        site.part.write(tmp_path / "update")
    site.part.restart()
    assert site.part.lost == before


# --- over restarts


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    with Hospitals(tmp_path_factory.mktemp("alone"), ["north"]) as found:
        found.start("north")
        found.ask("north", "swarm_status")
        yield found


def open_run(hospitals: Hospitals, name: str) -> Path:
    torch.manual_seed(0)
    Operators(hospitals).open_run(
        name, Net(), ["north"], rounds=4, sync_interval=5, submissions_min=1, merge="mean", encoding="bfloat16"
    )
    return hospitals.sites["north"]


def test_training_that_died_ends_with_the_bytes_of_training_that_did_not(
    alone: Hospitals, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(open_run(alone, "whole"), "whole", seed=1)
    site = open_run(alone, "cut")
    with pytest.raises(Died):
        train(site, "cut", seed=1, dies_at=(1, 3))
    with pytest.raises(Died):
        train(site, "cut", seed=2, dies_at=(3, 0))
    assert train(site, "cut", seed=3) == expected
    # The planted mistake: a site that forgets over a restart.
    monkeypatch.setattr(SwarmCallback, "_recall_losses", lambda *_: None)
    site = open_run(alone, "forgetful")
    with pytest.raises(Died):
        train(site, "forgetful", seed=1, dies_at=(2, 1))
    assert train(site, "forgetful", seed=3) != expected


def test_an_update_whose_round_closed_while_training_was_dead_is_not_sent_twice(tmp_path: Path) -> None:
    policy = Policy("lone", 99, 1, merge="mean", encoding="int8")
    site = Lone(tmp_path, policy, drowned())
    site.go()
    kept_before: Mapping[str, Tensor] = dict(site.part.lost)
    with torch.no_grad():
        site.part.model.weight.add_(drowned())  # type: ignore[operator]
    site.part.write(tmp_path / "update")
    kept = site.part.kept_losses()
    for taken, expected in ((True, site.part.losing), (False, kept_before)):
        again = Part(tall(), policy)
        again.adopt(site.part.base)
        again.restore_losses(kept, taken=taken)
        assert again.lost.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in again.lost.items())


@pytest.mark.parametrize("kept", [{"before.other": torch.zeros(3)}, {"before.weight": torch.zeros(3)}])
def test_a_loss_of_another_model_is_refused_by_name(tmp_path: Path, kept: dict[str, Any]) -> None:
    site = Lone(tmp_path, Policy("lone", 99, 1, merge="mean", encoding="int8"), drowned())
    with pytest.raises(ConfigError, match=r"what encoding lost of \w+, as this site kept it, is not of this model"):
        site.part.restore_losses(kept, taken=False)


def test_a_run_without_encoding_keeps_no_losses(alone: Hospitals, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    torch.manual_seed(0)
    Operators(alone).open_run("plain", Net(), ["north"], rounds=1, sync_interval=5, submissions_min=1, merge="mean")
    before = set(alone.folder.rglob("*.lost.safetensors"))
    train(alone.sites["north"], "plain", seed=1)
    assert set(alone.folder.rglob("*.lost.safetensors")) == before
