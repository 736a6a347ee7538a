"""One partner's training loop: what a site runs beside its node, `python train.py sites/partner1.toml`.

One run, agreed beforehand: `qsar` trains the model. Bits need no scaling, so nothing is agreed first.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import chain, repeat
from pathlib import Path

import data
import torch
from data import load
from model import new_model, new_optimizer, score, step
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swarm import SwarmCallback, SwarmError
from swarm.learn import save_model

BATCH = 16


def train(site: Path, *, partner: str, placement: str, folder: Path, seed: int) -> nn.Module:
    """The model of all, after taking part with the molecules of one."""
    here = load(partner, placement, folder)
    print(f"{partner}: {len(here.train)} molecules", flush=True)

    order = torch.Generator()
    loader = DataLoader(TensorDataset(here.train.x, here.train.y), BATCH, shuffle=True, generator=order)
    model = new_model(seed)

    with SwarmCallback(model, site, run="qsar") as swarm:
        while not swarm.finished:
            order.manual_seed(order_of(seed, partner, swarm.round))
            optimizer = new_optimizer(model)
            model.train()
            for x, y in chain.from_iterable(repeat(loader)):
                loss = step(model, optimizer, x, y)
                if swarm.on_batch_end(samples=len(x), loss=loss.item()):  # a round ended, the model is the merged one
                    break
            scores = score(model, here.test.x, here.test.y)
            swarm.on_epoch_end(metrics=scores)
            print(f"{partner}: round {swarm.round}: AUC {scores.get('auc', float('nan')):.3f} at home", flush=True)
    print(f"{partner}: finished with checkpoint {swarm.checkpoint}", flush=True)
    return model


def order_of(seed: int, partner: str, number: int) -> int:
    """What orders the molecules of one round: a site that starts again repeats its round, but for dropout."""
    return (seed * len(data.PARTNERS) + data.PARTNERS.index(partner)) * 1_000_003 + number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=os.environ.get("SWARM_SITE"), help="sites/NAME.toml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--partner", choices=data.PARTNERS, help="whose molecules (default: the settings' file name)")
    parser.add_argument("--placement", choices=data.PLACEMENTS, default=data.PLACEMENTS[0], help="the same for all")
    parser.add_argument("--data", type=Path, default=data.FOLDER)
    parser.add_argument("--out", type=Path, help="write the last checkpoint here")
    parser.add_argument("--genesis", type=Path, help="write what a run starts from, and stop")
    given = parser.parse_args()
    if given.genesis is not None:
        save_model(new_model(given.seed), given.genesis)
    elif given.site is None:
        parser.error("name this site's settings, sites/NAME.toml, or --genesis FILE")
    else:
        partner = given.partner or given.site.stem
        model = train(given.site, partner=partner, placement=given.placement, folder=given.data, seed=given.seed)
        if given.out is not None:
            save_model(model, given.out)


if __name__ == "__main__":
    try:
        main()
    except (SwarmError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
