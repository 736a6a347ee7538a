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
from sim.study.experiment import Experiment
from sim.study.scenario import placed
from swarm.errors import ConfigError
from swarm.learn import save_model
from swarm.learn.part import Part
from swarm.learn.recipes import Recipe, Site, load_recipe, sites_of, together
from swarm.learn.state import Checkpoint
from swarm.merge import merge_files

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
    checkpoint: str
    """The swarm's last, in hex; empty where the swarm is not among the arms."""


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
    training = [site.name for site in sites if site.trains]
    left_out = training if experiment.leave_one_out and len(training) > 2 else []
    if "swarm" in experiment.arms:
        _check_merges(experiment, recipe, sites, ["", *left_out])
    jobs = [Job(seed, name) for seed in range(experiment.seeds) for name in ["", *left_out]]
    return Prepared(experiment, recipe, sites, jobs)


def _check_merges(experiment: Experiment, recipe: Recipe, sites: Sequence[Site], left_out: Sequence[str]) -> None:
    """Merge updates that change nothing, as many as there will be: what would fail in the middle fails now."""
    policy, scenario, counts = experiment.policy, experiment.scenario, {}
    for key in ("sync_interval_max", "patience", "work_s"):
        if getattr(policy, key):
            raise ConfigError(
                f"the policy {policy.name} has {key} = {getattr(policy, key)}: then sites train for unlike lengths of "
                "time, and the arms could not be compared; leave it out here"
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
            done.append(Done(job, document["outputs"], document["checkpoint"]))
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
    at_home: Mapping[str, nn.Module] = {}
    checkpoint = ""
    for arm in experiment.arms:
        tell(arm)
        if arm == "local":
            models |= {f"local {name}": model for name, model in arms.local(study, job.seed).items()}
        elif arm == "swarm":
            ledger = job.seed in experiment.ledger_seeds and not job.left_out
            trained = ledgered.swarm(study, job.seed) if ledger else arms.swarm(study, job.seed)
            models[arm], checkpoint, at_home = trained.model, trained.checkpoint.hex(), trained.at_home
        else:
            models[arm] = (arms.pooled if arm == "pooled" else arms.federated)(study, job.seed)
    judged = {site.name: rows.x for site, rows in judged_on(sites, job)}
    return {
        "outputs": {
            model: {
                name: _finite(study.outputs(at_home.get(name, one) if model == "swarm" else one, x), model, job)
                for name, x in judged.items()
            }
            for model, one in models.items()
        },
        "checkpoint": checkpoint,
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
