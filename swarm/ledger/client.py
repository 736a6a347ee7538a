"""The contracts as typed Python, over any Ethereum JSON-RPC: the embedded ledger, a node's socket, or Besu.

Reads answer with frozen values: addresses and digests as bytes, times in seconds. Writes give a `Call`, which
`transact` signs and sends. What the numbers and states mean is told in `contracts/Consortium.md` and `Runs.md`.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from typing import Any

from swarm.blind import MaskState, Told
from swarm.config import Policy
from swarm.encoding import ZERO_ADDRESS, ZERO_DIGEST, Address, Digest, from_hex, to_hex
from swarm.errors import ConfigError, RejectedError
from swarm.identity import Identity, checksum
from swarm.ledger.abi import Interface, interface
from swarm.ledger.endpoint import Call, Endpoint, Web3
from swarm.ledger.genesis import BLIND, CONSORTIUM, RUNS
from swarm.ledger.masks import Masks, told
from swarm.merkle import digest_of
from swarm.rounds import EVERY_PART, Phase, RoundState, RunState, Submission

METRICS_MAX_BYTES = 512
"""The contract's bound on what a submission says of its training."""

EVENT_BLOCKS_MAX = 5_000
"""How many blocks' events are asked for at a time: what Hyperledger Besu answers by default."""

_CONSORTIUM = interface("Consortium")
_RUNS = interface("Runs")
_BLIND = interface("Blind")


@dataclass(frozen=True)
class Member:
    """A member as the `Consortium` contract records it."""

    address: Address
    operator: Address
    name: str
    endpoint: str
    """A multiaddr that ends in `/p2p/PEERID`."""
    fingerprint: Digest
    """SHA-256 of its certificate, zero where it has none."""
    validator: bool
    standing: bool
    """False: a validator on planned leave or on standby."""


class ProposalKind(IntEnum):
    """What operators decide together; the numbers are the contract's."""

    ADMIT = 1
    REMOVE = 2
    VALIDATOR_ON = 3
    VALIDATOR_OFF = 4


@dataclass(frozen=True)
class Proposal:
    """A change of the consortium that operators vote on."""

    id: int
    kind: ProposalKind
    member: Member
    """As it will be (admission), or as it was when the proposal was made."""
    proposer: Address
    """The member whose operator proposed it."""
    decided: bool
    approvals: int
    """Of the members there are now."""


@dataclass(frozen=True)
class Run:
    """A run as the `Runs` contract records it."""

    id: int
    name: str
    proposer: Address
    policy: Digest
    genesis: Digest
    """The checkpoint that round 0 starts from."""
    rounds: int
    submissions_min: int
    submit_s: float
    merge_s: float
    attest_s: float
    weight_max: int
    """0: the run is blind, and weights are masked with the updates."""
    state: RunState
    round: int
    checkpoint: Digest
    """What the current round starts from; after the last one, the result."""

    @property
    def blind(self) -> bool:
        """Whether submissions are masked vectors."""
        return self.weight_max == 0


@dataclass(frozen=True)
class ClosedRound:
    """How a round ended."""

    run: int
    round: int
    checkpoint: Digest
    leader: Address
    view: int
    submissions: int
    """That were merged."""
    attestations: int
    """When it closed, the leader's publication among them."""
    closed_s: float
    """Unix seconds by the ledger's clock."""


@dataclass(frozen=True)
class Event:
    """Something that a contract logged."""

    name: str
    args: Mapping[str, Any]
    """By the contract's names; a `deadline` is in seconds."""
    block: int
    index: int
    """Its place among the block's events."""
    transaction: Digest


@dataclass(frozen=True)
class Receipt:
    """A call that the ledger took."""

    transaction: Digest
    block: int
    gas_used: int
    events: tuple[Event, ...]

    def first(self, name: str) -> Event:
        """The first event of this name; ValueError if there is none."""
        for event in self.events:
            if event.name == name:
                return event
        raise ValueError(f"transaction {to_hex(self.transaction)} logged no {name}")


