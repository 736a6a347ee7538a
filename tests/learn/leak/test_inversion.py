"""A gradient of one record gives the record back; somebody else's gradient does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from swarm.learn.leak.inversion import (
    Effort,
    Gradient,
    Known,
    first_layer,
    invert,
    label_of_one,
    layer_inputs,
    trained,
)
from swarm.learn.leak.measures import psnr

SIZE = 12


def pictures(count: int, chance: torch.Generator) -> Tensor:
    """(count, 1, 12, 12): smooth blobs between 0 and 1, no two alike."""
    coarse = torch.rand((count, 1, 4, 4), generator=chance, dtype=torch.float64)
    return nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 5, padding=2), nn.Sigmoid(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 3)).double()


def gradient_of(model: nn.Module, x: Tensor, y: Tensor) -> Gradient:
    loss = nn.functional.cross_entropy(model(x), y)
    return torch.autograd.grad(loss, trained(model), create_graph=True)


def test_one_record_of_a_small_network_comes_back_and_an_unrelated_gradient_gives_nothing() -> None:
    chance = torch.Generator().manual_seed(4)
    model, known = network(), Known.of(pictures(200, chance), by_column=False)
    own, other = pictures(1, chance), pictures(1, chance)
    label = torch.tensor([1])
    near = []
    for seen in (own, other):
        given = [part.detach() for part in gradient_of(model, seen, label)]
        found = invert(
            given, lambda x: gradient_of(model, x, label), 1, known, effort=Effort(2, 150, 60), chance=chance
        )
        near.append(float(psnr(found.x, own, 1.0)))
    blank = float(psnr(known.mean[None], own, 1.0))
    assert near[0] >= 25
    assert near[0] >= blank + 6
    assert near[1] < blank + 3


def test_a_linear_layer_tells_its_input_and_the_last_bias_the_label() -> None:
    chance = torch.Generator().manual_seed(4)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    x = pictures(1, chance)
    for label in range(3):
        given = [part.detach() for part in gradient_of(model, x, torch.tensor([label]))]
        assert label_of_one(model, given, "classes") == label
        place = first_layer(model, SIZE * SIZE)
        assert place == (0, 1)
        read = layer_inputs(given, *place)
        assert torch.allclose(read, x.flatten().expand_as(read), atol=1e-9)


def test_a_convolution_before_it_means_that_no_linear_layer_sees_the_record() -> None:
    assert first_layer(network(), SIZE * SIZE) is None


def test_a_binary_label_is_inferred_from_one_logit() -> None:
    model = nn.Linear(4, 1).double()
    for label in (0.0, 1.0):
        loss = nn.functional.binary_cross_entropy_with_logits(
            model(torch.ones((1, 4), dtype=torch.float64)).squeeze(1), torch.tensor([label], dtype=torch.float64)
        )
        assert label_of_one(model, torch.autograd.grad(loss, trained(model)), "binary") == label


def test_a_gradient_of_nothing_is_refused() -> None:
    model, chance = network(), torch.Generator().manual_seed(0)
    nothing = [torch.zeros_like(parameter) for parameter in trained(model)]
    with pytest.raises(ValueError, match="tells of no record"):
        invert(
            nothing,
            lambda x: gradient_of(model, x, torch.tensor([0])),
            1,
            Known.of(pictures(20, chance), by_column=False),
            effort=Effort(1, 1, 0),
            chance=chance,
        )
