"""What a policy asks of a site's steps: FedProx and SCAFFOLD as their papers say, and layers that stay at home."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swarm.config import Policy
from swarm.errors import ConfigError
from swarm.learn import norm_layers, save_model
from swarm.learn.part import Part
from swarm.learn.state import Checkpoint, State
from swarm.merge import Schema, check_genesis, merge_files

STEPS, RATE = 7, 0.05
Site = tuple[Tensor, Tensor]
Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain(**settings: Any) -> Policy:
    return Policy("plain", 6, STEPS, **({"merge": "mean", "weights": "equal"} | settings))


def uneven(seed: int = 0) -> list[Site]:
    """Three sites whose rows follow different rules."""
    source = torch.Generator().manual_seed(seed)
    sites = []
    for number in range(3):
        x = torch.randn(40, 4, generator=source, dtype=torch.float64) + number
        rule = torch.randn(4, generator=source, dtype=torch.float64)
        sites.append((x, (x @ rule > number).double()))
    return sites


def new_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def mean_of(states: list[Weights]) -> Weights:
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def loss_of(model: nn.Module, site: Site, step: int) -> Tensor:
    rows = torch.arange(8) + 8 * (step % 5)
    return nn.functional.binary_cross_entropy_with_logits(model(site[0][rows]).squeeze(1), site[1][rows])


def in_the_swarm(
    folder: Path, policy: Policy, sites: list[Site], make: Callable[[], nn.Module] = new_model
) -> tuple[nn.Module, list[nn.Module]]:
    """The merged model, and each site's, after the run's rounds."""
    base = folder / "base"
    save_model(make(), base, policy=policy)
    check_genesis(Schema.of_file(base), policy)
    parts = [Part(make(), policy) for _ in sites]
    for number in range(policy.rounds):
        paths = []
        for i, (part, site) in enumerate(zip(parts, sites, strict=True)):
            part.adopt(Checkpoint(base))
            optimizer = torch.optim.SGD(part.model.parameters(), lr=RATE)
            for step in range(policy.sync_interval):
                optimizer.zero_grad()
                backward(loss_of(part.model, site, step + number))
                part.correct()
                optimizer.step()
            paths.append(folder / f"update-{i}")
            assert part.write(paths[-1]) == []
        merge_files(base, paths, [1] * len(sites), policy, folder / "merged", threads=1)
        (folder / "merged").replace(base)
    for part in parts:
        part.adopt(Checkpoint(base))
    return parts[0].model, [part.model for part in parts]


def fedprox(sites: list[Site], rounds: int, mu: float) -> Weights:
    """Li et al. 2020, algorithm 2, with the proximal term in the loss."""
    model = new_model()
    for number in range(rounds):
        ends = []
        for site in sites:
            local = copy.deepcopy(model)
            for step in range(STEPS):
                far = sum(
                    ((w - x.detach()) ** 2).sum() for w, x in zip(local.parameters(), model.parameters(), strict=True)
                )
                loss = loss_of(local, site, step + number) + mu / 2 * far
                gradients = torch.autograd.grad(loss, list(local.parameters()))
                with torch.no_grad():
                    for w, g in zip(local.parameters(), gradients, strict=True):
                        w.sub_(RATE * g)
            ends.append(local.state_dict())
        model.load_state_dict(mean_of(ends))
    return model.state_dict()


def scaffold(sites: list[Site], rounds: int) -> Weights:
    """Karimireddy et al. 2020, algorithm 1, option II, global step 1, every client in every round."""
    model = new_model()
    zeros = [torch.zeros_like(x) for x in model.parameters()]
    c, own = zeros, [zeros for _ in sites]
    for number in range(rounds):
        ends, changes = [], []
        for i, site in enumerate(sites):
            local = copy.deepcopy(model)
            for step in range(STEPS):
                gradients = torch.autograd.grad(loss_of(local, site, step + number), list(local.parameters()))
                with torch.no_grad():
                    for w, g, ci, cs in zip(local.parameters(), gradients, own[i], c, strict=True):
                        w.sub_(RATE * (g - ci + cs))
            with torch.no_grad():
                both = zip(own[i], c, model.parameters(), local.parameters(), strict=True)
                following = [ci - cs + (x - w) / (STEPS * RATE) for ci, cs, x, w in both]
            changes.append([new - old for new, old in zip(following, own[i], strict=True)])
            own[i] = following
            ends.append(local.state_dict())
        model.load_state_dict(mean_of(ends))
        c = [old + sum(deltas) / len(sites) for old, deltas in zip(c, zip(*changes, strict=True), strict=True)]
    return model.state_dict()


def furthest(model: nn.Module, expected: Weights) -> float:
    return max(float((value - expected[name]).abs().max()) for name, value in model.state_dict().items())


def test_fedprox_is_the_papers(tmp_path: Path) -> None:
    found, _ = in_the_swarm(tmp_path, plain(proximal=0.7), uneven())
    assert furthest(found, fedprox(uneven(), 6, 0.7)) < 1e-6
    assert furthest(found, fedprox(uneven(), 6, 0.0)) > 1e-3  # it is not nothing


def test_scaffold_is_the_papers_option_two(tmp_path: Path) -> None:
    found, _ = in_the_swarm(tmp_path, plain(scaffold=True), uneven())
    assert furthest(found, scaffold(uneven(), 6)) < 1e-6
    assert furthest(found, fedprox(uneven(), 6, 0.0)) > 1e-3


def test_without_either_it_is_fedavg(tmp_path: Path) -> None:
    found, _ = in_the_swarm(tmp_path, plain(), uneven())
    assert furthest(found, fedprox(uneven(), 6, 0.0)) < 1e-6


def test_the_control_variates_travel_and_their_mean_is_in_the_checkpoint(tmp_path: Path) -> None:
    in_the_swarm(tmp_path, plain(scaffold=True), uneven())
    tensors = Checkpoint(tmp_path / "base").tensors
    assert {name for name in tensors if name.startswith("swarm.")} == {
        f"swarm.control.{name}" for name, _ in new_model().named_parameters()
    }
    assert float(tensors["swarm.control.0.weight"].abs().max()) > 1e-3


def test_a_site_that_comes_later_has_control_variates_of_zero(tmp_path: Path) -> None:
    policy = plain(scaffold=True)
    in_the_swarm(tmp_path, policy, uneven())
    late = Part(new_model(), policy)
    late.adopt(Checkpoint(tmp_path / "base"))
    for value in late.model.parameters():
        value.grad = torch.zeros_like(value)
    late.correct()
    for name, value in late.model.named_parameters():
        assert value.grad is not None
        assert torch.equal(value.grad, late.base.tensors[f"swarm.control.{name}"])


@pytest.mark.parametrize("settings", [{"proximal": 0.1}, {"scaffold": True}], ids=str)
def test_a_loop_that_forgets_to_correct_its_steps_is_told(tmp_path: Path, settings: dict[str, Any]) -> None:
    policy = plain(**settings)
    save_model(new_model(), tmp_path / "base", policy=policy)
    part = Part(new_model(), policy)
    part.adopt(Checkpoint(tmp_path / "base"))
    with pytest.raises(
        ConfigError, match=r"agreed on (proximal = 0.1|scaffold = True).*swarm.on_before_optimizer_step"
    ):
        part.write(tmp_path / "update")


def test_tied_weights_have_one_control_variate(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.decoder.weight = self.encoder.weight

    policy = plain(scaffold=True)
    save_model(Tied(), tmp_path / "base", policy=policy)
    assert set(Checkpoint(tmp_path / "base").tensors) == {"decoder.weight", "swarm.control.decoder.weight"}
    model = Tied()
    part = Part(model, policy)
    part.adopt(Checkpoint(tmp_path / "base"))
    backward(model.decoder(model.encoder(torch.tensor([1, 2]))).sum())
    part.correct()
    part.write(tmp_path / "update")


# --- what stays at a site


class Normed(nn.Module):
    """A body with a normalization, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.bn, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.bn(self.body(x))))
        return found


