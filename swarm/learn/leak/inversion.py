"""Which records would have given this gradient? Gradient inversion, as somebody would try it who holds an update.

The attacker knows the model, its loss and the labels, and looks for inputs whose gradient points the same way: Adam
on one minus the cosine, from several starts, then L-BFGS on the same. A member of a run has records of its own of the
same kind: the first start looks for deviations from them, along their principal components, the second goes on freely
from there.

Source: Geiping et al., Inverting Gradients, NeurIPS 2020 (cosine, total variation, signed steps); Zhu et al., Deep
Leakage from Gradients, NeurIPS 2019 (L-BFGS); Zhao et al., iDLG, 2020 (labels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Gradient = Sequence[Tensor]
"""One tensor for each trained parameter."""
GradientOf = Callable[[Tensor], Gradient]
"""The gradient of a batch of inputs (rows, ...), differentiable by the inputs."""

TINY = 1e-30
COMPONENTS_MAX_BYTES = 1 << 28
"""What principal components may take; records that are larger are looked for without them."""
KNOWN_MAX = 1000
LEAST_DEVIATION = 0.02
"""Of a component, as a share of the inputs' half span: what known records lack is still possible."""


@dataclass(frozen=True)
class Effort:
    """How hard the attacker tries."""

    restarts: int = 2
    steps: int = 400
    """Of Adam, from each start."""
    refine: int = 200
    """Of L-BFGS, after them."""


@dataclass(frozen=True)
class Inverted:
    """What the attacker ends with."""

    x: Tensor
    """(rows, ...), in the inputs' own scale."""
    mismatch: float
    """One minus the cosine between its gradient and the given one: 0 where it explains all of it."""


@dataclass(frozen=True)
class Known:
    """What the attacker knows of such records: float64."""

    low: Tensor
    high: Tensor
    """What an input can be at least and at most; one number, or one for each column."""
    mean: Tensor
    """(...) of one record."""
    components: Tensor | None
    """(components, values of a record), each as long as records deviate along it."""

    @classmethod
    def of(cls, records: Tensor, *, by_column: bool) -> Known:
        """From records (rows, ...) of the same kind."""
        x = records.double()
        low, high = (x.amin(0), x.amax(0)) if by_column else (x.min(), x.max())
        high = torch.where(high > low, high, low + 1)
        some = x[:KNOWN_MAX]
        mean = some.mean(0)
        values = mean.numel()
        if min(len(some), values) * values * 8 > COMPONENTS_MAX_BYTES:
            return cls(low, high, mean, None)
        _, lengths, axes = torch.linalg.svd((some - mean).flatten(1), full_matrices=False)
        least = LEAST_DEVIATION * float((high - low).mean()) / 2
        return cls(low, high, mean, axes * (lengths / len(some) ** 0.5 + least)[:, None])


def invert(
    gradient: Gradient,
    gradient_of: GradientOf,
    rows: int,
    known: Known,
    *,
    effort: Effort,
    chance: torch.Generator,
    tell: Callable[[], None] = lambda: None,
) -> Inverted:
    """Inputs whose gradient is like the given one.

    Args:
        gradient: float64, of any length but 0.
        rows: how many inputs are looked for.
        chance: draws the starts.
        tell: called after each step.
    Raises:
        ValueError: the gradient is zero or not finite: there is nothing to invert.
    """
    length = _norm(gradient)
    if not (length > TINY and torch.isfinite(length)):
        raise ValueError(f"a gradient of length {float(length):g} tells of no record")
    given = [part / length for part in gradient]
    found: list[Inverted] = []
    for number in range(effort.restarts):
        space = Space(known, rows, by_components=known.components is not None and number == 0)
        start = space.start(chance) if number != 1 else space.at(found[0].x)
        found.append(_search(given, gradient_of, space, start, effort, tell))
    return min(found, key=lambda one: one.mismatch)


