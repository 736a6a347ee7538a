"""One hospital's training loop: what a site runs beside its node, `python train.py sites/cleveland.toml`.

Two runs, agreed beforehand: `heart-scaling` adds up the sites' column sums once, `heart` trains the model.
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
from model import describe, empty_sums, new_model, score, step
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swarm import SwarmCallback, SwarmError, sum_over_members
from swarm.learn import save_model


def train(site: Path, *, hospital: str, folder: Path, seed: int, pause_s: float) -> nn.Module:
    """The model of all hospitals, after taking part in both runs with the patients of one."""
    patients = load(hospital, folder)
    scaling = Scaling.of(sum_over_members(site, sums_of(patients.train.x), run="heart-scaling"))
    print(f"{hospital}: {len(patients.train)} patients, scaling agreed", flush=True)

    order = torch.Generator()
    rows = TensorDataset(scaling(patients.train.x), patients.train.y)
    loader = DataLoader(rows, batch_size=4, shuffle=True, generator=order)
    model = new_model(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    with SwarmCallback(model, site, run="heart") as swarm:
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
    parser.add_argument("--run", choices=("heart", "heart-scaling"), default="heart", help="for --genesis: which run")
    given = parser.parse_args()
    if given.genesis is not None:
        save_model(new_model(given.seed) if given.run == "heart" else empty_sums(), given.genesis)
    elif given.site is None:
        parser.error("name this site's settings, sites/NAME.toml, or --genesis FILE")
    else:
        model = train(
            given.site,
            hospital=given.hospital or given.site.stem,
            folder=given.data,
            seed=given.seed,
            pause_s=given.pause,
        )
        if given.out is not None:
            save_model(model, given.out)


if __name__ == "__main__":
    try:
        main()
    except (SwarmError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
