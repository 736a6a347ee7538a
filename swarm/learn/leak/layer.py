"""What was the first linear layer given? Its gradient tells, record by record, and records follow from that.

The gradient of a linear layer is the sum over the records of an outer product: what moved the outputs, and what the
layer was given. Of one record that is one product, read off. Of several it spans what each of them gave; after a ReLU
many values of each record are zero, and mixtures of records have fewer zeros than any one of them. So the sparsest
vectors of the span are the records' own, exactly. Which record gives these values is then looked for.

Source: Geiping et al., Inverting Gradients, NeurIPS 2020, proposition 3.1 (one record); Dimitrov et al., SPEAR: Exact
Gradient Inversion of Batches, NeurIPS 2024 (several, by the zeros of ReLU; there those behind the layer, here those
before it); Candès et al., Enhancing Sparsity by Reweighted l1 Minimization, 2008 (here with squares).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swarm.learn.leak.inversion import TINY, Gradient, Known, Space, quiet

ROWS_MAX = 16
"""Records that are told apart at once; of more the zeros are too few for it."""
STARTS = 1500
BLURS = tuple(10 ** (-0.5 - 3 * step / 24) for step in range(25))
"""What counts as zero, falling step by step."""
ZERO, LIVE, APART = 1e-3, 1e-2, 1e-2
MEANS_MAX = 16
"""Outputs whose own mean input is looked at where records cannot be told apart."""
STEPS, AT_ONCE = 400, 4
PRIOR = 1e-5
"""How much a deviation from known records counts beside the mismatch."""
EXPLAINED = 0.01
"""A mismatch below it: the record is found, and nothing else has to be tried."""

Given = tuple[Tensor, Tensor | None]
"""(rows, inputs) of the layer, and the same before the ReLU in front of it; None where there is none."""


@dataclass(frozen=True)
class Layer:
    """The first layer that is linear in a whole record's values.

    Attributes:
        weight, bias: its places in the gradient.
    """

    weight: int
    bias: int
    given: Callable[[Tensor], Given]
    """From records (rows, ...), float64, differentiable."""


def first_linear(model: nn.Module, parameters: Sequence[nn.Parameter], example: Tensor) -> Layer | None:
    """The layer, or None where no linear layer with a bias sees one vector for each record.

    Args:
        parameters: what the gradient has parts for, in its order.
        example: one record (1, ...).
    """
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    own = quiet(copy.deepcopy(model).double())
    for module, mine in zip(model.modules(), own.modules(), strict=True):
        if not isinstance(module, nn.Linear):
            continue
        if id(module.weight) not in places or id(module.bias) not in places:
            continue
        with torch.no_grad():
            given = _given(own, mine, example.double())
        if given is None:
            continue
        return Layer(places[id(module.weight)], places[id(module.bias)], lambda x, at=mine: _sure(_given(own, at, x)))  # type: ignore[misc]
    return None


def _sure(given: Given | None) -> Given:
    assert given is not None, "the layer saw the example, so it sees these records"
    return given


def _given(model: nn.Module, layer: nn.Module, x: Tensor) -> Given | None:
    """What the layer is given of these records; None if it is not called with one vector for each."""
    seen: list[Given] = []
    last: list[tuple[Tensor, Tensor]] = []

    def activated(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        last[:] = [(args[0], output)]

    def called(module: nn.Module, args: tuple[Any, ...]) -> None:
        value = args[0]
        if seen or value.dim() != 2 or len(value) != len(x):
            return
        before = None
        if last and last[0][1].numel() == value.numel() and torch.equal(last[0][1].flatten(1), value):
            before = last[0][0].flatten(1)
        seen.append((value, before))

    with _hooked(model, activated, layer, called):
        model(x)
    return seen[0] if seen else None


@contextmanager
def _hooked(model: nn.Module, activated: Any, layer: nn.Module, called: Any) -> Iterator[None]:
    hooks = [module.register_forward_hook(activated) for module in model.modules() if isinstance(module, nn.ReLU)]
    hooks.append(layer.register_forward_pre_hook(called))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def inputs(gradient: Gradient, layer: Layer, rows: int, chance: torch.Generator) -> Tensor:
    """What the layer was given, as its gradient tells: (found, inputs).

    Up to `ROWS_MAX` records one row for each, where the layer has as many outputs; otherwise the mean over the records
    that moved an output, weighted by how much, for some outputs: where only one record moved it, that one.
    """
    of_weight, of_bias = gradient[layer.weight], gradient[layer.bias]
    if rows == 1:
        return (of_bias @ of_weight / (of_bias @ of_bias).clamp_min(TINY))[None]
    if rows <= min(ROWS_MAX, *of_weight.shape):
        return told_apart(of_weight, of_bias, rows, chance)
    size = of_bias.abs()
    moved = (size > 1e-6 * size.max().clamp_min(TINY)).nonzero().flatten()
    moved = moved[torch.randperm(len(moved), generator=chance)[:MEANS_MAX]]
    return of_weight[moved] / of_bias[moved][:, None]


def told_apart(of_weight: Tensor, of_bias: Tensor, rows: int, chance: torch.Generator) -> Tensor:
    """The sparsest vectors of what the records span, each as large as the bias tells: (rows, inputs).

    Args:
        of_weight: (outputs, inputs); of_bias: (outputs,). Sums over `rows` records, at most as many as outputs.
        chance: draws the starts.
    """
    left, lengths, right = torch.linalg.svd(of_weight, full_matrices=False)
    span = right[:rows].T
    size = span.norm(dim=1)
    live = size > LIVE * size.max()
    points = span[live] / size[live, None]
    found = _sparsest(points, rows, chance)
    outputs = (left[:, :rows] * lengths[:rows]) @ torch.linalg.pinv(found)
    scale = torch.linalg.lstsq(outputs, of_bias[:, None]).solution[:, 0]
    scale = torch.where(scale.abs() > TINY, scale, torch.full_like(scale, TINY))
    whole: Tensor = found @ span.T / scale[:, None]
    return whole


def _sparsest(points: Tensor, rows: int, chance: torch.Generator) -> Tensor:
    """(rows, rows): directions, independent of each other, that are orthogonal to the most points.

    Args:
        points: (points, rows), each of length 1.
    """
    found = torch.randn((STARTS, rows), generator=chance, dtype=torch.float64)
    found = found / found.norm(dim=1, keepdim=True)
    for blur in BLURS:
        weights = 1 / ((found @ points.T) ** 2 + blur**2)
        weighted = (weights @ (points[:, :, None] * points[:, None, :]).flatten(1)).reshape(STARTS, rows, rows)
        found = torch.linalg.eigh(weighted)[1][:, :, 0]
    zeros = ((found @ points.T).abs() < ZERO).sum(1)
    kept: list[Tensor] = []
    for one in found[zeros.argsort(descending=True)]:
        rest = one
        if kept:
            basis = torch.linalg.qr(torch.stack(kept, 1))[0]
            rest = one - basis @ (basis.T @ one)
        if float(rest.norm()) > APART:
            kept.append(one)
        if len(kept) == rows:
            break
    if len(kept) < rows:  # the starts have met in too few places: fill up with what they miss
        basis = torch.linalg.qr(torch.stack(kept, 1), mode="complete")[0]
        kept += list(basis.T[len(kept) :])
    return torch.stack(kept)


def records_of(
    values: Tensor, layer: Layer, known: Known, *, tell: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """Records that give the layer these values, (found, ...), and how badly each does: (found,), 0 is exactly.

    Args:
        values: (found, inputs); of any size but 0.
        tell: called after each step.
    """
    space = Space(known, AT_ONCE, by_components=known.components is not None)
    low, high = known.low.expand_as(known.mean), known.high.expand_as(known.mean)
    if values.shape[1] == known.mean.numel():
        whole = values.reshape(-1, *known.mean.shape)
        if torch.allclose(layer.given(known.mean[None])[0].flatten(), known.mean.flatten()):
            inside = torch.minimum(torch.maximum(whole, low), high)
            return inside, torch.zeros(len(whole), dtype=torch.float64)  # the layer sees the record as it is
    found, missed = [], []
    for part in torch.split(values, AT_ONCE):
        x, miss = _search(part, layer, Space(known, len(part), by_components=space.by_components), tell)
        found.append(x)
        missed.append(miss)
    return torch.cat(found), torch.cat(missed)


def _search(values: Tensor, layer: Layer, space: Space, tell: Callable[[], None]) -> tuple[Tensor, Tensor]:
    size = values.square().sum(1).clamp_min(TINY)
    active = values > ZERO * values.amax(1, keepdim=True)

    def mismatch(x: Tensor) -> Tensor:
        after, before = layer.given(x)
        difference = after - values
        if before is not None:
            difference = torch.where(active, before - values, before.clamp_min(0))
        return difference.square().sum(1) / size

    z = space.middle().requires_grad_(True)
    lbfgs = torch.optim.LBFGS(
        [z], max_iter=STEPS, history_size=50, line_search_fn="strong_wolfe", tolerance_change=1e-16,
        tolerance_grad=1e-16,
    )  # fmt: skip

    def loss() -> Tensor:
        total = mismatch(space.records(z)).sum() + PRIOR * z.square().sum()
        (z.grad,) = torch.autograd.grad(total, z)
        tell()
        return total.detach()

    lbfgs.step(loss)  # type: ignore[no-untyped-call]
    end = z.detach() if bool(torch.isfinite(z).all()) else space.middle()
    x = space.bounded(space.records(end))
    return x, mismatch(x).detach()
