"""The tuberculosis example's samples: six cohorts, their split and folds, one scaling for all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from nodes.tb.data import COHORTS, FOLDER, GENES, Scaling, checked, load, sums_of
from nodes.tb.model import new_model


@pytest.mark.parametrize(
    ("name", "samples", "active"),
    [
        ("india_south", 44, 28),
        ("uganda", 33, 17),
        ("uk_london", 54, 21),
        ("south_africa", 47, 16),
        ("brazil_pbmc", 51, 14),
        ("brazil_blood", 36, 8),
    ],
)
def test_a_cohort_has_its_samples_in_a_split_and_in_five_folds(name: str, samples: int, active: int) -> None:
    cohort = load(name)
    assert len(cohort.train) + len(cohort.test) == samples
    assert int(cohort.train.y.sum() + cohort.test.y.sum()) == active
    assert 0.3 < len(cohort.test) / samples < 0.4
    assert sum(len(load(name, fold=fold).test) for fold in range(5)) == samples
    assert cohort.train.x.shape[1] == GENES == len(checked(FOLDER / "genes.txt").read_text().split())


def test_counts_per_million_count_all_genes() -> None:
    # The genes that were kept hold most of a sample's counts, and no sample has more than a million per million.
    for name in COHORTS:
        share = (2 ** load(name).train.x - 1).sum(1) / 1e6
        assert (share < 1).all()
        assert (share > 0.6).all()


def test_the_sites_sums_give_the_scaling_of_all_samples_in_one_place() -> None:
    parts = [load(name).train.x for name in COHORTS]
    sums = [sums_of(x) for x in parts]
    scaling = Scaling.of({name: torch.stack([one[name] for one in sums]).sum(0) for name in sums[0]})
    rows = torch.cat(parts)
    torch.testing.assert_close(scaling.mean, rows.mean(0))
    torch.testing.assert_close(scaling.deviation, rows.std(0), rtol=1e-8, atol=1e-10)
    assert scaling(rows).shape == (len(rows), new_model(0)[0].in_features)


def test_an_altered_file_is_named_with_the_sha256_it_should_have(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "data")
    (folder / "uganda.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"uganda\.npz was altered"):
        load("uganda", folder)
    load("uk_london", folder)  # the others' files are not looked at


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="there are india_south, uganda"):
        load("leicester")
    with pytest.raises(ValueError, match="there are 0 to 4"):
        load("uganda", fold=5)
