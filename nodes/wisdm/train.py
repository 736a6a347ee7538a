"""One clinic's training loop: what a site runs beside its node, `python train.py sites/clinic1.toml`.

Two runs, agreed beforehand: `wisdm-scaling` adds up the sites' sums for each feature once, `wisdm` trains one model for
all. With `--personal` the second one is `wisdm-personal`: the body is everybody's, the head is the clinic's own.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import chain, repeat
from pathlib import Path

import data
import torch
from data import Scaling, load, sums_of
from model import empty_sums, new_model, new_optimizer, score, step
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swarm import SwarmCallback, SwarmError, sum_over_members
from swarm.learn import save_model

BATCH = 16
RUNS = ("wisdm", "wisdm-personal", "wisdm-scaling")


def train(site: Path, *, clinic: str, run: str, folder: Path | None, seed: int) -> nn.Module:
    """The clinic's model, after taking part in both runs with its users' windows."""
    windows = load(clinic, folder)
    scaling = Scaling.of(sum_over_members(site, sums_of(windows.train.x), run="wisdm-scaling"))
    print(f"{clinic}: {len(windows.train)} windows, scaling agreed", flush=True)

    order = torch.Generator()
    rows = TensorDataset(scaling(windows.train.x), windows.train.y)
    loader = DataLoader(rows, BATCH, shuffle=True, generator=order)
    model = new_model(seed)
    optimizer = new_optimizer(model)

    with SwarmCallback(model, site, run=run) as swarm:
        while not swarm.finished:
            order.manual_seed(order_of(seed, clinic, swarm.round))
            for x, y in chain.from_iterable(repeat(loader)):
                loss = step(model, optimizer, x, y)
                if swarm.on_batch_end(samples=len(x), loss=loss.item()):  # a round ended, what is shared is merged
                    break
            scores = score(model, scaling(windows.test.x), windows.test.y)
            swarm.on_epoch_end(metrics=scores)
            print(f"{clinic}: round {swarm.round}: accuracy {scores['accuracy']:.3f} at home", flush=True)
    print(f"{clinic}: finished with checkpoint {swarm.checkpoint}", flush=True)
    return model


def order_of(seed: int, clinic: str, number: int) -> int:
    """What orders the windows of one round: a site that starts again repeats its round exactly."""
    return (seed * len(data.CLINICS) + data.CLINICS.index(clinic)) * 1_000_003 + number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=os.environ.get("SWARM_SITE"), help="sites/NAME.toml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clinic", choices=data.CLINICS, help="whose windows (default: the settings' file name)")
    parser.add_argument("--personal", action="store_true", help="keep a head of one's own: the run wisdm-personal")
    parser.add_argument("--data", type=Path, help="folder of the authors' file (default: $WISDM_DATA, or data/)")
    parser.add_argument("--out", type=Path, help="write this clinic's model here")
    parser.add_argument("--genesis", type=Path, help="write what a run starts from, and stop")
    parser.add_argument("--run", choices=RUNS, default="wisdm", help="for --genesis: which run")
    given = parser.parse_args()
    if given.genesis is not None:
        if given.run == "wisdm-scaling":
            save_model(empty_sums(), given.genesis)
        else:
            save_model(new_model(given.seed), given.genesis, policy=data.FOLDER.parent / f"{given.run}.toml")
    elif given.site is None:
        parser.error("name this site's settings, sites/NAME.toml, or --genesis FILE")
    else:
        run = "wisdm-personal" if given.personal else "wisdm"
        clinic = given.clinic or given.site.stem
        model = train(given.site, clinic=clinic, run=run, folder=given.data, seed=given.seed)
        if given.out is not None:
            save_model(model, given.out)


if __name__ == "__main__":
    try:
        main()
    except (SwarmError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
