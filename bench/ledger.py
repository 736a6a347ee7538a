"""What the ledger costs: votes, calls, blocks, catching up, disk. Each beside what the same machine does without it.

    python -m bench.ledger [--rounds 100] [--samples 200] [--json FILE]

Consensus: all validators' machines in one process, real signatures, no execution and no disk; CPU by block and node.
Calls: blocks of one call each of a run of ten sites, as a follower judges and keeps them. Decided: four node processes
on loopback, from the submission of a transaction at a node until its block is on that node's disk. Catching up: a new
node process that fetches all of that from another. Disk: what the second half of the rounds added.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import socket
import sqlite3
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import typer
from eth_account import Account
from rich.console import Console
from rich.table import Table

from swarm.config import MemberConfig, Policy, SiteConfig, SwarmConfig
from swarm.consensus import Broadcast, Certificate, Consensus, Decide, Effect, Help, check_certificate
from swarm.consensus.messages import commit_digest
from swarm.encoding import Digest, keccak256
from swarm.identity import Identity, checksum, recover
from swarm.ledger.client import Contracts
from swarm.ledger.endpoint import Call
from swarm.ledger.genesis import Genesis
from swarm.ledger.ledger import Ledger
from swarm.ledger.rpc import Asked, Rpc
from swarm.node.agreement import Keys
from swarm.node.embedded import EmbeddedChain
from swarm.node.process import open_node
from swarm.quorum import quorum
from swarm.rounds import Phase, RoundState, RunState

CHAIN = 4242
SITES = 10
DAY_MS = 86_400_000
"""The run of ten sites began so long ago: its blocks are 200 ms apart and never ahead of the clock."""
PAYLOAD = os.urandom(2_000)
"""About a block of one call with its parent's certificate."""


@dataclass(frozen=True)
class Row:
    """One measured thing."""

    what: str
    found: float
    unit: str
    aim: str = ""


class OwnKeys(Keys):
    """A node's key, and the signatures that it has recovered: what another node recovered is no use to it."""

    def __init__(self, identity: Identity) -> None:
        super().__init__(identity)
        self.recover = lru_cache(maxsize=4096)(recover.__wrapped__)  # type: ignore[method-assign]


def identities(count: int, kind: int) -> list[Identity]:
    """Keys for this benchmark; `kind` tells nodes' from operators'."""
    return [Identity(bytes([kind, number + 1]) * 16) for number in range(count)]


NODES, OPERATORS = identities(50, 1), identities(50, 2)


def seconds_each(work: Callable[[], object], repeats: int) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - start_s)
    return statistics.median(times)


# --- references


def references(folder: Path) -> list[Row]:
    """What the machine does without a ledger."""
    key, digest = NODES[0], keccak256(b"digest")
    signature = key.sign(digest)
    rows = [
        Row("reference: sign with secp256k1", 1e3 * seconds_each(lambda: key.sign(digest), 300), "ms"),
        Row(
            "reference: recover a signer", 1e3 * seconds_each(lambda: recover.__wrapped__(digest, signature), 300), "ms"
        ),
    ]
    for synchronous in ("NORMAL", "FULL"):
        file = sqlite3.connect(folder / f"{synchronous}.sqlite", isolation_level=None)
        file.execute("PRAGMA journal_mode = WAL")
        file.execute(f"PRAGMA synchronous = {synchronous}")
        file.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, value BLOB)")
        one_s = seconds_each(lambda file=file: file.execute("INSERT INTO rows (value) VALUES (?)", (PAYLOAD,)), 200)  # type: ignore[misc]
        rows.append(Row(f"reference: SQLite commits 2 KB, synchronous={synchronous}", 1e3 * one_s, "ms"))
        file.close()
    return rows


# --- consensus


