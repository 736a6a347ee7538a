"""A gradient of one record gives the record back; somebody else's gradient does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from swarm.learn.leak.inversion import Effort, Gradient, Known, invert, label_of_one, trained
from swarm.learn.leak.layer import first_linear, inputs, records_of, told_apart
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
    x, known = pictures(1, chance), Known.of(pictures(200, chance), by_column=False)
    layer = first_linear(model, trained(model), x)
    assert layer is not None
    assert (layer.weight, layer.bias) == (0, 1)
    for label in range(3):
        given = [part.detach() for part in gradient_of(model, x, torch.tensor([label]))]
        assert label_of_one(model, trained(model), given, "classes") == label
        found, missed = records_of(inputs(given, layer, 1, chance), layer, known)
        assert torch.allclose(found, x.clamp(known.low, known.high), atol=1e-9)
        assert float(missed.max()) == 0


def test_several_records_are_told_apart_by_the_zeros_of_what_a_layer_was_given() -> None:
    chance = torch.Generator().manual_seed(6)
    true = torch.randn((5, 300), generator=chance, dtype=torch.float64).clamp_min(0)
    moved = torch.randn((20, 5), generator=chance, dtype=torch.float64)
    found = told_apart(moved @ true, moved.sum(1), 5, chance)
    assert torch.cdist(found, true).amin(0).max() < 1e-3
    # Without any zeros there is nothing to tell them apart by.
    dense = true + 1
    found = told_apart(moved @ dense, moved.sum(1), 5, chance)
    assert torch.cdist(found, dense).amin(0).max() > 1


def test_a_batch_of_three_comes_back_through_a_convolution() -> None:
    chance = torch.Generator().manual_seed(4)
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * SIZE * SIZE, 12), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(12, 3)).double()
    x, known = pictures(3, chance), Known.of(pictures(200, chance), by_column=False)
    layer = first_linear(model, trained(model), x[:1])
    assert layer is not None
    given = [part.detach() for part in gradient_of(model, x, torch.tensor([0, 1, 2]))]
    values = inputs(given, layer, 3, chance)
    found, missed = records_of(values, layer, known)
    assert float(missed.max()) < 1e-3
    assert float(psnr(found, x, 1.0).amax(0).min()) > 30
    # Other values than the layer was given lead to other pictures.
    found, _ = records_of(values[torch.randperm(3, generator=chance)].flip(1), layer, known)
    assert float(psnr(found, x, 1.0).amax(0).max()) < 25


def test_a_model_without_a_linear_layer_that_sees_whole_records_has_none_to_read() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1), nn.Flatten())
    assert first_linear(model, trained(model), torch.zeros((1, 1, SIZE, SIZE))) is None
    without_bias = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 3, bias=False))
    assert first_linear(without_bias, trained(without_bias), torch.zeros((1, 1, SIZE, SIZE))) is None


def test_a_binary_label_is_inferred_from_one_logit() -> None:
    model = nn.Linear(4, 1).double()
    for label in (0.0, 1.0):
        loss = nn.functional.binary_cross_entropy_with_logits(
            model(torch.ones((1, 4), dtype=torch.float64)).squeeze(1), torch.tensor([label], dtype=torch.float64)
        )
        assert label_of_one(model, trained(model), torch.autograd.grad(loss, trained(model)), "binary") == label


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
