"""Four validators whose disks lose power: the real agreement and ledger under a virtual clock, on `disk.Disk`s.

At some write, truncation, sync or deletion of one of them the power fails, for it or for several at once. What a cut
may leave of the files is what they are started on again. In the end all four have one chain, it has every block that
anybody ever saw decided, and nobody voted twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from sim.loop import VirtualLoop
from swarm.consensus import Certificate
from swarm.consensus.messages import decode_message
from swarm.encoding import Address, Digest, short
from swarm.errors import RejectedError, StorageError, UnavailableError
from swarm.ledger import database
from swarm.ledger.judging import ExecutionCache
from swarm.ledger.ledger import Ledger
from swarm.net.memory import MemoryNetwork, MemoryTransport
from swarm.node.agreement import CONSENSUS, Agreement
from tests.ledger import world
from tests.ledger.disk import Disk

NODES = 4
LIMIT_S = 600.0
"""Virtual seconds after which a chain that does not grow counts as stuck."""
KEPT = ("none", "all", "first", "any")


class Broken(AssertionError):
    """What must never happen."""


class Witness:
    """Everything that was ever said and decided, by whom."""

    def __init__(self) -> None:
        self.decided: dict[int, Digest] = {}
        self.votes: dict[tuple[Address, int, int, str], bytes] = {}

    def decision(self, height: int, digest: Digest) -> None:
        if self.decided.setdefault(height, digest) != digest:
            raise Broken(f"fork: height {height} is {short(digest)} and {short(self.decided[height])}")

    def vote(self, member: Address, data: bytes) -> None:
        message = decode_message(data)
        key = (member, message.height, message.view, type(message).__name__)
        said = getattr(message, "digest", b"") or repr(getattr(message, "prepared", None)).encode()
        if self.votes.setdefault(key, said) != said:
            raise Broken(f"{short(member)} contradicts its {key[3]} of height {key[1]}, view {key[2]}")

    def chain(self, ledger: Ledger) -> None:
        """A ledger that was opened again is a beginning of what was decided."""
        for height in range(1, ledger.head.number + 1):
            if self.decided.get(height) != ledger.block(height).header.hash:
                raise Broken(f"block {height} of a ledger that was opened again was never decided")


class _Transport(MemoryTransport):
    def __init__(self, network: MemoryNetwork, me: Address, witness: Witness) -> None:
        super().__init__(network, me)
        self._witness = witness

    def send(self, member: Address, protocol: str, payload: bytes) -> None:
        if protocol == CONSENSUS and self._running:
            self._witness.vote(self.me, payload)
        super().send(member, protocol, payload)


class _Agreement(Agreement):
    witness: Witness

    def _append(self, payload: bytes, certificate: Certificate) -> None:
        height = self.ledger.number_of(payload)
        if height == self.ledger.head.number + 1:
            self.witness.decision(height, self.ledger.digest_of(payload))
        super()._append(payload, certificate)


@dataclass
class Validator:
    """One of the four: its disk outlives its node."""

    index: int
    disk: Disk
    folder: Path
    agreement: _Agreement | None = None
    transport: _Transport | None = None
    ledger: Ledger | None = None


@dataclass(frozen=True)
class Found:
    """What a seed went through."""

    cuts: int
    blocks: int
    blocks_lost: int
    """Blocks that were gone from one ledger after a cut, and came back."""
    genesis_cuts: int
    """Cuts before a ledger had its first block."""


class PowerWorld:
    """One seed's story."""

    def __init__(self, seed: int, folder: Path, *, cuts: int) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.cuts = cuts
        self.witness = Witness()
        self.failure: BaseException | None = None
        self._network = MemoryNetwork()
        self._executions = ExecutionCache()
        self._disks: dict[Path, Disk] = {}
        self._generation = 0
        self._validators: list[Validator] = []
        self._dark: list[Validator] = []
        self._cut = asyncio.Event()
        self.blocks_lost = self.genesis_cuts = 0

    def connect(self, path: Path, synchronous: str, schema: str) -> object:
        """Stands in for `database._connect`."""
        return self._disks[path.parent].connect(path, synchronous, schema)

    def disk(self, folder: Path) -> Disk:
        disk = self._disks[folder] = Disk()
        disk.on_cut = self._power_fails
        return disk

    async def play(self) -> Found:
        """The whole story; Broken or StuckError say what went wrong in it."""
        for index in range(NODES):
            folder = self.folder / f"{index}-0"
            self._validators.append(Validator(index, self.disk(folder), folder))
        feeding = asyncio.ensure_future(self._feed())
        done = 0
        self._arm(early=self.rng.random() < 0.2)
        for validator in self._validators:
            await self._start(validator)
        while done < self.cuts:
            self._check()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._cut.wait(), 1.0)
            if not self._dark:
                continue
            done += 1
            dark, self._dark = self._dark, []
            self._cut.clear()
            for validator in dark:
                await self._bury(validator)
            if done < self.cuts:
                self._arm(early=self.rng.random() < 0.5)
            for validator in dark:
                await asyncio.sleep(self.rng.choice((0.0, 0.5, 3.0)))
                await self._start(validator)
        await self._agree()
        feeding.cancel()
        for validator in self._validators:
            await self._stop(validator)
        return Found(done, max(self.witness.decided), self.blocks_lost, self.genesis_cuts)

    def _arm(self, *, early: bool) -> None:
        """Choose at which step of whose disk the power fails; `early`: while nodes start again."""
        for validator in self._validators:
            validator.disk.cut_at = None
        victim = self.rng.choice(self._dark or self._validators)
        victim.disk.cut_at = victim.disk.steps + (self.rng.randrange(1, 60) if early else self.rng.randrange(1, 900))

    def _power_fails(self) -> None:
        (victim,) = [one for one in self._validators if one.disk.cut_at is not None]
        others = [one for one in self._validators if one is not victim and one.ledger is not None]
        self._dark = [victim, *self.rng.sample(others, min(self.rng.choice((0, 0, 1, 2, 3)), len(others)))]
        for validator in self._dark:
            validator.disk.off, validator.disk.cut_at = True, None
            self._network.crash(world.MEMBERS[validator.index].address)
        self._cut.set()

    async def _start(self, validator: Validator) -> None:
        if validator.disk.off:
            return
        identity = world.MEMBERS[validator.index]
        try:
            validator.ledger = Ledger.open(validator.folder, world.genesis(NODES), executions=self._executions)
        except StorageError:
            if not validator.disk.off:
                raise
            return
        self.witness.chain(validator.ledger)
        validator.transport = _Transport(self._network, identity.address, self.witness)
        validator.agreement = _Agreement(
            identity=identity,
            ledger=validator.ledger,
            transport=validator.transport,
            clock=lambda: world.CREATED_MS / 1000 + asyncio.get_running_loop().time(),
            view_timeout_s=1.0,
            on_block=lambda: None,
            on_failure=lambda error, disk=validator.disk: self._failed(error, disk),  # type: ignore[misc]
        )
        validator.agreement.witness = self.witness
        validator.agreement.start()
        validator.transport.set_members({member.address: "" for member in world.MEMBERS[:NODES]})
        await validator.transport.start()
        try:
            validator.agreement.run()
        except StorageError:
            if not validator.disk.off:
                raise

    def _failed(self, error: BaseException, disk: Disk) -> None:
        if not disk.off and self.failure is None:
            self.failure = error

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def _stop(self, validator: Validator) -> None:
        if validator.agreement is not None and validator.transport is not None:
            await validator.agreement.close()
            await validator.transport.close()
        if validator.ledger is not None:
            with contextlib.suppress(StorageError):
                validator.ledger.close()
        validator.agreement = validator.transport = validator.ledger = None

    async def _bury(self, validator: Validator) -> None:
        """What the cut leaves of a disk becomes the next one's."""
        height = validator.ledger.head.number if validator.ledger is not None else 0
        self.genesis_cuts += validator.ledger is None
        await self._stop(validator)
        self._generation += 1
        folder = self.folder / f"{validator.index}-{self._generation}"
        validator.disk.image(folder, self.rng, self.rng.choice(KEPT))
        validator.disk.unregister()
        del self._disks[validator.folder]
        validator.folder, validator.disk = folder, self.disk(folder)
        validator.disk.load(folder)
        self.blocks_lost += max(height - self._height_on(folder), 0)

    def _height_on(self, folder: Path) -> int:
        """How many blocks a cut left, read from a copy that nobody goes on with."""
        disk, copy = Disk(), folder.with_name("looked-at")
        disk.load(folder)
        disk.image(copy, self.rng, "all")
        self._disks[copy] = disk
        try:
            found = database.Database(copy)
            last = found.last()
            found.close()
            return 0 if last is None else last.number
        finally:
            del self._disks[copy]
            disk.unregister()
            for path in copy.iterdir():
                path.unlink()
            copy.rmdir()

    async def _feed(self) -> None:
        """Somebody always wants something."""
        while True:
            await asyncio.sleep(self.rng.uniform(0.01, 0.4))
            running = [one for one in self._validators if one.agreement is not None and not one.disk.off]
            if not running:
                continue
            validator, operator = self.rng.choice(running), self.rng.choice(world.OPERATORS[:NODES])
            assert validator.agreement is not None
            assert validator.ledger is not None
            try:
                raw = world.propose(operator, validator.ledger.next_nonce(operator.address))
                validator.agreement.add_transaction(raw)
            except (RejectedError, UnavailableError):
                continue
            except StorageError:
                if not validator.disk.off:
                    raise

    async def _agree(self) -> None:
        """All go on, together, past everything that was decided."""
        goal = max(self.witness.decided, default=0) + 2
        while True:
            self._check()
            heads = [one.ledger.head for one in self._validators if one.ledger is not None]
            if len(heads) == NODES and min(head.number for head in heads) >= goal:
                break
            await asyncio.sleep(0.2)
        for validator in self._validators:
            assert validator.ledger is not None
            self.witness.chain(validator.ledger)


@contextlib.contextmanager
def _own_disks(play: PowerWorld) -> Iterator[None]:
    with mock.patch.object(database, "_connect", play.connect):
        yield


def run_seed(seed: int, *, cuts: int = 4) -> Found:
    """Play a seed. AssertionError, StorageError or StuckError: what went wrong, in a run that the seed gives again."""
    loop = VirtualLoop(limit_s=LIMIT_S)
    with tempfile.TemporaryDirectory(prefix="power-") as folder:
        try:
            play = PowerWorld(seed, Path(folder), cuts=cuts)
            with _own_disks(play):
                try:
                    return loop.run_until_complete(play.play())
                finally:
                    loop.settle()
        finally:
            loop.close()
