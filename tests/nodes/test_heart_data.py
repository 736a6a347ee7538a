"""The heart example's data: the published files, FLamby's split, one scaling for all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from data import FEATURES, FOLDER, HOSPITALS, Scaling, load, sums_of
from evaluate import summed


@pytest.mark.parametrize(
    ("name", "train", "train_sick", "test", "test_sick"),
    [
        ("cleveland", 199, 91, 104, 48),
        ("hungarian", 172, 65, 89, 33),
        ("switzerland", 30, 30, 16, 15),
        ("va", 85, 66, 45, 35),
    ],
)
def test_a_hospital_has_the_patients_of_flambys_split(
    name: str, train: int, train_sick: int, test: int, test_sick: int
) -> None:
    hospital = load(name)
    assert (len(hospital.train), int(hospital.train.y.sum())) == (train, train_sick)
    assert (len(hospital.test), int(hospital.test.y.sum())) == (test, test_sick)
    assert hospital.train.x.shape == (train, len(FEATURES))


def test_the_first_patient_of_cleveland_reads_as_the_file_says() -> None:
    # 63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,... : chest pain type 1, restecg 2
    first = dict(zip(FEATURES, load("cleveland").train.x[0].tolist(), strict=True))
    assert first == {
        "age": 63, "sex": 1, "trestbps": 145, "chol": 233, "fbs": 1, "thalach": 150, "exang": 0, "oldpeak": 2.3,
        "cp=2": 0, "cp=3": 0, "cp=4": 0, "restecg=1": 0, "restecg=2": 1,
    }  # fmt: skip


def test_the_sites_sums_give_the_scaling_of_all_rows_in_one_place() -> None:
    hospitals = [load(name) for name in HOSPITALS]
    shared = Scaling.of(summed(hospitals))
    rows = torch.cat([hospital.train.x for hospital in hospitals])
    torch.testing.assert_close(shared.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shared.deviation, rows.std(0), rtol=1e-9, atol=1e-12)
    scaled = shared(rows)
    torch.testing.assert_close(scaled.std(0), torch.ones(13), rtol=1e-5, atol=1e-5)


def test_a_column_without_spread_keeps_its_unit() -> None:
    # Every patient of Zurich and Basel has cholesterol 0 in the file: unknown, but written so.
    switzerland = load("switzerland").train.x
    scaling = Scaling.of(sums_of(switzerland))
    chol = FEATURES.index("chol")
    assert float(switzerland[:, chol].std()) == 0
    assert float(scaling.deviation[chol]) == 1
    constant = torch.full((7, 1), 0.1, dtype=torch.float64)
    assert float(Scaling.of(sums_of(constant)).deviation) == 1


def test_an_altered_file_is_named_with_the_sha256_it_should_have(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "data")
    path = folder / "processed.va.data"
    path.write_text(path.read_text().replace("63,1,4,140", "64,1,4,140", 1))
    with pytest.raises(ValueError, match=r"processed\.va\.data was altered.*e7c93d8d0d2acdad"):
        load("va", folder)
    load("cleveland", folder)  # the others' files are not looked at


def test_a_missing_file_is_named_with_its_sha256(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"processed\.va\.data is missing \(sha256 e7c93d8d0d2acdad"):
        load("va", tmp_path)


def test_an_unknown_hospital_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="there are cleveland, hungarian, switzerland, va"):
        load("boston")
