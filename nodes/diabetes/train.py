"""One specialty's training loop: what a site runs beside its node, `python train.py sites/cardiology.toml`.

Two runs, agreed beforehand: `diabetes-scaling` adds up the sites' column sums once, `diabetes` trains the model.
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

BATCH = 256


def train(site: Path, *, specialty: str, folder: Path, seed: int) -> nn.Module:
    """The model of all, after taking part in both runs with the stays of one."""
    here = load(specialty, folder)
    scaling = Scaling.of(sum_over_members(site, sums_of(here.train.x), run="diabetes-scaling"))
    print(f"{specialty}: {len(here.train)} stays, scaling agreed", flush=True)

    order = torch.Generator()
    loader = DataLoader(TensorDataset(scaling(here.train.x), here.train.y), BATCH, shuffle=True, generator=order)
    model = new_model(seed)

    with SwarmCallback(model, site, run="diabetes") as swarm:
        while not swarm.finished:
            order.manual_seed(order_of(seed, specialty, swarm.round))
            optimizer = new_optimizer(model)
            for x, y in chain.from_iterable(repeat(loader)):
                loss = step(model, optimizer, x, y)
                if swarm.on_batch_end(samples=len(x), loss=loss.item()):  # a round ended, the model is the merged one
                    break
            scores = score(model, scaling(here.test.x), here.test.y)
            swarm.on_epoch_end(metrics=scores)
            print(f"{specialty}: round {swarm.round}: AUC {scores.get('auc', float('nan')):.3f} at home", flush=True)
    print(f"{specialty}: finished with checkpoint {swarm.checkpoint}", flush=True)
    return model


def order_of(seed: int, specialty: str, number: int) -> int:
    """What orders the stays of one round: a site that starts again repeats its round exactly."""
    return (seed * len(data.SPECIALTIES) + list(data.SPECIALTIES).index(specialty)) * 1_000_003 + number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=os.environ.get("SWARM_SITE"), help="sites/NAME.toml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--specialty", choices=tuple(data.SPECIALTIES), help="whose stays (default: the settings' file name)"
    )
    parser.add_argument("--data", type=Path, default=data.FOLDER)
    parser.add_argument("--out", type=Path, help="write the last checkpoint here")
    parser.add_argument("--genesis", type=Path, help="write what a run starts from, and stop")
    parser.add_argument(
        "--run", choices=("diabetes", "diabetes-scaling"), default="diabetes", help="for --genesis: which run"
    )
    given = parser.parse_args()
    if given.genesis is not None:
        save_model(new_model(given.seed) if given.run == "diabetes" else empty_sums(), given.genesis)
    elif given.site is None:
        parser.error("name this site's settings, sites/NAME.toml, or --genesis FILE")
    else:
        specialty = given.specialty or given.site.stem
        model = train(given.site, specialty=specialty, folder=given.data, seed=given.seed)
        if given.out is not None:
            save_model(model, given.out)


if __name__ == "__main__":
    try:
        main()
    except (SwarmError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
