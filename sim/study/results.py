"""What the jobs' outputs say: means, spreads and intervals, for every site, all together, subgroups and strangers.

A mean is over seeds, `deviation` its spread over seeds. The interval holds 95 % of what other test rows would give: the
same models are judged on samples of the test rows with replacement, and the draws are shifted so that their mean is
the estimate (a calibration error is too large in a sample).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np

from sim.study import metrics
from sim.study.metrics import Floats
from sim.study.study import Done, Prepared, judged_on
from swarm.learn.recipes import Rows, together

Draws: TypeAlias = dict[str, Floats]
"""By metric, (seeds, draws)."""
Value: TypeAlias = dict[str, Any]
"""`mean`, `deviation`, `low`, `high`, or `undefined` with the reason."""

ALL = "all test rows"
MEAN = "mean over sites"


class Judge:
    """Judges models on the test rows of one experiment."""

    def __init__(self, prepared: Prepared, done: Sequence[Done]) -> None:
        self.kind = prepared.recipe.KIND
        self._count = prepared.experiment.bootstrap
        self._sites = prepared.sites
        self._done = done
        self.arms = prepared.experiment.all_arms
        self._own = {arm for arm in self.arms if arm == "local" or prepared.experiment.personal(arm)}
        """Arms of which each site has a model of its own."""
        self.main = metrics.MAIN[self.kind]
        self.training = [site.name for site in prepared.sites if site.trains]
        self.rows: dict[str, Rows] = {site.name: site.test for site in prepared.sites}
        self.whole = together(list(self.rows.values()))
        self._calm = [one for one in done if not one.job.left_out]
        self._known: dict[tuple[str, str], Draws] = {}

    def models(self, arm: str) -> list[str]:
        """The names of an arm's models: one, or one of each site that trains."""
        return [f"{arm} {name}" for name in self.training] if arm in self._own else [arm]

    def model_of(self, arm: str, site: str) -> str | None:
        """The model that a site has of an arm; who never trains has what all share, and no local one."""
        if arm in self._own and site in self.training:
            return f"{arm} {site}"
        return None if arm == "local" else arm

    def on_site(self, model: str, site: str) -> Draws:
        """One model on the test rows of one site."""
        if (model, site) not in self._known:
            found = [self._of(one, model, [site]) for one in self._calm]
            self._known[model, site] = self._draws(self.rows[site], found)
        return self._known[model, site]

    def on_all(self, model: str, index: Floats | None = None) -> Draws:
        """One model on all test rows, or on some of them."""
        rows = self.whole if index is None else self.whole.pick(np.flatnonzero(index).tolist())
        found = [self._of(one, model, list(self.rows)) for one in self._calm]
        return self._draws(rows, found if index is None else [outputs[index > 0] for outputs in found])

    def at_home(self, arm: str, site: str) -> Draws | None:
        """An arm's model at a site, if it has one."""
        model = self.model_of(arm, site)
        return None if model is None else self.on_site(model, site)

    def on_stranger(self, site: str) -> dict[str, Draws]:
        """Models that never saw a site, on all of its rows, by name."""
        found = [one for one in self._done if one.job.left_out == site]
        if not found:
            return {}
        ((_, rows),) = judged_on(self._sites, found[0].job)
        return {model: self._draws(rows, [self._of(d, model, [site]) for d in found]) for model in found[0].outputs}

    def curve(self, arm: str, site: str = "") -> list[tuple[float, float, int]]:
        """Calibration on all test rows or at home at a site, the outputs of all seeds and models together."""
        chances, truths = [], []
        y = (self.rows[site] if site else self.whole).y.numpy()
        models = [self.model_of(arm, site)] if site else self.models(arm)
        for one in self._calm:
            for model in filter(None, models):
                p = metrics.probabilities(self.kind, self._of(one, model, [site] if site else list(self.rows)))
                chances.append(p if self.kind == "binary" else p.max(axis=1))
                truths.append(y > 0 if self.kind == "binary" else p.argmax(axis=1) == y)
        return metrics.calibration_curve(np.concatenate(truths), np.concatenate(chances))

    def _of(self, one: Done, model: str, sites: Sequence[str]) -> Floats:
        return np.concatenate([np.asarray(one.outputs[model][site], dtype=np.float64) for site in sites])

    def _draws(self, rows: Rows, outputs: Sequence[Floats]) -> Draws:
        weights = metrics.draws(len(rows), self._count, seed=len(rows))
        found = [metrics.measure(self.kind, rows.y.numpy(), one, weights) for one in outputs]
        return {name: np.stack([one[name] for one in found]) for name in metrics.METRICS[self.kind]}


