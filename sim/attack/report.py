"""The outcomes as tables, a verdict and a picture."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table

from sim.attack.game import Outcome
from sim.attack.grid import LOCAL, Cell
from sim.attack.rules import DEFAULT

Played = Sequence[tuple[Cell, Outcome]]

POINTS = 8.0
"""How many points of accuracy the default rule may lose to the worst attack."""


@dataclass(frozen=True)
class Board:
    """One setting's table: mean accuracy over the seeds in per cent, by rule and attack."""

    data: str
    sites: int
    dishonest: int
    local: float
    """The mean over seeds and honest sites of a site's own model, and its area under the curve."""
    local_auc: float
    rules: Sequence[str]
    attacks: Sequence[str]
    accuracy: Mapping[tuple[str, str], float]
    auc: Mapping[tuple[str, str], float]
    backdoor: Mapping[tuple[str, str], float]
    """How many of the ill are called healthy with the trigger, in per cent."""
    stuck: Mapping[tuple[str, str], int]
    """Rounds that did not close, over all seeds."""

    @property
    def title(self) -> str:
        """`heart, 1 of 5 dishonest`."""
        return f"{self.data}, {self.dishonest} of {self.sites} dishonest"

    def worst(self, rule: str) -> str:
        """The attack that leaves the least accuracy."""
        return min((a for a in self.attacks if a != "none"), key=lambda a: self.accuracy[rule, a], default="none")


def boards(played: Played) -> list[Board]:
    """A table for every setting, rules and attacks in the order of the cells."""
    groups: dict[tuple[str, int, int], list[tuple[Cell, Outcome]]] = defaultdict(list)
    for cell, outcome in played:
        groups[cell.data, cell.sites, cell.dishonest].append((cell, outcome))
    return [_board(*setting, group) for setting, group in groups.items()]


def _board(data: str, sites: int, dishonest: int, group: Played) -> Board:
    many: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for cell, outcome in group:
        many[cell.rule, cell.attack].append(outcome)
    alone = many.pop((LOCAL, "none"))
    return Board(
        data, sites, dishonest,
        local=100 * fmean(one.accuracy for one in alone),
        local_auc=fmean(one.auc for one in alone),
        rules=list(dict.fromkeys(rule for rule, _ in many)),
        attacks=list(dict.fromkeys(attack for _, attack in many)),
        accuracy={key: 100 * fmean(one.accuracy for one in found) for key, found in many.items()},
        auc={key: fmean(one.auc for one in found) for key, found in many.items()},
        backdoor={key: 100 * fmean(one.backdoor for one in found) for key, found in many.items()},
        stuck={key: sum(one.stuck for one in found) for key, found in many.items()},
    )  # fmt: skip


def verdict(board: Board) -> str:
    """What the default rule kept, beside the mean and the sites alone; empty if it was not played."""
    if DEFAULT not in board.rules or "none" not in board.attacks or len(board.attacks) < 2:
        return ""
    calm, attack = board.accuracy[DEFAULT, "none"], board.worst(DEFAULT)
    worst = board.accuracy[DEFAULT, attack]
    kept = "within" if calm - worst <= POINTS else "BEYOND"
    least = min(board.auc[DEFAULT, one] for one in board.attacks)
    beside = "no worse" if worst >= board.local else "WORSE"
    words = [
        f"{board.title}: {DEFAULT} has {calm:.1f} % without an attack and {worst:.1f} % under the worst ({attack}): "
        f"{calm - worst:.1f} points less, {kept} {POINTS:g}; {beside} than a site alone ({board.local:.1f} %)",
        f"its AUC is {least:.3f} at least, a site's alone {board.local_auc:.3f}",
    ]
    if "mean" in board.rules:
        ruin = board.worst("mean")
        words.append(f"the mean is left with {board.accuracy['mean', ruin]:.1f} % ({ruin})")
    return "; ".join(words)


def markdown(boards: Sequence[Board]) -> str:
    """Every table in Markdown: attacks below each other, rules beside each other."""
    parts = []
    for board in boards:
        lines = [f"**{board.title}** (a site alone: {board.local:.1f})", ""]
        lines += [f"| attack | {' | '.join(board.rules)} |", "| --- " * (len(board.rules) + 1) + "|"]
        for attack in board.attacks:
            lines.append(f"| {attack} | {' | '.join(_shown(board, rule, attack) for rule in board.rules)} |")
        worst = (f"**{board.accuracy[rule, board.worst(rule)]:.1f}**" for rule in board.rules)
        lines.append(f"| **worst** | {' | '.join(worst)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _shown(board: Board, rule: str, attack: str) -> str:
    text = f"{board.accuracy[rule, attack]:.1f}"
    if attack == "backdoor":
        text += f" ({board.backdoor[rule, attack]:.0f})"
    return text + (" stuck" if board.stuck[rule, attack] else "")


def table(board: Board) -> Table:
    """For the terminal, accuracy in per cent; red is more than `POINTS` below the same rule without an attack."""
    shown = Table()
    shown.add_column("attack", no_wrap=True)
    for rule in board.rules:
        shown.add_column(rule.replace("_", " "), justify="right")
    for attack in board.attacks:
        cells = []
        for rule in board.rules:
            calm = board.accuracy.get((rule, "none"), board.local)
            fell = calm - board.accuracy[rule, attack] > POINTS
            cells.append(f"[red]{_shown(board, rule, attack)}[/]" if fell else _shown(board, rule, attack))
        shown.add_row(attack, *cells)
    return shown


def write_all(played: Played, found: Sequence[Board], out: Path) -> list[Path]:
    """`results.json`, `results.csv`, `table.md` and `attack.png` in `out`."""
    rows = [{**asdict(cell), **asdict(outcome)} for cell, outcome in played]
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    with open(out / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (out / "table.md").write_text(markdown(found))
    heat_map(found, out / "attack.png")
    return [out / name for name in ("results.json", "results.csv", "table.md", "attack.png")]


def heat_map(boards: Sequence[Board], path: Path) -> None:
    """One panel a setting: points of accuracy lost to each attack, against the same rule without one."""
    columns = min(2, len(boards))
    lines = -(-len(boards) // columns)
    with mpl.rc_context({"font.size": 7, "axes.titlesize": 8}):
        figure = Figure(
            figsize=(5.6 * columns, 0.3 + lines * (0.9 + 0.19 * len(boards[0].attacks))), layout="constrained"
        )
        panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
        for panel in panels[len(boards) :]:
            panel.axis("off")
        for panel, board in zip(panels, boards, strict=False):
            lost = np.array([
                [board.accuracy.get((rule, "none"), board.local) - board.accuracy[rule, attack] for rule in board.rules]
                for attack in board.attacks
            ])  # fmt: skip
            image = panel.imshow(lost, cmap="RdYlGn_r", vmin=-5, vmax=25, aspect="auto")
            panel.set_title(f"{board.title}\na site alone: {board.local:.1f} %")
            panel.set_xticks(range(len(board.rules)), [rule.replace("_", "\n") for rule in board.rules])
            panel.set_yticks(range(len(board.attacks)), board.attacks)
            for (line, column), _ in np.ndenumerate(lost):
                value = board.accuracy[board.rules[column], board.attacks[line]]
                panel.text(column, line, f"{value:.0f}", ha="center", va="center")
        figure.colorbar(image, ax=panels.tolist(), label="points of accuracy lost", shrink=0.5)
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=100)
    # A palette makes the file a third as large.
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)
