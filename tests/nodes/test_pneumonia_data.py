"""The pneumonia example's images: the published file, the placements, the balance that is agreed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from nodes.pneumonia.data import (
    CLINICS,
    DEVIATION,
    FOLDER,
    MEAN,
    PLACEMENTS,
    balance_of,
    counts_of,
    load,
    part,
)
from nodes.pneumonia.model import new_model, score


@pytest.mark.parametrize(
    ("clinic", "images", "share"),
    list(zip(CLINICS, (1628, 814, 213, 2053), (0.73, 0.11, 0.98, 0.98), strict=True)),
)
def test_a_clinic_has_the_images_of_the_placement(clinic: str, images: int, share: float) -> None:
    found = load(clinic)
    assert len(found) == images
    assert found.x.shape == (images, 1, 28, 28)
    assert float(found.y.mean()) == pytest.approx(share, abs=0.006)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_training_image_is_at_one_clinic(placement: str) -> None:
    assert sum(len(load(clinic, placement)) for clinic in CLINICS) == 4708


def test_the_published_parts_are_there_and_on_the_models_scale() -> None:
    train = part("train")
    assert [len(part(name)) for name in ("train", "val", "test")] == [4708, 524, 624]
    assert int(train.y.sum()) == 3494
    assert float(train.x.mean()) == pytest.approx(0, abs=0.01)
    assert float(train.x.std()) == pytest.approx(1, abs=0.01)
    assert float(train.x.min()) >= -MEAN / DEVIATION - 1e-5


def test_the_clinics_counts_give_the_balance_of_all_images() -> None:
    counts = [counts_of(load(clinic)) for clinic in CLINICS]
    added = {name: torch.stack([one[name] for one in counts]).sum(0) for name in counts[0]}
    assert float(balance_of(added)) == pytest.approx(1214 / 3494)


def test_an_altered_file_is_named_with_the_sha256_it_should_have(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "data")
    (folder / "pneumoniamnist.npz").write_bytes((folder / "pneumoniamnist.npz").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"pneumoniamnist\.npz was altered.*e1792d3f03751cb1"):
        part("test", folder)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="there are clinic1, clinic2, clinic3, clinic4"):
        load("clinic5")
    with pytest.raises(ValueError, match="there are iid4, prevalence_skew4, dirichlet05_4"):
        load("clinic1", "random")


def test_a_models_scores_are_in_their_bounds_and_sum_up() -> None:
    test = part("test")
    found = score(new_model(0), test.x, test.y)
    ill = float(test.y.mean())
    assert found["accuracy"] == pytest.approx(ill * found["sensitivity"] + (1 - ill) * found["specificity"])
    assert sum(parameter.numel() for parameter in new_model(0).parameters()) == 26_529
