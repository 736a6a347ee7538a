"""What the tests of the recipes share: which there are, and where data lie that are not in the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swarm.learn.recipes import Recipe, load_recipe

EXAMPLES = Path(__file__).parents[2] / "nodes"

ELSEWHERE = {"wisdm": "WISDM_DATA", "leukemia": "LEUKEMIA_DATA"}
"""Their licences keep the data out of the repository; the variable names the folder."""


def need_data(name: str) -> None:
    """Skip where an example's data are not on this machine."""
    variable = ELSEWHERE.get(name)
    if variable and variable not in os.environ:
        pytest.skip(f"{variable} is not set: it names the folder of the data that nodes/{name}/README.md is about")


def recipe_of(name: str) -> Recipe:
    """An example as `swarm compare` takes it."""
    need_data(name)
    return load_recipe(EXAMPLES / name)