class Space:
    """Where the attacker looks: values between the least and the greatest, or deviations from known records."""

    def __init__(self, known: Known, rows: int, by_components: bool) -> None:
        self._known = known
        self._middle, self._half = (known.low + known.high) / 2, (known.high - known.low) / 2
        self.by_components = by_components
        self._components = known.components if by_components else None
        self._shape = (rows, *known.mean.shape)
        self.signed = not by_components
        self.variation = 1e-2 if self.signed else 1e-4
        """How much the total variation of images counts beside the cosine."""

    def middle(self) -> Tensor:
        """The place of what is known of all records."""
        if self._components is None:
            return self.at(self._known.mean.expand(self._shape)).clone()
        return torch.zeros((self._shape[0], len(self._components)), dtype=torch.float64)

    def start(self, chance: torch.Generator) -> Tensor:
        shape = self._shape if self._components is None else (self._shape[0], len(self._components))
        return torch.randn(shape, generator=chance, dtype=torch.float64) * (0.3 if self.signed else 0.1)

    def at(self, x: Tensor) -> Tensor:
        """The free space's place of given records."""
        return (x - self._middle) / self._half

    def records(self, z: Tensor) -> Tensor:
        if self._components is None:
            return self._middle + self._half * z
        return self._known.mean + (z @ self._components).reshape(self._shape)

    def rough(self, x: Tensor) -> Tensor:
        """The total variation of images (rows, channels, height, width); 0 for anything else."""
        if x.dim() != 4:
            return x.new_zeros(())
        z = x / self._half
        return (z[..., 1:, :] - z[..., :-1, :]).abs().mean() + (z[..., :, 1:] - z[..., :, :-1]).abs().mean()

    def bounded(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self._known.low), self._known.high)


def _search(
    given: Gradient,
    gradient_of: GradientOf,
    space: Space,
    start: Tensor,
    effort: Effort,
    tell: Callable[[], None],
) -> Inverted:
    z = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([z], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(effort.steps, 1), 1e-3)
    for _ in range(effort.steps):
        x = space.records(z)
        loss = 1 - cosine(gradient_of(x), given) + space.variation * space.rough(x)
        (slope,) = torch.autograd.grad(loss, z)
        z.grad = slope.sign() if space.signed else slope
        adam.step()
        schedule.step()
        tell()
    before = z.detach().clone()
    lbfgs = torch.optim.LBFGS(
        [z], max_iter=max(effort.refine, 1), history_size=50, line_search_fn="strong_wolfe", tolerance_change=1e-16,
        tolerance_grad=1e-16,
    )  # fmt: skip

    def distance() -> Tensor:
        loss = 1 - cosine(gradient_of(space.records(z)), given)
        (z.grad,) = torch.autograd.grad(loss, z)
        tell()
        return loss.detach()

    if effort.refine:
        lbfgs.step(distance)  # type: ignore[no-untyped-call]
    tried = [before, z.detach()]
    ended = [space.bounded(space.records(one)) for one in tried if bool(torch.isfinite(one).all())]
    found = [Inverted(x, float((1 - cosine(gradient_of(x), given)).detach())) for x in ended]
    return min(found, key=lambda one: one.mismatch)


def label_of_one(model: nn.Module, parameters: Sequence[nn.Parameter], gradient: Gradient, kind: str) -> float | None:
    """The label of the only record that a gradient is of, as the last layer's bias tells it; None where it does not.

    Args:
        parameters: what the gradient has parts for, in its order.
        kind: "binary" (one logit) or "classes".
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers or layers[-1].bias is None or kind not in ("binary", "classes"):
        return None
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    if id(layers[-1].bias) not in places:
        return None
    slope = gradient[places[id(layers[-1].bias)]]
    return float(slope[0] < 0) if kind == "binary" else float(slope.argmin())


def quiet(model: nn.Module) -> nn.Module:
    """The model as it trains, but without dropout: which values that left out is a secret."""
    for module in model.train().modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)):
            module.eval()
    return model


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def cosine(left: Gradient, right: Gradient) -> Tensor:
    """Of the angle between two gradients, over all parameters together."""
    dot = torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()
    return dot / (_norm(left) * _norm(right)).clamp_min(TINY)


def _norm(parts: Gradient) -> Tensor:
    return torch.stack([(part**2).sum() for part in parts]).sum().clamp_min(TINY**2).sqrt()
