"""A whole comparison, job by job: what is done is on the disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sim.study import arms, ledgered
from sim.study.experiment import Experiment, Scenario
from sim.study.scenario import placed
from swarm.config import Policy
from swarm.errors import ConfigError
from swarm.learn import save_model
from swarm.learn.part import Part
from swarm.learn.recipes import Recipe, Site, load_recipe, sites_of, together
from swarm.learn.state import Checkpoint
from swarm.merge import merge_files
from swarm.quorum import quorum

NOT_PLAYED = {
    "sync_interval_max": "then sites train for unlike lengths of time, and arms could not be compared",
    "patience": "then arms train for unlike lengths of time, and could not be compared",
    "work_s": "training takes no time of the run here; [scenario] slow makes sites slow",
    "blind": "updates are not masked here; the same policy without it merges to the same sum",
    "epsilon": "no noise is added here",
    "replace_batchnorm": "a recipe's model is trained as it is",
}
"""What a policy may ask for and a comparison does not do, and why."""

Outputs = Mapping[str, Mapping[str, list[list[float]]]]
"""By model, by site, (rows, outputs)."""


@dataclass(frozen=True)
class Job:
    """All arms for one seed, on all sites or without one of them."""

    seed: int
    left_out: str = ""

    @property
    def name(self) -> str:
        """Also of its file."""
        return f"seed-{self.seed}" + (f"-without-{self.left_out}" if self.left_out else "")


@dataclass(frozen=True)
class Done:
    """What a job found: every model's outputs on the test rows of every site; without one site, on all of its rows."""

    job: Job
    outputs: Outputs
    checkpoints: Mapping[str, str]
    """The last of each arm that is a swarm, in hex."""


@dataclass(frozen=True)
class Prepared:
    """An experiment that can be run."""

    experiment: Experiment
    recipe: Recipe
    sites: Sequence[Site]
    jobs: Sequence[Job]


def prepare(experiment: Experiment) -> Prepared:
    """Load the recipe and place its rows.

    Raises:
        ConfigError: something in the experiment cannot work; found before anything is trained.
    """
    recipe = load_recipe(experiment.recipe)
    sites = placed(sites_of(recipe), experiment.scenario, recipe.KIND)
    _check_rows(recipe, sites)
    training = [site.name for site in sites if site.trains]
    left_out = training if experiment.leave_one_out and len(training) > 2 else []
    for policy in [experiment.policy][: "swarm" in experiment.arms] + list(experiment.variants.values()):
        _check_merges(policy, experiment.scenario, recipe, sites, ["", *left_out])
    if experiment.ledger_seeds:
        _check_consents(experiment.scenario, training)
    jobs = [Job(seed, name) for seed in range(experiment.seeds) for name in ["", *left_out]]
    return Prepared(experiment, recipe, sites, jobs)


def _check_rows(recipe: Recipe, sites: Sequence[Site]) -> None:
    """Labels are what the recipe's kind says, and inputs are numbers once they are scaled."""
    agreed = recipe.agree([(site.train.x, site.train.y) for site in sites if site.trains])
    for site in sites:
        for what, rows in (("training", site.train), ("test", site.test)):
            where = f"site {site.name}, {what} rows"
            broken = int((~recipe.scaled(rows.x, agreed).isfinite()).flatten(1).any(1).sum())
            if broken:
                raise ConfigError(f"{where}: {broken} of {len(rows)} have inputs that are not finite after scaling")
            if recipe.KIND == "survival":
                good = rows.y.isfinite().all(1) & (rows.y[:, 0] >= 0) & ((rows.y[:, 1] == 0) | (rows.y[:, 1] == 1))
                wanted = "a time of 0 or more, and 1 or 0"
            elif recipe.KIND == "binary":
                good, wanted = (rows.y == 0) | (rows.y == 1), "0 or 1"
            else:
                good, wanted = (rows.y >= 0) & (rows.y == rows.y.round()), "a class, 0 or more"
            if not bool(good.all()):
                found = rows.y[~good][0].tolist()
                raise ConfigError(f"{where}: {int((~good).sum())} labels such as {found} have to be {wanted}")


