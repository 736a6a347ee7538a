"""What a model exchanges: dtypes kept, ties travel once, and what does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from swarm.config import Policy
from swarm.errors import ConfigError, StorageError
from swarm.learn.state import DTYPES, Checkpoint, State, load_model, save_model, write_update
from swarm.merge import merge_files
from swarm.merge.schema import ELEMENT_BYTES


class Tied(nn.Module):
    """A language model in small: the decoder's weight is the encoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.encoder.weight


def saved(model: nn.Module | dict[str, Any], path: Path) -> Checkpoint:
    save_model(model, path)
    return Checkpoint(path)


def test_every_dtype_of_the_schema_has_one_of_torch() -> None:
    assert set(DTYPES.values()) == set(ELEMENT_BYTES)


@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
def test_a_dtype_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randint(0, 2, (3, 4), generator=torch.Generator().manual_seed(1)).to(dtype)
    path = tmp_path / "model.safetensors"
    here = saved({"a": values, "scalar": values[0, 0], "empty": values[:0], "turned": values.t()}, path).tensors
    assert here["a"].dtype == dtype
    assert torch.equal(here["a"], values)
    assert torch.equal(here["turned"], values.t())
    assert here["scalar"].shape == ()
    assert here["empty"].shape == (0, 4)
    assert torch.equal(load_file(path)["a"], values)  # any safetensors reader opens it


