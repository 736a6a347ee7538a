"""A comparison is fair, repeatable, and the swarm in it is the swarm."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from sim.study import arms, ledgered, study
from sim.study.experiment import Experiment, Scenario, load_experiment
from sim.study.report import page
from sim.study.results import results
from sim.study.scenario import placed
from swarm.cli import app
from swarm.config import Policy
from swarm.errors import ConfigError
from swarm.learn.recipes import Rows, Site, load_recipe, sites_of

NODES = Path(__file__).parents[2] / "nodes"
HEART = load_recipe(NODES / "heart")
SITES = sites_of(HEART)
CALM = Scenario()
SHORT = Policy(name="short", rounds=3, sync_interval=5, merge="mean", weight_ratio_max=1e9)
QUICK = Experiment("quick", NODES / "heart", SHORT, seeds=2, leave_one_out=False, bootstrap=100)


def of(policy: Policy = SHORT, scenario: Scenario = CALM, sites: Sequence[Site] = SITES) -> arms.Study:
    return arms.Study(HEART, policy, scenario, sites)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with study.one_thread():
        yield


def same(one: nn.Module, other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.state_dict().items())


def plain_fedavg(of_study: arms.Study, seed: int) -> Mapping[str, Tensor]:
    """FedAvg in one process, whose mean is computed exactly: whole steps of 2**-32, fractions, one rounding."""
    state = of_study.recipe.new_model(seed).state_dict()
    step = 2**of_study.policy.step_bits
    for number in range(of_study.policy.rounds):
        models, samples = [], []
        for peer in of_study.peers:
            models.append(of_study.recipe.new_model(seed))
            models[-1].load_state_dict(state)
            samples.append(of_study.train_round(models[-1], peer, seed, number))
        after = {}
        for name, base in state.items():
            changes = [(model.state_dict()[name] - base).flatten().tolist() for model in models]
            mean = [
                sum(w * round(Fraction(change) * step) for w, change in zip(samples, column, strict=True))
                for column in zip(*changes, strict=True)
            ]
            moved = torch.tensor(mean, dtype=torch.float64) * float(Fraction(1, sum(samples) * step))
            after[name] = (base.double().flatten() + moved).float().view_as(base)
        state = after
    return state


@pytest.mark.parametrize("seed", range(2))
def test_the_swarms_weighted_mean_is_a_plain_fedavg_loop_to_the_last_bit(seed: int) -> None:
    trained = arms.swarm(of(), seed)
    assert same(trained.model, plain_fedavg(of(), seed))
    # The server's float arithmetic differs in the last digits only.
    server = arms.federated(of(), seed).state_dict()
    assert all(torch.allclose(value, server[name], atol=1e-6) for name, value in trained.model.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {"merge": "mean"},
        {"merge": "norm_bounded_mean"},
        {"scaffold": True, "proximal": 0.1},
        {"personal": ("bias",)},
    ],
    ids=str,
)
def test_real_nodes_with_a_ledger_end_with_the_same_bytes(changes: dict[str, Any]) -> None:
    policy = replace(SHORT, rounds=2, **changes)
    there, here = ledgered.swarm(of(policy), 1), arms.swarm(of(policy), 1)
    assert there.checkpoint == here.checkpoint
    assert there.at_home.keys() == here.at_home.keys()
    assert all(same(model, there.at_home[name].state_dict()) for name, model in here.at_home.items())


COMING_AND_GOING = [
    Scenario(late={"va": 1}),
    Scenario(leaves={"hungarian": 1}),
    Scenario(late={"cleveland": 1}, leaves={"cleveland": 2, "hungarian": 2}),
]


@pytest.mark.parametrize("scenario", COMING_AND_GOING, ids=["late", "leaves", "both, also one site"])
def test_on_a_real_ledger_sites_join_late_and_withdraw_in_their_rounds(scenario: Scenario) -> None:
    there, here = ledgered.swarm(of(scenario=scenario), 1), arms.swarm(of(scenario=scenario), 1)
    assert there.checkpoint == here.checkpoint
    assert there.checkpoint != arms.swarm(of(), 1).checkpoint


def test_a_round_that_does_not_wait_for_who_comes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:

    async def hasty(self: ledgered.Gates, number: int) -> None:
        self._begun[number].set()

    monkeypatch.setattr(ledgered.Gates, "wait", hasty)
    with pytest.raises(AssertionError, match="round 1 took no update of va"):
        ledgered.swarm(of(scenario=Scenario(late={"va": 1})), 1)


def test_too_many_late_sites_cannot_open_a_run_on_a_ledger() -> None:
    late = replace(QUICK, scenario=Scenario(late={"va": 1, "switzerland": 1}))
    assert len(study.prepare(late).sites) == 4
    with pytest.raises(ConfigError, match="2 of 4 sites come late, and a run opens with the consent of 3"):
        study.prepare(replace(late, ledger_seeds=(0,)))


def test_what_stays_at_a_site_makes_its_model_its_own_and_a_strangers_as_it_began() -> None:
    found = arms.swarm(of(replace(SHORT, personal=("bias",))), 0)
    biases = [float(model.state_dict()["bias"]) for model in found.at_home.values()]
    assert len(set(biases)) == len(SITES)
    assert torch.equal(found.model.state_dict()["bias"], HEART.new_model(0).state_dict()["bias"])
    assert all(
        torch.equal(m.state_dict()["weight"], found.model.state_dict()["weight"]) for m in found.at_home.values()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"patience": 1, "best_metric": "auc"}, {"work_s": 1.0}, {"sync_interval_max": 9}, {"blind": True},
        {"epsilon": 8.0}, {"replace_batchnorm": True},
    ],
)  # fmt: skip
def test_a_policy_that_would_not_be_played_is_not_compared(changes: dict[str, Any]) -> None:
    unfit = replace(SHORT, **changes)
    for experiment in (replace(QUICK, policy=unfit), replace(QUICK, variants={"other": unfit})):
        with pytest.raises(ConfigError, match=f"the policy short has {next(iter(changes))} = "):
            study.prepare(experiment)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda rows: replace(rows, x=rows.x.where(rows.y[:, None] == 0, torch.nan)), "inputs that are not finite"),
        (lambda rows: replace(rows, y=rows.y * 3), r"labels such as 3.0 have to be 0 or 1"),
    ],
    ids=["nan", "labels"],
)
def test_rows_that_cannot_be_learned_from_are_named_before_anything_is_trained(
    spoil: Callable[[Rows], Rows], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = [replace(site, test=spoil(site.test)) if site.name == "va" else site for site in SITES]
    monkeypatch.setattr(study, "sites_of", lambda recipe: spoiled)
    with pytest.raises(ConfigError, match=f"site va, test rows: .*{said}"):
        study.prepare(QUICK)


def test_a_planted_change_of_one_order_is_seen_in_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    right = arms.swarm(of(), 0).checkpoint
    monkeypatch.setattr(arms.Study, "order_of", lambda self, seed, number, round_: seed + round_ // 3 + number // 3)
    assert arms.swarm(of(), 0).checkpoint != right


def test_every_batch_of_a_pass_is_of_other_rows() -> None:
    batches = list(arms.stream(10, 4, torch.Generator().manual_seed(0), 7))
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2, 4]
    assert sorted(torch.cat(batches[:3]).tolist()) == list(range(10))


def test_who_is_left_out_teaches_nothing_not_even_the_scaling() -> None:
    without = arms.Study(HEART, SHORT, Scenario(), SITES, left_out="va")
    spoiled = [replace(s, train=replace(s.train, x=s.train.x * 1e6)) if s.name == "va" else s for s in SITES]
    again = arms.Study(HEART, SHORT, Scenario(), spoiled, left_out="va")
    assert same(arms.pooled(without, 0), arms.pooled(again, 0).state_dict())
    assert not same(arms.pooled(of(), 0), arms.pooled(of(sites=spoiled), 0).state_dict())


def test_who_is_late_leaves_or_is_slow_takes_part_accordingly() -> None:
    scenario = Scenario(late={"va": 1}, leaves={"cleveland": 2}, slow={"hungarian": 0.4})
    there = [[peer.name for peer in of(scenario=scenario).present(number)] for number in range(3)]
    assert there == [
        ["cleveland", "hungarian", "switzerland"],
        ["cleveland", "hungarian", "switzerland", "va"],
        ["hungarian", "switzerland", "va"],
    ]
    assert [of(scenario=scenario).batches(peer) for peer in of().peers] == [5, 2, 5, 5]


def share(site: Site) -> float:
    return float(site.train.y.mean())


def test_rows_are_dealt_out_as_the_scenario_says() -> None:
    whole = sum(len(site.train) for site in SITES)
    even = placed(SITES, Scenario("even", sites=5), "binary")
    assert sum(len(site.train) for site in even) == whole
    assert max(len(site.train) for site in even) - min(len(site.train) for site in even) <= 2
    sizes = placed(SITES, Scenario("sizes", shares=(0.6, 0.3, 0.1)), "binary")
    assert [round(len(site.train) / whole, 1) for site in sizes] == [0.6, 0.3, 0.1]
    prevalence = placed(SITES, Scenario("prevalence", shares=(0.8, 0.5, 0.1)), "binary")
    assert [round(share(site), 2) for site in prevalence] == [0.8, 0.5, 0.1]
    assert len({len(site.train) for site in prevalence}) == 1
    both = placed(SITES, Scenario("prevalence", shares=(0.5, 0.2), sizes=(1.0, 3.0)), "binary")
    assert [round(share(site), 1) for site in both] == [0.5, 0.2]
    assert round(len(both[1].train) / len(both[0].train), 1) == 3.0
    sexes = placed(SITES, Scenario("group", by="sex"), "binary")
    assert [(site.name, set(site.train.groups["sex"] + site.test.groups["sex"])) for site in sexes] == [
        ("men", {"men"}),
        ("women", {"women"}),
    ]
    assert sum(len(site.train) for site in sexes) == whole
    missing = placed(SITES, Scenario("missing", sites=3, lacks=1), "binary")
    assert share(missing[0]) == 0
    assert all(0 < share(site) < 1 for site in missing[1:])
    uneven = placed(SITES, Scenario("dirichlet", sites=3, alpha=0.5), "binary")
    assert sum(len(site.train) for site in uneven) == whole
    rare = placed(SITES, Scenario(test_prevalence=0.1), "binary")
    ill, all_ = sum(float(s.test.y.sum()) for s in rare), sum(len(s.test) for s in rare)
    assert 0.05 < ill / all_ < 0.15


def test_no_row_is_dealt_out_twice() -> None:
    numbered = [copy.copy(site) for site in SITES]
    begin = 0
    for i, site in enumerate(numbered):
        rows = torch.arange(begin, begin + len(site.train), dtype=torch.float64)[:, None]
        numbered[i] = replace(site, train=replace(site.train, x=rows))
        begin += len(rows)
    for scenario in (
        Scenario("even", sites=3), Scenario("dirichlet", sites=4), Scenario("missing", sites=2),
        Scenario("prevalence", shares=(0.9, 0.1)),
    ):  # fmt: skip
        dealt = torch.cat([site.train.x for site in placed(numbered, scenario, "binary")]).flatten().tolist()
        assert len(set(dealt)) == len(dealt)


def test_the_same_experiment_gives_the_same_results_also_after_an_interruption(tmp_path: Path) -> None:
    prepared = study.prepare(QUICK)
    first = results(prepared, study.run(prepared, tmp_path / "a", resume=False, tell=lambda job, arm: None))

    def stop(job: study.Job, arm: str) -> None:
        if (job.seed, arm) == (1, "swarm"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(prepared, tmp_path / "b", resume=False, tell=stop)
    told: list[int] = []
    done = study.run(prepared, tmp_path / "b", resume=True, tell=lambda job, arm: told.append(job.seed))
    assert set(told) == {1}, "a finished job was done again"
    assert json.dumps(results(prepared, done)) == json.dumps(first)
    with pytest.raises(ConfigError, match="--resume"):
        study.run(prepared, tmp_path / "b", resume=False, tell=lambda job, arm: None)
    other = study.prepare(replace(QUICK, seeds=1))
    with pytest.raises(ConfigError, match="other settings"):
        study.run(other, tmp_path / "b", resume=True, tell=lambda job, arm: None)


VARIANTS = """
[[published]]
what = "elsewhere"
metric = "auc"
value = "0.99"
alone = "0.5 to 0.7"
differs = "the data"