@pytest.mark.parametrize(
    ("personal", "staying"),
    [
        (("bn.*",), {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}),
        (("head.*",), {"head.weight", "head.bias"}),
    ],
    ids=["FedBN", "personal head"],
)
def test_what_stays_is_neither_in_an_update_nor_in_a_checkpoint(
    tmp_path: Path, personal: tuple[str, ...], staying: set[str]
) -> None:
    policy = plain(personal=personal)
    _, models = in_the_swarm(tmp_path, policy, uneven(), Normed)
    everything = set(Normed().state_dict())
    for file in ("base", "update-0", "update-1"):
        assert {t.name for t in Schema.of_file(tmp_path / file).tensors} == everything - staying
    first, second = (model.state_dict() for model in models[:2])
    for name in everything - {"bn.num_batches_tracked"}:
        assert torch.equal(first[name], second[name]) == (name not in staying), name


def test_fedbn_is_a_plain_loop_that_averages_all_but_the_normalization(tmp_path: Path) -> None:
    assert norm_layers(Normed()) == ["bn.*"]
    _, found = in_the_swarm(tmp_path, plain(personal=tuple(norm_layers(Normed()))), uneven(), Normed)
    models = [Normed() for _ in uneven()]
    for number in range(6):
        for model, site in zip(models, uneven(), strict=True):
            optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
            for step in range(STEPS):
                optimizer.zero_grad()
                backward(loss_of(model, site, step + number))
                optimizer.step()
        states = [model.state_dict() for model in models]
        mean = mean_of([{n: v for n, v in state.items() if not n.startswith("bn.")} for state in states])
        for model in models:
            model.load_state_dict(mean, strict=False)
    for trained, expected in zip(found, models, strict=True):
        assert furthest(trained, expected.state_dict()) < 1e-6


