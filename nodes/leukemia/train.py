"""One node's training loop: what a site runs beside its node, `python train.py sites/node1.toml`.

One run, agreed beforehand: `leukemia` trains the model. All arrays are of one kind, so nothing is agreed first.
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

BATCH = 4


def train(site: Path, *, node: str, folder: Path | None, seed: int) -> nn.Module:
    """The model of all, after taking part with the samples of one."""
    here = load(node, folder)
    print(f"{node}: {len(here.train)} samples", flush=True)

    order = torch.Generator()
    loader = DataLoader(TensorDataset(here.train.x, here.train.y), BATCH, shuffle=True, generator=order)
    model = new_model(seed)

    with SwarmCallback(model, site, run="leukemia") as swarm:
        while not swarm.finished:
            order.manual_seed(order_of(seed, node, swarm.round))
            optimizer = new_optimizer(model)
            model.train()
            for x, y in chain.from_iterable(repeat(loader)):
                loss = step(model, optimizer, x, y)
                if swarm.on_batch_end(samples=len(x), loss=loss.item()):  # a round ended, the model is the merged one
                    break
            scores = score(model, here.test.x, here.test.y)
            swarm.on_epoch_end(metrics=scores)
            print(f"{node}: round {swarm.round}: AUC {scores.get('auc', float('nan')):.3f} at home", flush=True)
    print(f"{node}: finished with checkpoint {swarm.checkpoint}", flush=True)
    return model


def order_of(seed: int, node: str, number: int) -> int:
    """What orders the samples of one round: a site that starts again repeats its round, but for dropout."""
    return (seed * len(data.NODES) + data.NODES.index(node)) * 1_000_003 + number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=os.environ.get("SWARM_SITE"), help="sites/NAME.toml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--node", choices=data.NODES, help="whose samples (default: the settings' file name)")
    parser.add_argument("--data", type=Path, help="folder of both files (default: $LEUKEMIA_DATA, or data/)")
    parser.add_argument("--out", type=Path, help="write the last checkpoint here")
    parser.add_argument("--genesis", type=Path, help="write what a run starts from, and stop")
    parser.add_argument(
        "--run", choices=("leukemia", "leukemia-scaling"), default="leukemia", help="for --genesis: which run"
    )
    given = parser.parse_args()
    if given.genesis is not None:
        save_model(new_model(given.seed), given.genesis)
    elif given.site is None:
        parser.error("name this site's settings, sites/NAME.toml, or --genesis FILE")
    else:
        node = given.node or given.site.stem
        model = train(given.site, node=node, folder=given.data, seed=given.seed)
        if given.out is not None:
            save_model(model, given.out)


if __name__ == "__main__":
    try:
        main()
    except (SwarmError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
