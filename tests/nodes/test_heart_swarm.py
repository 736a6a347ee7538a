"""The heart example as four hospitals run it: real nodes, `train.py` as it is, the result beside FedAvg's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data import HOSPITALS, Scaling, load
from evaluate import fedavg, results, summed
from safetensors.torch import load_file

from tests.learn.runs import Operators
from tests.node.hospitals import Hospitals

EXAMPLE = Path(__file__).parents[2] / "nodes" / "heart"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def propose(hospitals: Hospitals, seed: int, merge: str = "norm_bounded_mean") -> None:
    """Both runs of the example, from its own genesis checkpoints and policies but for the merge, approved by all."""
    operators = Operators(hospitals)
    for run in ("heart-scaling", "heart"):
        genesis = hospitals.folder / f"{run}.safetensors"
        command = [
            sys.executable,
            str(EXAMPLE / "train.py"),
            "--genesis",
            str(genesis),
            "--run",
            run,
            "--seed",
            str(seed),
        ]
        subprocess.run(command, check=True, env=ENVIRONMENT)
        policy = hospitals.folder / f"{run}.toml"
        policy.write_text((EXAMPLE / f"{run}.toml").read_text().replace('"norm_bounded_mean"', f'"{merge}"'))
        operators.propose(policy, genesis, list(HOSPITALS))


def train(hospitals: Hospitals, name: str, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLE / "train.py"), str(hospitals.sites[name]), "--seed", str(seed)]
    command += ["--out", str(hospitals.folder / f"{name}.final")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)


def final(hospitals: Hospitals, run: str) -> Path:
    digest = hospitals.ask("cleveland", "swarm_run", run=run)["checkpoint"]
    return Path(hospitals.ask("cleveland", "swarm_object", digest=digest)["path"])


@pytest.mark.slow
def test_with_a_plain_mean_the_swarm_is_fedavg_to_the_last_float(tmp_path: Path) -> None:
    with Hospitals(tmp_path, list(HOSPITALS)) as hospitals:
        for name in HOSPITALS:
            hospitals.start(name)
        hospitals.ask("va", "swarm_status")
        propose(hospitals, seed=0, merge="mean")
        training = {name: train(hospitals, name, 0) for name in HOSPITALS}
        told = {name: process.communicate(timeout=120)[0] for name, process in training.items()}
        checkpoint, scaling = final(hospitals, "heart"), final(hospitals, "heart-scaling")
        ends = {told[name].splitlines()[-1].removeprefix(f"{name}: ") for name in HOSPITALS}
        assert len(ends) == 1, told
        assert ends.pop().startswith("finished with checkpoint 0x")
        assert told["va"].count("va: round ") == 15
        assert {(hospitals.folder / f"{name}.final").read_bytes() for name in HOSPITALS} == {checkpoint.read_bytes()}
        found, sums = load_file(checkpoint), load_file(scaling)
        (row,) = results(0, checkpoint, scaling, baselines=False)
    hospitals_data = [load(name) for name in HOSPITALS]
    plain = summed(hospitals_data)
    for name, value in plain.items():
        assert (sums[name] - value).abs().max() < 1e-6, "the scaling is all four hospitals'"
    expected = fedavg(hospitals_data, dict.fromkeys(HOSPITALS, Scaling.of(plain)), 0).state_dict()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-5
    assert row.everywhere["auc"] > 0.875


@pytest.mark.slow
def test_a_hospital_whose_node_and_training_are_killed_comes_back_and_ends_like_the_others(tmp_path: Path) -> None:
    with Hospitals(tmp_path, list(HOSPITALS)) as hospitals:
        for name in HOSPITALS:
            hospitals.start(name)
        hospitals.ask("va", "swarm_status")
        propose(hospitals, seed=1)
        training = {name: train(hospitals, name, 1) for name in HOSPITALS}
        hospitals.wait_for(lambda: hospitals.ask("va", "swarm_run", run="heart")["round"] >= 3, "three rounds", 90)
        training["cleveland"].kill()
        training["cleveland"].communicate()
        hospitals.kill("cleveland")
        time.sleep(1)
        hospitals.start("cleveland")
        training["cleveland"] = train(hospitals, "cleveland", 1)
        told = {name: process.communicate(timeout=180)[0] for name, process in training.items()}
        assert len({told[name].splitlines()[-1].removeprefix(f"{name}: ") for name in HOSPITALS}) == 1, told
        (row,) = results(1, final(hospitals, "heart"), final(hospitals, "heart-scaling"), baselines=False)
    assert row.everywhere["auc"] > 0.87
