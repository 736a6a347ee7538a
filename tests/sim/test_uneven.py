"""Policies on uneven data: the table says what was played, and what was shown once in full holds in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.study.experiment import Scenario
from sim.uneven import VARIANTS, Found, main, play, policies_of, table
from swarm.errors import ConfigError
from swarm.learn.recipes import load_recipe

HEART = Path(__file__).parents[2] / "nodes" / "heart"


def test_the_table_compares_seed_by_seed() -> None:
    found = [Found("FedAvg", 0, 0.5, 0.6), Found("FedAvg", 1, 0.7, 0.6)]
    found += [Found("SCAFFOLD", 0, 0.6, 0.6), Found("SCAFFOLD", 1, 0.8, 0.5)]
    assert table(found).splitlines()[2:] == [
        "| FedAvg | 0.600 ± 0.141 | +0.000 ± 0.000 | 0.600 ± 0.000 | +0.000 ± 0.000 |",
        "| SCAFFOLD | 0.700 ± 0.141 | +0.100 ± 0.000 | 0.550 ± 0.071 | -0.050 ± 0.071 |",
    ]


def test_every_policy_plays_and_the_same_seed_gives_the_same_numbers() -> None:
    policies = policies_of(load_recipe(HEART), rounds=2, interval=3, personal=["bias"])
    assert set(policies) == {*VARIANTS, "bias stays"}
    scenario = Scenario("dirichlet", sites=3, alpha=0.5)
    found = play(1, folder=HEART, scenario=scenario, policies=policies)
    assert [one.policy for one in found] == list(policies)
    assert all(0.0 < one.home < 1.0 and 0.0 < one.everywhere < 1.0 for one in found)
    assert play(1, folder=HEART, scenario=scenario, policies=policies) == found
    assert len({(one.home, one.everywhere) for one in found}) > 2


def test_a_recipe_without_classes_is_refused(tmp_path: Path) -> None:
    source = "\n".join(f"{name} = None" for name in ("BATCH", "load", "agree", "scaled", "new_model", "new_optimizer"))
    (tmp_path / "recipe.py").write_text(f'KIND = "survival"\nloss = None\n{source}\n')
    with pytest.raises(ConfigError, match="is about survival; an accuracy needs classes"):
        play(0, folder=tmp_path, scenario=Scenario(), policies={})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([str(HEART), "--seeds", "0"], "--seeds is 1 or more"),
        (["nowhere"], "nowhere/recipe.py is missing"),
        ([str(HEART), "--alpha", "0.01", "--sites", "900"], "has no training rows"),
    ],
)
def test_what_cannot_be_played_is_said_before_it_begins(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err
