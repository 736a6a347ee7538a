"""What the swarm is compared with: each hospital alone, all patients in one place, and plain FedAvg in one process.

    python evaluate.py --seeds 5                                             the three baselines
    python evaluate.py --seeds 5 --strangers                                 at a hospital that never trained
    python evaluate.py --checkpoint heart.safetensors --scaling heart-scaling.safetensors --seed 0

The patients' test rows are FLamby's; AUC and accuracy are given for each hospital's own test rows and for all
254 together. FedAvg follows the same seeds, batches and weights as `train.py`, in plain float arithmetic.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from data import FOLDER, HOSPITALS, Hospital, Rows, Scaling, load, sums_of
from model import new_model, score, step
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from train import order_of

from swarm.learn import load_model

ROUNDS, BATCHES = 15, 100
"""As in heart.toml."""

Scales = Mapping[str, Scaling]
"""By hospital, in the order of `HOSPITALS`: its own, or the same for all."""


@dataclass(frozen=True)
class Result:
    """One model, or one model for each hospital: how it does on each hospital's own test rows and on all."""

    method: str
    own: Mapping[str, Mapping[str, float]]
    everywhere: Mapping[str, float]
    """On all test rows together; for one model a hospital, the mean over the models."""

    def mean(self, metric: str) -> float | None:
        """The mean over the hospitals that have this metric; a test set of one class has no AUC."""
        values = [scores[metric] for scores in self.own.values() if metric in scores]
        return statistics.fmean(values) if values else None


def results(
    seed: int,
    checkpoint: Path | None = None,
    scaling: Path | None = None,
    *,
    folder: Path = FOLDER,
    baselines: bool = True,
) -> list[Result]:
    """One row a method: local, pooled and FedAvg (scaled per site and together), and the swarm's checkpoint if given.

    Args:
        seed: of the parameters and of the order of the batches, as for `train.py`.
        checkpoint: the last checkpoint of the run `heart`.
        scaling: the checkpoint of the run `heart-scaling`; without it, the sums are added up here.
        baselines: False leaves out all but the checkpoint: they take about 7 s a seed.
    """
    hospitals = [load(name, folder) for name in HOSPITALS]
    per_site = {hospital.name: Scaling.of(sums_of(hospital.train.x)) for hospital in hospitals}
    shared = dict.fromkeys(HOSPITALS, Scaling.of(load_file(scaling) if scaling else summed(hospitals)))
    rows: list[Result] = []
    if baselines:
        for how, scales in (("scaled per site", per_site), ("shared scaling", shared)):
            rows.append(local(f"local, {how}", hospitals, scales, seed))
            rows.append(judged(f"pooled, {how}", pooled(hospitals, scales, seed), hospitals, scales))
            rows.append(judged(f"FedAvg, {how}", fedavg(hospitals, scales, seed), hospitals, scales))
    if checkpoint is not None:
        model = new_model(seed)
        load_model(model, checkpoint)
        rows.append(judged("swarm, shared scaling", model, hospitals, shared))
    return rows


def summed(hospitals: Sequence[Hospital]) -> dict[str, Tensor]:
    """The column sums of all training rows."""
    parts = [sums_of(hospital.train.x) for hospital in hospitals]
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def judged(method: str, model: nn.Module, hospitals: Sequence[Hospital], scales: Scales) -> Result:
    """One model, on everybody's test rows."""
    own = {h.name: score(model, *scaled(h.test, scales[h.name])) for h in hospitals}
    return Result(method, own, score(model, *everyone([h.test for h in hospitals], scales.values())))


def local(method: str, hospitals: Sequence[Hospital], scales: Scales, seed: int) -> Result:
    """Each hospital alone: its model on its own test rows; the mean over the models on all test rows."""
    test = everyone([h.test for h in hospitals], scales.values())
    own: dict[str, Mapping[str, float]] = {}
    everywhere: list[Mapping[str, float]] = []
    for hospital in hospitals:
        model = trained_alone(*scaled(hospital.train, scales[hospital.name]), seed)
        own[hospital.name] = score(model, *scaled(hospital.test, scales[hospital.name]))
        everywhere.append(score(model, *test))
    means = {metric: statistics.fmean(scores[metric] for scores in everywhere) for metric in ("auc", "accuracy")}
    return Result(method, own, means)


def pooled(hospitals: Sequence[Hospital], scales: Scales, seed: int) -> nn.Module:
    """One model of all training rows in one place: what no hospital may do, and the mark to reach."""
    theirs = [scales[hospital.name] for hospital in hospitals]
    return trained_alone(*everyone([hospital.train for hospital in hospitals], theirs), seed)


