"""The tuberculosis and pneumonia examples as sites run them: real nodes, `train.py` as it is, short runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nodes.pneumonia.data import CLINICS
from nodes.tb.data import COHORTS
from tests.learn.runs import Operators
from tests.node.hospitals import Hospitals

EXAMPLES = Path(__file__).parents[2] / "nodes"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "sites", "runs"),
    [("tb", COHORTS, ("tb-scaling", "tb")), ("pneumonia", CLINICS, ("pneumonia-counts", "pneumonia"))],
)
def test_every_site_ends_with_one_checkpoint(
    tmp_path: Path, example: str, sites: tuple[str, ...], runs: tuple[str, str]
) -> None:
    folder = EXAMPLES / example
    with Hospitals(tmp_path, list(sites)) as hospitals:
        for name in sites:
            hospitals.start(name)
        hospitals.ask(sites[0], "swarm_status")
        operators = Operators(hospitals)
        for run in runs:
            genesis, policy = tmp_path / f"{run}.safetensors", tmp_path / f"{run}.toml"
            command = [sys.executable, str(folder / "train.py"), "--genesis", str(genesis), "--run", run]
            subprocess.run(command, check=True, env=ENVIRONMENT, timeout=120)
            text = (folder / f"{run}.toml").read_text()
            text = re.sub(r"(?m)^rounds = (\d\d)$", "rounds = 3", text)
            policy.write_text(re.sub(r"(?m)^(submit|merge|attest)_s = .*$", r"\1_s = 60.0", text))
            operators.propose(policy, genesis, list(sites))
        training = {}
        for name in sites:
            command = [sys.executable, str(folder / "train.py"), str(hospitals.sites[name])]
            command += ["--out", str(tmp_path / f"{name}.final")]
            training[name] = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
            )
        told = {name: process.communicate(timeout=400)[0] for name, process in training.items()}
        assert {process.returncode for process in training.values()} == {0}, told
        assert len({told[name].splitlines()[-1].removeprefix(f"{name}: ") for name in sites}) == 1, told
        assert all("round 3: " in text for text in told.values()), told
        finals = {(tmp_path / f"{name}.final").read_bytes() for name in sites}
        assert len(finals) == 1
        checkpoint = ["--checkpoint", str(tmp_path / f"{sites[0]}.final")]
        command = [sys.executable, str(folder / "evaluate.py"), *checkpoint]
        shown = subprocess.run(command, check=True, env=ENVIRONMENT, timeout=120, capture_output=True, text=True).stdout
        assert float(re.search(r"\| swarm \| (0\.\d+)", shown)[1]) > 0.6, shown  # type: ignore[index]
