"""The table of rules and attacks: the product's merge, the same numbers every time, and a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sim.attack import __main__ as command
from sim.attack.attacks import ATTACKS, Attack
from sim.attack.game import Table, order_of, play
from sim.attack.grid import Cell, cells_of, liars, play_all, played, task_of
from sim.attack.report import POINTS, Board, boards, markdown, verdict
from sim.attack.rules import DEFAULT, RULES, policy_of
from sim.attack.tasks import HEART_PARTS, Rows, heart, order, placed
from swarm.errors import ConfigError
from swarm.merge import Schema, Tensor, merge, write_file

TINY = ["--data", "heart", "--sites", "5", "--rounds", "3", "--seeds", "1", "--jobs", "1"]


def run(*arguments: str) -> int:
    return command.main([*arguments])


# --- training and data


def test_sites_trained_at_once_are_pytorchs_sgd() -> None:
    task = heart(5)
    base = task.learner.genesis(3)
    orders = [order_of(3, site, 0) for site in range(5)]
    together = task.learner.train(base, task.sites, orders, 40)
    for site, seed, found in zip(task.sites, orders, together, strict=True):
        model = nn.Linear(13, 1)
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(base[:-1])[None])
            model.bias.fill_(float(base[-1]))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for index in order(len(site), seed, 40, task.batch):
            optimizer.zero_grad()
            logits = model(site.x[index]).squeeze(1)
            nn.functional.binary_cross_entropy_with_logits(logits, site.y[index]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        plain = np.append(model.weight.detach().numpy(), model.bias.detach().numpy())
        np.testing.assert_allclose(found, plain, atol=1e-5)


@pytest.mark.parametrize("sites", list(HEART_PARTS))
def test_every_patient_is_at_one_site(sites: int) -> None:
    task = heart(sites)
    assert len(task.sites) == sites
    assert sum(map(len, task.sites)) == 199 + 172 + 30 + 85
    assert len(task.test) == 254
    assert min(map(len, task.sites)) >= 30


def test_every_image_is_placed_once_and_the_placement_is_fixed() -> None:
    labels = (torch.arange(3000) % 4 > 0).float()
    once, again = placed(labels, 5, 0.5), placed(labels, 5, 0.5)
    assert torch.equal(torch.cat(once).sort().values, torch.arange(3000))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    shares = [float(labels[site].mean()) for site in once]
    assert max(shares) - min(shares) > 0.3, "the sites are uneven"


def test_a_pass_sees_every_row_before_any_row_twice() -> None:
    index = order(10, seed=4, batches=5, batch=4).flatten()
    assert torch.equal(index[:10].sort().values, torch.arange(10))
    assert torch.equal(index[10:].sort().values, torch.arange(10))


# --- the merge


def test_the_merge_is_the_products_on_the_models_own_tensors(tmp_path: Path) -> None:
    # One flat tensor here, the model's tensors there: the same parameters to the last bit.
    source = np.random.default_rng(0)
    base = source.standard_normal(70).astype(np.float32)
    updates = source.standard_normal((5, 70)) * 0.1
    shapes = Schema.of([Tensor("a", "F32", (6, 10)), Tensor("b", "F32", (10,))])
    for rule in RULES:
        policy = policy_of(rule, faults=1, rounds=1, interval=1)
        found, refused = Table(70, policy, tmp_path).merged(base, updates, [8] * 5)
        names = [tmp_path / f"own{number}" for number in range(6)]
        for path, vector in zip(names, [base, *updates.astype(np.float32)], strict=True):
            write_file(path, shapes, {"a": vector[:60].copy(), "b": vector[60:].copy()})
        merge(names[0], names[1:], [8] * 5, policy, tmp_path / "out")
        assert found is not None
        assert (tmp_path / "out").read_bytes()[len(shapes.header) :] == found.tobytes(), rule
        assert refused == 0


def test_an_update_that_is_no_number_is_left_out_and_the_others_are_merged(tmp_path: Path) -> None:
    policy = policy_of("mean", faults=1, rounds=1, interval=1)
    base, updates = np.zeros(3, np.float32), np.ones((5, 3))
    updates[2, 1] = np.nan
    found, refused = Table(3, policy, tmp_path).merged(base, updates, [1] * 5)
    assert found is not None
    np.testing.assert_array_equal(found, 1)
    assert refused == 1


def test_too_few_updates_close_no_round(tmp_path: Path) -> None:
    policy = policy_of("multi_krum", faults=1, rounds=1, interval=1)
    updates = np.ones((5, 3))
    updates[0] = np.nan
    assert Table(3, policy, tmp_path).merged(np.zeros(3, np.float32), updates, [1] * 5) == (None, 1)


# --- what the attacks do


def test_the_mean_collapses_under_ten_times_the_opposite_and_the_default_does_not() -> None:
    cell = Cell("heart", 5, 1, "mean", "flip_10", 0, 6)
    default = policy_of("norm_bounded_mean", faults=1, rounds=6, interval=1).merge
    assert played(cell).accuracy < 0.4
    assert played(replace(cell, rule=default)).accuracy > 0.7


def test_a_site_that_claims_the_greatest_weight_counts_no_more_than_the_others() -> None:
    task = task_of("heart", 5)
    policy = policy_of("norm_bounded_mean", faults=1, rounds=6, interval=task.batches)
    accuracy = [played(Cell("heart", 5, 1, policy.merge, attack, 0, 6)).accuracy for attack in ("none", "flip_10")]
    assert accuracy[0] - accuracy[1] < 0.08


@pytest.mark.parametrize("mistake", [{"weight_ratio_max": 1e9}, {"merge": "mean"}, {"bound": "length", "radius": 1e3}])
def test_a_planted_weakness_of_the_default_shows(mistake: dict[str, Any], tmp_path: Path) -> None:
    task = task_of("heart", 5)
    policy = policy_of("norm_bounded_mean", faults=1, rounds=6, interval=task.batches)
    strong, weak = (play(task, p, ATTACKS["flip_10"], [0], 0, tmp_path) for p in (policy, replace(policy, **mistake)))
    assert strong.accuracy > 0.7
    assert weak.accuracy < 0.4


def test_labels_are_flipped_at_the_dishonest_site_only(tmp_path: Path) -> None:
    task, seen = heart(5), []

    class Spy:
        """Notes the labels that each site trains on."""

        genesis, logits = task.learner.genesis, task.learner.logits

        def train(self, base: object, sites: list[Rows], orders: object, batches: int) -> list[np.ndarray]:
            seen.append(
                [float((rows.y == plain.y).float().mean()) for rows, plain in zip(sites, task.sites, strict=True)]
            )
            return task.learner.train(base, sites, orders, batches)  # type: ignore[arg-type]

    policy = policy_of("mean", faults=1, rounds=1, interval=1)
    play(replace(task, learner=Spy()), policy, ATTACKS["label_flip"], [3], 0, tmp_path)  # type: ignore[arg-type]
    assert seen == [[1, 1, 1, 0, 1]]


@pytest.mark.parametrize("change", [lambda scene: scene.own, lambda scene: scene.all_send(scene.mean)])
def test_an_attack_that_is_none_changes_little(change: Callable[..., np.ndarray], tmp_path: Path) -> None:
    task = heart(5)
    policy = policy_of("mean", faults=1, rounds=5, interval=task.batches)
    calm = play(task, policy, ATTACKS["none"], [], 0, tmp_path)
    played = play(task, policy, Attack("planted", change), [1], 0, tmp_path)
    assert abs(calm.accuracy - played.accuracy) < 0.05


# --- the command


def test_the_same_seed_gives_the_same_results_in_one_process_and_in_two(tmp_path: Path) -> None:
    some = [*TINY, "--rules", "mean,norm_bounded_mean", "--attacks", "none,noise,label_flip", "--sites", "5"]
    assert run(*some, "--out", str(tmp_path / "once")) == 0
    assert run(*some, "--out", str(tmp_path / "again"), "--jobs", "2") == 0
    once, again = (tmp_path / name / "results.json" for name in ("once", "again"))
    assert once.read_bytes() == again.read_bytes()
    rows = json.loads(once.read_text())
    assert [(row["rule"], row["attack"]) for row in rows[:2]] == [("local", "none"), ("mean", "none")]
    assert len(rows) == 1 + 2 * 3


def test_a_grid_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = [*TINY, "--rules", "mean", "--out", str(tmp_path)]
    assert run(*some, "--attacks", "none") == 0
    kept = tmp_path / "cells" / "heart-5-1-mean-none-0-3.json"
    marked = kept.read_text().replace(f'"accuracy": {json.loads(kept.read_text())["accuracy"]}', '"accuracy": 0.125')
    kept.write_text(marked)
    assert run(*some, "--attacks", "none,zero") == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["accuracy"] for row in rows if row["attack"] == "none" and row["rule"] == "mean"] == [0.125]
    assert "zero" in capsys.readouterr().out


def test_a_cell_of_another_policy_is_played_again(tmp_path: Path) -> None:
    (cell,) = [c for c in cells_of([("heart", 5, 1)], ["mean"], ["none"], [0], 2) if c.rule == "mean"]
    ((_, outcome),) = play_all([cell], tmp_path, 1, lambda _: None)
    kept = tmp_path / "cells" / cell.name
    document = json.loads(kept.read_text())
    kept.write_text(json.dumps({**document, "policy": document["policy"].replace("mean", "other"), "accuracy": 0}))
    assert play_all([cell], tmp_path, 1, lambda _: None) == [(cell, outcome)]


def test_a_file_that_is_no_cell_is_named(tmp_path: Path) -> None:
    cell = Cell("heart", 5, 1, "mean", "none", 0, 2)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / cell.name).write_text("{}")
    with pytest.raises(ConfigError, match=r"heart-5-1-mean-none-0-2\.json is no finished cell .* remove it"):
        play_all([cell], tmp_path, 1, lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rules", "krum"], "there is no merge rule 'krum'; there are mean"),
        (["--attacks", "bribe"], "there is no attack 'bribe'; there are none, sign_flip"),
        (["--data", "mars"], "there is no data set 'mars'; there are heart"),
        (["--sites", "7"], "cut over 4, 5, 10 sites, not 7"),
        (["--data", "tb", "--sites", "5"], "have 6 sites of their own, not 5"),
        (["--dishonest", "3"], "3 of 5 sites dishonest; it has to be 1 or more and less than half"),
        (["--dishonest", "2", "--rules", "multi_krum"], "multi_krum that bears 2 needs 7 sites, and there are 5"),
        (["--seeds", "0"], "--seeds 0: 1 or more"),
        (["--rules", ","], "--rules names nothing"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*TINY, *arguments, "--out", str(tmp_path)) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_help_names_every_attack_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    shown = capsys.readouterr().out
    for name, attack in ATTACKS.items():
        assert f"{name:<16} {attack.source}" in shown


def test_who_is_dishonest_is_the_same_under_every_rule() -> None:
    one, other = (Cell("heart", 10, 2, rule, "noise", 4, 15) for rule in ("mean", "trimmed_mean"))
    assert liars(one) == liars(other)
    assert len({tuple(liars(replace(one, seed=seed))) for seed in range(20)}) > 5


def test_the_verdict_says_when_the_default_falls() -> None:
    pairs = [("local", "none", 0.7), ("norm_bounded_mean", "none", 0.8), ("norm_bounded_mean", "noise", 0.71)]
    cells = [Cell("heart", 5, 1, rule, attack, 0, 1) for rule, attack, _ in pairs]
    outcome = played(Cell("heart", 5, 1, "mean", "none", 0, 1))
    given = [(c, replace(outcome, accuracy=a)) for c, (_, _, a) in zip(cells, pairs, strict=True)]
    (board,) = boards(given)
    assert "9.0 points less, BEYOND 8; no worse than a site alone (70.0 %)" in verdict(board)
    assert "| noise | 71.0 |" in markdown([board])
    (board,) = boards([given[0], given[1], (given[2][0], replace(outcome, accuracy=0.69))])
    assert "WORSE than a site alone" in verdict(board)


# --- what the default promises


def board_of(tmp_path: Path, sites: int, dishonest: int, seeds: int) -> Board:
    cells = cells_of([("heart", sites, dishonest)], ["mean", DEFAULT], list(ATTACKS), range(seeds), None)
    (board,) = boards(play_all(cells, tmp_path, 1, lambda _: None))
    return board


def holds(board: Board) -> None:
    calm, worst = board.accuracy[DEFAULT, "none"], board.accuracy[DEFAULT, board.worst(DEFAULT)]
    assert calm - worst <= POINTS, verdict(board)
    assert worst >= board.local, verdict(board)
    assert board.accuracy["mean", "flip_10"] < 40, "the plain mean collapses"


def test_one_of_five_hospitals_takes_few_points_from_the_default(tmp_path: Path) -> None:
    holds(board_of(tmp_path, sites=5, dishonest=1, seeds=1))


@pytest.mark.slow
@pytest.mark.parametrize(("sites", "dishonest"), [(5, 1), (10, 2)])
def test_the_default_bears_one_of_five_and_two_of_ten_over_ten_seeds(
    sites: int, dishonest: int, tmp_path: Path
) -> None:
    holds(board_of(tmp_path, sites, dishonest, seeds=10))
