"""The heart example's reference: metrics agree with scikit-learn, baselines with the published numbers."""

from __future__ import annotations

import pytest
import torch
from data import HOSPITALS, Scaling, load
from evaluate import Result, fedavg, judged, pooled, summed, table
from model import auc, describe, new_model, score
from sklearn.metrics import roc_auc_score
from train import order_of


@pytest.mark.parametrize("seed", range(20))
def test_auc_is_scikit_learns_with_ties_too(seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    y = (torch.rand(40, generator=chance) < 0.4).float()
    logits = torch.randint(0, 10, (40,), generator=chance).float()
    assert auc(logits, y) == pytest.approx(roc_auc_score(y, logits)), f"seed {seed}"


def test_a_test_set_of_one_class_has_no_auc_and_says_so() -> None:
    scores = score(new_model(0), torch.zeros(3, 13), torch.ones(3))
    assert "auc" not in scores
    assert describe(scores).startswith("no AUC (only one class)")
    row = Result("one class", dict.fromkeys(HOSPITALS, scores), scores)
    assert "| – / " in table([row])
    assert "nan" not in table([row])


def test_fedavg_with_shared_scaling_reaches_the_published_auc() -> None:
    # README.md: 0.880 ± 0.002 over ten seeds, on all test rows together; accuracy 0.791 ± 0.007.
    hospitals = [load(name) for name in HOSPITALS]
    shared = dict.fromkeys(HOSPITALS, Scaling.of(summed(hospitals)))
    row = judged("FedAvg", fedavg(hospitals, shared, 0), hospitals, shared)
    assert row.everywhere["auc"] == pytest.approx(0.880, abs=0.006)
    assert row.everywhere["accuracy"] == pytest.approx(0.795, abs=0.02)


@pytest.mark.slow
def test_pooled_with_shared_scaling_reaches_the_published_auc() -> None:
    hospitals = [load(name) for name in HOSPITALS]
    shared = dict.fromkeys(HOSPITALS, Scaling.of(summed(hospitals)))
    row = judged("pooled", pooled(hospitals, shared, 0), hospitals, shared)
    assert row.everywhere["auc"] == pytest.approx(0.881, abs=0.003)


def test_every_hospital_and_round_of_a_seed_has_its_own_order() -> None:
    orders = {order_of(seed, name, number) for seed in range(5) for name in HOSPITALS for number in range(50)}
    assert len(orders) == 5 * 4 * 50
