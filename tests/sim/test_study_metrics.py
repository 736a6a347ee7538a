"""The comparison's numbers are scikit-learn's, also where rows count several times or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from sim.study.metrics import area, c_index, calibration_curve, calibration_error, draws, measure, probabilities
from sim.study.results import value


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_are_judged_as_scikit_learn_does(seed: int) -> None:
    chance = np.random.default_rng(seed)
    y = (chance.random(60) < 0.4).astype(np.float32)
    outputs = np.round(chance.normal(size=(60, 1)) + y[:, None], 1)  # rounded: ties occur
    weights = draws(60, 20, 100 + seed)
    found = measure("binary", y, outputs, weights)
    p = probabilities("binary", outputs)
    for draw, weight in enumerate(weights):
        called = p > 0.5
        expected = {
            "auc": roc_auc_score(y, p, sample_weight=weight),
            "accuracy": accuracy_score(y, called, sample_weight=weight),
            "f1": f1_score(y, called, sample_weight=weight),
            "sensitivity": recall_score(y, called, sample_weight=weight),
            "specificity": recall_score(y, called, pos_label=0, sample_weight=weight),
        }
        for metric, wanted in expected.items():
            assert found[metric][draw] == pytest.approx(wanted), (seed, draw, metric)


@pytest.mark.parametrize("seed", range(5))
def test_more_classes_are_judged_as_scikit_learn_does(seed: int) -> None:
    chance = np.random.default_rng(seed)
    y = chance.integers(0, 4, 80)
    outputs = chance.normal(size=(80, 4)) + np.eye(4)[y]
    weights = draws(80, 10, 100 + seed)
    found = measure("classes", y, outputs, weights)
    p = probabilities("classes", outputs)
    for draw, weight in enumerate(weights):
        wanted = roc_auc_score(y, p, multi_class="ovr", sample_weight=weight)
        assert found["auc"][draw] == pytest.approx(wanted)
        called = p.argmax(1)
        assert found["f1"][draw] == pytest.approx(f1_score(y, called, average="macro", sample_weight=weight))
        recall = recall_score(y, called, average="macro", sample_weight=weight)
        assert found["sensitivity"][draw] == pytest.approx(recall)
        spared = [recall_score(y != label, called != label, sample_weight=weight) for label in range(4)]
        assert found["specificity"][draw] == pytest.approx(np.mean(spared))


def test_who_is_at_greater_risk_goes_first() -> None:
    times, seen = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, True, False, True])
    once = np.ones((1, 4))
    assert c_index(times, seen, np.array([4.0, 3.0, 2.0, 1.0]), once)[0] == 1.0
    assert c_index(times, seen, np.array([1.0, 2.0, 3.0, 4.0]), once)[0] == 0.0
    # Of the five pairs whose order is known, (2, 4) is told wrongly and (2, 3) is a tie.
    assert c_index(times, seen, np.array([9.0, 2.0, 2.0, 5.0]), once)[0] == pytest.approx(3.5 / 5)


def test_a_calibration_error_is_how_far_words_and_deeds_are_apart() -> None:
    p, true = np.array([0.05, 0.05, 0.85, 0.85]), np.array([False, True, True, True])
    # Two bins of two rows: |0.05 - 0.5| and |0.85 - 1|.
    assert calibration_error(true, p, np.ones((1, 4)))[0] == pytest.approx((0.45 + 0.15) / 2)
    assert calibration_curve(true, p) == [(0.05, 0.5, 2), (0.85, 1.0, 2)]


def test_a_metric_that_one_class_does_not_have_is_said_to_be_undefined() -> None:
    found = measure("binary", np.ones(5), np.linspace(-1, 1, 5)[:, None], draws(5, 100, 0))
    assert value(found["auc"][None], "auc") == {"undefined": "a class has no test row"}
    assert value(found["specificity"][None], "specificity") == {"undefined": "no test row is of class 0"}
    assert "mean" in value(found["accuracy"][None], "accuracy")


def test_an_interval_holds_its_estimate_and_narrows_with_more_rows() -> None:
    widths = []
    for rows in (50, 5000):
        chance = np.random.default_rng(rows)
        y = chance.random(rows) < 0.5
        found = value(area(y, chance.normal(size=rows) + y, draws(rows, 400, 0))[None], "auc")
        assert found["low"] < found["mean"] < found["high"]
        widths.append(found["high"] - found["low"])
    assert widths[1] < widths[0] / 5