def scaled(rows: Rows, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """Inputs and labels as the model takes them."""
    return scaling(rows.x), rows.y


def everyone(parts: Sequence[Rows], scales: Iterable[Scaling]) -> tuple[Tensor, Tensor]:
    """All rows together, each on its hospital's scale."""
    pairs = [scaled(rows, scaling) for rows, scaling in zip(parts, scales, strict=True)]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def trained_alone(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """FLamby's recipe for one data set: Adam 0.001, 50 passes, batches of 4."""
    model = new_model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    order = torch.Generator().manual_seed(seed)
    for _ in range(50):
        for batch in torch.split(torch.randperm(len(y), generator=order), 4):
            step(model, optimizer, x[batch], y[batch])
    return model


def fedavg(hospitals: Sequence[Hospital], scales: Scales, seed: int, *, by_rows: bool = False) -> nn.Module:
    """The same training as the swarm's, averaged in one process: weights are the samples seen in the round.

    `by_rows` weighs by the hospitals' training rows instead, as FLamby does.
    """
    model = new_model(seed)
    for number in range(ROUNDS):
        states: list[tuple[int, dict[str, Tensor]]] = []
        for hospital in hospitals:
            site = new_model(seed)
            site.load_state_dict(model.state_dict())
            optimizer = torch.optim.SGD(site.parameters(), lr=0.01)
            order = torch.Generator().manual_seed(order_of(seed, hospital.name, number))
            rows = scaled(hospital.train, scales[hospital.name])
            loader = DataLoader(TensorDataset(*rows), batch_size=4, shuffle=True, generator=order)
            samples = 0
            for x, y in islice(chain.from_iterable(repeat(loader)), BATCHES):
                step(site, optimizer, x, y)
                samples += len(x)
            states.append((len(hospital.train) if by_rows else samples, site.state_dict()))
        whole = sum(weight for weight, _ in states)
        mean = {name: sum(weight / whole * state[name].double() for weight, state in states) for name in states[0][1]}
        model.load_state_dict(mean)
    return model


def strangers(seeds: int, folder: Path = FOLDER) -> str:
    """At each hospital in turn, all of whose patients are new to every model: the AUC, as a Markdown table.

    Scaled per site, the stranger takes mean and deviation from its own patients, which needs no diagnosis; with shared
    scaling it takes those that the other three agreed on.
    """
    lines = [
        "| stranger | scaling | FedAvg of the others | the best of their own models | pooled |",
        "| --- " * 5 + "|",
    ]
    for name in HOSPITALS:
        stranger, others = load(name, folder), [load(other, folder) for other in HOSPITALS if other != name]
        home = {one.name: Scaling.of(sums_of(one.train.x)) for one in [stranger, *others]}
        for how, scales in (("per site", home), ("shared", dict.fromkeys(HOSPITALS, Scaling.of(summed(others))))):
            x, y = everyone([stranger.train, stranger.test], repeat(scales[name], 2))
            found: dict[str, list[float]] = {}
            for seed in range(seeds):
                models = {one.name: trained_alone(*scaled(one.train, scales[one.name]), seed) for one in others}
                models |= {"FedAvg": fedavg(others, scales, seed)}
                models |= {"pooled": pooled(others, scales, seed)}
                for key, model in models.items():
                    found.setdefault(key, []).append(score(model, x, y)["auc"])
            means = {key: statistics.fmean(values) for key, values in found.items()}
            best = max((other.name for other in others), key=means.__getitem__)
            cells = f"{means['FedAvg']:.3f} | {means[best]:.3f} ({best}) | {means['pooled']:.3f}"
            lines.append(f"| {name} | {how} | {cells} |")
    return "\n".join(lines)


def table(rows: Sequence[Result]) -> str:
    """The results as a Markdown table, AUC / accuracy; `–` where a test set holds one class only."""
    lines = [
        f"| AUC / accuracy | {' | '.join(HOSPITALS)} | mean over hospitals | all test rows |",
        "| --- " * (len(HOSPITALS) + 3) + "|",
    ]
    for row in rows:
        cells = [cell(row.own[name].get("auc"), row.own[name]["accuracy"]) for name in HOSPITALS]
        cells.append(cell(row.mean("auc"), row.mean("accuracy")))
        cells.append(cell(row.everywhere.get("auc"), row.everywhere["accuracy"]))
        lines.append(f"| {row.method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(area: float | None, accuracy: float | None) -> str:
    """`0.873 / 0.798`."""
    return " / ".join("–" if value is None else f"{value:.3f}" for value in (area, accuracy))


def summary(many: Sequence[Sequence[Result]]) -> str:
    """Mean ± deviation over several seeds, as a Markdown table."""

    def spread(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        if not known:
            return "–"
        return f"{statistics.fmean(known):.3f} ± {statistics.stdev(known) if len(known) > 1 else 0.0:.3f}"

    lines = [
        "| method | AUC, mean over hospitals | AUC, all test rows | accuracy, mean over hospitals | accuracy, all |",
        "| --- | --- | --- | --- | --- |",
    ]
    for rows in zip(*many, strict=True):
        own_auc, own_accuracy = ([row.mean(metric) for row in rows] for metric in ("auc", "accuracy"))
        auc, accuracy = ([row.everywhere.get(metric) for row in rows] for metric in ("auc", "accuracy"))
        cells = " | ".join(map(spread, (own_auc, auc, own_accuracy, accuracy)))
        lines.append(f"| {rows[0].method} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many, for a mean and a deviation")
    parser.add_argument("--checkpoint", type=Path, help="the last checkpoint of the run `heart` (of --seed)")
    parser.add_argument("--scaling", type=Path, help="the checkpoint of the run `heart-scaling`")
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--strangers", action="store_true", help="how well models serve a hospital that never trained")
    parser.add_argument("--json", action="store_true", help="print the rows for a program")
    given = parser.parse_args()
    if given.strangers:
        print(strangers(given.seeds, given.data))
        return
    if given.json:
        print(
            json.dumps([asdict(row) for row in results(given.seed, given.checkpoint, given.scaling, folder=given.data)])
        )
    elif given.checkpoint is not None:
        print(table(results(given.seed, given.checkpoint, given.scaling, folder=given.data)))
    else:
        many = [results(given.seed + i, scaling=given.scaling, folder=given.data) for i in range(given.seeds)]
        print(summary(many) if len(many) > 1 else table(many[0]))


if __name__ == "__main__":
    main()
