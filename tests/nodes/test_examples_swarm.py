"""The examples as sites run them: real nodes, `train.py` as it is, short runs. Heart has a file of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nodes.diabetes.data import SPECIALTIES
from nodes.leukemia.data import NODES
from nodes.pneumonia.data import CLINICS
from nodes.qsar.data import PARTNERS
from nodes.stroke.data import COUNTRIES
from nodes.tb.data import COHORTS
from nodes.tcga_brca.data import REGIONS
from nodes.wisdm.data import CLINICS as PHONES
from tests.learn.runs import Operators
from tests.node.hospitals import Hospitals
from tests.nodes.recipes import need_data

EXAMPLES = Path(__file__).parents[2] / "nodes"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def trained(
    tmp_path: Path, example: str, sites: Sequence[str], runs: Sequence[str], *, rounds: int, more: Sequence[str] = ()
) -> dict[str, str]:
    """What every site's `train.py` printed; its model is in `NAME.final`.

    Args:
        rounds: of the run that trains, in place of what its policy says.
        more: arguments for every `train.py`.
    """
    folder = EXAMPLES / example
    with Hospitals(tmp_path, list(sites)) as hospitals:
        for name in sites:
            hospitals.start(name)
        hospitals.ask(sites[0], "swarm_status")
        operators = Operators(hospitals)
        for run in runs:
            genesis, policy = tmp_path / f"{run}.safetensors", tmp_path / f"{run}.toml"
            command = [sys.executable, str(folder / "train.py"), "--genesis", str(genesis)]
            command += ["--run", run] if len(runs) > 1 else []
            subprocess.run(command, check=True, env=ENVIRONMENT, timeout=120)
            text = (folder / f"{run}.toml").read_text()
            text = re.sub(r"(?m)^rounds = (\d\d)$", f"rounds = {rounds}", text)
            text = re.sub(r"(?m)^submissions_min = .*$", f"submissions_min = {len(sites)}", text)
            policy.write_text(re.sub(r"(?m)^(submit|merge|attest)_s = .*$", r"\1_s = 60.0", text))
            operators.propose(policy, genesis, list(sites))
        training = {}
        for name in sites:
            command = [sys.executable, str(folder / "train.py"), str(hospitals.sites[name]), *more]
            command += ["--out", str(tmp_path / f"{name}.final")]
            training[name] = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
            )
        told = {name: process.communicate(timeout=400)[0] for name, process in training.items()}
    assert {process.returncode for process in training.values()} == {0}, told
    assert len({told[name].splitlines()[-1].removeprefix(f"{name}: ") for name in sites}) == 1, told
    assert all(f"round {rounds}: " in text for text in told.values()), told
    return told


def test_two_regions_train_a_survival_model(tmp_path: Path) -> None:
    sites = REGIONS[:2]
    told = trained(tmp_path, "tcga_brca", sites, ["tcga_brca"], rounds=2)
    assert told["south"].startswith("south: 156 patients, 35 deaths\n")
    assert len({(tmp_path / f"{name}.final").read_bytes() for name in sites}) == 1
    assert (tmp_path / "south.final").read_bytes() != (tmp_path / "tcga_brca.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "sites", "runs"),
    [
        ("tb", COHORTS, ("tb-scaling", "tb")),
        ("pneumonia", CLINICS, ("pneumonia-counts", "pneumonia")),
        ("tcga_brca", REGIONS, ("tcga_brca",)),
        ("wisdm", PHONES, ("wisdm-scaling", "wisdm")),
        ("leukemia", NODES, ("leukemia",)),
        ("qsar", PARTNERS, ("qsar",)),
        ("stroke", tuple(COUNTRIES)[:4], ("stroke-scaling", "stroke")),
        ("diabetes", tuple(SPECIALTIES)[1:5], ("diabetes-scaling", "diabetes")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_site_ends_with_one_checkpoint(
    tmp_path: Path, example: str, sites: tuple[str, ...], runs: tuple[str, ...]
) -> None:
    need_data(example)
    trained(tmp_path, example, sites, runs, rounds=3)
    assert len({(tmp_path / f"{name}.final").read_bytes() for name in sites}) == 1
    if (EXAMPLES / example / "evaluate.py").exists():
        command = [sys.executable, str(EXAMPLES / example / "evaluate.py")]
        command += ["--checkpoint", str(tmp_path / f"{sites[0]}.final")]
        shown = subprocess.run(command, check=True, env=ENVIRONMENT, timeout=120, capture_output=True, text=True).stdout
        assert float(re.search(r"\| swarm \| (0\.\d+)", shown)[1]) > 0.6, shown  # type: ignore[index]


@pytest.mark.slow
def test_a_clinic_keeps_its_own_head_and_shares_the_rest(tmp_path: Path) -> None:
    need_data("wisdm")
    sites = PHONES[:3]
    trained(tmp_path, "wisdm", sites, ["wisdm-scaling", "wisdm-personal"], rounds=3, more=["--personal"])
    models = [load_file(tmp_path / f"{name}.final") for name in sites]
    assert all(bool((one["body.0.weight"] == models[0]["body.0.weight"]).all()) for one in models)
    assert not any(bool((one["head.weight"] == models[0]["head.weight"]).all()) for one in models[1:])
