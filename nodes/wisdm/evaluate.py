"""How well each clinic is served at home: by itself, by the common model, and by a common body with a head of its own.

    python evaluate.py --seeds 5

Everything is trained in one process, in float arithmetic, with the rounds, batches and momentum of `wisdm.toml`; the
mean is plain. A clinic's own head is what `wisdm-personal.toml` agrees on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain, islice, repeat

import torch
from data import CLINICS, Clinic, Scaling, load, sums_of
from model import new_model, new_optimizer, score, step
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from train import BATCH, order_of

ROUNDS, BATCHES, MOMENTUM = 80, 20, 0.8
"""As in wisdm.toml."""
HEAD = "head."

State = dict[str, Tensor]
Home = Mapping[str, float]
"""By clinic, the accuracy on its own test windows."""


def results(seed: int) -> dict[str, Home]:
    """Each way's accuracy at every clinic."""
    clinics = [load(name) for name in CLINICS]
    sums = [sums_of(clinic.train.x) for clinic in clinics]
    scaling = Scaling.of({name: torch.stack([one[name] for one in sums]).sum(0) for name in sums[0]})
    ways = {
        "alone": [alone(clinic, scaling, seed) for clinic in clinics],
        "one model for all": together(clinics, scaling, seed, personal=False),
        "a head of one's own": together(clinics, scaling, seed, personal=True),
    }
    return {
        way: {
            clinic.name: score(model, scaling(clinic.test.x), clinic.test.y)["accuracy"]
            for clinic, model in zip(clinics, models, strict=True)
        }
        for way, models in ways.items()
    }


def alone(clinic: Clinic, scaling: Scaling, seed: int) -> nn.Module:
    """One clinic's model, from as many batches as it has in a run."""
    model = new_model(seed)
    train(model, clinic, scaling, order_of(seed, clinic.name, 0), ROUNDS * BATCHES)
    return model


def together(clinics: Sequence[Clinic], scaling: Scaling, seed: int, *, personal: bool) -> list[nn.Module]:
    """Every clinic's model after the rounds: the mean of all, moved with Nesterov's momentum; heads only if shared."""
    models = [new_model(seed) for _ in clinics]
    base: State = {
        k: v.clone() for k, v in new_model(seed).state_dict().items() if not (personal and k.startswith(HEAD))
    }
    momentum: State = {key: torch.zeros_like(value) for key, value in base.items()}
    for number in range(ROUNDS):
        for clinic, model in zip(clinics, models, strict=True):
            model.load_state_dict(base, strict=False)
            train(model, clinic, scaling, order_of(seed, clinic.name, number), BATCHES)
        for key in base:
            change = torch.stack([model.state_dict()[key] for model in models]).mean(0) - base[key]
            momentum[key] = MOMENTUM * momentum[key] + change
            base[key] += change + MOMENTUM * momentum[key]
    for model in models:
        model.load_state_dict(base, strict=False)
    return models


def train(model: nn.Module, clinic: Clinic, scaling: Scaling, order: int, batches: int) -> None:
    """So many batches, pass after pass."""
    rows = TensorDataset(scaling(clinic.train.x), clinic.train.y)
    loader = DataLoader(rows, BATCH, shuffle=True, generator=torch.Generator().manual_seed(order))
    optimizer = new_optimizer(model)
    for x, y in islice(chain.from_iterable(repeat(loader)), batches):
        step(model, optimizer, x, y)


def table(many: Sequence[Mapping[str, Home]]) -> str:
    """Mean over the seeds at each clinic, mean ± deviation over the clinics' mean, as a Markdown table."""
    lines = [f"| accuracy at home | {' | '.join(CLINICS)} | mean |", "| --- " * (len(CLINICS) + 2) + "|"]
    for way in many[0]:
        means = [statistics.fmean(one[way].values()) for one in many]
        cells = [f"{statistics.fmean(one[way][clinic] for one in many):.3f}" for clinic in CLINICS]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        lines.append(f"| {way} | {' | '.join(cells)} | {statistics.fmean(means):.3f} ± {spread:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="how many, for a mean and a deviation")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(table([results(seed) for seed in range(given.seeds)]))


if __name__ == "__main__":
    main()
