"""What the swarm is compared with: each clinic alone, all images in one place, and plain FedAvg in one process.

python evaluate.py --seeds 5                                    the three baselines, MedMNIST's test set
python evaluate.py --checkpoint pneumonia.safetensors           how good a checkpoint is
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from data import CLINICS, PLACEMENTS, Images, balance_of, counts_of, load, part
from model import new_model, new_optimizer, score, step
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from train import order_of

ROUNDS, BATCHES = 15, 20
"""As in pneumonia.toml."""
METRICS = ("auc", "accuracy", "sensitivity", "specificity")

Scores = Mapping[str, float]


def results(seed: int, placement: str) -> dict[str, Scores]:
    """How each clinic alone (the mean over their models), all images together, and FedAvg do on the test set."""
    clinics = [load(name, placement) for name in CLINICS]
    test, everyone = part("test"), part("train")
    balance = balance_of(counts_of(everyone))
    alone = [score(trained(clinic, balance, seed, ROUNDS * BATCHES), test.x, test.y) for clinic in clinics]
    pooled = trained(everyone, balance, seed, ROUNDS * BATCHES * len(CLINICS))
    return {
        "each clinic alone": {metric: statistics.fmean(one[metric] for one in alone) for metric in METRICS},
        "all images in one place": score(pooled, test.x, test.y),
        "FedAvg": score(fedavg(clinics, balance, seed), test.x, test.y),
    }


def trained(images: Images, balance: Tensor, seed: int, batches: int) -> nn.Module:
    """One model of one set of images."""
    model = new_model(seed)
    optimizer = new_optimizer(model)
    for x, y in stream(images, torch.Generator().manual_seed(seed), batches):
        step(model, optimizer, x, y, balance)
    return model


def fedavg(clinics: Sequence[Images], balance: Tensor, seed: int) -> nn.Module:
    """The same training as the swarm's, with the same batches, averaged in one process with equal weights."""
    model = new_model(seed)
    for number in range(ROUNDS):
        states: list[dict[str, Tensor]] = []
        for name, images in zip(CLINICS, clinics, strict=True):
            site = new_model(seed)
            site.load_state_dict(model.state_dict())
            optimizer = new_optimizer(site)
            for x, y in stream(images, torch.Generator().manual_seed(order_of(seed, name, number)), BATCHES):
                step(site, optimizer, x, y, balance)
            states.append(site.state_dict())
        model.load_state_dict({key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]})
    return model


def stream(images: Images, order: torch.Generator, batches: int) -> islice[list[Tensor]]:
    """So many batches of 32, pass after pass."""
    loader = DataLoader(TensorDataset(images.x, images.y), batch_size=32, shuffle=True, generator=order)
    return islice(chain.from_iterable(repeat(loader)), batches)


def table(many: Sequence[Mapping[str, Scores]]) -> str:
    """Mean ± deviation over the seeds, as a Markdown table."""
    lines = [f"| method | {' | '.join(METRICS)} |", "| --- " * (len(METRICS) + 1) + "|"]
    for method in many[0]:
        values = [[one[method][metric] for one in many] for metric in METRICS]
        cells = (f"{statistics.fmean(v):.3f} ± {statistics.stdev(v) if len(v) > 1 else 0:.3f}" for v in values)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="how many, for a mean and a deviation")
    parser.add_argument("--placement", choices=PLACEMENTS, default="dirichlet05_4")
    parser.add_argument("--checkpoint", type=Path, help="the last checkpoint of the run `pneumonia`")
    given = parser.parse_args()
    if given.checkpoint is None:
        print(table([results(seed, given.placement) for seed in range(given.seeds)]))
        return
    model, test = new_model(0), part("test")
    model.load_state_dict(load_file(given.checkpoint))
    print(table([{"swarm": score(model, test.x, test.y)}]))


if __name__ == "__main__":
    main()
