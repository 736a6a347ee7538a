"""One hospital's training loop: what a site runs beside its node, `python train.py sites/cleveland.toml`.

Two runs, agreed beforehand: `heart-scaling` adds up the sites' column sums once, `heart` trains the model. Or, with
differential privacy, `heart-private` does.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from itertools import chain, repeat
from pathlib import Path

import data
import torch
from data import Scaling, load, sums_of
from model import PRIVATE_BATCH, describe, empty_sums, new_model, new_private_optimizer, score, step
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swarm import SwarmCallback, SwarmError, sum_over_members
from swarm.learn import save_model


def train(site: Path, *, hospital: str, folder: Path, seed: int, pause_s: float, run: str = "heart") -> nn.Module:
    """The model of all hospitals, after taking part in both runs with the patients of one."""
    patients = load(hospital, folder)
    scaling = Scaling.of(sum_over_members(site, sums_of(patients.train.x), run="heart-scaling"))
    print(f"{hospital}: {len(patients.train)} patients, scaling agreed", flush=True)

    order = torch.Generator()
    rows = TensorDataset(scaling(patients.train.x), patients.train.y)
    private = run == "heart-private"
    loader = DataLoader(rows, batch_size=PRIVATE_BATCH if private else 4, shuffle=True, generator=order)
    model: nn.Module = new_model(seed)
    optimizer = new_private_optimizer(model) if private else torch.optim.SGD(model.parameters(), lr=0.01)

    with SwarmCallback(model, site, run=run) as swarm:
        model, optimizer, loader = swarm.private(model, optimizer, loader)  # as they are where the run is not private
        while not swarm.finished:
            order.manual_seed(order_of(seed, hospital, swarm.round))
            for x, y in chain.from_iterable(repeat(loader)):
                loss = step(model, optimizer, x, y)
                if swarm.on_batch_end(samples=len(x), loss=loss.item()):  # a round ended, the model is the merged one
                    break
            scores = score(model, scaling(patients.test.x), patients.test.y)
            swarm.on_epoch_end(metrics=scores)
            print(f"{hospital}: round {swarm.round}: {describe(scores)}", flush=True)
            time.sleep(pause_s)
    print(f"{hospital}: finished with checkpoint {swarm.checkpoint}", flush=True)
    return model


def order_of(seed: int, hospital: str, number: int) -> int:
    """What orders the patients of one round: a site that starts again repeats its round exactly."""
    return (seed * len(data.HOSPITALS) + data.HOSPITALS.index(hospital)) * 1_000_003 + number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=os.environ.get("SWARM_SITE"), help="sites/NAME.toml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hospital", choices=data.HOSPITALS, help="whose patients (default: the settings' file name)")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HEART_DATA", data.FOLDER)))
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each round, to watch it happen")
    parser.add_argument("--out", type=Path, help="write the last checkpoint here")
    parser.add_argument("--genesis", type=Path, help="write what a run starts from, and stop")
    runs = ("heart", "heart-private", "heart-scaling")
    parser.add_argument(
        "--run", choices=runs, default="heart", help="which one trains; with --genesis, which one's start"
    )
    given = parser.parse_args()
    if given.genesis is not None:
        save_model(empty_sums() if given.run == "heart-scaling" else new_model(given.seed), given.genesis)
    elif given.run == "heart-scaling":
        parser.error("heart-scaling is agreed by itself before a model is trained; name the run that trains")
    elif given.site is None:
        parser.error("name this site's settings, sites/NAME.toml, or --genesis FILE")
    else:
        model = train(
            given.site,
            hospital=given.hospital or given.site.stem,
            folder=given.data,
            seed=given.seed,
            pause_s=given.pause,
            run=given.run,
        )
        if given.out is not None:
            save_model(model, given.out)


if __name__ == "__main__":
    try:
        main()
    except (SwarmError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