class Contracts:
    """The contracts over one node's JSON-RPC.

    Args:
        web3: any async provider that is ready to be asked (a persistent one: connected).
        since: the first block that has the contracts; no event before it is asked for.
        on_block: returns when the ledger has another block than when it was called; without it, receipts are
            polled for.
        free: gas costs nothing and nobody is asked for its price (`Endpoint`).

    Every method raises `RejectedError` where the ledger refuses, `UnavailableError` where no answer comes.
    """

    def __init__(
        self,
        web3: Web3,
        *,
        consortium: Address = CONSORTIUM,
        runs: Address = RUNS,
        blind: Address = BLIND,
        since: int = 0,
        on_block: Callable[[], Awaitable[None]] | None = None,
        free: bool = True,
    ) -> None:
        self._endpoint = Endpoint(web3, on_block=on_block, free=free)
        self._consortium = consortium
        self._runs = runs
        self._blind = blind
        self._since = since
        self._block = "latest"
        self._ticks: int | None = None

    def at(self, block: int) -> Contracts:
        """The same contracts as they were right after this block."""
        past = copy.copy(self)
        past._block = hex(block)
        return past

    @property
    def masks(self) -> Masks:
        """The contract of blind rounds, as of the same block."""
        return Masks(self._blind, partial(self._ask_of, _BLIND, self._blind), self._ticks_per_second)

    async def secrets_told(self, masks: MaskState) -> tuple[Told, ...]:
        """What members revealed of their masks in this attempt, in the ledger's order."""
        members = {seat.seat: seat.member for seat in masks.seats}
        events = await self.events(masks.block, names={"Revealed", "SharesRevealed"})
        mine = [event for event in events if (event.args["run"], event.args["attempt"]) == (masks.run, masks.attempt)]
        found = (told(event.name, event.args, members) for event in mine)
        return tuple(part for part in found if part is not None)

    # --- who takes part

    async def chain_id(self) -> int:
        """The chain's number among Ethereum networks."""
        return int(await self._endpoint.request("eth_chainId"), 16)

    async def height(self) -> int:
        """The number of the last block."""
        return int(await self._endpoint.request("eth_blockNumber"), 16)

    async def members(self) -> tuple[Member, ...]:
        """All members, in the contract's order."""
        return tuple(_member(address, record) for address, record in await self._ask_consortium("roster"))

    async def member(self, address: Address) -> Member | None:
        """The member with this node key, None if there is none."""
        record = await self._ask_consortium("member", address)
        return _member(address, record) if record[0] != ZERO_ADDRESS else None

    async def member_of(self, operator: Address) -> Address | None:
        """The member that this operator votes for, None if there is none."""
        found: Address = await self._ask_consortium("memberOf", operator)
        return found if found != ZERO_ADDRESS else None

    async def validators(self) -> tuple[Address, ...]:
        """The validators that stand."""
        return tuple(await self._ask_consortium("getValidators"))

    async def floor(self) -> int:
        """Below so many standing validators neither leave nor standby takes them."""
        return int(await self._ask_consortium("floor"))

    async def absence_s(self) -> float:
        """How long a validator is silent before others report it, and how long a report counts."""
        return int(await self._ask_consortium("absence")) / await self._ticks_per_second()

    async def standbys(self) -> tuple[Address, ...]:
        """The members that others put on standby."""
        return tuple(await self._ask_consortium("standbys"))

    async def reporters(self, member: Address) -> tuple[Address, ...]:
        """The validators whose report of this member's absence counts now."""
        return tuple(await self._ask_consortium("reportersOf", member))

    async def quorum(self) -> int:
        """How many members approve what then happens: two thirds, rounded up."""
        return int(await self._ask_consortium("quorum"))

    async def proposal(self, id: int) -> Proposal:
        """One proposal; RejectedError if there is none with this number."""
        kind, member, record, proposer, decided, approvals = await self._ask_consortium("proposal", id)
        if kind == 0:
            raise RejectedError(f"there is no proposal {id}")
        return Proposal(id, ProposalKind(kind), _member(member, record), proposer, decided, approvals)

    async def proposals(self) -> tuple[Proposal, ...]:
        """All proposals ever, oldest first."""
        count = int(await self._ask_consortium("proposals"))
        return tuple(await asyncio.gather(*(self.proposal(id) for id in range(1, count + 1))))

    async def approved(self, proposal: int, member: Address) -> bool:
        """Whether this member's operator approved the proposal."""
        return bool(await self._ask_consortium("approved", proposal, member))

    # --- what is trained

    async def runs(self, *, after: int = 0) -> tuple[Run, ...]:
        """All runs with a number above `after`, oldest first."""
        count = int(await self._ask_runs("count"))
        return tuple(await asyncio.gather(*(self.run(id) for id in range(after + 1, count + 1))))

    async def run(self, id: int) -> Run:
        """One run; RejectedError if there is none with this number."""
        (
            proposer, name, policy, genesis, rounds, submissions_min, submit, merge, attest, weight_max, state, round,
            checkpoint,
        ) = await self._ask_runs("run", id)  # fmt: skip
        if policy == ZERO_DIGEST:
            raise RejectedError(f"there is no run {id}")
        ticks = await self._ticks_per_second()
        return Run(
            id=id, name=name, proposer=proposer, policy=policy, genesis=genesis, rounds=rounds,
            submissions_min=submissions_min, submit_s=submit / ticks, merge_s=merge / ticks, attest_s=attest / ticks,
            weight_max=weight_max, state=RunState(state), round=round, checkpoint=checkpoint,
        )  # fmt: skip

    async def run_named(self, name: str) -> Run:
        """The newest run of this name; RejectedError names the ones there are."""
        found = await self.runs()
        for run in reversed(found):
            if run.name == name:
                return run
        names = ", ".join(sorted({run.name for run in found})) or "none yet"
        raise RejectedError(f"there is no run called {name!r}; there are: {names}")

    async def approvals(self, run: int) -> tuple[Address, ...]:
        """The members whose operators consent to the run."""
        return tuple(await self._ask_runs("approvals", run))

    async def participants(self, run: int) -> tuple[Address, ...]:
        """The members that joined the run and did not withdraw, in the order in which they joined."""
        return tuple(await self._ask_runs("participants", run))

    async def suspended(self, run: int, member: Address) -> bool:
        """Whether this member no longer leads, because enough others refused what it published."""
        return bool(await self._ask_runs("suspended", run, member))

    async def round_state(self, run: int) -> RoundState:
        """The current round; RejectedError if there is no such run."""
        (
            state, round, phase, view, leader, base, seed, opened, deadline, expected, submissions, published, attested,
            refused, missing, verifiers, verified,
        ) = await self._ask_runs("round_state", run)  # fmt: skip
        if base == ZERO_DIGEST:
            raise RejectedError(f"there is no run {run}")
        ticks = await self._ticks_per_second()
        return RoundState(
            run=run, state=RunState(state), round=round, phase=Phase(phase), view=view, leader=leader, base=base,
            seed=seed, opened_s=opened / ticks, deadline_s=deadline / ticks, expected=tuple(expected),
            submissions=tuple(Submission(*submission) for submission in submissions),
            published=published if published != ZERO_DIGEST else None, attested=frozenset(attested),
            refused=frozenset(refused), missing=frozenset(missing), verifiers=verifiers, verified=tuple(verified),
        )  # fmt: skip

    async def closed_round(self, run: int, round: int) -> ClosedRound | None:
        """How a round ended, None while it has not."""
        checkpoint, leader, view, submissions, attestations, closed = await self._ask_runs("closedRound", run, round)
        if checkpoint == ZERO_DIGEST:
            return None
        ticks = await self._ticks_per_second()
        return ClosedRound(run, round, checkpoint, leader, view, submissions, attestations, closed / ticks)

    # --- what happened

    async def events(
        self, from_block: int, to_block: int | None = None, names: Collection[str] | None = None
    ) -> tuple[Event, ...]:
        """What the contracts logged in these blocks, both ends included, in order.

        Args:
            to_block: None: up to the newest.
            names: only events of these names; ValueError for a name that no contract has.
        """
        topics = _CONSORTIUM.topics | _RUNS.topics | _BLIND.topics
        unknown = sorted(set(names or ()) - topics.keys())
        if unknown:
            raise ValueError(f"no contract logs {unknown[0]}; there are {', '.join(sorted(topics))}")
        wanted = None if names is None else [to_hex(topics[name]) for name in sorted(names)]
        ticks = await self._ticks_per_second()
        last = await self.height() if to_block is None else to_block
        from_block = max(from_block, self._since)
        events: list[Event] = []
        while from_block <= last:
            end = min(from_block + EVENT_BLOCKS_MAX - 1, last)
            events += self._events(await self._logs(from_block, end, wanted), ticks)
            from_block = end + 1
        return tuple(events)

    async def _logs(self, first: int, last: int, topics: list[str] | None) -> list[Mapping[str, Any]]:
        """The logs of these blocks; where a node refuses so many at once, halves are asked for."""
        addresses = [to_hex(self._consortium), to_hex(self._runs), to_hex(self._blind)]
        message: dict[str, object] = {"fromBlock": hex(first), "toBlock": hex(last), "address": addresses}
        if topics is not None:
            message["topics"] = [topics]
        try:
            found: list[Mapping[str, Any]] = await self._endpoint.request("eth_getLogs", message)
        except RejectedError:
            if first == last:
                raise
            middle = (first + last) // 2
            return [*await self._logs(first, middle, topics), *await self._logs(middle + 1, last, topics)]
        return found

    def _events(self, logs: list[Mapping[str, Any]], ticks: int) -> tuple[Event, ...]:
        events = []
        kinds = {self._consortium: _CONSORTIUM, self._runs: _RUNS, self._blind: _BLIND}
        for log in logs:
            kind = kinds.get(from_hex(log["address"]))
            found = kind and kind.event([from_hex(topic) for topic in log["topics"]], from_hex(log["data"]))
            if found:
                name, args = found
                if "deadline" in args:
                    args = {**args, "deadline": args["deadline"] / ticks}
                place = int(log["blockNumber"], 16), int(log["logIndex"], 16)
                events.append(Event(name, args, *place, from_hex(log["transactionHash"])))
        return tuple(sorted(events, key=lambda event: (event.block, event.index)))

    # --- calls of operators

    def nominate(
        self,
        member: Address,
        operator: Address,
        name: str,
        endpoint: str,
        *,
        validator: bool,
        fingerprint: Digest = ZERO_DIGEST,
    ) -> Call:
        """Propose that an institution becomes a member."""
        arguments = member, operator, name, endpoint, fingerprint, validator
        return self._to_consortium(f"nominate {name}", "nominate", *arguments)

    def propose_removal(self, member: Address) -> Call:
        """Propose that a member leaves."""
        return self._to_consortium(f"propose the removal of {checksum(member)}", "proposeRemoval", member)

    def propose_validator(self, member: Address, on: bool) -> Call:
        """Propose that a member becomes a validator, or no longer is one."""
        what = f"propose that {checksum(member)} {'becomes a validator' if on else 'is no longer a validator'}"
        return self._to_consortium(what, "proposeValidator", member, on)

    def approve_proposal(self, proposal: int) -> Call:
        """Vote for a proposal; the vote that makes a quorum executes it."""
        return self._to_consortium(f"approve proposal {proposal}", "approve", proposal)

    def rotate_key(self, member: Address, endpoint: str, fingerprint: Digest = ZERO_DIGEST) -> Call:
        """Give the operator's member another node key."""
        what = f"rotate the node's key to {checksum(member)}"
        return self._to_consortium(what, "rotateKey", member, endpoint, fingerprint)

    def propose(self, policy: Policy, genesis: Digest) -> Call:
        """Propose a run of this policy that starts from the checkpoint `genesis`; the policy's bytes are an object."""

        def ms(seconds: float) -> int:
            return max(round(seconds * 1000), 1)

        return self._to_runs(
            f"propose the run {policy.name}", "propose", policy.name, digest_of(policy.encode()), genesis,
            policy.rounds, policy.submissions_min, ms(policy.submit_s), ms(policy.merge_s), ms(policy.attest_s),
            0 if policy.blind else policy.weight_max,
        )  # fmt: skip

    def approve(self, run: int) -> Call:
        """Consent to a run."""
        return self._to_runs(f"approve run {run}", "approve", run)

    def stop(self, run: int) -> Call:
        """Vote to stop a run."""
        return self._to_runs(f"stop run {run}", "stop", run)

    # --- calls of a member or its operator

    def set_endpoint(self, endpoint: str, fingerprint: Digest = ZERO_DIGEST) -> Call:
        """Say where the node is reached."""
        return self._to_consortium("set the endpoint", "setEndpoint", endpoint, fingerprint)

    def stand_down(self) -> Call:
        """A validator's planned leave."""
        return self._to_consortium("stand down", "standDown")

    def report_absent(self, member: Address) -> Call:
        """A validator's word that another has been silent for long."""
        return self._to_consortium(f"report {checksum(member)} absent", "reportAbsent", member)

    def resume(self) -> Call:
        """The end of a validator's leave or standby, and its sign of life where others report it."""
        return self._to_consortium("resume", "resume")

    def withdraw(self, run: int) -> Call:
        """Leave a run and take the consent back."""
        return self._to_runs(f"withdraw from run {run}", "withdraw", run)

    # --- calls of a member's node

    def join(self, run: int, leads: bool) -> Call:
        """Be waited for in the run's rounds; `leads` False: never merge."""
        return self._to_runs(f"join run {run}", "join", run, leads)

    def submit(self, run: int, round: int, digest: Digest, weight: int, metrics: Mapping[str, float]) -> Call:
        """Put an update's digest on the ledger.

        Raises:
            ValueError: the metrics are not finite numbers, or longer than the ledger takes.
        """
        what = f"submit to round {round} of run {run}"
        return self._to_runs(what, "submit", run, round, digest, weight, encode_metrics(metrics))

    def report_missing(self, run: int, round: int, member: Address) -> Call:
        """Say that the bytes of this member's update never came."""
        what = f"report the update of {checksum(member)} missing in round {round} of run {run}"
        return self._to_runs(what, "reportMissing", run, round, member)

    def publish(self, run: int, round: int, view: int, checkpoint: Digest) -> Call:
        """Publish this leader's merge."""
        return self._to_runs(f"publish in round {round} of run {run}", "publish", run, round, view, checkpoint)

    def attest(self, run: int, round: int, view: int, checkpoint: Digest, parts: int = EVERY_PART) -> Call:
        """Say that this node merged these parts of the checkpoint too, and found the same."""
        what, arguments = f"attest round {round} of run {run}", (run, round, view, checkpoint)
        if parts == EVERY_PART:
            return self._to_runs(what, "attest", *arguments)
        return self._to_runs(what, "attestParts", *arguments, parts)

    def refuse(self, run: int, round: int, view: int, found: Digest, evidence: Digest) -> Call:
        """Say that this node's merge gave something else; `evidence` is an object that shows where."""
        return self._to_runs(f"refuse round {round} of run {run}", "refuse", run, round, view, found, evidence)

    def advance(self, run: int, round: int, view: int) -> Call:
        """Say that a deadline passed."""
        call = self._to_runs(f"advance round {round} of run {run}", "advance", run, round, view)
        return replace(call, timed=True)

    # --- sending

    async def transact(self, identity: Identity, call: Call, *, timeout_s: float) -> Receipt:
        """What the ledger did with a call that `identity` signs, once it is in a block.

        Several may be under way at once. The same call again, while the first is still on its way, waits for the first.

        Raises:
            RejectedError: the ledger refused it; what was called and why not.
            UnavailableError: it was not in a block in time. It may still come.
        """
        ticks = await self._ticks_per_second()
        receipt = await self._endpoint.transact(identity, call, timeout_s=timeout_s)
        return Receipt(
            from_hex(receipt["transactionHash"]),
            int(receipt["blockNumber"], 16),
            int(receipt["gasUsed"], 16),
            self._events(receipt["logs"], ticks),
        )

    async def _ask_consortium(self, function: str, *arguments: object) -> Any:
        return await self._ask(_CONSORTIUM, self._consortium, function, arguments)

    async def _ask_runs(self, function: str, *arguments: object) -> Any:
        return await self._ask(_RUNS, self._runs, function, arguments)

    async def _ask_of(self, contract: Interface, to: Address, function: str, *arguments: object) -> Any:
        return await self._ask(contract, to, function, arguments)

    async def _ask(self, contract: Interface, to: Address, function: str, arguments: tuple[object, ...]) -> Any:
        answer = await self._endpoint.call(to, contract.call(function, *arguments), block=self._block)
        try:
            return contract.result(function, answer)
        except ValueError as error:
            raise ConfigError(f"this ledger has no {contract.name} at {checksum(to)}: {error}") from error

    async def _ticks_per_second(self) -> int:
        if self._ticks is None:
            self._ticks = int(await self._ask_runs("ticksPerSecond"))
        return self._ticks

    def _to_consortium(self, what: str, function: str, *arguments: object) -> Call:
        return Call(self._consortium, _CONSORTIUM.call(function, *arguments), what)

    def _to_runs(self, what: str, function: str, *arguments: object) -> Call:
        return Call(self._runs, _RUNS.call(function, *arguments), what)


def encode_metrics(metrics: Mapping[str, float]) -> bytes:
    """Numbers by name as compact JSON, names sorted.

    Raises:
        ValueError: a value is not a finite number, or the whole is longer than `METRICS_MAX_BYTES`.
    """
    try:
        plain = {str(name): float(value) for name, value in metrics.items()}
        data = json.dumps(plain, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"metrics are finite numbers by name, found {dict(metrics)!r}: {error}") from error
    if len(data) > METRICS_MAX_BYTES:
        raise ValueError(f"metrics of {len(data)} bytes as JSON, the ledger takes {METRICS_MAX_BYTES}; name fewer")
    return data


def decode_metrics(data: bytes) -> dict[str, float]:
    """The finite numbers by name in a `Submitted` event's metrics; what else a member wrote there is left out."""
    try:
        found = json.loads(data)  # at most 512 bytes
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    # A whole number of 400 digits is no float, and not a number is not below it.
    return {name: float(value) for name, value in found.items() if type(value) in (int, float) and abs(value) < 1e300}


def _member(address: Address, record: tuple[Any, ...]) -> Member:
    operator, name, endpoint, fingerprint, validator, standing = record
    return Member(address, operator, name, endpoint, fingerprint, validator, standing)
