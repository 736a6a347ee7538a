"""The file that says what is compared: the recipe, the run's policy, the seeds, the scenario, and further policies."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from swarm.config import Policy, load_policy
from swarm.errors import ConfigError

ARMS = ("local", "pooled", "federated", "swarm")
KINDS: Mapping[str, tuple[str, ...]] = {
    "natural": (),
    "even": ("sites",),
    "sizes": ("shares",),
    "prevalence": ("shares", "sizes"),
    "missing": ("sites", "lacks"),
    "dirichlet": ("sites", "alpha"),
    "small": ("sites", "alpha"),
    "group": ("by",),
}
"""Every way to place rows, with the settings that it takes."""
TABLES = ("experiment", "policy", "arms", "scenario", "published")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
"""Of an experiment, which names a folder, and of an arm."""
SEEDS_MAX = 1000
SITES_MAX = 1000


@dataclass(frozen=True)
class Scenario:
    """Who has which rows, and who is there when."""

    kind: str = "natural"
    """`natural`: the recipe's own sites. All others put the training rows together and deal them out again: `even`;
    `sizes` after `shares`; `prevalence`, equal `sizes` (or in these proportions) with these `shares` of class 1;
    `missing`, the first site has no row of the class `lacks`; `dirichlet`, each class in shares drawn with `alpha`;
    `small`, as many rows for each site, in a mixture of classes that each draws with `alpha`: for hundreds of sites, of
    which none stays without rows; `group`, one site for each subgroup `by` which the recipe tells rows apart, such as
    one technology per site. Test rows are dealt out evenly, but for `group`, where they go where training rows go."""
    sites: int = 0
    """How many, where rows are dealt out."""
    shares: tuple[float, ...] = ()
    sizes: tuple[float, ...] = ()
    lacks: int = 0
    alpha: float = 0.5
    by: str = ""
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
    alone: str = ""
    """What single sites reach there."""
    pooled: str = ""
    """What all rows in one place reach there."""
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
    variants: Mapping[str, Policy] = field(default_factory=dict)
    """Further arms by name: swarms under other policies."""

    @property
    def all_arms(self) -> tuple[str, ...]:
        """Every arm's name, in order."""
        return (*self.arms, *self.variants)

    def policy_of(self, arm: str) -> Policy:
        """What an arm trains by."""
        return self.variants.get(arm, self.policy)

    def personal(self, arm: str) -> bool:
        """Whether something of an arm's model stays at each site."""
        return arm not in ("local", "pooled", "federated") and bool(self.policy_of(arm).personal)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that results depend on but for code and data; fit for JSON. Of a variant, what it changes."""
        document = asdict(self)
        document["recipe"] = self.recipe.name
        del document["published"]
        plain = document["policy"]
        document["variants"] = {
            name: {key: value for key, value in asdict(policy).items() if value != plain[key]}
            for name, policy in self.variants.items()
        }
        found: dict[str, Any] = json.loads(json.dumps(document))
        return found

    @property
    def fingerprint(self) -> str:
        """Equal for equal settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()