def mean_of(many: Sequence[Draws]) -> Draws:
    """The mean of several, where they are defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, and stays so
        return {name: np.nanmean([one[name] for one in many], axis=0) for name in many[0]}


def value(draws: Floats, metric: str, kind: str = "", *, bounded: bool = True) -> Value:
    """(seeds, draws), of which the first is the estimate, in a few numbers.

    Args:
        kind: the recipe's, for the reason where there is no number.
        bounded: whether what is measured lies between 0 and 1.
    """
    estimates, others = draws[:, 0], draws[:, 1:].mean(axis=0)
    if not np.isfinite(estimates).all():
        return {"undefined": metrics.why(kind, metric)}
    mean = float(estimates.mean())
    found: Value = {"mean": mean, "deviation": float(estimates.std(ddof=1)) if len(estimates) > 1 else 0.0}
    others = others[np.isfinite(others)]
    if len(others) > draws.shape[1] / 2:
        ends = np.percentile(others, [2.5, 97.5]) + mean - others.mean()
        low, high = (np.clip(ends, 0, 1) if bounded else ends).tolist()
        found |= {"low": low, "high": high}
    return {key: round(number, 6) for key, number in found.items()}


def values(draws: Draws, kind: str = "", *, bounded: bool = True) -> dict[str, Value]:
    """Every metric in a few numbers."""
    return {metric: value(one, metric, kind, bounded=bounded) for metric, one in draws.items()}


def results(prepared: Prepared, done: Sequence[Done]) -> dict[str, Any]:
    """All that `results.json` holds: equal for equal experiments, without times."""
    judge, kind = Judge(prepared, done), prepared.recipe.KIND
    sites, arms = list(judge.rows), judge.arms
    home = {arm: {site: judge.at_home(arm, site) for site in sites} for arm in arms}
    whole = {model: judge.on_all(model) for arm in arms for model in judge.models(arm)}
    overall = {
        arm: {
            ALL: mean_of([whole[model] for model in judge.models(arm)]),
            MEAN: mean_of([one for one in home[arm].values() if one is not None]),
        }
        for arm in arms
    }
    measures = {
        arm: {
            **{scope: values(draws, kind) for scope, draws in overall[arm].items()},
            **{site: values(one, kind) for site, one in home[arm].items() if one is not None},
        }
        for arm in arms
    }
    return {
        "experiment": prepared.experiment.settings,
        "kind": kind,
        "main": judge.main,
        "sites": [_site(site, kind) for site in prepared.sites],
        "measures": measures,
        "alone": {site: values(whole[f"local {site}"], kind) for site in judge.training} if "local" in arms else {},
        "against": _against(overall, judge),
        "matrix": {
            model: {site: value(judge.on_site(model, site)[judge.main], judge.main, kind) for site in sites}
            for arm in arms
            for model in judge.models(arm)
        },
        "gain": _gains(home, judge) if "local" in arms else {},
        "groups": _groups(judge, kind),
        "unseen": {site: _unseen(judge, site, kind) for site in judge.training if judge.on_stranger(site)},
        "calibration": {} if kind == "survival" else {arm: _curves(judge, arm) for arm in arms},
        "checkpoints": {str(one.job.seed): dict(one.checkpoints) for one in done if not one.job.left_out},
        "published": [asdict(one) for one in prepared.experiment.published],
    }


def _against(overall: Mapping[str, Mapping[str, Draws]], judge: Judge) -> dict[str, Any]:
    """By how much each arm is better than FedAvg, seed by seed on the same rows, and with how many seeds it is."""
    if "federated" not in overall:
        return {}
    found: dict[str, Any] = {}
    for arm, scopes in overall.items():
        if arm == "federated":
            continue
        found[arm] = {}
        for scope, draws in scopes.items():
            better = draws[judge.main] - overall["federated"][scope][judge.main]
            above = int((better[:, 0] > 0).sum())
            found[arm][scope] = {
                **value(better, judge.main, judge.kind, bounded=False),
                "above": above,
                "seeds": len(better),
            }
    return found


def _curves(judge: Judge, arm: str) -> dict[str, list[tuple[float, float, int]]]:
    """Calibration on all test rows, and at home at each site that has a model of the arm."""
    sites = judge.training if arm == "local" else list(judge.rows)
    return {ALL: judge.curve(arm), **{site: judge.curve(arm, site) for site in sites}}


def _site(site: Any, kind: str) -> dict[str, Any]:
    def part(rows: Rows) -> dict[str, Any]:
        labels = rows.y[:, 1] if kind == "survival" else rows.y
        classes, counts = np.unique(labels.numpy().astype(int), return_counts=True)
        return {"rows": len(rows), "classes": dict(zip(map(str, classes.tolist()), counts.tolist(), strict=True))}

    return {"name": site.name, "trains": site.trains, "train": part(site.train), "test": part(site.test)}


def _gains(home: Mapping[str, Mapping[str, Draws | None]], judge: Judge) -> dict[str, dict[str, Value]]:
    """By how much each site does better at home than its own model, on the same rows in every draw."""
    found: dict[str, dict[str, Value]] = {}
    for arm in judge.arms:
        if arm == "local":
            continue
        found[arm] = {}
        for site in judge.training:
            mine, other = home["local"][site], home[arm][site]
            assert mine is not None
            assert other is not None
            found[arm][site] = value(other[judge.main] - mine[judge.main], judge.main, judge.kind, bounded=False)
    return found


def _groups(judge: Judge, kind: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for column, members in judge.whole.groups.items():
        for group in sorted(set(members)):
            index = np.array([1.0 if member == group else 0.0 for member in members])
            arms = {arm: mean_of([judge.on_all(m, index) for m in judge.models(arm)]) for arm in judge.arms}
            found[f"{column}: {group}"] = {
                "rows": int(index.sum()),
                "arms": {arm: values(one, kind) for arm, one in arms.items()},
            }
    return found


def _unseen(judge: Judge, site: str, kind: str) -> dict[str, Any]:
    """How models that never saw a site do there, and how the local ones of the other sites do."""
    found = judge.on_stranger(site)
    shown = {arm: values(found[arm], kind) for arm in judge.arms if arm != "local"}
    alone = {name: draws for name, draws in found.items() if name.startswith("local ")}
    if alone:
        shown["local"] = values(mean_of(list(alone.values())), kind)
    return {
        "rows": len(together([rows for one, rows in _both(judge, site)])),
        "arms": shown,
        "models": {name: value(draws[judge.main], judge.main, kind) for name, draws in alone.items()},
    }


def _both(judge: Judge, site: str) -> list[tuple[str, Rows]]:
    return [(one.name, rows) for one in judge._sites if one.name == site for rows in (one.train, one.test)]
