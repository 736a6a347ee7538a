"""What the swarm is compared with: each cohort alone, all samples in one place, and plain FedAvg in one process.

    python evaluate.py                                                      the three baselines, over the five folds
    python evaluate.py --checkpoint tb.safetensors --scaling scaling.safetensors      a checkpoint, on the fixed split

Judged on all cohorts' test samples together: at home a cohort's own model is often best, and abroad it fails.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from data import COHORTS, Rows, Scaling, load, sums_of
from model import new_model, new_optimizer, score, step
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from train import order_of

from swarm.learn import load_model

ROUNDS, BATCHES = 20, 4
"""As in tb.toml."""
METRICS = ("auc", "accuracy")

Scores = Mapping[str, float]


def results(fold: int, seed: int) -> dict[str, Scores]:
    """How each cohort alone (the mean over their models), all samples together, and FedAvg do on a fold."""
    cohorts = [load(name, fold=fold) for name in COHORTS]
    scaling = Scaling.of(summed([cohort.train for cohort in cohorts]))
    parts = [TensorDataset(scaling(cohort.train.x), cohort.train.y) for cohort in cohorts]
    everyone = TensorDataset(*(torch.cat([part.tensors[place] for part in parts]) for place in (0, 1)))
    x, y = tested([cohort.test for cohort in cohorts], scaling)
    alone = [score(trained(part, seed, ROUNDS * BATCHES), x, y) for part in parts]
    return {
        "each cohort alone": {metric: statistics.fmean(one[metric] for one in alone) for metric in METRICS},
        "all samples in one place": score(trained(everyone, seed, ROUNDS * BATCHES * len(COHORTS)), x, y),
        "FedAvg": score(fedavg(parts, seed), x, y),
    }


def summed(parts: Sequence[Rows]) -> dict[str, Tensor]:
    """The sums of all training samples."""
    sums = [sums_of(part.x) for part in parts]
    return {name: torch.stack([one[name] for one in sums]).sum(0) for name in sums[0]}


def tested(parts: Sequence[Rows], scaling: Scaling) -> tuple[Tensor, Tensor]:
    """All test samples together."""
    return scaling(torch.cat([part.x for part in parts])), torch.cat([part.y for part in parts])


def trained(rows: TensorDataset, seed: int, batches: int) -> nn.Module:
    """One model of one set of samples."""
    model = new_model(seed)
    optimizer = new_optimizer(model)
    for x, y in stream(rows, torch.Generator().manual_seed(seed), batches):
        step(model, optimizer, x, y)
    return model


def fedavg(parts: Sequence[TensorDataset], seed: int) -> nn.Module:
    """The same training as the swarm's, averaged in one process with equal weights."""
    model = new_model(seed)
    for number in range(ROUNDS):
        states: list[dict[str, Tensor]] = []
        for name, rows in zip(COHORTS, parts, strict=True):
            site = new_model(seed)
            site.load_state_dict(model.state_dict())
            optimizer = new_optimizer(site)
            torch.manual_seed(order_of(seed, name, number))  # of dropout
            for x, y in stream(rows, torch.Generator().manual_seed(order_of(seed, name, number)), BATCHES):
                step(site, optimizer, x, y)
            states.append(site.state_dict())
        model.load_state_dict({key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]})
    return model


def stream(rows: TensorDataset, order: torch.Generator, batches: int) -> islice[list[Tensor]]:
    """So many batches of 8, pass after pass."""
    loader = DataLoader(rows, batch_size=8, shuffle=True, generator=order)
    return islice(chain.from_iterable(repeat(loader)), batches)


def table(many: Sequence[Mapping[str, Scores]]) -> str:
    """Mean ± deviation, as a Markdown table."""
    lines = [f"| method | {' | '.join(METRICS)} |", "| --- " * (len(METRICS) + 1) + "|"]
    for method in many[0]:
        values = [[one[method][metric] for one in many] for metric in METRICS]
        cells = (f"{statistics.fmean(v):.3f} ± {statistics.stdev(v) if len(v) > 1 else 0:.3f}" for v in values)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="the last checkpoint of the run `tb`")
    parser.add_argument("--scaling", type=Path, help="the checkpoint of the run `tb-scaling`")
    given = parser.parse_args()
    if given.checkpoint is None:
        print(table([results(fold, given.seed) for fold in range(5)]))
        return
    cohorts = [load(name) for name in COHORTS]
    sums = load_file(given.scaling) if given.scaling else summed([cohort.train for cohort in cohorts])
    model = new_model(given.seed)
    load_model(model, given.checkpoint)
    x, y = tested([cohort.test for cohort in cohorts], Scaling.of(sums))
    print(table([{"swarm": score(model, x, y)}]))


if __name__ == "__main__":
    main()
