"""Merging again what a leader published: the parts this member was assigned, and others' accusations.

What was found lives as long as the round; after a restart it is found again.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from swarm.config import Policy
from swarm.encoding import Address, Digest, short
from swarm.errors import PeerError, StorageError, UnavailableError
from swarm.ledger.client import Contracts
from swarm.merge import BadUpdate, check_update, first_difference, merge_chunks
from swarm.merge.evidence import (
    EVIDENCE_MAX_BYTES,
    Claim,
    Evidence,
    Finding,
    Verdict,
    decode,
    encode,
    judge,
    of_chunk,
    of_whole,
)
from swarm.merge.schema import header_size
from swarm.merkle import chunk_count
from swarm.net.transfer import Chunks, describe, pull, pull_chunks
from swarm.net.transport import Transport
from swarm.rounds import Hear, Inspect, Refuse, RoundState, Submission, Verify, chunks_of_parts
from swarm.store import Store

logger = logging.getLogger(__name__)

SERVE_S = 2.0
"""How long a leader that is being refused may take to show its bytes: they only say where the difference is."""
BLOCKS_BACK = 5_000
"""How far back refusals of the current view are looked for."""

Published: TypeAlias = tuple[Digest, tuple[Submission, ...]]
"""What a leader published, and the submissions that it had to merge."""


@dataclass
class Findings:
    """What this node found in the current round."""

    unusable: frozenset[Digest] = frozenset()
    """Submitted, and nothing that a merge takes."""
    inspected: frozenset[Digest] = frozenset()
    verified: dict[Published, int] = field(default_factory=dict)
    """The parts that were found as published."""
    wrong: dict[Published, tuple[Digest, Digest]] = field(default_factory=dict)
    """What belongs there, and the evidence."""
    heard: dict[int, frozenset[Address]] = field(default_factory=dict)
    """By view: whose refusals were looked at."""


def claim_of(state: RoundState, view: int, leader: Address, published: Digest, policy: Policy) -> Claim:
    """What the ledger says about a publication of the current round."""
    submissions = tuple((s.member, s.digest, s.weight) for s in state.merged)
    return Claim(state.run, state.round, view, leader, published, state.base, submissions, policy)


class Verification:
    """Performs the duties of a verifier.

    Args:
        scratch: a folder for merges; every one cleans up behind itself.
    """

    def __init__(self, contracts: Contracts, store: Store, transport: Transport, scratch: Path) -> None:
        self._contracts = contracts
        self._store = store
        self._transport = transport
        self._scratch = scratch

    async def inspect(self, duty: Inspect, policy: Policy, findings: Findings) -> None:
        """Whether a merge takes a submission that others reported."""
        base, update = self._store.path(duty.base), self._store.path(duty.submission.digest)
        try:
            await asyncio.to_thread(check_update, base, update, policy)
        except BadUpdate as error:
            findings.unusable |= {duty.submission.digest}
            logger.warning("run %d round %d: no merge takes the update of %s: %s", duty.run, duty.round,
                           short(duty.submission.member), error)  # fmt: skip
        findings.inspected |= {duty.submission.digest}

    async def verify(self, duty: Verify, state: RoundState, policy: Policy, findings: Findings) -> None:
        """Merge parts again and compare; where they are as published, have the whole checkpoint too.

        Whoever attests holds the checkpoint, so that a leader that keeps it to itself is not attested.
        """
        size = self._store.size(duty.base)
        found_size, published = await describe(self._transport, duty.published, duty.sources, size_max=2 * size + 64)
        base = Chunks(self._store.path(duty.base), self._store.leaves(duty.base))
        chunks = chunks_of_parts(duty.parts, chunk_count(size))
        header = await asyncio.to_thread(_header_chunks, base.path)
        inputs: dict[Digest, Chunks] = {}
        for submission in duty.submissions:
            sources = (submission.member, *duty.sources)
            inputs[submission.digest] = await pull_chunks(
                self._transport, self._store, submission.digest, sources, {*header, *chunks}, size=size
            )
        try:
            right = await asyncio.to_thread(
                merge_chunks,
                base.path,
                [inputs[s.digest].path for s in duty.submissions],
                [s.weight for s in duty.submissions],
                policy,
                chunks,
            )
        except BadUpdate as error:
            bad = duty.submissions[error.index]
            findings.unusable |= {bad.digest}
            logger.warning("run %d round %d: no merge takes the update of %s: %s", duty.run, duty.round,
                           short(bad.member), error)  # fmt: skip
            return
        key = duty.published, duty.submissions
        wrong = [c for c in chunks if found_size != size or c >= len(published) or published[c] != right[c]]
        if wrong:
            claim = claim_of(state, duty.view, duty.leader, duty.published, policy)
            files = {digest: (one.path, one.leaves) for digest, one in {**inputs, duty.base: base}.items()}
            evidence = await asyncio.to_thread(of_chunk, claim, right[wrong[0]], wrong[0], published, found_size, files)
            findings.wrong[key] = right[wrong[0]], await self._keep(evidence)
            logger.warning("run %d round %d view %d: chunk %d of what %s published is wrong", duty.run, duty.round,
                           duty.view, wrong[0], short(duty.leader))  # fmt: skip
            return
        await pull(self._transport, self._store, duty.published, duty.sources, size_max=size)
        findings.verified[key] = findings.verified.get(key, 0) | duty.parts
        logger.info("run %d round %d: merged %d of %d chunks again", duty.run, duty.round, len(chunks), len(published))

    async def hear(self, duty: Hear, state: RoundState, policy: Policy, findings: Findings) -> None:
        """Check the evidence of those who refused; what it proves is refused here too."""
        assert state.published is not None
        claim = claim_of(state, duty.view, state.leader, state.published, policy)
        first = max(await self._contracts.height() - BLOCKS_BACK, 0)
        for event in await self._contracts.events(first, names={"Refused"}):
            args = event.args
            if (args["run"], args["round"], args["view"]) != (duty.run, duty.round, duty.view):
                continue
            accuser, digest = bytes(args["member"]), bytes(args["evidence"])
            if accuser not in duty.accusers:
                continue
            verdict = await self._heard(claim, accuser, digest)
            findings.heard[duty.view] = findings.heard.get(duty.view, frozenset()) | {accuser}
            logger.warning("run %d round %d view %d: %s refused: %s", duty.run, duty.round, duty.view,
                           short(accuser), verdict)  # fmt: skip
            if verdict.finding is Finding.GUILTY and verdict.right is not None:
                findings.wrong[claim.published, state.merged] = verdict.right, digest

    async def _heard(self, claim: Claim, accuser: Address, digest: Digest) -> Verdict:
        try:
            await pull(self._transport, self._store, digest, (accuser,), size_max=EVIDENCE_MAX_BYTES)
            evidence = decode(self._store.read(digest, 0, self._store.size(digest)))
        except (UnavailableError, PeerError, ValueError) as error:
            return Verdict(Finding.UNPROVEN, f"its evidence cannot be read: {error}")
        if evidence.claim != claim:
            return Verdict(Finding.UNPROVEN, "its evidence is of something else")
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            return await asyncio.to_thread(judge, evidence, Path(folder))

    async def evidence(self, duty: Refuse, state: RoundState, policy: Policy) -> tuple[Digest, str]:
        """An object that shows that the merge gives something else, and where the first difference is."""
        paths = [self._store.path(s.digest) for s in state.merged]
        difference = await self._difference(duty)
        claim = claim_of(state, duty.view, duty.leader, duty.published, policy)
        evidence = await asyncio.to_thread(of_whole, claim, duty.found, self._store.path(state.base), paths, difference)
        return await self._keep(evidence), difference

    async def _difference(self, duty: Refuse) -> str:
        try:
            size_max = self._store.size(duty.found)
            async with asyncio.timeout(SERVE_S):
                await pull(self._transport, self._store, duty.published, (duty.leader,), size_max=size_max)
            paths = self._store.path(duty.published), self._store.path(duty.found)
            found = await asyncio.to_thread(first_difference, *reversed(paths))
            return str(found) if found is not None else "none"
        except (UnavailableError, PeerError, TimeoutError, ValueError) as error:
            logger.debug("no bytes of %s: %s", short(duty.published), error)
            return "the leader did not serve the bytes of what it published"

    async def _keep(self, evidence: Evidence) -> Digest:
        return await asyncio.to_thread(self._store.put, encode(evidence))


def _header_chunks(base: Path) -> range:
    try:
        with base.open("rb") as file:
            return range(chunk_count(8 + header_size(file.read(8))))
    except OSError as error:
        raise StorageError(f"{base}: {error}; a merge reads its inputs from the site's `folder`") from error
