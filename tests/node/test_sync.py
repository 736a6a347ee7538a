"""A node that was away fetches what was decided, from several members, whatever one of them does; and two decisions
about one height are kept as evidence. Real ledgers and agreements, a virtual clock and network."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from sim.loop import run
from swarm.consensus import Certificate
from swarm.encoding import Address, pack
from swarm.ledger.history import Recent
from swarm.ledger.judging import ExecutionCache
from swarm.ledger.ledger import Ledger
from swarm.net.memory import MemoryNetwork, MemoryTransport, steady
from swarm.node.agreement import DECIDED, Agreement
from swarm.node.sync import BLOCKS, HEDGE_S, SPAN_BLOCKS, SPANS_MAX, Span, next_spans, read_request
from tests.ledger import world

LENGTH = 2 * SPAN_BLOCKS + 10
EXECUTIONS = ExecutionCache()
EXECUTIONS.blocks = Recent(2 * LENGTH)
EXECUTIONS.certificates = Recent(2 * LENGTH)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of that chain."""
    folder = tmp_path_factory.mktemp("grown") / "ledger"
    ledger_in(folder, decided()).close()
    return folder


@cache
def decided() -> list[tuple[bytes, Certificate]]:
    """A chain."""
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(ledger_in(Path(folder))) as ledger:
        return world.grow(ledger, LENGTH)


def ledger_in(folder: Path, blocks: list[tuple[bytes, Certificate]] | None = None) -> Ledger:
    ledger = world.open_ledger(folder, executions=EXECUTIONS)
    for payload, certificate in blocks or []:
        ledger.append(payload, certificate)
    return ledger


class Counted(MemoryTransport):
    """Notes what is asked of whom."""

    def __init__(self, network: MemoryNetwork, me: Address) -> None:
        super().__init__(network, me)
        self.spans: list[tuple[Address, Span]] = []

    async def request(self, member: Address, protocol: str, payload: bytes, *, timeout_s: float) -> bytes:
        if protocol == BLOCKS:
            self.spans.append((member, Span(*read_request(payload))))
        return await super().request(member, protocol, payload, timeout_s=timeout_s)


class Member:
    """One of four validators, with a chain of its own."""

    def __init__(self, network: MemoryNetwork, index: int, ledger: Ledger, kind: type[Agreement] = Agreement) -> None:
        self.ledger = ledger
        self.address = world.MEMBERS[index].address
        self.transport = Counted(network, self.address)
        self.failures: list[BaseException] = []
        self.agreement = kind(
            identity=world.MEMBERS[index],
            ledger=ledger,
            transport=self.transport,
            clock=lambda: world.CREATED_MS / 1000 + asyncio.get_running_loop().time(),
            view_timeout_s=1.0,
            on_block=lambda: None,
            on_failure=self.failures.append,
        )

    async def start(self) -> None:
        self.agreement.start()
        self.transport.set_members({member.address: "" for member in world.MEMBERS[:4]})
        await self.transport.start()
        self.agreement.run()

    async def close(self) -> None:
        await self.agreement.close()
        await self.transport.close()
        self.ledger.close()


