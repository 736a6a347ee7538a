"""One verdict on a consortium's or a site's folder: was every block agreed and every merge right?

Nothing in the folder is trusted but `swarm.toml`, which an auditor gets from the members. Nothing is written to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from swarm.audit.external import told_by, trusted
from swarm.audit.replay import Difference, replayed
from swarm.audit.retell import LeakCheck, merge_all, retell
from swarm.audit.sights import RoundSeen
from swarm.audit.veils import Chain
from swarm.config import LEAK_CHECK_RESULTS, SwarmConfig, load_site, load_swarm
from swarm.errors import ConfigError, SwarmError
from swarm.identity import checksum
from swarm.ledger.external import places_of as contracts_of
from swarm.ledger.genesis import Genesis
from swarm.ledger.judging import ExecutionCache
from swarm.ledger.ledger import Ledger
from swarm.ledger.recovery import Recovery, is_recovery

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class SiteReport:
    """What was found in one site's folder."""

    site: str
    blocks: int = 0
    transactions: int = 0
    runs: int = 0
    rounds: int = 0
    merges: int = 0
    """Rounds whose merge was done again from the bytes that the store still holds."""
    objects: int = 0
    """Objects of the store whose bytes are what their names say."""
    head: str = ""
    seen: tuple[RoundSeen, ...] = ()
    """What the merges that were done again saw of the updates."""
    leak_checks: tuple[LeakCheck, ...] = ()
    """What sites stated of what their updates give away."""
    leak_check_here: str = ""
    """The digest of the results that lie in this site's folder; empty if none do."""
    recoveries: tuple[str, ...] = ()
    """Where operators replaced validators that were gone for good, a line each."""
    difference: str | None = None
    """The first thing that is not as it has to be; None if all is."""
    external: bool = False
    """The contracts are on somebody else's chain: `blocks` and `transactions` are those with their logs."""


@dataclass
class Report:
    """What an audit found."""

    sites: list[SiteReport] = field(default_factory=list)
    first_difference: str | None = None
    trusted: str | None = None
    """What was taken on somebody else's word; None: nothing."""

    @property
    def ok(self) -> bool:
        """Everything was as it has to be."""
        return self.first_difference is None

    @property
    def lines(self) -> list[str]:
        """The findings for a person, one a line."""
        told = []
        for site in self.sites:
            if site.difference is not None:
                told.append(f"{site.site}: {site.difference}")
                continue
            did = "found in the chain's receipts" if site.external else "replayed"
            told.append(
                f"{site.site}: {site.blocks} blocks and {site.transactions} transactions {did}, "
                f"{site.rounds} rounds of {site.runs} runs derived again, {site.merges} merges done again, "
                f"{site.objects} objects hashed"
            )
        # Sites that hold the same bytes see the same: what one said is not said again.
        told += dict.fromkeys(line for site in self.sites for line in site.recoveries)
        here = {site.leak_check_here: site.site for site in self.sites}
        for one in dict.fromkeys(one for site in self.sites for one in site.leak_checks):
            where = f"its results are at {here[one.digest]}" if one.digest in here else "its results are not here"
            told.append(f"{one.line}; {where}")
        told += dict.fromkeys(line for site in self.sites for one in site.seen for line in one.lines)
        if self.first_difference is not None and not any(site.difference for site in self.sites):
            told.append(self.first_difference)
        return told


def audit(folder: Path, *, progress: Progress | None = None) -> Report:
    """Replay the ledger from genesis, derive every round again, and merge again what the store still holds.

    Args:
        folder: a consortium's (with `swarm.toml` and `sites/`), whose sites' folders are all audited and compared, or
            one site's (with `ledger/`), in or below the consortium's.
    Raises:
        ConfigError: there is nothing here that could be audited.
    """
    tell = progress or (lambda what, done, of: None)
    folder = folder.resolve()
    config, sites = places_of(folder)
    report = Report()
    if config.external is not None:
        _audit_external(config, config.external.endpoint, sites, report, tell)
        return report
    try:
        genesis = Genesis.of(config)
    except ConfigError as error:
        report.first_difference = str(error)
        return report
    executions = ExecutionCache()
    for name, place in sites:
        found = _audit_site(name, place, genesis, executions, tell)
        report.sites.append(found)
        if report.first_difference is None and found.difference is not None:
            report.first_difference = f"{name}: {found.difference}"
    return report