def test_equal_models_are_equal_files_whatever_the_order_of_their_tensors(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.arange(2), "c": torch.ones(1, dtype=torch.bfloat16)}
    save_model(tensors, tmp_path / "one")
    save_model(dict(reversed(tensors.items())), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tied_weights_travel_once_and_stay_tied(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    checkpoint = saved(model, tmp_path / "model")
    assert list(checkpoint.tensors) == ["decoder.weight"]
    State(other).load(checkpoint)
    assert torch.equal(other.encoder.weight, model.encoder.weight)
    assert other.encoder.weight is other.decoder.weight


def test_a_model_that_ties_what_the_run_does_not_is_told_so(tmp_path: Path) -> None:
    untied = Tied()
    untied.decoder.weight = nn.Parameter(untied.encoder.weight.detach().clone())
    checkpoint = saved(untied, tmp_path / "model")
    with pytest.raises(
        ConfigError, match=r"encoder\.weight F32\[5, 3\] is missing.*encoder\.weight is tied to decoder"
    ):
        State(Tied()).load(checkpoint)


def test_a_batch_norms_counter_is_taken_as_it_is_and_not_subtracted(tmp_path: Path) -> None:
    model = nn.BatchNorm1d(2)
    base = saved(model, tmp_path / "base")
    model(torch.randn(4, 2))
    model(torch.randn(4, 2))
    assert write_update(State(model).tensors, base, tmp_path / "update", range_max=8.0) == []
    update = Checkpoint(tmp_path / "update").tensors
    assert update["num_batches_tracked"] == 2
    assert update["num_batches_tracked"].dtype == torch.int64
    assert torch.equal(update["running_mean"], model.state_dict()["running_mean"])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
def test_an_update_is_the_difference_in_the_parameters_own_dtype(
    seed: int, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("update")
    chance = torch.Generator().manual_seed(seed)
    before, after = (torch.randn(2, 3, generator=chance).to(dtype) for _ in range(2))
    base = saved({"w": before}, folder / "base")
    write_update({"w": after}, base, folder / "update", range_max=100.0)
    found = Checkpoint(folder / "update").tensors["w"]
    assert found.dtype == dtype
    assert torch.equal(found, after - before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_update_that_is_not_finite_is_refused_with_the_tensors_names(value: float, tmp_path: Path) -> None:
    base = saved({"good": torch.zeros(2), "bad": torch.zeros(3)}, tmp_path / "base")
    broken = {"good": torch.ones(2), "bad": torch.tensor([0.0, value, value])}
    with pytest.raises(ValueError, match=r"not finite in bad \(2 of 3 values\).*[Ll]ower the learning rate"):
        write_update(broken, base, tmp_path / "update", range_max=8.0)


def test_a_change_beyond_the_range_is_named(tmp_path: Path) -> None:
    base = saved({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "base")
    state = {"a": torch.tensor([8.0, -8.0]), "b": torch.tensor([0.0, -8.5])}
    assert write_update(state, base, tmp_path / "update", range_max=8.0) == ["b"]


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (nn.Linear(13, 2), r"weight is F32\[2, 13\] where F32\[1, 13\] belongs"),
        (nn.Linear(13, 1).double(), r"weight is F64\[1, 13\] where F32\[1, 13\] belongs"),
        (nn.Linear(13, 1, bias=False), r"bias F32\[1\] is missing"),
        (nn.Sequential(nn.Linear(13, 1)), r"0\.weight F32\[1, 13\] is unknown"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_what_differs(other: nn.Module, fault: str, tmp_path: Path) -> None:
    checkpoint = saved(nn.Linear(13, 1), tmp_path / "model")
    before = [value.clone() for value in other.state_dict().values()]
    with pytest.raises(ConfigError, match=fault):
        State(other).load(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(before, other.state_dict().values(), strict=True))


class Extra(nn.Linear):
    """A module with a state of its own kind."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("never reached")


class Complex(nn.Module):
    """A module with a complex buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (Extra(1, 1), "_extra_state is a dict, not a tensor"),
        (nn.LazyLinear(2), "weight has no values yet"),
        (Complex(), r"phase is torch\.complex64"),
        (nn.Linear(1, 1, device="meta"), "weight has no values yet"),
        (nn.ReLU(), "nothing to exchange"),
    ],
    ids=["extra state", "lazy", "complex", "meta", "empty"],
)
def test_what_cannot_be_merged_is_refused_by_name(model: nn.Module, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        State(model)


def test_numpy_arrays_are_saved_too_and_text_is_not(tmp_path: Path) -> None:
    found = saved({"a": np.arange(4.0).reshape(2, 2).T}, tmp_path / "model").tensors["a"]
    assert torch.equal(found, torch.tensor([[0.0, 2.0], [1.0, 3.0]], dtype=torch.float64))
    with pytest.raises(ConfigError, match="a is a ndarray"):
        save_model({"a": np.array(["x"])}, tmp_path / "model")
    with pytest.raises(ConfigError, match="a is a list"):
        save_model({"a": [1.0]}, tmp_path / "model")


def test_a_compiled_model_has_the_names_of_the_plain_one() -> None:
    model = nn.Linear(2, 1)
    wrapped = nn.DataParallel(model)
    assert State(wrapped).tensors.keys() == State(model).tensors.keys()
    compiled = torch.compile(model)
    assert isinstance(compiled, nn.Module)
    assert State(compiled).tensors.keys() == State(model).tensors.keys()


def test_the_state_of_the_runs_optimizer_is_not_the_models(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    base = saved(model, tmp_path / "base")
    write_update(State(model).tensors, base, tmp_path / "update", range_max=8.0)
    policy = Policy("adam", 1, 1, server="fedadam")
    merge_files(tmp_path / "base", [tmp_path / "update"], [1], policy, tmp_path / "merged")
    merged = Checkpoint(tmp_path / "merged")
    assert merged.schema == base.schema
    assert set(merged.tensors) == {"weight", "bias"}
    assert torch.equal(merged.tensors["bias"], model.bias)
    assert any(name.startswith("swarm.server.") for name in load_file(tmp_path / "merged"))
    another = nn.Linear(2, 2)
    load_model(another, tmp_path / "merged")
    assert torch.equal(another.weight, merged.tensors["weight"])
    with pytest.raises(ConfigError, match=r"the model does not fit the run"):
        load_model(nn.Linear(3, 2), tmp_path / "merged")
    State(model).load(merged)
    write_update(State(model).tensors, merged, tmp_path / "next", range_max=8.0)
    merge_files(tmp_path / "merged", [tmp_path / "next"], [1], policy, tmp_path / "again")
    with pytest.raises(ConfigError, match=r"swarm.server.x has a name that is kept for the state of a run's optimizer"):
        save_model({"swarm.server.x": np.zeros(1)}, tmp_path / "model")


def test_a_cut_checkpoint_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(nn.Linear(2, 2), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"model\.safetensors.*bytes"):
        Checkpoint(path)


def test_loading_does_not_write_into_the_stores_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = nn.Linear(2, 2)
    checkpoint = saved(model, path)
    before = path.read_bytes()
    State(model).load(checkpoint)
    with torch.no_grad():
        model.weight.add_(1)
    assert path.read_bytes() == before
    assert not torch.equal(checkpoint.tensors["weight"], model.weight)
