"""The file that says what is compared: the recipe, the run's policy, the seeds, and the scenario."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from swarm.config import Policy, load_policy
from swarm.errors import ConfigError

ARMS = ("local", "pooled", "federated", "swarm")
KINDS = ("natural", "even", "sizes", "prevalence", "missing", "dirichlet", "small")
SEEDS_MAX = 1000
SITES_MAX = 1000


@dataclass(frozen=True)
class Scenario:
    """Who has which rows, and who is there when."""

    kind: str = "natural"
    """`natural`: the recipe's own sites. All others put the training rows together and deal them out again: `even`;
    `sizes` after `shares`; `prevalence`, equal sizes with these `shares` of class 1; `missing`, the first site has no
    row of the class `lacks`; `dirichlet`, each class in shares drawn with `alpha`; `small`, as many rows for each site,
    in a mixture of classes that each draws with `alpha`: for hundreds of sites, of which none stays without rows."""
    sites: int = 0
    """How many, where rows are dealt out."""
    shares: tuple[float, ...] = ()
    lacks: int = 0
    alpha: float = 0.5
    late: Mapping[str, int] = field(default_factory=dict)
    """Sites that join later: the first round that they take part in, counted from 0."""
    leaves: Mapping[str, int] = field(default_factory=dict)
    """Sites that leave: the first round that they no longer take part in."""
    slow: Mapping[str, float] = field(default_factory=dict)
    """Sites that manage only this share of a round's batches."""
    unseen: tuple[str, ...] = ()
    """Sites that never train."""
    test_prevalence: float = 0.0
    """Test rows are left out until this share is of class 1; 0: all stay."""


@dataclass(frozen=True)
class Published:
    """A figure that somebody else published, to stand beside ours."""

    what: str
    metric: str
    value: str
    differs: str
    """What is not the same there."""
    scope: str = "all test rows"
    """Which of ours it stands beside: this, `mean over sites`, or a site."""


