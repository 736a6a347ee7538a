"""One region's training loop: what a site runs beside its node, `python train.py sites/canada.toml`.

One run, agreed beforehand: `tcga_brca` trains the model. The age's scaling is a constant, so nothing is agreed first.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import chain, repeat
from pathlib import Path

import data
import torch
from data import load, scaled
from model import new_model, new_optimizer, score, step
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swarm import SwarmCallback, SwarmError
from swarm.learn import save_model


def train(site: Path, *, region: str, folder: Path, seed: int) -> nn.Module:
    """The model of all regions, after taking part with the patients of one."""
    patients = load(region, folder)
    print(f"{region}: {len(patients.train)} patients, {int(patients.train.y[:, 1].sum())} deaths", flush=True)

    order = torch.Generator()
    rows = TensorDataset(scaled(patients.train.x), patients.train.y)
    loader = DataLoader(rows, batch_size=32, shuffle=True, generator=order)
    model = new_model(seed)

    with SwarmCallback(model, site, run="tcga_brca") as swarm:
        while not swarm.finished:
            order.manual_seed(order_of(seed, region, swarm.round))
            optimizer = new_optimizer(model)
            for x, y in chain.from_iterable(repeat(loader)):
                loss = step(model, optimizer, x, y)
                if swarm.on_batch_end(samples=len(x), loss=loss.item()):  # a round ended, the model is the merged one
                    break
            scores = score(model, scaled(patients.test.x), patients.test.y)
            swarm.on_epoch_end(metrics=scores)
            print(f"{region}: round {swarm.round}: C-index {scores.get('c_index', 'undefined')} at home", flush=True)
    print(f"{region}: finished with checkpoint {swarm.checkpoint}", flush=True)
    return model


def order_of(seed: int, region: str, number: int) -> int:
    """What orders the patients of one round: a site that starts again repeats its round exactly."""
    return (seed * len(data.REGIONS) + data.REGIONS.index(region)) * 1_000_003 + number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=os.environ.get("SWARM_SITE"), help="sites/NAME.toml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--region", choices=data.REGIONS, help="whose patients (default: the settings' file name)")
    parser.add_argument("--data", type=Path, default=data.FOLDER)
    parser.add_argument("--out", type=Path, help="write the last checkpoint here")
    parser.add_argument("--genesis", type=Path, help="write what the run starts from, and stop")
    given = parser.parse_args()
    if given.genesis is not None:
        save_model(new_model(given.seed), given.genesis)
    elif given.site is None:
        parser.error("name this site's settings, sites/NAME.toml, or --genesis FILE")
    else:
        model = train(given.site, region=given.region or given.site.stem, folder=given.data, seed=given.seed)
        if given.out is not None:
            save_model(model, given.out)


if __name__ == "__main__":
    try:
        main()
    except (SwarmError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