def load_experiment(path: Path) -> Experiment:
    """The experiment in a TOML file.

    `[experiment]` and `[scenario]` are the dataclasses above, each `[[published]]` is a figure. `[policy]` changes
    settings of the run's policy for all arms; `[arms.NAME]` adds an arm, a swarm for which these are changed as well.

    Raises:
        ConfigError: it cannot be read, or a key or a value is wrong; names it.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    unknown = sorted(set(document) - set(TABLES))
    if unknown:
        raise ConfigError(f"{path}: there is no table [{unknown[0]}]; there are {', '.join(TABLES)}")
    table = document.get("experiment")
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: the table [experiment] is missing")
    published = document.get("published", [])
    if not isinstance(published, list):
        raise ConfigError(f"{path}: published figures are written [[published]]")
    variants = document.get("arms", {})
    if not isinstance(variants, dict):
        raise ConfigError(f"{path}: further arms are written [arms.NAME]; those of four are `arms` of [experiment]")
    folder = path.resolve().parent
    values = _values(Experiment, table, f"{path}: [experiment]", without={"scenario", "published", "variants"})
    values["recipe"] = (folder / values["recipe"]).resolve()
    values["policy"] = _changed(load_policy(folder / values["policy"]), document.get("policy", {}), f"{path}: [policy]")
    values["variants"] = {
        name: _changed(values["policy"], changes, f"{path}: [arms.{name}]", without=("rounds", "sync_interval"))
        for name, changes in variants.items()
    }
    values["scenario"] = Scenario(**_values(Scenario, document.get("scenario", {}), f"{path}: [scenario]"))
    values["published"] = tuple(Published(**_values(Published, one, f"{path}: [[published]]")) for one in published)
    experiment = Experiment(**values)
    _check(experiment, str(path))
    return experiment


def _changed(policy: Policy, changes: object, where: str, *, without: Collection[str] = ()) -> Policy:
    """The policy with other settings.

    Args:
        without: what stays; every arm trains for as many batches.
    """
    if isinstance(changes, dict):
        for key in set(without) & set(changes):
            raise ConfigError(f"{where}: {key} is the same for all arms; change it in [policy]")
    values = _values(Policy, changes, where, without={"name"}, all_of_them=False)
    try:
        return Policy.decode(replace(policy, **values).encode())
    except ConfigError as error:
        raise ConfigError(f"{where} does not fit {policy.name}: {error}") from error


def _values(
    kind: type[Any], table: object, where: str, *, without: Collection[str] = (), all_of_them: bool = True
) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is a table of settings, found {table!r}")
    possible = {f.name: f for f in fields(kind) if f.name not in without}
    unknown = sorted(set(table) - set(possible))
    if unknown:
        raise ConfigError(f"{where} has no {unknown[0]!r}; there are {', '.join(possible)}")
    needed = [f.name for f in possible.values() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in table and all_of_them]
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

    need(NAME.fullmatch(experiment.name) is not None, "name", experiment.name, "1 to 64 plain characters")
    need(1 <= experiment.seeds <= SEEDS_MAX, "seeds", experiment.seeds, f"1 to {SEEDS_MAX}")
    arms = experiment.arms
    need(set(arms) <= set(ARMS) and bool(arms), "arms", arms, f"of {', '.join(ARMS)}")
    need(len(set(arms)) == len(arms), "arms", arms, "each once")
    for name in experiment.variants:
        named = NAME.fullmatch(name) is not None and name not in ARMS
        need(named, "[arms.NAME]", name, f"1 to 64 plain characters, and not {', '.join(ARMS)}")
        others = [other for other in (*ARMS, *experiment.variants) if name.startswith(f"{other} ")]
        need(not others, "[arms.NAME]", name, f"another name: '{''.join(others[:1])} SITE' is a site's own model")
    need(100 <= experiment.bootstrap <= 100_000, "bootstrap", experiment.bootstrap, "100 to 100000 draws")
    need(
        all(0 <= seed < experiment.seeds for seed in experiment.ledger_seeds),
        "ledger_seeds", experiment.ledger_seeds, f"0 to {experiment.seeds - 1}",
    )  # fmt: skip
    for arm in ("policy", *experiment.variants):
        merge = experiment.policy_of(arm).merge
        need(merge != "sum", f"merge of {arm}", merge, "one that averages: models cannot be added up")
    _check_placement(experiment.scenario, need)
    _check_presence(experiment.scenario, experiment.policy.rounds, need)


def _check_placement(scenario: Scenario, need: Callable[[bool, str, object, str], None]) -> None:
    """Who has which rows."""
    kind, shares, sizes = scenario.kind, scenario.shares, scenario.sizes
    need(kind in KINDS, "kind", kind, f"one of {', '.join(KINDS)}")
    for key in sorted({key for taken in KINDS.values() for key in taken} - set(KINDS[kind])):
        found, unset = getattr(scenario, key), getattr(Scenario, key)
        need(found == unset, key, found, f"left out: [scenario] kind {kind!r} takes no {key}")
    if "sites" in KINDS[kind]:
        need(2 <= scenario.sites <= SITES_MAX, "sites", scenario.sites, f"2 to {SITES_MAX} where kind is {kind!r}")
    if "shares" in KINDS[kind]:
        need(2 <= len(shares) <= SITES_MAX, "shares", shares, "one share for each of 2 sites or more")
        need(all(0 <= share <= 1 for share in shares), "shares", shares, "0 to 1 each")
    if kind == "sizes":
        need(abs(sum(shares) - 1) < 1e-6, "shares", shares, "1 in sum")
    if sizes:
        need(len(sizes) == len(shares), "sizes", sizes, f"as many as shares, {len(shares)}")
        need(all(0 < size <= 1e6 for size in sizes), "sizes", sizes, "above 0 each, at most 1000000")
    need(kind != "group" or bool(scenario.by), "by", scenario.by, "the name of the recipe's subgroups")
    need(0 < scenario.alpha <= 1e6, "alpha", scenario.alpha, "above 0, at most 1000000")
    need(0 <= scenario.test_prevalence < 1, "test_prevalence", scenario.test_prevalence, "0 to 1")


def _check_presence(scenario: Scenario, rounds: int, need: Callable[[bool, str, object, str], None]) -> None:
    """Who is there when."""
    late, leaves = dict(scenario.late), dict(scenario.leaves)
    for key, table in (("late", late), ("leaves", leaves)):
        need(all(0 < at < rounds for at in table.values()), key, table, f"round 1 to {rounds - 1} of {rounds}")
    for name in set(late) & set(leaves):
        need(late[name] < leaves[name], "leaves", leaves, f"later for {name}, who comes in round {late[name]}")
    need(all(0 < share <= 1 for share in scenario.slow.values()), "slow", dict(scenario.slow), "a share of the batches")
    need(len(set(scenario.unseen)) == len(scenario.unseen), "unseen", scenario.unseen, "each site once")
    both = sorted(set(scenario.unseen) & {*late, *leaves, *scenario.slow})
    need(not both, "unseen", both, "sites that are not late, leaving or slow: they never train")
