"""MONAI's network, transforms and loss in a plain loop: the example of the README, with the real library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.learn.runs import Operators, history, run_example
from tests.node.hospitals import Hospitals
from tests.others import add_loops

add_loops("monai")
add_loops("tensorboard")

from monai.networks.nets import UNet  # noqa: E402


@pytest.mark.filterwarnings("ignore:.*")
def test_the_example_of_the_readme_runs(alone: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = UNet(spatial_dims=2, in_channels=1, out_channels=1, channels=(4, 8), strides=(2,))
    Operators(alone).open_run("monai", start, ["north"], rounds=2, sync_interval=3, submissions_min=1, merge="mean")
    images = torch.rand(8, 1, 8, 8)
    scans = [{"image": image, "mask": (image > 0.5).float()} for image in images]
    names = run_example("MONAI", site=alone.sites["north"], train_rows=scans)
    assert names["swarm"].finished
    assert [one["submissions"][0]["weight"] for one in history(alone, "monai")] == [4 + 4 + 4, 4 + 4 + 4]
    assert list((tmp_path / "results" / "monai").iterdir())
