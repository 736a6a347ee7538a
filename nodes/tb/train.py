"""One cohort's training loop: what a site runs beside its node, `python train.py sites/uganda.toml`.

Two runs, agreed beforehand: `tb-scaling` adds up the sites' sums for each gene once, `tb` trains the model. Or, with
differential privacy, `tb-private` does.
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
from model import PRIVATE_BATCH, empty_sums, new_model, new_optimizer, new_private_optimizer, score, step
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swarm import SwarmCallback, SwarmError, sum_over_members
from swarm.learn import save_model


def train(site: Path, *, cohort: str, folder: Path, seed: int, run: str = "tb") -> nn.Module:
    """The model of all cohorts, after taking part in both runs with the samples of one."""
    samples = load(cohort, folder)
    scaling = Scaling.of(sum_over_members(site, sums_of(samples.train.x), run="tb-scaling"))
    print(f"{cohort}: {len(samples.train)} samples, scaling agreed", flush=True)

    order = torch.Generator()
    rows = TensorDataset(scaling(samples.train.x), samples.train.y)
    private = run == "tb-private"
    loader = DataLoader(rows, batch_size=PRIVATE_BATCH if private else 8, shuffle=True, generator=order)
    model: nn.Module = new_model(seed)
    optimizer = new_private_optimizer(model) if private else new_optimizer(model)

    with SwarmCallback(model, site, run=run) as swarm:
        model, optimizer, loader = swarm.private(model, optimizer, loader)  # as they are where the run is not private
        while not swarm.finished:
            order.manual_seed(order_of(seed, cohort, swarm.round))
            model.train()
            for x, y in chain.from_iterable(repeat(loader)):
                loss = step(model, optimizer, x, y)
                if swarm.on_batch_end(samples=len(x), loss=loss.item()):  # a round ended, the model is the merged one
                    break
            scores = score(model, scaling(samples.test.x), samples.test.y)
            swarm.on_epoch_end(metrics=scores)
            print(f"{cohort}: round {swarm.round}: AUC {scores['auc']:.3f} at home", flush=True)
    print(f"{cohort}: finished with checkpoint {swarm.checkpoint}", flush=True)
    return model


def order_of(seed: int, cohort: str, number: int) -> int:
    """What orders the samples of one round: a site that starts again repeats its round, but for dropout."""
    return (seed * len(data.COHORTS) + data.COHORTS.index(cohort)) * 1_000_003 + number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=os.environ.get("SWARM_SITE"), help="sites/NAME.toml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cohort", choices=data.COHORTS, help="whose samples (default: the settings' file name)")
    parser.add_argument("--data", type=Path, default=data.FOLDER)
    parser.add_argument("--out", type=Path, help="write the last checkpoint here")
    parser.add_argument("--genesis", type=Path, help="write what a run starts from, and stop")
    runs = ("tb", "tb-private", "tb-scaling")
    parser.add_argument("--run", choices=runs, default="tb", help="which one trains; with --genesis, which one's start")
    given = parser.parse_args()
    if given.genesis is not None:
        save_model(empty_sums() if given.run == "tb-scaling" else new_model(given.seed), given.genesis)
    elif given.run == "tb-scaling":
        parser.error("tb-scaling is agreed by itself before a model is trained; name the run that trains")
    elif given.site is None:
        parser.error("name this site's settings, sites/NAME.toml, or --genesis FILE")
    else:
        model = train(
            given.site, cohort=given.cohort or given.site.stem, folder=given.data, seed=given.seed, run=given.run
        )
        if given.out is not None:
            save_model(model, given.out)


if __name__ == "__main__":
    try:
        main()
    except (SwarmError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
