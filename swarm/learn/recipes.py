"""Recipes: what an example in `nodes/` shows to comparisons and leak checks (`nodes/README.md` says what is what)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from swarm.errors import ConfigError

KINDS = ("binary", "classes", "survival")
NAMES = ("KIND", "BATCH", "load", "agree", "scaled", "new_model", "new_optimizer", "loss")


class Recipe(Protocol):
    """A module `recipe.py`."""

    KIND: str
    BATCH: int

    def load(self) -> Mapping[str, Mapping[str, tuple[Tensor, Tensor, Mapping[str, Sequence[str]]]]]: ...
    def agree(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Any: ...
    def scaled(self, x: Tensor, agreed: Any) -> Tensor: ...
    def new_model(self, seed: int) -> nn.Module: ...
    def new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer: ...
    def loss(self, model: nn.Module, x: Tensor, y: Tensor, agreed: Any) -> Tensor: ...


@dataclass(frozen=True)
class Rows:
    """Some rows of one site: `x` (rows, ...) not yet scaled, `y` as the recipe's kind says, a subgroup for each row."""

    x: Tensor
    y: Tensor
    groups: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.y)

    def pick(self, index: Sequence[int]) -> Rows:
        """Some of the rows, in this order."""
        where = torch.tensor(index, dtype=torch.long)
        groups = {name: tuple(values[i] for i in index) for name, values in self.groups.items()}
        return Rows(self.x[where], self.y[where], groups)


@dataclass(frozen=True)
class Site:
    """One peer of an experiment. It learns from `train`; `test` is what all models are judged on."""

    name: str
    train: Rows
    test: Rows
    trains: bool = True
    """False: a site that only uses what the others made."""


def together(parts: Sequence[Rows]) -> Rows:
    """All rows, one part after the other."""
    names = parts[0].groups
    groups = {name: tuple(value for part in parts for value in part.groups[name]) for name in names}
    return Rows(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]), groups)


def load_recipe(folder: Path) -> Recipe:
    """The module `recipe.py` of an example's folder.

    Raises:
        ConfigError: there is none, it cannot be loaded, or it lacks a name.
    """
    path = folder / "recipe.py"
    if not path.is_file():
        raise ConfigError(f"{path} is missing; a recipe is a folder with a recipe.py, as nodes/README.md says")
    with _imports_of(folder):
        spec = importlib.util.spec_from_file_location("recipe", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["recipe"] = module
        try:
            spec.loader.exec_module(module)
        except (ImportError, SyntaxError) as error:
            raise ConfigError(f"{path} cannot be loaded: {error}") from error
    missing = [name for name in NAMES if not hasattr(module, name)]
    if missing:
        raise ConfigError(f"{path} has no {missing[0]}; nodes/README.md says what a recipe shows")
    recipe = cast(Recipe, module)
    if recipe.KIND not in KINDS:
        raise ConfigError(f"{path}: KIND = {recipe.KIND!r}; there are {', '.join(KINDS)}")
    return recipe


def sites_of(recipe: Recipe) -> list[Site]:
    """The recipe's own sites.

    Raises:
        ConfigError: a data file is missing or altered, or parts do not fit each other; names it.
    """
    try:
        found = recipe.load()
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    return [Site(name, _rows(parts["train"], name), _rows(parts["test"], name)) for name, parts in found.items()]


def _rows(part: tuple[Tensor, Tensor, Mapping[str, Sequence[str]]], site: str) -> Rows:
    x, y, groups = part
    lengths = {len(x), len(y), *map(len, groups.values())}
    if len(lengths) > 1:
        raise ConfigError(f"{site}: inputs, labels and groups have {sorted(lengths)} rows; they have to be as many")
    return Rows(x, y, {name: tuple(values) for name, values in groups.items()})


@contextmanager
def _imports_of(folder: Path) -> Iterator[None]:
    """An example's files import each other by their own names, `data` and `model`, which every example has."""
    own = {path.stem for path in folder.glob("*.py")}
    others: dict[str, ModuleType] = {name: sys.modules.pop(name) for name in own if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in own:
            sys.modules.pop(name, None)
        sys.modules.update(others)