@dataclass(frozen=True)
class Experiment:
    """One comparison."""

    name: str
    recipe: Path
    policy: Policy
    seeds: int = 5
    arms: tuple[str, ...] = ARMS
    leave_one_out: bool = True
    """Whether everything is also trained without each site in turn, and judged on that site's rows."""
    ledger_seeds: tuple[int, ...] = ()
    """Seeds whose swarm runs with real nodes, ledger and contracts; the others make the same merges without them."""
    bootstrap: int = 1000
    scenario: Scenario = Scenario()
    published: tuple[Published, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that results depend on but for code and data; fit for JSON."""
        document = asdict(self)
        document["recipe"] = self.recipe.name
        del document["published"]
        found: dict[str, Any] = json.loads(json.dumps(document))
        return found

    @property
    def fingerprint(self) -> str:
        """Equal for equal settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()


def load_experiment(path: Path) -> Experiment:
    """The experiment in a TOML file with the tables `[experiment]`, `[scenario]` and `[[published]]`.

    Raises:
        ConfigError: it cannot be read, or a key or a value is wrong; names it.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    unknown = sorted(set(document) - {"experiment", "scenario", "published"})
    if unknown:
        raise ConfigError(
            f"{path}: there is no table [{unknown[0]}]; there are [experiment], [scenario], [[published]]"
        )
    table = document.get("experiment")
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: the table [experiment] is missing")
    published = document.get("published", [])
    if not isinstance(published, list):
        raise ConfigError(f"{path}: published figures are written [[published]]")
    folder = path.resolve().parent
    values = _values(Experiment, table, f"{path}: [experiment]", without={"scenario", "published"})
    values["recipe"] = (folder / values["recipe"]).resolve()
    values["policy"] = load_policy(folder / values["policy"])
    values["scenario"] = Scenario(**_values(Scenario, document.get("scenario", {}), f"{path}: [scenario]"))
    values["published"] = tuple(Published(**_values(Published, one, f"{path}: [[published]]")) for one in published)
    experiment = Experiment(**values)
    _check(experiment, str(path))
    return experiment


def _values(kind: type[Any], table: object, where: str, *, without: Collection[str] = ()) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is a table of settings, found {table!r}")
    possible = {f.name: f for f in fields(kind) if f.name not in without}
    unknown = sorted(set(table) - set(possible))
    if unknown:
        raise ConfigError(f"{where} has no {unknown[0]!r}; there are {', '.join(possible)}")
    needed = [f.name for f in possible.values() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in table]
    if missing:
        raise ConfigError(f"{where}: {missing[0]!r} is missing")
    return {key: _value(value, str(possible[key].type), f"{where} {key}") for key, value in table.items()}


def _value(value: Any, kind: str, where: str) -> Any:
    """A TOML value as a field of this type."""
    if kind.startswith("tuple["):
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        if isinstance(value, list):
            return tuple(_value(one, inner, where) for one in value)
    elif kind.startswith("Mapping["):
        inner = kind.removeprefix("Mapping[str, ").removesuffix("]")
        if isinstance(value, dict):
            return {key: _value(one, inner, f"{where}.{key}") for key, one in value.items()}
    elif kind == "float" and type(value) in (int, float):
        return float(value)
    elif type(value).__name__ == {"Path": "str", "Policy": "str"}.get(kind, kind):
        return value
    wanted = {"Path": "a path", "Policy": "the path of a policy", "str": "a text", "int": "a whole number"}
    raise ConfigError(f"{where} = {value!r}, but it has to be {wanted.get(kind, kind)}")


def _check(experiment: Experiment, where: str) -> None:
    def need(holds: bool, key: str, found: object, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"{where}: {key} = {found!r}, but it has to be {wanted}")

    scenario, dealt = experiment.scenario, experiment.scenario.kind
    need(1 <= experiment.seeds <= SEEDS_MAX, "seeds", experiment.seeds, f"1 to {SEEDS_MAX}")
    need(set(experiment.arms) <= set(ARMS) and bool(experiment.arms), "arms", experiment.arms, f"of {', '.join(ARMS)}")
    need(100 <= experiment.bootstrap <= 100_000, "bootstrap", experiment.bootstrap, "100 to 100000 draws")
    need(
        all(0 <= seed < experiment.seeds for seed in experiment.ledger_seeds),
        "ledger_seeds", experiment.ledger_seeds, f"0 to {experiment.seeds - 1}",
    )  # fmt: skip
    need(dealt in KINDS, "kind", dealt, f"one of {', '.join(KINDS)}")
    if dealt in ("even", "missing", "dirichlet", "small"):
        need(2 <= scenario.sites <= SITES_MAX, "sites", scenario.sites, f"2 to {SITES_MAX} where kind is {dealt!r}")
    if dealt in ("sizes", "prevalence"):
        need(2 <= len(scenario.shares) <= SITES_MAX, "shares", scenario.shares, "one share for each of 2 sites or more")
        need(all(0 <= share <= 1 for share in scenario.shares), "shares", scenario.shares, "0 to 1 each")
    if dealt == "sizes":
        need(abs(sum(scenario.shares) - 1) < 1e-6, "shares", scenario.shares, "1 in sum")
    need(scenario.alpha > 0, "alpha", scenario.alpha, "above 0")
    need(0 <= scenario.test_prevalence < 1, "test_prevalence", scenario.test_prevalence, "0 to 1")
    rounds = experiment.policy.rounds
    for key, table in (("late", scenario.late), ("leaves", scenario.leaves)):
        need(all(0 < at < rounds for at in table.values()), key, dict(table), f"round 1 to {rounds - 1} of {rounds}")
    need(all(0 < share <= 1 for share in scenario.slow.values()), "slow", dict(scenario.slow), "a share of the batches")
    need(
        not (experiment.ledger_seeds and (scenario.late or scenario.leaves)),
        "ledger_seeds", experiment.ledger_seeds, "empty where sites come late or leave",
    )  # fmt: skip
    need(experiment.policy.merge != "sum", "merge of the policy", "sum", "one that averages: models cannot be added up")
