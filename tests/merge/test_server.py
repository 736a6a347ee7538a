"""Optimizers on the merged update: what the papers say, the same bits everywhere, their state in the checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from swarm.config import SERVER_RULES, Policy
from swarm.merge import BadUpdate, Schema, Tensor, check_update, merge, merge_chunks, merge_files, rules, write_file
from swarm.merge.server import PREFIX, check_genesis, model_schema
from tests.merge.golden import SCHEMA, WEIGHTS, write_inputs
from tests.merge.reference import Values, decoded, encoded, policy, read_file

OPTIMIZERS = [name for name in SERVER_RULES if name != "none"]
MODEL = Schema.of(
    [Tensor("w", "F32", (30, 2)), Tensor("d", "F64", (7,)), Tensor("n", "I64", ()), Tensor("b", "F32", (3,))]
)


def plain(rule: str, changes: list[Values], start: Values, *, rate: float, b1: float, b2: float, tau: float) -> Values:
    """Reddi et al. 2021, algorithm 2; Hsu et al. 2019; Sutskever et al. 2013, equation 7 in PyTorch's form."""
    x, m, v = start.copy(), np.zeros_like(start), np.full_like(start, tau**2)
    for delta in changes:
        if rule in ("fedavgm", "nesterov"):
            m = b1 * m + delta
            x = x + rate * (m if rule == "fedavgm" else delta + b1 * m)
            continue
        m = b1 * m + (1 - b1) * delta
        if rule == "fedadagrad":
            v = v + delta**2
        elif rule == "fedyogi":
            v = v - (1 - b2) * delta**2 * np.sign(v - delta**2)
        else:
            v = b2 * v + (1 - b2) * delta**2
        x = x + rate * m / (np.sqrt(v) + tau)
    return x


def rule_of(name: str, **changes: object) -> Policy:
    return policy(server=name, **({"server_rate": 0.1} | changes))


def write(path: Path, values: dict[str, Values], count: int = 0) -> Path:
    tensors = {t.name: encoded(values[t.name], t.dtype) for t in MODEL.tensors if t.dtype != "I64"}
    write_file(path, MODEL, tensors | {"n": np.array(count, np.int64)})
    return path


def drawn(source: np.random.Generator, size: float) -> dict[str, Values]:
    found = {t.name: source.standard_normal(t.shape) * size for t in MODEL.tensors if t.dtype != "I64"}
    return {name: value.astype(np.float32).astype(float) for name, value in found.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("seed", range(3))
def test_rounds_of_an_optimizer_are_those_of_the_paper(tmp_path: Path, name: str, seed: int) -> None:
    source = np.random.default_rng(seed)
    start = drawn(source, 1.0)
    path, changes = write(tmp_path / "0", start), []
    for number in range(12):
        updates = [drawn(source, 10.0 ** source.uniform(-4, -1)) for _ in range(3)]
        paths = [write(tmp_path / f"u{i}", update, number) for i, update in enumerate(updates)]
        changes.append({key: np.mean([u[key] for u in updates], axis=0) for key in start})
        merge_files(path, paths, [5, 5, 5], rule_of(name), tmp_path / f"{number + 1}")
        path = tmp_path / f"{number + 1}"
    found = read_file(path)
    assert found["n"] == 11
    for key, first in start.items():
        expected = plain(name, [change[key] for change in changes], first, rate=0.1, b1=0.9, b2=0.99, tau=1e-3)
        dtype = next(t.dtype for t in MODEL.tensors if t.name == key)
        assert decoded(found[key], dtype) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_state_is_part_of_the_checkpoint_and_its_digest(tmp_path: Path, name: str) -> None:
    base, updates = write_inputs(tmp_path)
    kinds = ("momentum",) if name in ("fedavgm", "nesterov") else ("momentum", "variance")
    first = merge(base, updates, WEIGHTS, rule_of(name), tmp_path / "first")
    found = Schema.of_file(tmp_path / "first")
    assert model_schema(found) == SCHEMA
    state = {t.name: t.dtype for t in found.tensors if t.name.startswith(PREFIX)}
    assert state == {
        f"{PREFIX}{kind}.{of}": dtype
        for kind in kinds
        for of, dtype in {"double": "F64", "single": "F32", "brain": "F32", "half": "F32"}.items()
    }
    second = merge(tmp_path / "first", updates, WEIGHTS, rule_of(name), None)
    content = bytearray((tmp_path / "first").read_bytes())
    at = next(len(found.header) + start for t, start, _ in found.placed if t.name == f"{PREFIX}momentum.single")
    content[at] ^= 1
    (tmp_path / "changed").write_bytes(content)
    assert merge(tmp_path / "changed", updates, WEIGHTS, rule_of(name), None).digest != second.digest != first.digest


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("threads", "block"), [(1, 1 << 17), (2, 9973), (5, 20_000)])
def test_threads_blocks_order_and_assigned_chunks_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, threads: int, block: int
) -> None:
    source = np.random.default_rng(1)
    schema = Schema.of([Tensor("w", "F32", (300_000,)), Tensor("h", "BF16", (200_001,)), Tensor("n", "I32", (5,))])
    for i in range(4):
        values = {"w": source.standard_normal(300_000, np.float32), "h": encoded(source.random(200_001), "BF16")}
        write_file(tmp_path / f"{i}", schema, values | {"n": np.arange(5, dtype=np.int32)})
    base, *updates = [tmp_path / f"{i}" for i in range(4)]
    merge_files(base, updates, [1, 2, 3], rule_of(name), tmp_path / "first", threads=2)
    expected = merge(tmp_path / "first", updates, [1, 2, 3], rule_of(name), None, threads=2)
    monkeypatch.setattr(rules, "BLOCK", block)
    found = merge(tmp_path / "first", updates[::-1], [3, 2, 1], rule_of(name), None, threads=threads)
    assert found.leaves == expected.leaves
    wanted = [len(expected.leaves) - 1, 1, 0]
    some = merge_chunks(tmp_path / "first", updates, [1, 2, 3], rule_of(name), wanted, threads=threads)
    assert some == {chunk: expected.leaves[chunk] for chunk in wanted}
    assert [r.clipped for r in found.reports[::-1]] == [r.clipped for r in expected.reports]
    assert [r.norm for r in found.reports[::-1]] == pytest.approx([r.norm for r in expected.reports])


