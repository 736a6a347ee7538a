"""What is simulated: an experiment's file and a few numbers, from which every process makes the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sim.scale.placement import institutions_of, peers_of
from sim.study.arms import Peer, Study
from sim.study.experiment import Experiment, load_experiment
from sim.study.scenario import PLACEMENT, thinned
from swarm.config import Policy
from swarm.errors import ConfigError
from swarm.learn.recipes import Recipe, Rows, Site, load_recipe, sites_of
from swarm.rounds import submissions_needed

VALIDATORS = 4
"""Members that seal blocks; the others follow."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    experiment: Path
    peers: int = 0
    """How many virtual sites; 0: as many as the experiment says."""
    institutions: int = 0
    """How many members of the consortium they belong to; 0: one for each site, as long as there is room."""
    seed: int = 0
    share: float = 1.0
    """Of each institution's sites, how many train in a round: drawn anew for every round, one at least."""


@dataclass(frozen=True)
class Institution:
    """A member of the consortium and its virtual sites."""

    number: int
    peers: tuple[Peer, ...]
    """Those that ever train."""

    @property
    def name(self) -> str:
        """Its own site's, or a name for many."""
        return self.peers[0].name if len(self.peers) == 1 else f"institution-{self.number + 1}"


@dataclass(frozen=True)
class Prepared:
    """An experiment that can be run."""

    request: Request
    experiment: Experiment
    policy: Policy
    """The experiment's, with as many submissions as so many members need (`swarm run propose` asks for it)."""
    recipe: Recipe
    study: Study
    institutions: Sequence[Institution]
    tests: Mapping[str, Rows]
    """The test rows of the recipe's own sites."""

    @property
    def peers(self) -> int:
        """How many virtual sites train."""
        return len(self.study.peers)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that results depend on but for code and data; fit for JSON."""
        request = {k: v for k, v in asdict(self.request).items() if k != "experiment"}
        return {"experiment": self.experiment.settings, "scale": request}

    @property
    def fingerprint(self) -> str:
        """Equal for equal settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _present(self) -> list[frozenset[int]]:
        rounds = range(self.policy.rounds)
        return [frozenset(peer.number for peer in self.study.present(number)) for number in rounds]

    def present(self, institution: Institution, number: int) -> tuple[Peer, ...]:
        """The institution's sites that take part in a round.

        Source for a share of them: McMahan et al., Communication-Efficient Learning, AISTATS 2017, algorithm 1.
        """
        there = [peer for peer in institution.peers if peer.number in self._present[number]]
        count = max(round(self.request.share * len(there)), 1)
        if count < len(there):
            chance = np.random.default_rng([PLACEMENT, self.request.seed, number, institution.number])
            there = [there[i] for i in sorted(chance.choice(len(there), count, replace=False).tolist())]
        return tuple(there)


def prepare(request: Request) -> Prepared:
    """Load the recipe and place its rows.

    Raises:
        ConfigError: something in the experiment cannot work; found before anything is trained.
    """
    if not 0 < request.share <= 1:
        raise ConfigError(
            f"--share {request.share}: of each institution's sites above 0 and at most 1 train in a round"
        )
    experiment = load_experiment(request.experiment)
    _check_policy(experiment.policy)
    recipe = load_recipe(experiment.recipe)
    own = sites_of(recipe)
    sites = peers_of(own, experiment.scenario, recipe.KIND, request.peers)
    study = Study(recipe, experiment.policy, experiment.scenario, sites)
    members = [
        Institution(number, tuple(study.peers[i] for i in places))
        for number, places in enumerate(institutions_of(len(study.peers), request.institutions))
    ]
    submissions_min = max(experiment.policy.submissions_min, submissions_needed(len(members)))
    policy = replace(experiment.policy, submissions_min=submissions_min)
    found = Prepared(request, experiment, policy, recipe, study, members, _tests(own, experiment, recipe.KIND))
    _check_rounds(found)
    return found


def _check_policy(policy: Policy) -> None:
    """ConfigError if the policy asks for what many sites on one machine do not do."""
    asked = {
        "blind": (policy.blind, "updates are not masked here"),
        "personal": (bool(policy.personal), "a virtual site keeps nothing from round to round"),
        "scaffold": (policy.scaffold, "a virtual site keeps nothing from round to round"),
        "sync_interval_max": (policy.sync_interval_max > 0, "every round has as many batches here"),
        "work_s": (policy.work_s > 0, "training takes no time of the run here; [scenario] slow makes sites slow"),
        "epsilon": (policy.private, "no noise is added here"),
        "replace_batchnorm": (policy.replace_batchnorm, "a recipe's model is trained as it is"),
        "best_metric": (bool(policy.best_metric), "all rounds are played, and each checkpoint is judged"),
    }
    for key, (is_asked, why) in asked.items():
        if is_asked:
            raise ConfigError(f"the policy {policy.name} says {key} = {getattr(policy, key)!r}: {why}")


def _tests(sites: Sequence[Site], experiment: Experiment, kind: str) -> dict[str, Rows]:
    prevalence = experiment.scenario.test_prevalence
    if prevalence and kind != "binary":
        raise ConfigError(f"[scenario] test_prevalence is for two classes; this recipe is {kind}")
    return {site.name: thinned(site.test, prevalence) if prevalence else site.test for site in sites}


def _check_rounds(prepared: Prepared) -> None:
    """ConfigError if a round could never close."""
    for number in range(prepared.policy.rounds):
        there = sum(bool(prepared.present(one, number)) for one in prepared.institutions)
        if there < prepared.policy.submissions_min:
            raise ConfigError(
                f"in round {number} only {there} of {len(prepared.institutions)} institutions have a site that takes "
                f"part, and a round needs {prepared.policy.submissions_min} submissions: change [scenario] late or "
                "leaves, or the policy"
            )
    if not any(len(rows) for rows in prepared.tests.values()):
        raise ConfigError(f"the recipe {prepared.experiment.recipe.name} has no test rows to judge the model on")


def described(prepared: Prepared) -> str:
    """What was done, in a sentence or two."""
    peers, members, policy = prepared.peers, len(prepared.institutions), prepared.policy
    sealed = f"{min(VALIDATORS, members)} members seal blocks, a round needs {policy.submissions_min} submissions."
    if peers == members:
        return f"{peers} virtual sites, each an institution of its own, merged by {policy.merge}. {sealed}"
    share = prepared.request.share
    drawn = "its sites" if share == 1 else f"{share:.0%} of its sites, drawn for each round"
    return (
        f"{peers} virtual sites of {members} institutions: each submits the weighted mean of {drawn}, and the "
        f"consortium merges the institutions by {policy.merge}. {sealed}"
    )