def _check_merges(
    policy: Policy, scenario: Scenario, recipe: Recipe, sites: Sequence[Site], left_out: Sequence[str]
) -> None:
    """Merge updates that change nothing, as many as there will be: what would fail in the middle fails now."""
    counts: dict[int, str] = {}
    for key, why in NOT_PLAYED.items():
        if getattr(policy, key):
            raise ConfigError(
                f"the policy {policy.name} has {key} = {getattr(policy, key)}: {why}; leave it out here ([policy] and "
                "[arms.NAME] change a policy)"
            )
    for name in left_out:
        training = [site.name for site in sites if site.trains and site.name != name]
        for number in range(policy.rounds):
            there = [
                s for s in training if scenario.late.get(s, 0) <= number < scenario.leaves.get(s, policy.rounds)
            ]  # fmt: skip
            counts[len(there)] = f"in round {number}" + (f" without {name}" if name else "")
    with arms.scratch() as folder:
        part = Part(recipe.new_model(0), policy)
        save_model(part.model, folder / "base", policy=policy)
        part.adopt(Checkpoint(folder / "base"))
        part.correct()
        part.write(folder / "update")
        for count, when in sorted(counts.items()):
            if count < policy.submissions_min:
                raise ConfigError(
                    f"{when} only {count} sites take part, and the policy {policy.name} asks for "
                    f"{policy.submissions_min} (submissions_min)"
                )
            try:
                merge_files(folder / "base", [folder / "update"] * count, [1] * count, policy, folder / "merged")
            except ValueError as error:
                raise ConfigError(f"{when} the policy {policy.name} cannot merge {count} updates: {error}") from error


def _check_consents(scenario: Scenario, training: Sequence[str]) -> None:
    """A run opens on the ledger when a quorum of the members has consented; late sites consent when they come."""
    there = sum(name not in scenario.late for name in training)
    if there < quorum(len(training)):
        raise ConfigError(
            f"[scenario] late: {len(training) - there} of {len(training)} sites come late, and a run opens with the "
            f"consent of {quorum(len(training))}; leave ledger_seeds out, or let fewer be late"
        )


def run(prepared: Prepared, folder: Path, *, resume: bool, tell: Callable[[Job, str], None]) -> list[Done]:
    """Every job's result; each is in `folder` as soon as it is known.

    Args:
        resume: take over the jobs that `folder` has.
        tell: hears of each arm as it begins.
    Raises:
        ConfigError: `folder` has results and `resume` is not given, or they are another experiment's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark, fingerprint = folder / "experiment.sha256", prepared.experiment.fingerprint
    if mark.exists():
        if mark.read_text() != fingerprint:
            raise ConfigError(f"{folder} has results of other settings; take another folder (--out), or delete it")
        if not resume:
            raise ConfigError(f"{folder} has results already; go on with them (--resume), or take another (--out)")
    mark.write_text(fingerprint)
    parts = folder / "jobs"
    parts.mkdir(exist_ok=True)
    done: list[Done] = []
    with one_thread():
        for job in prepared.jobs:
            path = parts / f"{job.name}.json"
            if path.exists():
                document = _read(path)
            else:
                document = _work(prepared, job, partial(tell, job))
                path.with_suffix(".new").write_text(json.dumps(document))
                path.with_suffix(".new").replace(path)
            done.append(Done(job, document["outputs"], document["checkpoints"]))
    return done


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); delete it, and --resume does this job again") from error
    return document


def _work(prepared: Prepared, job: Job, tell: Callable[[str], None]) -> dict[str, Any]:
    experiment, recipe, sites = prepared.experiment, prepared.recipe, prepared.sites
    study = arms.Study(recipe, experiment.policy, experiment.scenario, sites, job.left_out)
    models: dict[str, nn.Module] = {}
    checkpoints: dict[str, str] = {}
    for arm in experiment.all_arms:
        tell(arm)
        if arm == "local":
            models |= {f"local {name}": model for name, model in arms.local(study, job.seed).items()}
        elif arm in ("pooled", "federated"):
            models[arm] = (arms.pooled if arm == "pooled" else arms.federated)(study, job.seed)
        else:
            ledger = arm == "swarm" and job.seed in experiment.ledger_seeds and not job.left_out
            here = study.under(experiment.policy_of(arm))
            trained = ledgered.swarm(here, job.seed) if ledger else arms.swarm(here, job.seed)
            models |= {f"{arm} {name}": model for name, model in trained.at_home.items()}
            models[arm], checkpoints[arm] = trained.model, trained.checkpoint.hex()
    judged = {site.name: rows.x for site, rows in judged_on(sites, job)}
    return {
        "outputs": {
            name: {site: _finite(study.outputs(model, x), name, job) for site, x in judged.items()}
            for name, model in models.items()
        },
        "checkpoints": checkpoints,
    }


def judged_on(sites: Sequence[Site], job: Job) -> Iterator[tuple[Site, Any]]:
    """The rows that a job's models are judged on: everybody's test rows, or all rows of who was left out."""
    for site in sites:
        if not job.left_out:
            yield site, site.test
        elif site.name == job.left_out:
            yield site, together([site.train, site.test])


def _finite(outputs: Tensor, model: str, job: Job) -> list[list[float]]:
    if not bool(outputs.isfinite().all()):
        raise ConfigError(f"{job.name}: the outputs of {model} are not finite: training diverged; lower the rate")
    found: list[list[float]] = outputs.tolist()
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them; one gives the same results everywhere, and is quicker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