class Votes:
    """The consensus of `validators` nodes, in one process: what is said is handed over at once."""

    def __init__(self, validators: int) -> None:
        self.keys = sorted(NODES[:validators], key=lambda key: key.address)
        self.proposers = tuple(key.address for key in self.keys)
        self.height = 1
        self.decided: list[tuple[OwnKeys, Decide]] = []
        self.queue: list[tuple[int, bytes]] = []
        self.own_keys = [OwnKeys(key) for key in self.keys]
        self.machines = [
            Consensus(
                chain_id=CHAIN,
                height=1,
                proposers=self.proposers,
                authenticator=key,
                build=self._payload,
                judge=lambda *_: True,
                digest_of=keccak256,
                timeout_s=60.0,
            )
            for key in self.own_keys
        ]

    def _payload(self) -> bytes:
        return self.height.to_bytes(8, "big") + PAYLOAD

    def block(self) -> float:
        """Decide one; CPU seconds a node, its check of the certificate included."""
        start_s = time.process_time()
        for index, machine in enumerate(self.machines):
            self._perform(index, machine.wake(0.0))
        while self.queue:
            sender, message = self.queue.pop(0)
            for index, machine in enumerate(self.machines):
                if index != sender:
                    self._perform(index, machine.receive(message, 0.0))
        assert len(self.decided) == len(self.machines)
        for keys, decision in self.decided:
            self.check(keys, decision)
        self.height += 1
        self.decided.clear()
        for index, machine in enumerate(self.machines):
            self._perform(index, machine.advance(self.height, self.proposers, 0.0))
        return (time.process_time() - start_s) / len(self.machines)

    def check(self, keys: OwnKeys, decision: Decide) -> None:
        """As whoever appends a block does."""
        check_certificate(
            decision.certificate,
            chain_id=CHAIN,
            height=self.height,
            digest=keccak256(decision.payload),
            validators=self.proposers,
            recover=keys.recover,
        )

    def _perform(self, index: int, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Broadcast(message=message):
                    self.queue.append((index, message))
                case Decide():
                    self.decided.append((self.own_keys[index], effect))
                case Help():
                    raise AssertionError("nobody lags behind")
                case _:
                    pass


def consensus_rows() -> list[Row]:
    """CPU by block and node, and what a follower pays for a certificate."""
    rows = []
    for validators, blocks, aim in ((4, 60, "≤ 2"), (10, 30, "≤ 3"), (25, 10, "≤ 6"), (50, 5, "≤ 12")):
        votes = Votes(validators)
        votes.block()
        found = statistics.median(votes.block() for _ in range(blocks))
        rows.append(Row(f"consensus, CPU a block and node, {validators} validators", 1e3 * found, "ms", aim))
    needed = quorum(50)
    digest = keccak256(PAYLOAD)
    signers = sorted(NODES, key=lambda key: key.address)
    seals = tuple(key.sign(commit_digest(CHAIN, 1, 0, digest)) for key in signers[:needed])
    addresses = tuple(key.address for key in signers)
    check_s = seconds_each(
        lambda: check_certificate(
            Certificate(0, seals),
            chain_id=CHAIN,
            height=1,
            digest=digest,
            validators=addresses,
            recover=recover.__wrapped__,
        ),
        50,
    )
    return [*rows, Row("a light follower, a block of 50 validators", 1e3 * check_s, "ms", "≤ 2")]


# --- a run of ten sites


def free_port() -> int:
    """One that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def consortium(sites: int) -> SwarmConfig:
    """`sites` members on loopback, all validators."""
    members = tuple(
        MemberConfig(
            name=f"site {number}",
            address=node.address,
            operator=operator.address,
            endpoint=f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{node.peer_id}",
            validator=True,
        )
        for number, (node, operator) in enumerate(zip(NODES[:sites], OPERATORS, strict=False))
    )
    return SwarmConfig(name="bench", chain_id=CHAIN, created_ms=int(time.time() * 1000) - DAY_MS, members=members)


def signed(identity: Identity, nonce: int, call: Call) -> bytes:
    """A call as a transaction."""
    assert call.to is not None
    fields = {
        "type": 2, "chainId": CHAIN, "nonce": nonce, "gas": 5_000_000, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0,
        "to": checksum(call.to), "value": 0, "data": call.data,
    }  # fmt: skip
    return bytes(Account.sign_transaction(fields, identity.secret).raw_transaction)


class Run:
    """A run on a ledger of its own, every call in a block of its own, followed by a second ledger that is measured."""

    def __init__(self, folder: Path, config: SwarmConfig) -> None:
        genesis = Genesis.of(config)
        self.now_ms = config.created_ms
        self.leader = Ledger.open(folder / "leader", genesis)
        self.follower = Ledger.open(folder / "follower", genesis)
        self.contracts = Contracts(Asked(Rpc(self.leader, lambda raw: None)))
        self.by_address = {key.address: key for key in NODES}
        self.judge_s: dict[str, list[float]] = defaultdict(list)
        self.keep_s: list[float] = []

    def close(self) -> None:
        self.leader.close()
        self.follower.close()

    def send(self, name: str, identity: Identity, call: Call) -> None:
        """Decide a block with this call; the follower judges and keeps it."""
        self.now_ms += 200
        ledger = self.leader
        ledger.add_transaction(signed(identity, ledger.next_nonce(identity.address), call))
        payload = ledger.build(self.now_ms, ledger.proposers()[0])
        assert payload is not None
        certificate = self.certificate(ledger.digest_of(payload))
        ledger.append(payload, certificate)
        recover.cache_clear()  # what the leader recovered is no use to the follower
        start_s = time.process_time()
        assert self.follower.judge(payload, self.now_ms)
        judged_s = time.process_time()
        self.follower.append(payload, certificate)
        self.judge_s[name].append(judged_s - start_s)
        self.keep_s.append(time.process_time() - judged_s)
        block = ledger.block(ledger.head.number)
        assert all(receipt.succeeded for receipt in block.receipts), f"{name} was refused"

    def certificate(self, digest: Digest) -> Certificate:
        """A quorum's seals on the next block."""
        validators = self.leader.validators()
        height = self.leader.head.number + 1
        sealed = commit_digest(CHAIN, height, 0, digest)
        return Certificate(0, tuple(self.by_address[one].sign(sealed) for one in validators[: quorum(len(validators))]))

    async def open(self, rounds: int) -> None:
        """Propose, approve by all, join by all."""
        policy = Policy("bench", rounds, 1, submissions_min=SITES)
        self.send("propose", OPERATORS[0], self.contracts.propose(policy, keccak256(b"genesis")))
        for operator in OPERATORS[1:SITES]:
            self.send("approve", operator, self.contracts.approve(1))
        for node in NODES[:SITES]:
            self.send("join", node, self.contracts.join(1, True))

    async def round(self) -> None:
        """All submit, the leader publishes, the others attest until the round closes."""
        state = await self.contracts.round_state(1)
        for node in NODES[:SITES]:
            digest = keccak256(node.address + state.round.to_bytes(8, "big"))
            call = self.contracts.submit(1, state.round, digest, 100, {"loss": 0.5, "auc": 0.75})
            self.send("submit", node, call)
        state = await self.contracts.round_state(1)
        assert state.phase == Phase.MERGE
        checkpoint = keccak256(state.round.to_bytes(8, "big"))
        leader = self.by_address[state.leader]
        self.send("publish", leader, self.contracts.publish(1, state.round, state.view, checkpoint))
        for node in NODES[:SITES]:
            if node is not leader and await self._open(state):
                self.send("attest", node, self.contracts.attest(1, state.round, state.view, checkpoint))
        assert not await self._open(state)

    async def _open(self, state: RoundState) -> bool:
        run = await self.contracts.run(1)
        return run.state == RunState.OPEN and run.round == state.round


def bytes_in(folder: Path) -> int:
    """What a ledger's files take."""
    return sum(path.stat().st_size for path in folder.iterdir())


async def run_rows(folder: Path, config: SwarmConfig, rounds: int) -> list[Row]:
    """Calls, blocks and disk."""
    run = Run(folder, config)
    await run.open(rounds)
    sizes = []
    for number in range(rounds):
        if number == rounds // 2:
            sizes.append(bytes_in(folder / "follower"))
        await run.round()
    sizes.append(bytes_in(folder / "follower"))
    blocks = run.follower.head.number
    run.close()
    rows = [
        Row(f"a call, CPU: {name}", 1e3 * statistics.median(run.judge_s[name]), "ms", "≤ 7")
        for name in ("approve", "join", "submit", "publish", "attest")
    ]
    per_thousand = (sizes[1] - sizes[0]) / (rounds - rounds // 2) * 1000
    return [
        *rows,
        Row("a block kept, CPU (certificate, state, disk)", 1e3 * statistics.median(run.keep_s), "ms"),
        Row(
            f"disk for 1,000 rounds of {SITES} sites, {blocks / rounds:.1f} blocks a round",
            per_thousand / 1e9,
            "GB",
            "≤ 0.25",
        ),
    ]


# --- node processes


def _site(folder: Path, config: SwarmConfig, number: int) -> SiteConfig:
    listen = config.members[number].endpoint.rpartition("/p2p/")[0]
    return SiteConfig(
        path=folder / "site.toml", name=f"site {number}", swarm=folder / "swarm.toml", keystore=folder / "key.json",
        password_file=None, operator_keystore=None, operator_password_file=None, folder=folder, listen=listen,
    )  # fmt: skip


def _serve(folder: Path, config: SwarmConfig, number: int, samples: int, goal: int, told: Any) -> None:
    """A node process. It tells the times of its own submissions, or when it came to the block `goal`."""
    asyncio.run(_serve_node(folder, config, number, samples, goal, told))


async def _serve_node(folder: Path, config: SwarmConfig, number: int, samples: int, goal: int, told: Any) -> None:
    node = open_node(_site(folder, config, number), config, NODES[number])
    assert isinstance(node.chain, EmbeddedChain)
    chain, ledger = node.chain, node.chain.ledger
    await node.start()
    await _until(lambda: len(node.transport.connected()) >= (len(config.members) - 1 if samples else 1))
    start_s, cpu_s = time.perf_counter(), time.process_time()
    if goal:
        while ledger.head.number < goal:
            await chain.next_block()
        told.put((time.perf_counter() - start_s, time.process_time() - cpu_s))
    elif samples:
        await asyncio.sleep(2.0)
        told.put([await _decided_s(chain, ledger, number) for _ in range(samples)])
    await node.failed()


async def _until(holds: Callable[[], bool]) -> None:
    for _ in range(1200):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise TimeoutError("the nodes do not find each other")


async def _decided_s(chain: EmbeddedChain, ledger: Ledger, number: int) -> float:
    """Seconds from a submission at this node to its block on this node's disk."""
    operator = OPERATORS[number]
    policy = Policy("bench", 10, 1, submissions_min=2)
    call = chain.contracts.propose(policy, keccak256(os.urandom(8)))
    raw = signed(operator, ledger.next_nonce(operator.address), call)
    start_s = time.perf_counter()
    digest = chain.agreement.add_transaction(raw)
    while ledger.transaction(digest) is None:
        await chain.next_block()
    return time.perf_counter() - start_s


def decided_rows(folder: Path, samples: int) -> list[Row]:
    """Four node processes; the first one's site submits, one call after the other."""
    config = consortium(4)
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    jobs = [
        context.Process(target=_serve, args=(folder / f"decided-{n}", config, n, samples if n == 0 else 0, 0, told))
        for n in range(4)
    ]
    for job in jobs:
        job.start()
    try:
        times = sorted(told.get(timeout=300))
    finally:
        for job in jobs:
            job.kill()
            job.join()
    return [
        Row("from submission to decided, four processes, median", 1e3 * statistics.median(times), "ms", "≤ 150"),
        Row("the same, 99th percentile", 1e3 * times[int(0.99 * (len(times) - 1))], "ms"),
    ]


def catching_up_rows(folder: Path, config: SwarmConfig) -> list[Row]:
    """A node with the run's ledger, and a new one."""
    (folder / "old").mkdir()
    shutil.copytree(folder / "follower", folder / "old" / "ledger")
    with sqlite3.connect(folder / "follower" / "ledger.sqlite") as file:
        (blocks,) = file.execute("SELECT MAX(number) FROM blocks").fetchone()
        (transactions,) = file.execute("SELECT COUNT(*) FROM transactions").fetchone()
    file.close()
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    jobs = [
        context.Process(target=_serve, args=(folder / "old", config, 0, 0, 0, None)),
        context.Process(target=_serve, args=(folder / "new", config, 1, 0, blocks, told)),
    ]
    for job in jobs:
        job.start()
    try:
        wall_s, cpu_s = told.get(timeout=300)
    finally:
        for job in jobs:
            job.kill()
            job.join()
    return [
        Row(f"catching up, {blocks} blocks of one call each from one peer", transactions / wall_s, "calls/s", "≥ 100"),
        Row("the same, CPU a block at the new node", 1e3 * cpu_s / blocks, "ms"),
    ]


def main(
    rounds: Annotated[int, typer.Option(min=4, help="of the run of ten sites")] = 100,
    samples: Annotated[int, typer.Option(min=4, help="submissions that are timed")] = 200,
    json_: Annotated[Path | None, typer.Option("--json", help="write the rows there too")] = None,
) -> None:
    """Measure the ledger on this machine."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        config = consortium(SITES)
        rows = references(folder) + consensus_rows()
        rows += asyncio.run(run_rows(folder, config, rounds))
        rows += catching_up_rows(folder, config)
        rows += decided_rows(folder, samples)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table("what", "found", "", "aim")
    for row in rows:
        table.add_row(row.what, f"{row.found:.3g}", row.unit, row.aim)
    Console().print(table)
    if json_ is not None:
        json_.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    typer.run(main)