[policy]
merge = "mean"
sync_interval = 4

[arms.SCAFFOLD]
scaffold = true

[arms."own bias"]
personal = ["bias"]
"""


def test_further_policies_are_arms_beside_the_four(tmp_path: Path) -> None:
    experiment = load_experiment(written(tmp_path, "leave_one_out = false\nledger_seeds = [0]\n" + VARIANTS))
    assert experiment.policy.sync_interval == experiment.variants["SCAFFOLD"].sync_interval == 4
    prepared = study.prepare(experiment)
    done = study.run(prepared, tmp_path / "out", resume=False, tell=lambda job, arm: None)
    found = results(prepared, done)
    assert list(found["measures"]) == ["local", "pooled", "federated", "swarm", "SCAFFOLD", "own bias"]
    assert found["experiment"]["variants"] == {"SCAFFOLD": {"scaffold": True}, "own bias": {"personal": ["bias"]}}
    ends = found["checkpoints"]["0"]
    assert len({ends["swarm"], ends["SCAFFOLD"], ends["own bias"]}) == 3
    with_scaffold = arms.Study(prepared.recipe, experiment.variants["SCAFFOLD"], CALM, prepared.sites)
    assert ends["SCAFFOLD"] == arms.swarm(with_scaffold, 0).checkpoint.hex()
    better = found["against"]["own bias"]["all test rows"]
    auc = {arm: found["measures"][arm]["all test rows"]["auc"]["mean"] for arm in ("own bias", "federated")}
    assert better["mean"] == pytest.approx(auc["own bias"] - auc["federated"], abs=2e-6)
    assert (better["above"], better["seeds"]) == (int(better["mean"] > 0), 1)
    matrix = found["matrix"]
    sites = list(found["alone"])
    assert [name for name in matrix if name.startswith("own")] == [f"own bias {site}" for site in sites]
    assert found["measures"]["own bias"]["va"]["auc"] == matrix["own bias va"]["va"]
    html = page(found)
    assert "own bias" in html
    assert "<td>0.5 to 0.7</td>" in html
    assert "merge = &quot;mean&quot;" not in html, "a variant is told by what it changes"


EXPERIMENT = '[experiment]\nname = "small"\nrecipe = "{nodes}/heart"\npolicy = "run.toml"\nseeds = 1\nbootstrap = 100\n'
RUN = '[run]\nname = "small"\nrounds = 2\nsync_interval = 2\n'


def written(folder: Path, more: str = "", run: str = RUN) -> Path:
    (folder / "run.toml").write_text(run)
    (folder / "compare.toml").write_text(EXPERIMENT.format(nodes=NODES) + more)
    return folder / "compare.toml"


def test_the_command_writes_what_it_promises(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["compare", str(written(tmp_path)), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "swarm" in done.output
    found = json.loads((out / "results.json").read_text())
    assert set(found["measures"]) == {"local", "pooled", "federated", "swarm"}
    assert set(found["alone"]) == set(found["unseen"])
    assert set(found["calibration"]["swarm"]) == {"all test rows", *found["alone"]}
    assert set(found["unseen"]) == {"cleveland", "hungarian", "switzerland", "va"}
    assert set(found["groups"]) == {"age: under 55", "age: 55 and over", "sex: men", "sex: women"}
    assert "NaN" not in (out / "results.json").read_text()
    html = (out / "report.html").read_text()
    assert html == page(found)
    assert html.count("<svg") == 3
    assert "<script" not in html
    assert 'src="' not in html
    assert (out / "tables.md").read_text().count("\n## ") == 13
    twice = CliRunner().invoke(app, ["compare", str(tmp_path / "compare.toml"), "--out", str(tmp_path / "twice")])
    assert twice.exit_code == 0, twice.output
    for name in ("results.json", "report.html", "tables.md"):
        assert (out / name).read_bytes() == (tmp_path / "twice" / name).read_bytes(), name
    again = CliRunner().invoke(app, ["compare", str(tmp_path / "compare.toml"), "--out", str(out)])
    assert again.exit_code == 2
    assert "--resume" in again.output


WRONG = {
    "sedes = 3": "has no 'sedes'",
    "[scenari]": "no table [scenari]",
    "seeds2 = 1": "has no 'seeds2'",
    'arms = ["local", "magic"]': "of local, pooled, federated, swarm",
    "leave_one_out = 3": "leave_one_out = 3",
    "ledger_seeds = [7]": "ledger_seeds",
    "[scenario]\nkind = 'odd'": "one of natural",
    "[scenario]\nkind = 'even'": "sites = 0",
    "[scenario]\nkind = 'sizes'\nshares = [0.5, 0.2]": "1 in sum",
    "[scenario]\nkind = 'sizes'\nshares = [1.0, 0.0]": "site-2 has no training rows",
    "[scenario]\nkind = 'missing'\nsites = 3\nlacks = 7": "lacks = 7",
    "[scenario]\nunseen = ['berlin']": "no site 'berlin'",
    "[scenario]\nunseen = ['va', 'hungarian', 'cleveland']": "fewer than two sites train",
    "[scenario]\nlate = { va = 2 }": "round 1 to 1",
    "[scenario]\nkind = 'group'": "the name of the recipe's subgroups",
    "[scenario]\nkind = 'group'\nby = 'city'": "there are age, sex",
    "[scenario]\nkind = 'even'\nsites = 3\nalpha = 0.1": "kind 'even' takes no alpha",
    "[scenario]\nsites = 3": "kind 'natural' takes no sites",
    "[scenario]\nkind = 'dirichlet'\nsites = 3\nalpha = nan": "alpha = nan",
    "[scenario]\nkind = 'prevalence'\nshares = [0.5, 0.1]\nsizes = [1.0]": "as many as shares",
    "[scenario]\nkind = 'prevalence'\nshares = [0.5, 0.1]\nsizes = [1.0, -1.0]": "above 0 each",
    "[scenario]\nlate = { va = 1 }\nleaves = { va = 1 }": "later for va",
    "[scenario]\nunseen = ['va']\nslow = { va = 0.5 }": "they never train",
    "[scenario]\nunseen = ['va', 'va']": "each site once",
    "[scenario]\ntest_prevalence = 1.0": "0 to 1",
    'arms = ["local", "local"]': "each once",
    "[arms]\nswarm = { proximal = 0.1 }": "and not local",
    "[arms]\n'local va' = { proximal = 0.1 }": "is a site's own model",
    "[arms]\n'a/b' = { proximal = 0.1 }": "1 to 64 plain characters",
    "[arms]\nfedprox = { mu = 0.1 }": "[arms.fedprox] has no 'mu'",
    "[arms]\nfedprox = 3": "[arms.fedprox] is a table of settings",
    "[arms]\nslower = { rounds = 9 }": "the same for all arms",
    "[arms]\nscaffold = { scaffold = true }": "'mean' where scaffold = true",
    "[arms]\nsums = { merge = 'sum', weights = 'equal' }": "merge of sums",
    "[arms]\nkrum = { merge = 'multi_krum', weights = 'equal', faults = 1, submissions_min = 5 }": "submissions_min",
    "[policy]\nrounds = 2.5": "it has to be a whole number",
    "[policy]\nblind = true": "where blind = true",
    "[scenario]\nslow = { va = 0 }": "a share of the batches",
    "[scenario]\nleaves = { va = 1, hungarian = 1, cleveland = 1 }": "sites take part",
}


@pytest.mark.parametrize(("more", "said"), list(WRONG.items()))
def test_what_cannot_work_is_said_before_anything_is_trained(more: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        study.prepare(load_experiment(written(tmp_path, more)))
    assert said in str(error.value)


@pytest.mark.slow
def test_another_process_with_another_hash_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, "leave_one_out = false\nledger_seeds = [0]\n" + VARIANTS)
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "swarm", "compare", str(path), "--out", str(tmp_path / seed)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, timeout=300)
    for name in ("results.json", "report.html", "tables.md"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_a_merge_that_does_not_suit_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    sums = RUN + 'merge = "sum"\nweights = "equal"\n'
    with pytest.raises(ConfigError, match="averages"):
        load_experiment(written(tmp_path, run=sums))
    krum = RUN + 'merge = "multi_krum"\nweights = "equal"\nfaults = 1\nsubmissions_min = 5\n'
    with pytest.raises(ConfigError, match="submissions_min"):
        study.prepare(load_experiment(written(tmp_path, run=krum)))


def test_a_site_that_tests_one_class_has_no_area_and_the_table_says_so() -> None:
    sites = [replace(s, test=s.test.pick([i for i in range(len(s.test)) if s.test.y[i] == 1])) for s in SITES[:1]]
    prepared = study.Prepared(replace(QUICK, seeds=1), HEART, [*sites, *SITES[1:]], [study.Job(0)])
    found = results(prepared, [study.Done(study.Job(0), _even(prepared), {})])
    assert found["measures"]["swarm"]["cleveland"]["auc"] == {"undefined": "a class has no test row"}
    assert "undefined: a class has no test row" in page(found)


def _even(prepared: study.Prepared) -> study.Outputs:
    chance = np.random.default_rng(0)
    models = ["pooled", "federated", "swarm", *(f"local {site.name}" for site in prepared.sites)]
    return {m: {s.name: chance.normal(size=(len(s.test), 1)).tolist() for s in prepared.sites} for m in models}


@pytest.mark.parametrize("name", ["tb", "pneumonia"])
def test_the_other_examples_are_recipes(name: str) -> None:
    recipe = load_recipe(NODES / name)
    sites = sites_of(recipe)
    model = recipe.new_model(0)
    agreed = recipe.agree([(site.train.x, site.train.y) for site in sites])
    few = sites[0].train.pick(range(recipe.BATCH))
    loss = recipe.loss(model, recipe.scaled(few.x, agreed), few.y, agreed)
    assert torch.isfinite(loss)
    assert load_experiment(NODES / name / "compare.toml").seeds == 5


def test_a_folder_that_is_no_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.py is missing"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.py").write_text("KIND = 'binary'\nBATCH = 4\n")
    with pytest.raises(ConfigError, match="has no load"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("path", sorted((NODES / "heart" / "scenarios").glob("*.toml")), ids=lambda path: path.stem)
def test_every_scenario_file_can_be_run(path: Path) -> None:
    prepared = study.prepare(load_experiment(path))
    assert prepared.experiment.name == f"heart-{path.stem}"
    assert len(prepared.jobs) == 5


FILES = [path for path in sorted(NODES.glob("*/scenarios/*.toml")) if path.parts[-3] != "heart"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_every_other_scenario_file_is_read(path: Path) -> None:
    experiment = load_experiment(path)
    assert experiment.name == f"{path.parts[-3]}-{path.stem}"
    assert experiment.seeds == 5
    assert all(one.metric in {"auc", "accuracy"} and one.differs for one in experiment.published)
