"""What dishonest sites send is what the papers say, and what ByzFL (Gonzalez et al. 2025) sends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from sim.attack.attacks import ATTACKS, DEVIATIONS_MIN, Floats, Scene, deviations
from tests.others import byzfl_path

SCRIPT = Path(__file__).with_name("byzfl_attacks.py")


def scene(honest: Floats, dishonest: int = 1, seed: int = 0) -> Scene:
    """A round in which the dishonest would have sent what the first honest ones did."""
    own = honest[:dishonest].copy()
    return Scene(honest, own, first=honest, progress=honest.sum(0), chance=np.random.default_rng(seed))


def drawn(seed: int, members: int = 8, parameters: int = 6) -> Floats:
    source = np.random.default_rng(seed)
    return source.standard_normal((members, parameters)) + source.standard_normal(parameters)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "none"])
def test_an_attack_is_pure_and_every_dishonest_site_sends_one_update(name: str) -> None:
    honest = drawn(0)
    kept = honest.copy()
    once, again = (ATTACKS[name].change(scene(honest, dishonest=2, seed=5)) for _ in range(2))
    assert once.shape == (2, honest.shape[1])
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(honest, kept)


def test_what_byzfl_sends_is_sent(tmp_path: Path) -> None:
    cases = [drawn(seed, members=5 + seed % 9, parameters=3 + seed % 17) for seed in range(60)]
    scenes = [scene(honest, dishonest=1 + len(honest) // 6) for honest in cases]
    # ByzFL is told z and whom to copy, and takes the deviation of a sample where the paper takes that of all updates.
    settings = [(DEVIATIONS_MIN * np.sqrt((len(honest) - 1) / len(honest)), furthest_out(honest)) for honest in cases]
    arrays: dict[str, Any] = {str(case): honest for case, honest in enumerate(cases)}
    np.savez(tmp_path / "cases.npz", settings=np.array(settings), **arrays)
    command = [sys.executable, str(SCRIPT), str(tmp_path / "cases.npz"), str(tmp_path / "results.npz")]
    environment = os.environ | {"PYTHONPATH": str(byzfl_path()), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=120, env=environment)
    with np.load(tmp_path / "results.npz") as theirs:
        assert len(theirs.files) == 6 * len(cases)
        for key in theirs.files:
            name, case = key.split(".")
            for sent in ATTACKS[name].change(scenes[int(case)]):
                np.testing.assert_allclose(sent, theirs[key], rtol=1e-9, atol=1e-12, err_msg=f"{name}, seed {case}")


def furthest_out(honest: Floats) -> int:
    """Whom mimic copies, by singular values of the updates themselves."""
    centred = honest - honest.mean(0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    return int(np.argmax(np.abs(centred @ direction)))


def test_a_little_is_enough_takes_the_papers_z() -> None:
    # Baruch et al., Algorithm 3: n = 50, m = 24 corrupted, s = 26 - 24 = 2 supporters, phi(z) < (50 - 24 - 2) / 26.
    assert deviations(26, 24) == pytest.approx(NormalDist().inv_cdf(24 / 26))
    assert deviations(26, 24) == pytest.approx(1.43, abs=0.005)


def test_a_little_stays_as_near_as_a_honest_site_may_be() -> None:
    honest = drawn(3, members=8)
    sent = ATTACKS["little"].change(scene(honest, dishonest=2))[0]
    np.testing.assert_allclose(sent, honest.mean(0) - 1.5 * honest.std(0))
    assert np.linalg.norm(sent - honest.mean(0)) < np.linalg.norm(honest - honest.mean(0), axis=1).max() * 1.5


def test_mimic_copies_the_same_site_in_every_round() -> None:
    first = np.zeros((5, 4))
    first[3] = 9.0
    later = drawn(1, members=5, parameters=4)
    sent = ATTACKS["mimic"].change(Scene(later, later[:1], first, later.sum(0), np.random.default_rng(0)))
    np.testing.assert_array_equal(sent[0], later[3])


def test_undo_goes_back_with_the_longest_honest_length() -> None:
    honest = drawn(2)
    one = scene(honest)
    sent = ATTACKS["undo"].change(one)[0]
    assert np.linalg.norm(sent) == pytest.approx(np.linalg.norm(honest, axis=1).max())
    assert sent @ one.progress == pytest.approx(-np.linalg.norm(sent) * np.linalg.norm(one.progress))


def test_a_backdoors_update_outweighs_the_others_in_a_mean() -> None:
    honest = np.zeros((4, 3))
    own = np.array([[1.0, 2.0, 3.0]])
    sent = ATTACKS["backdoor"].change(Scene(honest, own, honest, own[0], np.random.default_rng(0)))
    np.testing.assert_allclose(np.concatenate([honest, sent]).mean(0), own[0])


def test_noise_has_ten_times_the_honest_length_and_follows_the_seed() -> None:
    honest = drawn(4)
    sent = ATTACKS["noise"].change(scene(honest, seed=1))[0]
    assert np.linalg.norm(sent) == pytest.approx(10 * np.linalg.norm(honest, axis=1).mean())
    assert not np.array_equal(sent, ATTACKS["noise"].change(scene(honest, seed=2))[0])