def test_going_back_to_the_checkpoint_takes_back_what_stays_too(tmp_path: Path) -> None:
    policy = plain(personal=("head.*",))
    save_model(Normed(), tmp_path / "base", policy=policy)
    part = Part(Normed(), policy)
    part.adopt(Checkpoint(tmp_path / "base"))
    before = copy.deepcopy(part.model.state_dict())
    with torch.no_grad():
        for name, value in part.model.named_parameters():
            value.fill_(float("nan") if name.startswith("head.") else 1.0)
    with pytest.raises(ValueError, match=r"head.bias, head.weight, which stays at this site, is not finite"):
        part.write(tmp_path / "update")
    part.restart()
    assert all(torch.equal(value, before[name]) for name, value in part.model.state_dict().items())


def test_what_a_site_keeps_brings_it_back_to_where_it_was(tmp_path: Path) -> None:
    policy = plain(personal=("bn.*",), scaffold=True)
    _, models = in_the_swarm(tmp_path, policy, uneven(), Normed)
    part = Part(models[1], policy)
    part.adopt(Checkpoint(tmp_path / "base"))
    part._own = {name: torch.randn_like(value) for name, value in part._parameters.items()}
    part.restart()
    kept = {name: value.clone() for name, value in part.kept().items()}
    again = Part(Normed(), policy)
    again.adopt(Checkpoint(tmp_path / "base"))
    again.restore(kept)
    for name, value in part.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    for name, drift in part._drifts.items():
        assert torch.equal(drift, again._drifts[name])
    with pytest.raises(ConfigError, match=r"kept of the run has a personal\.bn\.x that the model has not"):
        again.restore(kept | {"personal.bn.x": torch.zeros(1)})


@pytest.mark.parametrize(
    ("personal", "words"),
    [
        (("batchnorm*",), r"personal = 'batchnorm\*' names nothing in the model, which has bn.bias, "),
        (("b*", "h*"), r"personal = \['b\*', 'h\*'\] keeps all of the model at the site"),
    ],
)
def test_patterns_that_fit_no_model_are_refused(tmp_path: Path, personal: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        State(Normed(), plain(personal=personal))


def test_of_two_tied_tensors_one_cannot_stay() -> None:
    model = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
    model["two"].weight = model["one"].weight
    with pytest.raises(ConfigError, match=r"two.weight is tied to one.weight; tied tensors stay"):
        State(model, plain(personal=("two.*",)))
    with pytest.raises(ConfigError, match=r"two.weight is tied to one.weight; tied tensors stay"):
        State(model, plain(personal=("one.*",)))


def test_a_run_starts_from_what_its_policy_shares(tmp_path: Path) -> None:
    save_model(Normed(), tmp_path / "whole")
    whole = Schema.of_file(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"bn.running_mean stays at each site|bn.\w+ stays at each site"):
        check_genesis(whole, plain(personal=("bn.*",)))
    with pytest.raises(ValueError, match=r"scaffold = true, but the control variates are missing"):
        check_genesis(whole, plain(scaffold=True))
    save_model(Normed(), tmp_path / "both", policy=plain(scaffold=True))
    with pytest.raises(
        ValueError, match=r"swarm.control.\S+ is a control variate, but the policy has scaffold = false"
    ):
        check_genesis(Schema.of_file(tmp_path / "both"), plain())
    with pytest.raises(ConfigError, match=r"swarm.control.body.weight F64\[5, 4\] is unknown"):
        Part(Normed(), plain(scaffold=True)).adopt(Checkpoint(tmp_path / "whole"))


def test_a_step_that_a_scaler_leaves_out_is_neither_corrected_nor_counted(tmp_path: Path) -> None:
    policy = plain(scaffold=True)
    model = new_model().float()
    save_model(model, tmp_path / "base", policy=policy)
    part = Part(model, policy)
    part.adopt(Checkpoint(tmp_path / "base"))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    x, y = (value.float() for value in uneven()[0])
    made = []
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(scaler.scale(100 * loss_of(model, (x, y), step)))
        scaler.unscale_(optimizer)
        gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        if all(one.isfinite().all() for one in gradients.values()):
            made.append(gradients)
        part.correct()
        scaler.step(optimizer)
        scaler.update()
    assert 0 < len(made) < STEPS
    for name, value in part._mean_gradients().items():
        torch.testing.assert_close(value, mean_of(made)[name])
    part.write(tmp_path / "update")


def test_a_round_in_which_every_step_was_left_out_changes_no_control_variate(tmp_path: Path) -> None:
    policy = plain(scaffold=True)
    model = new_model()
    save_model(model, tmp_path / "base", policy=policy)
    part = Part(model, policy)
    part.adopt(Checkpoint(tmp_path / "base"))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    part.correct()
    part.write(tmp_path / "update")
    part.adopt(Checkpoint(tmp_path / "base"))
    assert part._own == {}
