"""How good outputs are, for many weightings of the rows at once: one is the rows as they are, others a bootstrap.

Everything takes `weights`, (draws, rows): how often each row counts in each draw. What is not defined, such as an area
under the curve with one class, is NaN here; `why` says it in words. `tests/sim/test_study_metrics.py` holds all of it
against scikit-learn, which would take minutes for a bootstrap that this does in a second.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

METRICS = {
    "binary": ("auc", "accuracy", "f1", "sensitivity", "specificity", "ece"),
    "classes": ("auc", "accuracy", "f1", "sensitivity", "specificity", "ece"),
    "survival": ("c_index",),
}
"""For more than two classes AUC, F1, sensitivity and specificity are means over the classes, each against the rest."""
MAIN = {"binary": "auc", "classes": "accuracy", "survival": "c_index"}
"""What a single number stands for in a matrix."""
BINS = 10


def draws(rows: int, count: int, seed: int) -> Floats:
    """(1 + count, rows): the rows as they are, then so many samples of them with replacement."""
    chance = np.random.default_rng(seed)
    sampled = chance.multinomial(rows, np.full(rows, 1 / rows), size=count)
    return np.concatenate([np.ones((1, rows)), sampled.astype(np.float64)])


def probabilities(kind: str, outputs: Floats) -> Floats:
    """(rows, classes) of logits; for two classes (rows,) of class 1; log risks stay as they are."""
    if kind == "binary":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * outputs[:, 0])))
    if kind == "survival":
        return outputs[:, 0]
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def measure(kind: str, y: NDArray[Any], outputs: Floats, weights: Floats) -> dict[str, Floats]:
    """Each of the kind's metrics, (draws,).

    Args:
        y: as in the recipe.
        outputs: (rows, outputs) of the model.
    """
    p = probabilities(kind, outputs)
    if kind == "survival":
        return {"c_index": c_index(y[:, 0], y[:, 1] > 0, p, weights)}
    if kind == "binary":
        return _binary(y > 0, p, weights)
    labels = np.arange(p.shape[1])
    is_of, called = y[:, None] == labels, p.argmax(axis=1)[:, None] == labels
    right = (is_of & called).any(axis=1)
    # How many rows of each class there are, are called so, and are so rightly: (draws, classes) each.
    true, said, both = np.split(weights @ np.hstack([is_of, called, is_of & called]).astype(np.float64), 3, axis=1)
    others = weights.sum(axis=1, keepdims=True) - true
    with np.errstate(invalid="ignore", divide="ignore"):
        areas = np.stack([area(is_of[:, label], p[:, label], weights) for label in labels])
        return {
            "auc": areas.mean(axis=0),
            "accuracy": _share(right, np.ones_like(right), weights),
            "f1": (2 * both / (true + said)).mean(axis=1),
            "sensitivity": (both / true).mean(axis=1),
            "specificity": ((others - said + both) / others).mean(axis=1),
            "ece": calibration_error(right, p.max(axis=1), weights),
        }


def why(kind: str, metric: str) -> str:
    """Why a metric is not defined where it is not."""
    if kind == "classes" and metric in ("sensitivity", "specificity"):
        return "a class has no test row" if metric == "sensitivity" else "all test rows are of one class"
    return {
        "auc": "a class has no test row",
        "f1": "a class has no test row and is never called",
        "sensitivity": "no test row is of class 1",
        "specificity": "no test row is of class 0",
        "c_index": "no two test rows can be compared",
    }.get(metric, "there are no test rows")


def _binary(ill: NDArray[np.bool_], p: Floats, weights: Floats) -> dict[str, Floats]:
    called = p > 0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "auc": area(ill, p, weights),
            "accuracy": _share(called == ill, np.ones_like(ill), weights),
            "f1": _f1(ill, called, weights),
            "sensitivity": _share(called & ill, ill, weights),
            "specificity": _share(~called & ~ill, ~ill, weights),
            "ece": calibration_error(ill, p, weights),
        }


def _share(some: NDArray[np.bool_], of: NDArray[np.bool_], weights: Floats) -> Floats:
    return np.asarray((weights @ some) / (weights @ of))


def _f1(true: NDArray[np.bool_], called: NDArray[np.bool_], weights: Floats) -> Floats:
    return np.asarray(2 * (weights @ (true & called)) / (weights @ true + weights @ called))


def area(true: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Area under the curve: how often a true row stands above another, a tie counting half."""
    others = np.flatnonzero(~true)
    others = others[np.argsort(scores[others], kind="stable")]
    passed = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights[:, others], axis=1)], axis=1)
    beaten = sum(passed[:, np.searchsorted(scores[others], scores[true], side)] for side in ("left", "right"))
    above = weights[:, true]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((above * beaten).sum(axis=1) / (2 * above.sum(axis=1) * passed[:, -1]))


def c_index(times: Floats, seen: NDArray[np.bool_], risks: Floats, weights: Floats) -> Floats:
    """How often, of two whose order is known, the one with the greater risk goes first; a tie counts half.

    Source: Harrell et al., Evaluating the yield of medical tests, JAMA 1982.
    """
    comparable = seen[:, None] & (times[:, None] < times[None, :])
    right = (risks[:, None] > risks[None, :]) + 0.5 * (risks[:, None] == risks[None, :])
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = ((weights @ comparable.astype(np.float64)) * weights).sum(axis=1)
        return np.asarray(((weights @ (comparable * right)) * weights).sum(axis=1) / whole)


def calibration_error(true: NDArray[np.bool_], p: Floats, weights: Floats) -> Floats:
    """Expected calibration error in ten bins of equal width.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, eq. 3.
    """
    bins = bin_of(p)
    gap = np.zeros(len(weights))
    for number in range(BINS):
        gap += abs(weights[:, bins == number] @ (true[bins == number] - p[bins == number]))
    return np.asarray(gap / weights.sum(axis=1))


def bin_of(p: Floats) -> NDArray[np.int64]:
    """(rows,) which of the bins a probability falls into."""
    return np.minimum((p * BINS).astype(np.int64), BINS - 1)


def calibration_curve(true: NDArray[np.bool_], p: Floats) -> list[tuple[float, float, int]]:
    """For each bin that has rows: the mean probability, the share that is true, and how many rows."""
    bins = bin_of(p)
    filled = [bins == number for number in range(BINS) if (bins == number).any()]
    return [(float(p[one].mean()), float(true[one].mean()), int(one.sum())) for one in filled]
