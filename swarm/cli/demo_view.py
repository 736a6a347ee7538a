"""What the demo shows: the swarm as its nodes and its ledger tell it, live on a terminal, line by line elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from swarm.cli import screen
from swarm.cli.history import RoundHistory, rounds_of
from swarm.encoding import from_hex
from swarm.ledger.client import Event
from swarm.rounds import Phase

STORY_LINES = 12

_STATES = {"up": "green", "killed": "red", "returning": "yellow"}


class Spectator:
    """Keeps what was seen of the swarm, and shows it."""

    def __init__(self, members: Sequence[str], runs: Sequence[str]) -> None:
        self.states = dict.fromkeys(members, "up")
        """What each member's node is: up, killed or returning."""
        self.run, self.round, self.rounds, self.height = "", 0, 0, 0
        self.leader = ""
        """Who leads the current round; empty while it takes submissions."""
        self.phase = ""
        self._runs = runs
        self._view, self._connected = 0, 0
        self._submitted: frozenset[str] = frozenset()
        self._attested: frozenset[str] = frozenset()
        self._metrics: dict[str, dict[str, float]] = {}
        self._names: dict[bytes, str] = {}
        self._events: list[Event] = []
        self._story: list[str] = []
        self._told: set[tuple[object, ...]] = set()
        self._began_s = time.monotonic()
        self._live: Live | None = None

    # --- what is seen

    def see(self, status: Mapping[str, Any]) -> None:
        """Take a node's status."""
        self._names = {from_hex(member["address"]): member["name"] for member in status["members"]}
        self._connected = sum(member["connected"] for member in status["members"])
        self.height = max(self.height, status["height"])
        open_ = [
            run for run in status["runs"] if run["name"] in self._runs and run["state"] == "open" and "phase" in run
        ]
        if open_:
            run = min(open_, key=lambda one: self._runs.index(one["name"]))
            self.run, self.round, self.rounds = run["name"], run["round"], run["rounds"]
            self.phase, self._view = run["phase"], run["view"]
            leads = run["leader"] and run["phase"] != Phase.SUBMIT.name.lower()
            self.leader = self._name(run["leader"]) if leads else ""
            self._submitted = frozenset(map(self._name, run["submitted"]))
            self._attested = frozenset(map(self._name, run["attested"]))
        self._refresh()

    @property
    def next_block(self) -> int:
        """The first block whose events were not read yet."""
        return self._events[-1].block + 1 if self._events else 0

    def read(self, events: Sequence[Event]) -> None:
        """Take events from `next_block` on, and tell what happened in them."""
        self._events += events
        for run in self._runs:
            for one in self.history(run):
                self._tell(run, one)
        self._refresh()

    def history(self, run: str) -> list[RoundHistory]:
        """The rounds of a run so far, by the events read."""
        proposed = (e for e in reversed(self._events) if e.name == "RunProposed" and e.args["name"] == run)
        number = next((int(event.args["run"]) for event in proposed), 0)
        return rounds_of(self._events, number, lambda address: self._names.get(address, "0x" + address[:4].hex()))

    def _name(self, address: str) -> str:
        return self._names.get(from_hex(address), address[:10])

    def _tell(self, run: str, one: RoundHistory) -> None:
        for submission in one.submissions:
            self._metrics.setdefault(submission["name"], {}).update(submission["metrics"])
        for was in one.replaced:
            self._say_once(
                (run, one.round, was["view"]),
                f"[yellow]{run} round {one.round}: {was['leader']} {was['reason']}[/], "
                f"{one.leader} leads view {one.view}",
            )
        if one.closed:
            self._say_once(
                (run, one.round, "closed"),
                f"{run} round {one.round} closed: {len(one.submissions)} merged by {one.leader}, "
                f"{len(one.attestations)} attested, checkpoint {one.checkpoint[:10]}{self._scores(one)}",
            )

    def _scores(self, one: RoundHistory) -> str:
        """`, AUC 0.86 0.87 - 0.78`: what the submissions said of the checkpoint that the round began with."""
        known = {s["name"]: s["metrics"]["auc"] for s in one.submissions if "auc" in s["metrics"]}
        if not known:
            return ""
        return ", AUC before " + " ".join(f"{known[name]:.2f}" if name in known else "-" for name in self.states)

    # --- what is said

    def say(self, text: str) -> None:
        """A line of the story, with rich's markup."""
        line = f"[dim]{time.monotonic() - self._began_s:5.1f} s[/] {text}"
        self._story.append(line)
        if self._live is None:
            screen.out.print(line)
        else:
            self._refresh()

    def _say_once(self, key: tuple[object, ...], text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self.say(text)

    # --- what is shown

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """A live view on a terminal; elsewhere the story is printed as it happens."""
        if not screen.out.is_terminal:
            yield
            return
        with Live(console=screen.out, auto_refresh=False) as live:
            self._live = live
            try:
                yield
            finally:
                self._refresh()
                self._live = None

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("hospital", "node", "leader", "submitted", "attested", "loss", "AUC (own test)", "accuracy"):
            table.add_column(heading)
        for name, state in self.states.items():
            metrics = self._metrics.get(name, {})
            table.add_row(
                name,
                f"[{_STATES[state]}]{state}[/]",
                "[bold]leads[/]" if self.leader == name else "",
                "yes" if name in self._submitted else "",
                "yes" if name in self._attested else "",
                *(f"{metrics[key]:.3f}" if key in metrics else "" for key in ("loss", "auc", "accuracy")),
            )
        where = f"block {self.height}, {self._connected} of {len(self.states)} members connected"
        if self.run:
            round_ = f"round {min(self.round, self.rounds - 1)} of {self.rounds} (from 0)"
            where = f"{self.run}: {round_}, {self.phase}, view {self._view}; {where}"
        return Group(where, "", table, "", *self._story[-STORY_LINES:])


def print_results(rows: Sequence[Mapping[str, Any]], members: Sequence[str]) -> None:
    """AUC / accuracy of each method, on each member's test rows and on all of them together."""
    table = Table(title="AUC / accuracy on test patients", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    for name in (*members, "all together"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [_cell(row["own"][name]) for name in members] + [_cell(row["everywhere"])]
        table.add_row(row["method"], *cells, style="bold" if row["method"].startswith("swarm") else None)
    screen.show(table)


def _cell(scores: Mapping[str, float]) -> str:
    area = f"{scores['auc']:.3f}" if "auc" in scores else "-"
    return f"{area} / {scores['accuracy']:.3f}"
