"""How alike two records are, and who was trained on: held against plain references and closed forms."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from swarm.learn.leak import membership
from swarm.learn.leak.binomial import at_least, epsilon_at_least, interval, p_value
from swarm.learn.leak.canaries import audited
from swarm.learn.leak.measures import Likeness, likeness, places, psnr, ssim


def plain_ssim(a: np.ndarray, b: np.ndarray, span: float) -> float:
    """Wang et al. 2004, window by window."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2, values = (0.01 * span) ** 2, (0.03 * span) ** 2, []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            u, v = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mu, mv = (window * u).sum(), (window * v).sum()
            su, sv = (window * (u - mu) ** 2).sum(), (window * (v - mv) ** 2).sum()
            both = (window * (u - mu) * (v - mv)).sum()
            values.append((2 * mu * mv + c1) * (2 * both + c2) / ((mu**2 + mv**2 + c1) * (su + sv + c2)))
    return float(np.mean(values))


def test_ssim_and_psnr_are_what_a_plain_loop_computes() -> None:
    chance = torch.Generator().manual_seed(3)
    true = torch.rand((2, 1, 17, 19), generator=chance, dtype=torch.float64) * 4
    found = true + torch.randn(true.shape, generator=chance, dtype=torch.float64) * 0.3
    for value, a, b in zip(ssim(found, true, 4.0).tolist(), found, true, strict=True):
        assert value == pytest.approx(plain_ssim(a[0].numpy(), b[0].numpy(), 4.0), abs=1e-9)
    expected = 10 * math.log10(16 / float(((found[0] - true[1]) ** 2).mean()))
    assert float(psnr(found, true, 4.0)[0, 1]) == pytest.approx(expected, abs=1e-9)


def test_a_record_is_recognised_by_its_reconstruction_and_not_by_what_is_known_without_it() -> None:
    chance = torch.Generator().manual_seed(1)
    records = torch.randn((300, 20), generator=chance, dtype=torch.float64)
    true, others = records[:3], records[3:]
    line_ups, middle = [torch.arange(len(others))] * 3, torch.zeros(20, dtype=torch.float64)

    def compared(found: torch.Tensor, unrelated: torch.Tensor) -> Likeness:
        return likeness(found, unrelated, true, others, line_ups, middle, span=1.0, chance=chance)

    near = true + 0.1 * torch.randn(true.shape, generator=chance, dtype=torch.float64)
    found = compared(near, others[:3])
    assert all(found.recognised)
    assert (found.first, found.ahead, found.rivals) == (3, 1.0, (297, 297, 297))
    blank = others.mean(0, keepdim=True).expand_as(true)
    assert not any(compared(blank, others[:3]).recognised)
    # One who copies another record is as near as a good guess and picks nobody out.
    assert compared(others[:3], blank).first == 0
    # Who shows nothing at all ties with everybody, which is no victory.
    assert compared(middle.expand(3, -1), blank).places == (298, 298, 298)


def test_a_line_up_of_one_who_knows_nothing_is_won_as_often_as_chance_says() -> None:
    chance = torch.Generator().manual_seed(8)
    records = torch.randn((1000, 10, 6), generator=chance, dtype=torch.float64)
    line_ups = list(torch.arange(9000).reshape(1000, 9))
    middle = torch.zeros(6, dtype=torch.float64)
    found = torch.randn((4, 6), generator=chance, dtype=torch.float64)
    placed = places(found, records[:, 0], records[:, 1:].reshape(9000, 6), line_ups, middle)
    low, high = interval(sum(place == 1 for place in placed), 1000)
    assert low < 0.1 < high


