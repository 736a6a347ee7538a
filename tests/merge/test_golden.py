"""The bytes of a merge are the same on machines whose processors and numpy loops differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from swarm.merge.schema import FLOATS
from tests.merge.golden import COUNT, GOLDEN, SCHEMA, bits_of, digests
from tests.merge.reference import decoded


def dispatched() -> list[str]:
    """The processor features that numpy has loops for besides its baseline, and that this machine has."""
    core = np._core._multiarray_umath  # type: ignore[attr-defined]
    return [name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)]


def test_merges_have_their_golden_digests() -> None:
    assert dict(digests()) == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_processor_without_the_newest_instructions_merges_the_same_bytes(kept: int) -> None:
    features = dispatched()
    environment = os.environ | {
        "NPY_DISABLE_CPU_FEATURES": " ".join(features[kept:]),
        "OPENBLAS_CORETYPE": ("Prescott", "Haswell", "SkylakeX")[kept],
        "OPENBLAS_NUM_THREADS": str(kept + 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.merge.golden"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == json.loads(GOLDEN.read_text())


def test_the_golden_inputs_reach_what_is_hard() -> None:
    """Tiny and zero exponents, both signs, values that a range of 0.25 clips: else the digests would say little."""
    for tensor in SCHEMA.tensors:
        if tensor.dtype in FLOATS:
            values = decoded(bits_of(1, tensor), tensor.dtype)
            assert np.isfinite(values).all()
            assert 0.9 < np.abs(values).max() < 1.0
            assert np.count_nonzero(np.abs(values) < 1e-4) > COUNT // 20
            assert np.count_nonzero(np.abs(values) > 0.25) > 50
            assert COUNT // 3 < np.count_nonzero(np.signbit(values)) < 2 * COUNT // 3
