"""Random merges are the same bytes whatever the order, threads, split and processor, and right to a step."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from swarm.merge import merge, merge_chunks, rules
from tests.merge.cases import digest_of_all, drawn
from tests.merge.reference import Values, files, policy, read_vector, steps_of, vector_file
from tests.merge.test_golden import dispatched


def compare(folder: Path, monkeypatch: pytest.MonkeyPatch, seeds: range) -> None:
    for seed in seeds:
        case = drawn(seed, folder)
        expected = merge(case.base, case.updates, case.weights, case.rule, None, threads=1)
        source = np.random.default_rng(seed)
        order = source.permutation(len(case.updates)).tolist()
        # Krum and mixing break ties by the members' order, which the ledger gives; the others take any.
        if case.rule.merge in ("multi_krum", "nearest_neighbor_mixing"):
            order = sorted(order)
        with monkeypatch.context() as other:
            other.setattr(rules, "BLOCK", int(source.choice([7, 100, 1024, 1 << 17])))
            updates, weights = [case.updates[i] for i in order], [case.weights[i] for i in order]
            threads = int(source.integers(1, 5))
            found = merge(case.base, updates, weights, case.rule, folder / "out", threads=threads)
            assert found.digest == expected.digest, seed
            chunks = list(range(len(expected.leaves)))
            assert merge_chunks(case.base, updates, weights, case.rule, chunks) == dict(enumerate(expected.leaves)), (
                seed
            )


def test_order_threads_and_split_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(tmp_path, monkeypatch, range(60))


@pytest.mark.slow
def test_order_threads_and_split_change_no_bit_in_a_thousand_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(tmp_path, monkeypatch, range(100, 1200))


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_thousand_merges_are_the_same_without_the_newest_instructions(kept: int) -> None:
    environment = os.environ | {
        "NPY_DISABLE_CPU_FEATURES": " ".join(dispatched()[kept:]),
        "OPENBLAS_CORETYPE": ("Prescott", "Haswell", "SkylakeX")[kept],
        "OPENBLAS_NUM_THREADS": str(kept + 1),
    }
    command = [sys.executable, "-m", "tests.merge.cases", "1000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=True)
    assert done.stdout.strip() == digest_of_all(1000)


def exact_mean(column: list[float], weights: list[int], range_: float) -> Fraction:
    limit = Fraction(range_)
    clipped = [max(-limit, min(limit, Fraction(x))) for x in column]
    total = sum((w * x for w, x in zip(weights, clipped, strict=True)), Fraction(0))
    return Fraction(total, sum(weights))


def off_by(folder: Path, seed: int) -> Fraction:
    """How far one random weighted mean is from the rational one of the values themselves, in steps."""
    source = np.random.default_rng(seed)
    members, bits = int(source.integers(1, 12)), int(source.choice([12, 24, 32]))
    rows: Values = source.standard_normal((members, 20)) * 10.0 ** source.uniform(-6, 2)
    weights = [int(weight) for weight in source.integers(1, 10_000, members)]
    paths = files(folder, {f"u{i}": row for i, row in enumerate(rows)}, "F64")
    base = vector_file(folder / "base", np.zeros(20), "F64")
    rule = policy(step_bits=bits)
    merge(base, paths, weights, rule, folder / "out")
    found: Values = read_vector(folder / "out", "F64")
    expected = [exact_mean(rows[:, at].tolist(), weights, rule.range) for at in range(20)]
    apart: list[Fraction] = [abs(Fraction(x) - y) for x, y in zip(found.tolist(), expected, strict=True)]
    return max(apart) * (1 << bits)


def test_a_mean_is_within_a_step_of_the_rational_one(tmp_path: Path) -> None:
    assert max(off_by(tmp_path, seed) for seed in range(100)) <= 1


@pytest.mark.slow
def test_a_thousand_means_are_within_a_step_of_the_rational_one(tmp_path: Path) -> None:
    assert max(off_by(tmp_path, seed) for seed in range(100, 1200)) <= 1


def test_a_step_cut_off_instead_of_rounded_would_show() -> None:
    """The planted mistake: one that cuts is off by up to a step for each value, beyond half a step for most."""
    rule, values = policy(), np.random.default_rng(0).standard_normal(100).tolist()
    rounded = [abs(Fraction(x) * 2**32 - steps_of(x, rule)) for x in values]
    cut = [abs(Fraction(x) * 2**32 - int(Fraction(x) * 2**32)) for x in values]
    assert max(rounded) <= Fraction(1, 2) < max(cut)