def test_the_interval_of_a_share_is_the_textbooks_and_holds_as_often_as_it_says() -> None:
    assert interval(0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert interval(9, 10) == pytest.approx((0.5550, 0.9975), abs=1e-4)
    chance = np.random.default_rng(3)
    of_40 = cache(lambda right: interval(right, 40))
    held = sum(low <= 0.3 <= high for low, high in map(of_40, chance.binomial(40, 0.3, 300).tolist()))
    assert held >= 276  # 95 % of 300 are 285, less three deviations 273.7; exact intervals hold more often
    assert at_least(0, 5, 0.2) == 1.0
    assert at_least(5, 5, 0.2) == pytest.approx(0.2**5)


def test_the_bound_on_epsilon_is_the_closed_form_where_every_guess_is_right() -> None:
    for guesses in (10, 100):
        share = 0.05 ** (1 / guesses)
        found = epsilon_at_least(guesses, guesses, 200, delta=0.0)
        assert found == pytest.approx(math.log(share / (1 - share)), abs=1e-6)


def test_delta_lowers_the_bound_and_chance_gives_none() -> None:
    assert epsilon_at_least(90, 100, 100, delta=1e-3) < epsilon_at_least(90, 100, 100, delta=0.0)
    assert epsilon_at_least(50, 100, 100, delta=1e-5) == 0.0
    assert p_value(0, 10, 10, epsilon=0.0, delta=0.0) == pytest.approx(1.0)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomized_response_is_not_accused_of_more_than_it_spends_and_of_most_of_it(epsilon: float) -> None:
    """Its epsilon is known exactly: each coin is told rightly with probability e^epsilon / (1 + e^epsilon)."""
    chance = np.random.default_rng(7)
    share = math.exp(epsilon) / (1 + math.exp(epsilon))
    bound_of = cache(lambda right: epsilon_at_least(right, 200, 200, delta=0.0))
    bounds = [bound_of(int(chance.binomial(200, share))) for _ in range(300)]
    above = sum(bound > epsilon for bound in bounds)
    assert above <= 27  # 5 % of 300 are 15, three deviations more are 26.3
    assert above > 0  # a bound that is never reached would be loose
    assert np.median(bounds) > epsilon - 0.5


def test_an_audit_counts_its_guesses_from_both_ends() -> None:
    inside = torch.tensor([True, False] * 50)
    scores = inside.double() + torch.linspace(0, 0.5, 100)
    found = audited(scores, inside, delta=1e-5)
    assert (found.guesses, found.right) == (50, 50)
    assert found.epsilon_min == found.epsilon_seen_max > 2
    assert audited(-scores, inside, delta=1e-5).epsilon_min == 0


def test_the_area_is_scikit_learns_and_a_thousandth_is_not_told_from_a_hundred() -> None:
    chance = torch.Generator().manual_seed(5)
    scores, members = torch.randn(300, generator=chance).round(decimals=1), torch.rand(300, generator=chance) < 0.5
    found = membership.measured(scores, members)
    assert found.auc == pytest.approx(roc_auc_score(members.numpy(), scores.numpy()), abs=1e-12)
    assert found.true_positives is None
    members = torch.arange(4000) < 2000
    found = membership.measured(torch.arange(4000, 0, -1).double(), members)
    assert (found.auc, found.true_positives) == (1.0, 1.0)
    assert membership.measured(torch.zeros(4000), members).true_positives == 0.0


def test_shadow_models_find_members_that_the_loss_alone_does_not() -> None:
    """Records are unlike each other: a hard one that was trained on has more loss than an easy one that was not."""
    chance = torch.Generator().manual_seed(2)
    sides = membership.coins(9, 2000, chance)
    hard = torch.rand(2000, generator=chance) * 3
    margin = 2 - hard + 0.5 * sides + 0.1 * torch.randn((9, 2000), generator=chance)
    losses = torch.nn.functional.softplus(-margin)
    usable = sides[1:].any(0) & (~sides[1:]).any(0)
    alone = membership.measured(membership.by_loss(losses[0]), sides[0]).auc
    scores = membership.by_shadows(losses[0, usable], losses[1:, usable], sides[1:, usable])
    assert membership.measured(scores, sides[0, usable]).auc > 0.95 > 0.7 > alone
