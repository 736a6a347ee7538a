"""How good a checkpoint is on MedMNIST's test set: `python evaluate.py --checkpoint pneumonia.safetensors`.

What it is compared with, `swarm compare compare.toml` trains.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data import part
from model import new_model, score

from swarm.learn import load_model

METRICS = ("auc", "accuracy", "sensitivity", "specificity")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the last checkpoint of the run `pneumonia`")
    given = parser.parse_args()
    model, test = new_model(0), part("test")
    load_model(model, given.checkpoint)
    scores = score(model, test.x, test.y)
    print(f"| method | {' | '.join(METRICS)} |\n{'| --- ' * (len(METRICS) + 1)}|")
    print(f"| swarm | {' | '.join(f'{scores[metric]:.3f}' for metric in METRICS)} |")


if __name__ == "__main__":
    main()