def test_a_momentum_of_zero_and_a_rate_of_one_are_the_plain_merge(tmp_path: Path) -> None:
    base, updates = write_inputs(tmp_path)
    merge_files(base, updates, WEIGHTS, policy(), tmp_path / "plain")
    rule = rule_of("fedavgm", server_rate=1.0, server_momentum=0.0)
    merge_files(base, updates, WEIGHTS, rule, tmp_path / "moved")
    expected, found = read_file(tmp_path / "plain"), read_file(tmp_path / "moved")
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_an_update_holds_the_models_tensors_alone(tmp_path: Path) -> None:
    base, updates = write_inputs(tmp_path)
    rule = rule_of("fedadam")
    merge_files(base, updates, WEIGHTS, rule, tmp_path / "first")
    assert check_update(tmp_path / "first", updates[0], rule).norm > 0
    with pytest.raises(BadUpdate, match=r"update 1: not the checkpoint's tensors: swarm.server.* is unknown"):
        merge(tmp_path / "first", [updates[0], tmp_path / "first"], [1, 1], rule, None)


def test_a_part_of_the_state_or_that_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    base, updates = write_inputs(tmp_path)
    merge_files(base, updates, WEIGHTS, rule_of("fedadam"), tmp_path / "adam")
    with pytest.raises(ValueError, match=r"optimizer state is not the policy's: swarm.server.variance.\w+ \S+ is unkn"):
        merge(tmp_path / "adam", updates, WEIGHTS, rule_of("fedavgm"), None)
    merge_files(base, updates, WEIGHTS, rule_of("nesterov"), tmp_path / "nesterov")
    with pytest.raises(ValueError, match=r"optimizer state is not the policy's: swarm.server.variance.\w+ \S+ is miss"):
        merge(tmp_path / "nesterov", updates, WEIGHTS, rule_of("fedyogi"), None)


def test_a_run_starts_without_state_and_with_names_that_have_room(tmp_path: Path) -> None:
    check_genesis(SCHEMA, rule_of("fedadam"))
    with pytest.raises(ValueError, match=r"the name swarm\.server\.momentum\.x is kept for what merges carry on"):
        check_genesis(Schema.of([Tensor(f"{PREFIX}momentum.x", "F32", (1,))]), policy())
    long = Schema.of([Tensor("x" * 1010, "F32", (1,))])
    check_genesis(long, policy())
    with pytest.raises(ValueError, match="a name of 1032 bytes"):
        check_genesis(long, rule_of("fedavgm"))


def test_a_state_that_is_not_finite_is_named(tmp_path: Path) -> None:
    base, updates = write_inputs(tmp_path)
    merge_files(base, updates, WEIGHTS, rule_of("fedadam"), tmp_path / "first")
    schema, content = Schema.of_file(tmp_path / "first"), bytearray((tmp_path / "first").read_bytes())
    name = f"{PREFIX}variance.single"
    at = next(len(schema.header) + start for t, start, _ in schema.placed if t.name == name)
    content[at + 40 : at + 44] = np.float32(np.nan).tobytes()
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"the checkpoint: element 10 of swarm.server.variance.single F32\[6000\] is nan"
    ):
        merge(tmp_path / "broken", updates, WEIGHTS, rule_of("fedadam"), None)


def test_half_precision_parameters_keep_their_momentum_in_single(tmp_path: Path) -> None:
    """A change far below a half's step adds up in the state; the planted mistake, state in the parameter's dtype,
    would stay at zero: the smallest number of that format is 6e-8."""
    schema = Schema.of([Tensor("x", "F16", (4,))])
    write_file(tmp_path / "0", schema, {"x": encoded(np.ones(4), "F16")})
    write_file(tmp_path / "u", schema, {"x": encoded(np.full(4, 6e-8), "F16")})
    merge_files(tmp_path / "0", [tmp_path / "u"], [1], rule_of("fedadam"), tmp_path / "1")
    momentum = read_file(tmp_path / "1")[f"{PREFIX}momentum.x"]
    assert momentum.dtype == np.float32
    assert momentum == pytest.approx(0.1 * 2.0**-24, rel=1e-6, abs=0)
