"""The recipes of `nodes/`: the rows that their READMEs state, files that are missing or altered, a step of training."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nodes.tcga_brca.model import cox_loss, score
from nodes.wisdm import model as wisdm
from nodes.wisdm.data import Scaling, sums_of
from swarm.config import load_policy
from swarm.learn import save_model
from tests.nodes.recipes import EXAMPLES, recipe_of

NAMES = ("diabetes", "leukemia", "qsar", "stroke", "tcga_brca", "wisdm")

# By site: training rows, those of class 1 (deaths for survival, None for many classes), test rows, the same.
SIZES: dict[str, dict[str, tuple[int, int | None, int, int | None]]] = {
    "diabetes": {
        "not_recorded": (23557, 2177, 10097, 933),
        "internal_medicine": (7448, 727, 3193, 312),
        "other": (6937, 574, 2974, 246),
        "family": (3484, 339, 1494, 146),
        "emergency": (3075, 241, 1318, 103),
        "cardiology": (2945, 212, 1263, 91),
        "surgery": (1543, 129, 662, 55),
    },
    "leukemia": {"node1": (13, 4, 12, 5), "node2": (13, 4, 12, 5), "node3": (12, 3, 10, 4)},
    "qsar": {
        "partner1": (298, 94, 123, 36),
        "partner2": (116, 9, 51, 4),
        "partner3": (561, 17, 243, 11),
        "partner4": (204, 19, 91, 9),
    },
    "stroke": {
        "uk": (4376, 3466, 1876, 1486),
        "italy": (2405, 1379, 1032, 592),
        "switzerland": (1141, 764, 490, 328),
        "poland": (528, 282, 227, 121),
        "netherlands": (499, 269, 214, 116),
        "sweden": (441, 184, 189, 79),
        "australia": (415, 233, 179, 101),
        "norway": (368, 222, 158, 95),
        "argentina": (363, 173, 156, 74),
        "spain": (324, 149, 139, 64),
        "others": (2635, 1363, 1130, 585),
    },
    "tcga_brca": {
        "northeast": (248, 45, 63, 14),
        "south": (156, 35, 40, 4),
        "west": (164, 14, 42, 8),
        "midwest": (129, 16, 33, 3),
        "europe": (129, 7, 33, 2),
        "canada": (40, 2, 11, 1),
    },
    "wisdm": {
        "clinic1": (705, None, 305, None),
        "clinic2": (757, None, 329, None),
        "clinic3": (573, None, 249, None),
        "clinic4": (518, None, 225, None),
        "clinic5": (595, None, 257, None),
        "clinic6": (631, None, 274, None),
    },
}


@pytest.mark.parametrize("name", [pytest.param("diabetes", marks=pytest.mark.slow), *NAMES[1:]])
def test_a_recipe_has_the_stated_rows_and_learns_in_a_step(name: str) -> None:
    recipe = recipe_of(name)
    sites = recipe.load()

    def ones(y: torch.Tensor) -> int | None:
        return None if recipe.KIND == "classes" else int((y[:, 1] if recipe.KIND == "survival" else y).sum())

    found = {
        site: (len(train[1]), ones(train[1]), len(test[1]), ones(test[1]))
        for site, (train, test) in ((site, (parts["train"], parts["test"])) for site, parts in sites.items())
    }
    assert found == SIZES[name]

    agreed = recipe.agree([parts["train"][:2] for parts in sites.values()])
    x, y, _ = next(iter(sites.values()))["train"]
    x = recipe.scaled(x, agreed)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    model = recipe.new_model(0)
    optimizer = recipe.new_optimizer(model)
    before = recipe.loss(model, x, y, agreed)
    for _ in range(5):
        optimizer.zero_grad()
        recipe.loss(model, x, y, agreed).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert recipe.loss(model.eval(), x, y, agreed) < before


FILES = [
    ("diabetes", "dataset_diabetes.zip"),
    ("diabetes", "split.csv.gz"),
    ("leukemia", "samples.csv"),
    ("qsar", "qsar_androgen_receptor.csv.gz"),
    ("qsar", "split.csv"),
    ("stroke", "ist.csv.gz"),
    ("stroke", "split.csv.gz"),
    ("tcga_brca", "brca.csv"),
    ("tcga_brca", "train_test_split.csv"),
    ("wisdm", "WISDM_ar_v1.1_transformed.arff"),
]


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_file_that_is_missing_or_altered_is_named_with_the_sha256_it_should_have(
    name: str, file: str, tmp_path: Path
) -> None:
    data: Any = importlib.import_module(f"nodes.{name}.data")
    site, expected = next(iter(SIZES[name])), data.SHA256[file]
    for other in data.SHA256:
        if other != file and (data.FOLDER / other).exists():
            shutil.copyfile(data.FOLDER / other, tmp_path / other)
    with pytest.raises(ValueError, match=rf"{re.escape(file)} is missing \(sha256 {expected}"):
        data.load(site, folder=tmp_path)
    (tmp_path / file).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=rf"{re.escape(file)} was altered.*{expected}"):
        data.load(site, folder=tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_site_is_refused_with_the_known_ones(name: str) -> None:
    data: Any = importlib.import_module(f"nodes.{name}.data")
    with pytest.raises(ValueError, match=f"there are {', '.join(SIZES[name])}"):
        data.load("atlantis")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_policy_of_an_example_can_work(path: Path) -> None:
    if not path.stem.startswith("compare"):
        assert load_policy(path).name == {"heart-blind": "heart", "private": f"{path.parent.name}-private"}.get(
            path.stem, path.stem
        )


def test_a_clinics_head_is_not_in_what_a_personal_run_starts_from(tmp_path: Path) -> None:
    for run in ("wisdm", "wisdm-personal"):
        save_model(wisdm.new_model(0), tmp_path / run, policy=EXAMPLES / "wisdm" / f"{run}.toml")
    shared = {run: set(load_file(tmp_path / run)) for run in ("wisdm", "wisdm-personal")}
    assert {"head.weight", "body.0.weight"} < shared["wisdm"]
    assert "body.0.weight" in shared["wisdm-personal"]
    assert not any("head" in key for key in shared["wisdm-personal"])


def test_what_is_unknown_is_scaled_to_the_mean_of_what_all_sites_know() -> None:
    nan = float("nan")
    parts = [torch.tensor([[1.0, nan], [3.0, 10.0]]).double(), torch.tensor([[5.0, 30.0], [7.0, nan]]).double()]
    sums = [sums_of(x) for x in parts]
    scaling = Scaling.of({key: sums[0][key] + sums[1][key] for key in sums[0]})
    assert scaling.mean.tolist() == [4.0, 20.0]
    known = [torch.tensor([1.0, 3.0, 5.0, 7.0]).double().std(), torch.tensor([10.0, 30.0]).double().std()]
    torch.testing.assert_close(scaling.deviation, torch.stack(known))
    assert scaling(parts[0])[0, 1] == 0


def test_coxs_loss_is_the_partial_likelihood_of_a_case_by_hand() -> None:
    # Three patients: days 1 (died), 2 (censored), 3 (died). The first is compared with all, the last with itself.
    risks = torch.tensor([0.5, -1.0, 2.0])
    y = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])
    expected = (torch.logsumexp(risks, 0) - 0.5) / 3
    torch.testing.assert_close(cox_loss(risks, y), expected)
    assert cox_loss(risks, y * torch.tensor([1.0, 0.0])) == 0


def test_who_dies_first_with_the_greater_risk_is_concordant() -> None:
    model = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(model.weight)
    y = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])
    assert score(model, torch.tensor([[3.0], [2.0], [1.0]]), y) == {"c_index": 1.0}
    assert score(model, torch.tensor([[2.0], [3.0], [1.0]]), y) == {"c_index": 0.5}
    assert score(model, torch.tensor([[1.0]]), y[:1]) == {}
