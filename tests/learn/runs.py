"""Runs for tests, proposed and approved in this process: the command line would unlock a key for every word."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swarm.cli.ledger import contracts_of
from swarm.cli.run import hand_over
from swarm.config import SiteConfig, load_policy, load_site
from swarm.identity import Identity
from swarm.learn import save_model
from tests.node.hospitals import Hospitals

NAMES = ["north", "east", "south", "west"]


def everywhere(work: Callable[[str], Any], names: list[str] = NAMES, timeout_s: float = 60.0) -> dict[str, Any]:
    """What `work` gives at each site, all at once."""
    results: dict[str, Any] = {}
    failures: list[BaseException] = []

    def one(name: str) -> None:
        try:
            results[name] = work(name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s)
        if failures:
            raise failures[0]
        assert not thread.is_alive(), "a site has not ended"
    return results


class Operators:
    """The persons who vote for the hospitals, with their keys unlocked."""

    def __init__(self, hospitals: Hospitals) -> None:
        self._folder = hospitals.folder
        self._sites: dict[str, SiteConfig] = {name: load_site(path) for name, path in hospitals.sites.items()}
        self._keys: dict[str, Identity] = {name: site.operator() for name, site in self._sites.items()}

    def open_run(self, name: str, model: Any, by: list[str], **policy: Any) -> None:
        """Propose a run that starts from `model`, and let the operators `by` approve it."""
        settings = {"rounds": 3, "sync_interval": 2, "submit_s": 20.0, "weight_max": 1000} | policy
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        lines = [f"{key} = {json.dumps(value)}" for key, value in ({"name": name} | plain).items()]
        file = self._folder / f"{name}.toml"
        file.write_text("[run]\n" + "\n".join(lines) + "\n")
        save_model(model, self._folder / f"{name}.safetensors", policy=file)
        self.propose(file, self._folder / f"{name}.safetensors", by)

    def propose(self, policy: Path, model: Path, by: list[str]) -> None:
        """Propose what is in two files, and let the operators `by` approve it."""
        asyncio.run(self._propose(policy, model, by))

    def stop(self, run: str, by: list[str]) -> None:
        """The operators `by` vote to stop a run."""
        asyncio.run(self._stop(run, by))

    async def _stop(self, run: str, by: list[str]) -> None:
        async with contracts_of(self._sites[by[0]]) as contracts:
            found = await contracts.run_named(run)
            for name in by:
                await contracts.transact(self._keys[name], contracts.stop(found.id), timeout_s=30)

    async def _propose(self, policy: Path, model: Path, by: list[str]) -> None:
        agreed = load_policy(policy)
        async with contracts_of(self._sites[by[0]]) as contracts:
            genesis = await hand_over(self._sites[by[0]], agreed, model)
            call = contracts.propose(agreed, genesis)
            receipt = await contracts.transact(self._keys[by[0]], call, timeout_s=30)
            run = int(receipt.first("RunProposed").args["run"])
            for name in by[1:]:
                await contracts.transact(self._keys[name], contracts.approve(run), timeout_s=30)


def history(hospitals: Hospitals, run: str) -> list[dict[str, Any]]:
    """The closed rounds of a run, as the command line shows them."""
    shown = json.loads(hospitals.swarm("run", "show", str(next(iter(hospitals.sites.values()))), run, "--json"))
    found: list[dict[str, Any]] = shown["closed_rounds"]
    return found


def run_example(library: str, **given: Any) -> dict[str, Any]:
    """Execute the example of the README of `swarm/learn` that begins with `# library`; the names it leaves."""
    text = (Path(__file__).parents[2] / "swarm" / "learn" / "README.md").read_text()
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if block.startswith(f"# {library}")
    )
    names = {"__name__": "__main__"} | given
    exec(compile(code, f"README.md: {library}", "exec"), names)
    return names
