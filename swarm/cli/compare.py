"""`swarm compare` trains one recipe alone, in one place, with a server and as a swarm, and writes what came out."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import swarm
from swarm.cli import screen
from swarm.errors import ConfigError

CHECKOUT = Path(swarm.__file__).resolve().parents[1]
INTERRUPTED = 130


def compare(
    experiment: Annotated[Path, typer.Argument(help="the experiment's file, such as nodes/heart/compare.toml")],
    out: Annotated[Path | None, typer.Option(help="folder for the results (default: results/NAME, here)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with what an interrupted comparison left")] = False,
) -> None:
    """Compare training alone, in one place, with a fixed server, and as a swarm: same rows, same seeds.

    Writes results.json, report.html, tables.md and times.json. Ctrl-C loses no finished job; --resume goes on.
    """
    files, study, results, report = (_of_checkout(name) for name in ("experiment", "study", "results", "report"))
    settings = files.load_experiment(experiment)
    folder = out or Path("results") / settings.name
    prepared = study.prepare(settings)
    began_s = time.monotonic()
    try:
        done = _run(study, prepared, folder, resume=resume)
    except KeyboardInterrupt:
        screen.err.print(f"stopped; finished jobs are in {screen.here(folder)}, and --resume goes on with them")
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error
    with screen.err.status("judging"):
        found = results.results(prepared, done)
    _write(folder, found, report, seconds=time.monotonic() - began_s)
    columns, rows = report.overview(found)
    screen.show(screen.table(*columns, rows=rows, title=f"{settings.name}: {settings.seeds} seeds"))
    screen.err.print(f"everything is in {screen.here(folder)}; open report.html there")


def _of_checkout(name: str) -> Any:
    """A module of `sim.study`, which is in the source tree and not in the package."""
    if not (CHECKOUT / "sim" / "study").is_dir():
        raise ConfigError(
            "swarm compare needs the project's source tree, which an installed package has not: clone the repository "
            "and run pip install -e '.[dev]' in it"
        )
    if str(CHECKOUT) not in sys.path:
        sys.path.append(str(CHECKOUT))
    try:
        return importlib.import_module(f"sim.study.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"swarm compare needs {error.name}: pip install -e '.[dev]' in {CHECKOUT}") from error


def _run(study: Any, prepared: Any, folder: Path, *, resume: bool) -> Any:
    names = prepared.experiment.all_arms
    arms = len(names)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=screen.err) as progress:
        bar = progress.add_task("begins", total=arms * len(prepared.jobs))
        place = {job: number for number, job in enumerate(prepared.jobs)}

        def tell(job: Any, arm: str) -> None:
            at = arms * place[job] + names.index(arm)
            progress.update(bar, completed=at, description=f"{job.name}: {arm}")

        done = study.run(prepared, folder, resume=resume, tell=tell)
        progress.update(bar, completed=arms * len(prepared.jobs), description="trained")
        return done


def _write(folder: Path, found: Any, report: Any, *, seconds: float) -> None:
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "report.html").write_text(report.page(found))
    written = (f"## {title}\n\n{report.markdown(table)}" for title, table in report.tables(found))
    (folder / "tables.md").write_text("\n".join(written))
    (folder / "times.json").write_text(json.dumps({"seconds": round(seconds, 1)}) + "\n")
