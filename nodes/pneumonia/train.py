"""One clinic's training loop: what a site runs beside its node, `python train.py sites/clinic1.toml`.

Two runs, agreed beforehand: `pneumonia-counts` adds up how many are healthy and how many ill, once; `pneumonia` trains.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import chain, repeat
from pathlib import Path

import data
import torch
from data import balance_of, counts_of, load, part
from model import empty_counts, new_model, new_optimizer, score, step
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swarm import SwarmCallback, SwarmError, sum_over_members
from swarm.learn import save_model


def train(site: Path, *, clinic: str, placement: str, folder: Path, seed: int) -> nn.Module:
    """The model of all clinics, after taking part in both runs with the images of one."""
    images, val = load(clinic, placement, folder), part("val", folder)
    balance = balance_of(sum_over_members(site, counts_of(images), run="pneumonia-counts"))
    print(f"{clinic}: {len(images)} images, an ill child counts {float(balance):.3f} times", flush=True)

    order = torch.Generator()
    loader = DataLoader(TensorDataset(images.x, images.y), batch_size=32, shuffle=True, generator=order)
    model = new_model(seed)

    with SwarmCallback(model, site, run="pneumonia") as swarm:
        while not swarm.finished:
            order.manual_seed(order_of(seed, clinic, swarm.round))
            optimizer = new_optimizer(model)
            for x, y in chain.from_iterable(repeat(loader)):
                loss = step(model, optimizer, x, y, balance)
                if swarm.on_batch_end(samples=len(x), loss=loss.item()):  # a round ended, the model is the merged one
                    break
            scores = score(model, val.x, val.y)
            swarm.on_epoch_end(metrics=scores)
            print(f"{clinic}: round {swarm.round}: validation AUC {scores['auc']:.3f}", flush=True)
    print(f"{clinic}: finished with checkpoint {swarm.checkpoint}", flush=True)
    return model


def order_of(seed: int, clinic: str, number: int) -> int:
    """What orders the images of one round: a site that starts again repeats its round exactly."""
    return (seed * len(data.CLINICS) + data.CLINICS.index(clinic)) * 1_000_003 + number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=os.environ.get("SWARM_SITE"), help="sites/NAME.toml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clinic", choices=data.CLINICS, help="whose images (default: the settings' file name)")
    parser.add_argument("--placement", choices=data.PLACEMENTS, default="dirichlet05_4", help="who has which images")
    parser.add_argument("--data", type=Path, default=data.FOLDER)
    parser.add_argument("--out", type=Path, help="write the last checkpoint here")
    parser.add_argument("--genesis", type=Path, help="write what a run starts from, and stop")
    parser.add_argument("--run", choices=("pneumonia", "pneumonia-counts"), default="pneumonia", help="for --genesis")
    given = parser.parse_args()
    if given.genesis is not None:
        save_model(new_model(given.seed) if given.run == "pneumonia" else empty_counts(), given.genesis)
    elif given.site is None:
        parser.error("name this site's settings, sites/NAME.toml, or --genesis FILE")
    else:
        clinic = given.clinic or given.site.stem
        model = train(given.site, clinic=clinic, placement=given.placement, folder=given.data, seed=given.seed)
        if given.out is not None:
            save_model(model, given.out)


if __name__ == "__main__":
    try:
        main()
    except (SwarmError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
