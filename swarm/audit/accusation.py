"""Is an accusation true? Its evidence, against the ledger of a folder or of a node, for somebody who was not there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from swarm.audit.audit import places_of
from swarm.audit.replay import replayed
from swarm.audit.retell import Publication, RunStory, events_of, runs_of
from swarm.encoding import short
from swarm.errors import ConfigError
from swarm.identity import checksum
from swarm.ledger.client import Contracts
from swarm.ledger.genesis import Genesis
from swarm.ledger.judging import ExecutionCache
from swarm.merge.evidence import EVIDENCE_MAX_BYTES, Claim, Evidence, Finding, Verdict, decode, judge
from swarm.merkle import digest_of


def read_evidence(path: Path) -> Evidence:
    """The evidence in a file; ConfigError if it is none."""
    try:
        with path.open("rb") as file:
            return decode(file.read(EVIDENCE_MAX_BYTES + 1))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not the evidence of a refusal: {error}") from error


def check(evidence: Evidence, publications: Iterable[Publication] | None) -> Verdict:
    """What the evidence proves.

    Args:
        publications: everything that leaders published by the ledger; None: what the evidence claims is believed.
    """
    if publications is not None:
        difference = _differs(evidence.claim, publications)
        if difference is not None:
            return Verdict(Finding.UNPROVEN, difference)
    try:
        with tempfile.TemporaryDirectory(prefix="swarm-evidence-") as scratch:
            return judge(evidence, Path(scratch))
    except OSError as error:
        raise ConfigError(f"the inputs cannot be laid out on this machine's disk: {error}") from error


def _differs(claim: Claim, publications: Iterable[Publication]) -> str | None:
    """In what the claim is not what the ledger says; None if it is the same."""
    where = f"run {claim.run} round {claim.round} view {claim.view}"
    place = (claim.run, claim.round, claim.view)
    found = next((p for p in publications if (p.run, p.round, p.view) == place), None)
    if found is None:
        return f"by the ledger nobody published in {where}"
    if found.leader != claim.leader:
        return f"by the ledger {checksum(found.leader)} led {where}, not {checksum(claim.leader)}"
    submissions = tuple((s.member, s.digest, s.weight) for s in found.submissions)
    for name, told, claimed in (
        ("checkpoint", found.checkpoint, claim.published),
        ("base", found.base, claim.base),
        ("policy", found.policy, digest_of(claim.policy.encode())),
    ):
        if told != claimed:
            return f"by the ledger the {name} in {where} is {short(told)}, not {short(claimed)}"
    return None if submissions == claim.submissions else f"by the ledger other submissions were merged in {where}"


def publications_of(runs: Iterable[RunStory]) -> list[Publication]:
    """Everything that leaders published."""
    return [publication for run in runs for publication in run.publications]


@contextmanager
def replayed_publications(folder: Path) -> Iterator[list[Publication]]:
    """Everything that leaders published by the ledger in a consortium's or a site's folder, replayed from genesis.

    Raises:
        ConfigError: no ledger is there.
        Difference: the ledger is not what it has to be.
    """
    config, places = places_of(folder.resolve())
    if config.external is not None:
        raise ConfigError(
            f"{folder} has no ledger: its contracts are on somebody else's chain; name a site whose node runs"
        )
    with replayed(places[0][1], Genesis.of(config), ExecutionCache(), lambda done, of: None) as replay:
        yield publications_of(runs_of(events_of(replay.ledger)).values())


async def told_publications(contracts: Contracts) -> list[Publication]:
    """Everything that leaders published, as a node tells it."""
    events = await contracts.events(0)
    return publications_of(runs_of((event.name, event.args) for event in events if "run" in event.args).values())
