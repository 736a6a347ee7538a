"""A hospital looks at the very update that it is about to submit, before it leaves; the ledger states that it did."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from data import HOSPITALS, Scaling, load, sums_of
from model import new_model, step
from torch.utils.data import DataLoader, TensorDataset

from swarm import SwarmCallback
from swarm.config import LEAK_CHECK, LEAK_CHECK_RESULTS, load_site
from tests.learn.runs import Operators, everywhere, history
from tests.node.hospitals import Hospitals

EXAMPLE = Path(__file__).parents[2] / "nodes" / "heart"
ROUNDS, STEPS = 3, 1
CHECKED = 1
"""The round whose update cleveland looks at first."""


@pytest.mark.slow
def test_a_site_checks_the_update_that_it_is_about_to_submit_and_states_so_on_the_ledger(tmp_path: Path) -> None:
    with Hospitals(tmp_path, list(HOSPITALS)) as hospitals:
        shutil.copytree(EXAMPLE, hospitals.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        for name in HOSPITALS:
            hospitals.start(name)
        hospitals.ask("va", "swarm_status")
        settings = {"rounds": ROUNDS, "sync_interval": STEPS, "merge": "mean", "submissions_min": 3, "submit_s": 200.0}
        Operators(hospitals).open_run("heart", new_model(0), list(HOSPITALS), **settings)
        everyone = [load(name) for name in HOSPITALS]
        sums = [sums_of(one.train.x) for one in everyone]
        scaling = Scaling.of({key: torch.stack([one[key] for one in sums]).sum(0) for key in sums[0]})
        update = hospitals.folder / "update.safetensors"

        def train(name: str) -> None:
            site, rows = hospitals.sites[name], load(name).train
            loader = DataLoader(TensorDataset(scaling(rows.x), rows.y), batch_size=4, shuffle=True)
            model = new_model(0)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            with SwarmCallback(model, site, run="heart") as swarm:
                while not swarm.finished:
                    for x, y in chain.from_iterable(repeat(loader)):
                        loss = step(model, optimizer, x, y)
                        if name == "cleveland" and swarm.round == CHECKED:
                            swarm.write_update(update)
                            arguments = ("--run", "heart", "--update", str(update), "--quick")
                            hospitals.swarm("leak-check", str(site), *arguments)
                        if swarm.on_batch_end(samples=len(x), loss=loss.item()):
                            break

        everywhere(train, list(HOSPITALS), timeout_s=300)
        data = (load_site(hospitals.sites["cleveland"]).folder / LEAK_CHECK_RESULTS).read_bytes()
        found = json.loads(data)
        told = history(hospitals, "heart")
        stated = [
            [name for one in closed["submissions"] for name in one["metrics"] if name.startswith(LEAK_CHECK)]
            for closed in told
        ]
        assert stated == [[], [LEAK_CHECK + sha256(data).hexdigest()], [LEAK_CHECK + sha256(data).hexdigest()]]
        assert found["policy"]["sync_interval"] == STEPS, "the run's policy, not the example's"
        assert found["update"] == sha256(update.read_bytes()).hexdigest()
        assert "0x" + found["checkpoint"] != told[CHECKED]["checkpoint"], "it is what the round began with"
        assert found["attacks"]["update"]["judged"] == len(load("cleveland").train)
        audited = hospitals.swarm("audit", str(hospitals.folder))
        assert sha256(data).hexdigest() in audited
