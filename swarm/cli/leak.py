"""`swarm leak-check`: what do this site's updates give away? For a data-protection officer, before anything leaves."""

from __future__ import annotations

import asyncio
import importlib.util
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from swarm.cli import screen
from swarm.cli.control import NodeClient
from swarm.config import LEAK_CHECK_RESULTS, Policy, SiteConfig, load_policy, load_site
from swarm.errors import ConfigError

INTERRUPTED = 130
STEPS = "steps"
"""Beside the report while it is not written."""


def leak_check(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE_OR_SITE", help="a folder with recipe.py, or this hospital's SITE.toml beside one"
        ),
    ],
    site: Annotated[str, typer.Option(help="whose updates (default: SITE.toml's, or the recipe's first site)")] = "",
    policy: Annotated[Path | None, typer.Option(help="the run's policy (default: compare.toml's)")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="what training starts from (default: the recipe's fresh model)")
    ] = None,
    run: Annotated[
        str, typer.Option(help="of a SITE.toml whose node runs: take this run's policy and newest checkpoint")
    ] = "",
    update: Annotated[
        Path | None, typer.Option(help="what training wrote with SwarmCallback.write_update: is attacked too")
    ] = None,
    epsilon: Annotated[float, typer.Option(help="of the private variant, where the policy has none")] = 8.0,
    rows: Annotated[int, typer.Option(help="records of the small batch")] = 4,
    seed: Annotated[int, typer.Option(help="equal seeds try the same")] = 0,
    out: Annotated[Path | None, typer.Option(help="folder for the report")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="little effort: shows that it works, proves nothing")] = False,
) -> None:
    """Attack this site's own updates, and say in plain words what came of it: plain, blind, and with privacy.

    Reconstructs records from updates, tells who was trained on, and bounds epsilon from below with planted records.
    Writes report.html and results.json. For a SITE.toml they go to the site's folder, and training states their
    digest on the ledger with its submissions; the report itself holds true records and goes nowhere. Takes minutes;
    one that is stopped goes on when it is started again.
    """
    folder, name, place = _places(what, site, out)
    if run and (policy is not None or checkpoint is not None or what.is_dir()):
        raise ConfigError(
            "--run takes policy and checkpoint from a SITE.toml's ledger: no folder, --policy, --checkpoint"
        )
    if epsilon < 0.05 or rows < 2:
        raise ConfigError(f"--epsilon {epsilon:g}, --rows {rows}: epsilon is 0.05 or more, rows are 2 or more")
    if importlib.util.find_spec("opacus") is None:
        raise ConfigError("a leak check trains with differential privacy too: pip install 'swarm-ledger[privacy]'")
    from swarm.learn.leak import attacks, check, page, stated, steps  # brings in torch: other commands start without it

    agreed = _policy(folder, policy) if not run else None
    if agreed is None:
        agreed, checkpoint = asyncio.run(_of_run(load_site(what), run))
    settings = check.Settings(
        folder,
        agreed,
        name,
        seed=seed,
        checkpoint=checkpoint,
        update=update,
        epsilon=epsilon,
        plan=attacks.Plan(rows=rows),
    )
    try:
        results, pictures = _run(check, check.quick(settings) if quick else settings, place / STEPS)
    except KeyboardInterrupt:
        screen.err.print("stopped; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None
    digest = stated.write(place, {**results, "quick": quick}, page.page(results, pictures))
    steps.forget(place / STEPS)
    _show(results)
    screen.err.print(f"{screen.here(place / stated.REPORT)}; results.json has the digest {digest}")


def _places(what: Path, site: str, out: Path | None) -> tuple[Path, str, Path]:
    """The recipe's folder, whose updates, and where the report goes."""
    if what.is_dir():
        return what, site, out or Path("results") / f"leak-check-{what.resolve().name}"
    if what.suffix != ".toml":
        raise ConfigError(f"{what} is neither a folder with recipe.py nor a site's settings, SITE.toml")
    settings = load_site(what)
    return settings.swarm.parent, site or settings.name, out or settings.folder / LEAK_CHECK_RESULTS.parent


async def _of_run(site: SiteConfig, run: str) -> tuple[Policy, Path]:
    """The run's policy and the file of its newest checkpoint, as the site's node has them."""
    async with NodeClient(site) as node:
        found = (await node.call("swarm_reports", run=run))["policy"]
        if found is None:
            raise ConfigError(f"{site.name}'s node does not have the policy of run {run} yet; --policy FILE names it")
        digest = (await node.call("swarm_run", run=run))["checkpoint"]
        path = Path((await node.call("swarm_object", digest=digest))["path"])
    values: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in found.items()}
    return Policy(**values), path


def _policy(folder: Path, given: Path | None) -> Policy:
    if given is not None:
        return load_policy(given)
    path = folder / "compare.toml"
    try:
        named = tomllib.loads(path.read_text())["experiment"]["policy"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} names no policy ({error!r}); --policy FILE does") from error
    return load_policy(folder / str(named))


def _run(check: Any, settings: Any, steps: Path) -> Any:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen.err, disable=not screen.err.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of)
            progress.update(tasks[what], completed=done)

        return check.check(settings, tell, steps=steps)


def _show(results: Mapping[str, Any]) -> None:
    rows = [
        [
            one["title"],
            one["verdict"],
            f"{one['recognised']} of {one['judged']}",
            f"{one['decibel']:.1f}",
            f"{max(one['decibel_without_the_update'], one['decibel_of_an_unrelated_gradient']):.1f}",
        ]
        for one in results["attacks"].values()
    ]
    screen.show(screen.table("what is seen", "records are", "recognised", "dB", "dB without it", rows=rows))
    audit = results["canaries"]
    if "undefined" in audit:
        screen.out.print(escape(audit["undefined"]))
        return
    for name, one in audit.items():
        if isinstance(one, Mapping):
            screen.out.print(f"{escape(name)}: epsilon is at least {one['epsilon_min']:.2f}")
    screen.out.print(f"the accountant says at most {audit['accountant_epsilon']:.2f} for the private run")