async def until(holds: Callable[[], bool], within_s: float) -> float:
    """Virtual seconds until it holds."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    while not holds():
        assert loop.time() - start_s < within_s, f"not within {within_s} s"
        await asyncio.sleep(0.05)
    return loop.time() - start_s


class LiesAboutBlocks(Agreement):
    """Gives every block with another certificate than it has."""

    async def _serve_blocks(self, member: Address, payload: bytes) -> bytes:
        start, count = read_request(payload)
        false = Certificate(0, (bytes(65),) * 3).encode()
        return pack([[block, false] for block, _ in self.ledger.blocks_from(start, 1 << 22, blocks_max=count)])


class GivesNothing(Agreement):
    """Claims what it does not give."""

    async def _serve_blocks(self, member: Address, payload: bytes) -> bytes:
        return pack([])


class NeverAnswers(Agreement):
    """Takes every request and is silent."""

    async def _serve_blocks(self, member: Address, payload: bytes) -> bytes:
        await asyncio.sleep(3600)
        return b""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


async def newcomer(
    folder: Path, grown: Path, *kinds: type[Agreement], delay_s: float = 0.001
) -> tuple[Member, list[Member], MemoryNetwork]:
    """A member without a block, and others that have them all."""
    network = MemoryNetwork(steady(delay_s))
    others = []
    for index, kind in enumerate(kinds):
        shutil.copytree(grown, folder / str(index))
        others.append(Member(network, index, ledger_in(folder / str(index)), kind))
    new = Member(network, 3, ledger_in(folder / "new"))
    for member in [*others, new]:
        await member.start()
    return new, others, network


async def close(*members: Member) -> None:
    for member in members:
        assert not member.failures
        await member.close()


def test_a_new_node_fetches_from_several_members_at_once(folder: Path, grown: Path) -> None:
    async def story() -> None:
        new, others, _ = await newcomer(folder, grown, Agreement, Agreement, Agreement)
        assert await until(lambda: new.ledger.head.number == LENGTH, 3.0) < 1.5
        assert {member for member, _ in new.transport.spans} == {member.address for member in others}
        asked = Counter(
            height for _, span in new.transport.spans for height in range(span.start, span.start + span.count)
        )
        assert set(asked) == set(range(1, LENGTH + 1))
        assert max(asked.values()) == 1, "no block travels twice"
        await close(new, *others)

    run(story())


@pytest.mark.parametrize("kind", [LiesAboutBlocks, GivesNothing, NeverAnswers])
def test_one_member_that_does_not_give_what_it_claims_costs_little_and_is_not_asked_again_soon(
    folder: Path, grown: Path, kind: type[Agreement]
) -> None:
    async def story() -> None:
        new, others, _ = await newcomer(folder, grown, kind, Agreement, Agreement)
        took_s = await until(lambda: new.ledger.head.number == LENGTH, 30.0)
        assert took_s < 2 * HEDGE_S + 2.0
        bad = others[0].address
        await asyncio.sleep(20.0)
        assert sum(member == bad for member, _ in new.transport.spans) <= 3
        await close(new, *others)

    run(story())


def test_a_broken_link_costs_what_was_under_way_and_no_more(folder: Path, grown: Path) -> None:
    async def story() -> None:
        new, others, network = await newcomer(folder, grown, Agreement, delay_s=0.2)
        await until(lambda: new.ledger.head.number > SPAN_BLOCKS, 5.0)
        network.crash(others[0].address)
        await others[0].close()
        had, asked = new.ledger.head.number, len(new.transport.spans)
        await asyncio.sleep(5.0)
        again = Member(network, 0, ledger_in(folder / "0"))
        await again.start()
        await until(lambda: new.ledger.head.number == LENGTH, 10.0)
        assert min(span.start for _, span in new.transport.spans[asked:]) == had + 1
        await close(new, again)

    run(story())


def test_a_liar_alone_gets_no_block_in(folder: Path, grown: Path) -> None:
    async def story() -> None:
        new, others, _ = await newcomer(folder, grown, LiesAboutBlocks)
        await asyncio.sleep(60.0)
        assert new.ledger.head.number == 0
        assert len(new.transport.spans) == 1
        await close(new, *others)

    run(story())


# --- whom to ask for what

A, B, C = (bytes([letter]) * 20 for letter in b"abc")


def test_spans_do_not_overlap_and_go_to_those_who_have_them() -> None:
    spans = next_spans(10, 200, {}, {A: 200, B: 60, C: 200})
    assert spans == {A: Span(11, 64), C: Span(75, 64)}
    assert next_spans(10, 200, {11: 74}, {B: 60, C: 200}) == {C: Span(75, 64)}
    assert next_spans(10, 200, {75: 138}, {B: 60, C: 200}) == {B: Span(11, 50), C: Span(61, 14)}


def test_nothing_is_asked_of_nobody_and_nothing_beyond_the_bound() -> None:
    assert next_spans(10, 10, {}, {A: 10}) == {}
    assert next_spans(10, 200, {}, {}) == {}
    many = {bytes([i]) * 20: 1 << 60 for i in range(20)}
    spans = next_spans(0, 1 << 60, {}, many)
    assert len(spans) == SPANS_MAX
    assert max(span.start + span.count for span in spans.values()) == SPANS_MAX * SPAN_BLOCKS + 1
    full = {height: height for height in range(1, SPANS_MAX * SPAN_BLOCKS + 1)}
    assert next_spans(0, 1 << 60, full, many) == {}


# --- two decisions about one height


def fork(folder: Path, length: int) -> tuple[bytes, Certificate]:
    """A block at height `length`, certified by those who certified another one there."""
    with contextlib.closing(ledger_in(folder, decided()[: length - 1])) as ledger:
        operator = world.OPERATORS[3]
        payload = world.build(ledger, world.propose(operator, ledger.next_nonce(operator.address), "another"))
        return payload, world.decision(ledger, payload)


@pytest.mark.parametrize("behind", [0, 3])
def test_two_certified_blocks_at_one_height_are_kept_and_told(
    folder: Path, behind: int, caplog: pytest.LogCaptureFixture
) -> None:
    height = 8
    payload, certificate = fork(folder / "fork", height - behind)

    async def story() -> None:
        network = MemoryNetwork()
        honest = Member(network, 0, ledger_in(folder / "0", decided()[:height]))
        liar = Member(network, 1, ledger_in(folder / "1", decided()[:height]))
        for member in (honest, liar):
            await member.start()
        for _ in range(3):
            liar.transport.send(honest.address, DECIDED, pack([payload, certificate.encode()]))
        await asyncio.sleep(1.0)
        assert honest.ledger.head.hash == Ledger.digest_of(decided()[height - 1][0]), "it stays on its chain"
        assert honest.ledger.conflicts() == ((height - behind, Ledger.digest_of(payload)),)
        await close(honest, liar)

    with caplog.at_level(logging.CRITICAL):
        run(story())
    assert len([record for record in caplog.records if "two certified blocks" in record.message]) == 1
    with contextlib.closing(ledger_in(folder / "0")) as again:
        assert again.conflicts() == ((height - behind, Ledger.digest_of(payload)),), "it survives a restart"


def test_a_block_on_another_chains_head_shows_the_conflict_too(folder: Path) -> None:
    height = 8
    with contextlib.closing(ledger_in(folder / "fork", decided()[: height - 1])) as other:
        operator = world.OPERATORS[3]
        world.decide(other, world.build(other, world.propose(operator, other.next_nonce(operator.address), "another")))
        payload = world.build(other, world.propose(operator, other.next_nonce(operator.address), "more"))
        certificate = world.decision(other, payload)
    with contextlib.closing(ledger_in(folder / "0", decided()[:height])) as ledger:
        found = ledger.note_conflict(payload, certificate)
        assert found is not None
        assert (found.height, found.ours) == (height, ledger.head.hash)


def test_what_is_not_certified_is_no_conflict(folder: Path) -> None:
    height = 8
    payload, certificate = fork(folder / "fork", height)
    with contextlib.closing(ledger_in(folder / "0", decided()[:height])) as ledger:
        assert ledger.note_conflict(payload, Certificate(0, certificate.seals[:1])) is None
        assert ledger.note_conflict(*decided()[height - 1]) is None
        assert ledger.note_conflict(*decided()[height]) is None
        assert ledger.conflicts() == ()