def _audit_external(
    config: SwarmConfig, url: str, sites: list[tuple[str, Path]], report: Report, tell: Progress
) -> None:
    """Ask the chain once, then do again the merges of every site."""
    report.trusted = trusted(url)
    try:
        told, runs = told_by(config, url, lambda done, of: tell("the chain's blocks", done, of))
    except (Difference, SwarmError) as error:
        report.first_difference = str(error)
        return
    for name, place in sites:
        found = SiteReport(
            site=name, blocks=told.blocks, transactions=told.transactions, runs=len(runs), head=told.head.hash.hex(),
            external=True,
        )  # fmt: skip
        try:
            chain = Chain(config.chain_id, contracts_of(config).blind)
            story = merge_all(runs, place / "store", partial(tell, f"{name}: rounds"), chain)
            found = replace(found, rounds=story.rounds, merges=story.merges, objects=story.objects, seen=story.seen,
                            leak_checks=story.leak_checks, leak_check_here=_leak_check(place))  # fmt: skip
        except Difference as difference:
            found = replace(found, difference=str(difference))
            report.first_difference = report.first_difference or f"{name}: {difference}"
        report.sites.append(found)


def _audit_site(name: str, place: Path, genesis: Genesis, executions: ExecutionCache, tell: Progress) -> SiteReport:
    try:
        with replayed(place, genesis, executions, lambda done, of: tell(f"{name}: blocks", done, of)) as replay:
            story = retell(replay.ledger, place / "store", lambda done, of: tell(f"{name}: rounds", done, of))
            return SiteReport(
                site=name,
                blocks=replay.ledger.head.number,
                transactions=replay.transactions,
                runs=story.runs,
                rounds=story.rounds,
                merges=story.merges,
                objects=story.objects,
                seen=story.seen,
                leak_checks=story.leak_checks,
                leak_check_here=_leak_check(place),
                recoveries=tuple(_recoveries(replay.ledger)),
                head=replay.ledger.head.hash.hex(),
            )
    except Difference as difference:
        return SiteReport(site=name, difference=str(difference))
    except SwarmError as error:
        return SiteReport(site=name, difference=str(error))


def _leak_check(place: Path) -> str:
    path = place / LEAK_CHECK_RESULTS
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _recoveries(ledger: Ledger) -> Iterator[str]:
    """Each block in which two thirds of the operators replaced the validators; the replay has checked it."""
    for number in range(1, ledger.head.number + 1):
        first = ledger.decode_transaction(ledger.block(number).raws[0])
        if is_recovery(first):
            found = Recovery.of(first, ledger.chain_id)
            yield (
                f"block {number}: recovery, signed by {len(found.signatures)} operators; from here on "
                f"{', '.join(checksum(one) for one in found.manifest.validators)} decide. {found.manifest.reason}"
            )


def places_of(folder: Path) -> tuple[SwarmConfig, list[tuple[str, Path]]]:
    """What the members agreed, and every site with a ledger in or at this folder: its name and folder.

    Raises:
        ConfigError: there is none.
    """
    with _explained(folder):
        if (folder / "swarm.toml").is_file() and (folder / "sites").is_dir():
            config = load_swarm(folder / "swarm.toml")
            sites = [load_site(path) for path in sorted((folder / "sites").glob("*.toml"))]
            places = [(site.name, site.folder) for site in sites if _has_run(site.folder)]
            if not places:
                raise ConfigError(f"no site of {folder} has a ledger yet: no node has run")
            return config, places
        if _has_run(folder):
            for parent in (folder, *list(folder.parents)[:3]):
                if (parent / "swarm.toml").is_file():
                    return load_swarm(parent / "swarm.toml"), [(folder.name, folder)]
            raise ConfigError(f"beside or above {folder} lies no swarm.toml; put the one that the members agreed there")
    raise ConfigError(f"{folder} is neither a consortium's folder (swarm.toml, sites/) nor a site's (ledger/)")


def _has_run(site: Path) -> bool:
    """Whether a node has run on a site's folder, on either kind of chain."""
    return (site / "ledger").is_dir() or (site / "external").is_dir()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error}") from error
