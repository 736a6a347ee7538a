"""The ledger of one node: decided blocks on disk, the state after the last one, and the transactions that wait.

Synchronous and without tasks: consensus asks it to build and to judge, and hands it what was decided. It never chooses
between blocks, since a decided block is final. A block is executed once on a node: whoever builds or judges it keeps
the result for `append`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.consensus import Certificate, turns
from swarm.encoding import ZERO_ADDRESS, Address, Digest, keccak256, short
from swarm.errors import ConfigError, PeerError, RejectedError
from swarm.identity import recover as recover_secp256k1
from swarm.ledger.block import BLOCK_MAX_BYTES, Header, Transaction, encode_payload, encode_receipts, payload_digest
from swarm.ledger.database import BlockRow, Database
from swarm.ledger.evm import CALL_GAS, Evm, Outcome, check_fits
from swarm.ledger.genesis import CONSORTIUM, Genesis
from swarm.ledger.history import Block, History, LogEntry
from swarm.ledger.judging import ExecutionCache, Judge, Tip, check_target, read_payload
from swarm.ledger.membership import Membership
from swarm.ledger.pool import Pool
from swarm.ledger.recovery import Electorate, Recovery, is_recovery
from swarm.ledger.state import Proof

CLOCK_AHEAD_MS = 15_000
"""How far a block's time may be ahead of the judge's clock."""
ROTATE_EVERY = 16
"""A proposer goes on while it is up, so that a dead one costs one time-out and not one in every n blocks; the turn at
these heights bounds how long one proposer can keep a transaction out."""
BUILD_TRANSACTIONS_MAX = 256
"""What a proposer puts into one block: about half a second of execution, below the shortest view time-out in use."""


@dataclass(frozen=True)
class Head:
    """The last decided block."""

    number: int
    hash: Digest
    timestamp_ms: int
    state_root: Digest
    coinbase: Address


@dataclass(frozen=True)
class Conflict:
    """Two blocks that were decided at one height: ours, and one that is kept as evidence or whose child is."""

    height: int
    ours: Digest
    theirs: Digest


class Ledger:
    """Blocks, state and waiting transactions of one node. Use `open`."""

    def __init__(
        self,
        database: Database,
        genesis: Genesis,
        executions: ExecutionCache,
        recover: Callable[[Digest, bytes], Address],
    ) -> None:
        self.chain_id = genesis.chain_id
        self.genesis_hash = genesis.hash
        self._database = database
        self._executions = executions
        self._evm = Evm(genesis.chain_id, self._read_state, database.block_hash)
        self._membership = Membership(self._evm)
        self._judge = Judge(genesis, self._evm, self._membership, executions, recover)
        self._touched_members = True
        if database.last() is None:
            database.begin(_genesis_row(genesis), genesis.execution.changes)
        row = database.last()
        assert row is not None
        self._history = History(database, row.number)
        self._tip = self._found(row)
        self._imported = {height: Recovery.decode(manifest) for height, manifest in database.recoveries().items()}
        self._recovery = self._recovery_due()
        self._pool = Pool(self._nonce)
        self.on_waiting: Callable[[Digest], None] = lambda digest: None
        """Told of every transaction that comes to wait here."""

    @classmethod
    def open(
        cls,
        folder: Path,
        genesis: Genesis,
        *,
        archive: bool = False,
        executions: ExecutionCache | None = None,
        recover: Callable[[Digest, bytes], Address] = recover_secp256k1,
    ) -> Ledger:
        """The ledger in `folder`, begun there if it is empty.

        Args:
            archive: keep the state after every block, not only after the last ones.
            executions: shared by ledgers of one process.
            recover: who signed a digest; the simulator may pass a cheap one.
        Raises:
            ConfigError: another node has the folder, or what is there began from another genesis.
            StorageError: the folder cannot be used or what is there is damaged; says what to do.
        """
        database = Database(folder, archive=archive)
        try:
            found, first = database.meta("genesis"), database.block_hash(0)
            if found != first:
                raise database.damaged("it does not say which ledger it is")
            if found is not None and found != genesis.hash:
                raise ConfigError(
                    f"the ledger in {folder} began from block {short(found)}, but swarm.toml gives "
                    f"{short(genesis.hash)}: use the swarm.toml that all members agreed, or another `folder` for "
                    "another consortium"
                )
            return cls(database, genesis, executions or ExecutionCache(), recover)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Let go of the folder; everything is on disk."""
        self._database.close()

    # --- where the ledger is

    @property
    def folder(self) -> Path:
        """Where the ledger lies."""
        return self._database.folder

    @property
    def head(self) -> Head:
        """The last decided block."""
        header = self._tip.header
        return Head(header.number, header.hash, header.timestamp_ms, header.state_root, header.coinbase)

    def validators(self) -> tuple[Address, ...]:
        """Who decides the next block, sorted by address."""
        return self._electorate.validators

    @property
    def vote_chain(self) -> int:
        """What votes for the next block name as their chain: a recovery's votes count nowhere else."""
        return self._electorate.vote_chain

    @property
    def recovery(self) -> Recovery | None:
        """The recovery that was imported here and that the next block has to record."""
        return self._recovery

    @property
    def _electorate(self) -> Electorate:
        if self._recovery is not None:
            return self._recovery.electorate
        return Electorate(self._tip.validators, self.chain_id)

    def proposers(self) -> tuple[Address, ...]:
        """The same in the order in which they may propose the next block: view v is the turn of number v modulo n."""
        header = self._tip.header
        if header.number == 0:
            return self.validators()
        return turns(self.validators(), header.coinbase, passes=(header.number + 1) % ROTATE_EVERY == 0)

    def touched_members(self) -> bool:
        """Whether the last appended block changed the Consortium contract."""
        return self._touched_members

    def number_of(self, payload: bytes) -> int:
        """The height of a payload's block; PeerError if it is none."""
        return read_payload(payload)[0].number

    @staticmethod
    def digest_of(payload: bytes) -> Digest:
        """What consensus agrees on for this payload: the block's hash, which commits to all of it.

        Raises:
            ValueError: not a payload.
        """
        return payload_digest(payload)

    # --- waiting transactions

    def add_transaction(self, raw: bytes) -> Digest:
        """Take a signed transaction into the pool and return its hash; a known one is taken again without a word.

        Raises:
            RejectedError: no block will include it, or not now; the message says why.
        """
        digest = keccak256(raw)
        if self._pool.get(digest) is not None:
            return digest
        transaction = self._judge.transaction(raw)
        check_target(transaction)
        if is_recovery(transaction):
            raise RejectedError("a recovery is imported at each node: `swarm recover import`")
        if not self._is_admitted(transaction.sender):
            raise RejectedError("the sender is neither a member nor a member's operator")
        account = self._evm.at(self._tip.header.state_root).account(transaction.sender)
        if transaction.nonce < account.nonce and self._database.transaction(digest) is not None:
            return digest
        # The nonce is the pool's to judge: it may be ahead of the account's.
        check_fits(transaction, transaction.nonce, account.balance, account.code_hash)
        self._pool.add(transaction)
        self.on_waiting(digest)
        return digest

    def pending(self) -> bool:
        """Whether a block could be made now."""
        return self._recovery is not None or self._pool.pending()

    def pending_transactions(self) -> list[bytes]:
        """The raw transactions that wait, in the order of arrival."""
        return [transaction.raw for transaction in self._pool.transactions()]

    def pending_transaction(self, digest: Digest) -> Transaction | None:
        """A waiting transaction by hash."""
        return self._pool.get(digest)

    def next_nonce(self, address: Address) -> int:
        """The first nonce that neither the head's state nor a waiting transaction of this address has."""
        return self._pool.next_nonce(address)

    # --- blocks

    def build(self, now_ms: int, coinbase: Address) -> bytes | None:
        """A payload for the next height, or None when no transaction can be executed.

        Args:
            coinbase: the proposer: this node's address.
        """
        transactions = [self._judge.transaction(self._recovery.transaction())] if self._recovery is not None else []
        size_bytes = sum(len(transaction.raw) for transaction in transactions)
        for transaction in self._pool.executable():
            size_bytes += len(transaction.raw) + 9
            if size_bytes > BLOCK_MAX_BYTES // 2 or len(transactions) == BUILD_TRANSACTIONS_MAX:
                break
            transactions.append(transaction)
        if not transactions:
            return None
        parent = self._tip.header
        execution = self._evm.execute(
            parent,
            transactions,
            timestamp_ms=max(now_ms, parent.timestamp_ms + 1),
            coinbase=coinbase,
            parent_beacon_block_root=keccak256(self._tip.certificate),
            leave_out=True,
        )
        if not execution.transactions:
            return None
        self._executions.blocks.put(execution.header.hash, execution)
        return encode_payload(execution.block, self._tip.certificate)

    def judge(self, payload: bytes, now_ms: int) -> bool:
        """Whether the payload is a good next block: this node executed it and came to the same bytes."""
        tip = self._tip
        try:
            execution = self._judge.verified(payload, tip)
            raws = [transaction.raw for transaction in execution.transactions]
            if self._judge.deciders(raws, tip.header, tip.validators) != self._electorate:
                return False  # others decide a block like this
        except PeerError:
            return False
        # Where the ledger's own time is ahead of this clock, the least step is good: the ledger goes on meanwhile.
        return execution.header.timestamp_ms <= max(now_ms + CLOCK_AHEAD_MS, tip.header.timestamp_ms + 1)

    def append(self, payload: bytes, certificate: Certificate) -> Head:
        """Take a decided block: verify it, its certificate and its parent's, and write all of it at once.

        Raises:
            PeerError: it is not the next block, breaks a rule, or is not certified by a quorum.
            StorageError: the disk would not take it; the ledger is as before.
        """
        header, raws, _, parent_certificate = read_payload(payload)
        tip = self._tip
        deciders = self._judge.check_next(header, raws, tip)
        self._judge.check_certificate(certificate, header, deciders)
        execution = self._judge.verified(payload, tip)
        sealed = certificate.encode()
        self._database.append(
            BlockRow(header.number, header.hash, payload, sealed, encode_receipts(execution.receipts), header.bloom),
            state=execution.changes,
            transactions=[transaction.hash for transaction in execution.transactions],
            parent_certificate=parent_certificate,
        )
        self._evm.advance(tip.header.state_root, execution.changes)
        self._history.remember(Block(header, raws, execution.receipts, len(execution.block)))
        self._touched_members = any(address == CONSORTIUM for address, _ in execution.changes.slots)
        validators = tip.validators
        if self._touched_members:
            self._membership.changed()
            validators = self._membership.validators(header)
        self._tip = Tip(header, sealed, deciders, validators)
        self._recovery = self._recovery_due()
        self._pool.forget_used(self._is_admitted if self._touched_members else None)
        return self.head

    def blocks_from(self, number: int, max_bytes: int, *, blocks_max: int | None = None) -> list[tuple[bytes, bytes]]:
        """(payload, certificate) of the blocks from `number` on (see `History.blocks_from`)."""
        return self._history.blocks_from(number, max_bytes, blocks_max=blocks_max)

    # --- conflicts

    def note_conflict(self, payload: bytes, certificate: Certificate) -> Conflict | None:
        """Keep a certified block that is not this ledger's at its height; None: there is no such conflict, or it is
        kept already, or the state that names the validators of that time is no longer here."""
        header, raws, _, _ = read_payload(payload)
        last = self._tip.header.number
        if not 1 <= header.number <= last + 1:
            return None
        parent = self.block(header.number - 1).header
        if header.number <= last:
            conflict = Conflict(header.number, self.block(header.number).header.hash, header.hash)
        else:
            conflict = Conflict(last, parent.hash, header.parent_hash)
        if conflict.ours == conflict.theirs or parent.number < self._database.states_from():
            return None
        try:
            self._judge.check_sealed(certificate, header, raws, parent)
        except PeerError:
            return None
        new = self._database.keep_conflict(header.number, header.hash, payload, certificate.encode())
        return conflict if new else None

    def conflicts(self) -> tuple[tuple[int, Digest], ...]:
        """(height, hash) of certified blocks that are not this ledger's."""
        return self._database.conflicts()

    # --- recovery

    def begin_recovery(self, recovery: Recovery) -> None:
        """From now on the next block is decided by the manifest's validators, after a restart too.

        Raises:
            RejectedError: a later block is decided here, another or a newer manifest counts, or it is not signed by
                two thirds of the operators; says which.
        """
        self._judge.check_recovery(recovery, self._tip.header)
        earlier = self._recovery
        if earlier is not None and earlier.manifest == recovery.manifest:
            return
        if earlier is not None and earlier.manifest.created_ms >= recovery.manifest.created_ms:
            raise RejectedError(
                "another manifest that is as new or newer was imported here for this height; the newest one counts"
            )
        self._database.begin_recovery(self._tip.header.number + 1, recovery.encode().encode())
        self._imported[self._tip.header.number + 1] = self._recovery = recovery

    def _recovery_due(self) -> Recovery | None:
        """The recovery that was imported for the next height and fits the head."""
        found = self._imported.get(self._tip.header.number + 1)
        if found is None or found.manifest.head != self._tip.header.hash:
            return None
        self._judge.check_recovery(found, self._tip.header)
        return found

    # --- votes

    def save_vote(self, height: int, record: bytes) -> None:
        """Keep what this validator said at a height; it is on the disk's plate when this returns."""
        self._database.save_vote(height, record)

    def may_vote(self, height: int) -> bool:
        """Whether this validator still has what it said at a height, if it said anything: votes of long ago are
        forgotten, and a ledger that is fetched again comes by those heights once more."""
        first = self._database.first_vote()
        return first is None or height >= first

    def saved_vote(self, height: int) -> bytes | None:
        """What this validator said at a height, before a restart too."""
        return self._database.saved_vote(height)

    # --- reading

    def call(
        self, *, to: Address | None, data: bytes, sender: Address = ZERO_ADDRESS, value: int = 0, gas: int = CALL_GAS,
        block: int | None = None,
    ) -> Outcome:  # fmt: skip
        """What a transaction would answer right after a block (the head); nothing is kept.

        Raises:
            ValueError: no such block, or the state after it is no longer kept.
        """
        header = self._kept(block) if block is not None else self._tip.header
        key = (header.hash, to, data, sender, value, gas)
        outcome = self._executions.calls.get(key)
        if outcome is None:
            outcome = self._evm.call(header, sender=sender, to=to, data=data, value=value, gas=min(gas, CALL_GAS))
            self._executions.calls.put(key, outcome)
        return outcome

    def nonce(self, address: Address, block: int | None = None) -> int:
        """How many transactions of an address the blocks up to `block` (the head) hold."""
        return self._evm.at(self._root(block)).account(address).nonce

    def balance(self, address: Address, block: int | None = None) -> int:
        """An address's balance after a block (the head)."""
        return self._evm.at(self._root(block)).account(address).balance

    def code(self, address: Address, block: int | None = None) -> bytes:
        """An address's code after a block (the head)."""
        state = self._evm.at(self._root(block))
        return state.code(state.account(address).code_hash)

    def storage(self, address: Address, slot: int, block: int | None = None) -> int:
        """A storage slot after a block (the head)."""
        return self._evm.at(self._root(block)).slot(address, slot)

    def proof(self, address: Address, slots: Sequence[int], block: int | None = None) -> Proof:
        """An account and some of its storage after a block (the head), with what proves them against the state root."""
        return self._evm.at(self._root(block)).proof(address, slots)

    def block(self, number: int) -> Block:
        """A decided block; ValueError if there is none with this number."""
        return self._history.block(number)

    def block_by_hash(self, digest: Digest) -> Block | None:
        """A decided block by hash."""
        return self._history.block_by_hash(digest)

    def certificate(self, number: int) -> bytes:
        """The encoded certificate that stands beside a block, empty for genesis; ValueError if there is no block."""
        return self._history.certificate(number)

    def transaction(self, digest: Digest) -> tuple[Block, int] | None:
        """The block that holds a transaction, and its position there."""
        return self._history.transaction(digest)

    def logs(
        self,
        first: int,
        last: int,
        addresses: frozenset[Address],
        topics: Sequence[frozenset[Digest] | None],
        *,
        logs_max: int,
    ) -> list[LogEntry]:
        """The logs in these blocks that fit (see `History.logs`); ValueError: more than `logs_max` fit."""
        return self._history.logs(first, last, addresses, topics, logs_max=logs_max)

    def decode_transaction(self, raw: bytes) -> Transaction:
        """The fields of a transaction of this ledger."""
        return self._judge.transaction(raw)

    def _root(self, block: int | None) -> Digest:
        return self._tip.header.state_root if block is None else self._kept(block).state_root

    def _kept(self, block: int) -> Header:
        """The header of a block after which the state is still here."""
        header = self.block(block).header
        first = self._database.states_from()
        if block < first:
            raise ValueError(
                f"the state after block {block} is no longer kept here, the first is that after block {first}; a site "
                "with `archive = true` keeps all of it from its first block on"
            )
        return header

    def _nonce(self, address: Address) -> int:
        return self._evm.at(self._tip.header.state_root).account(address).nonce

    def _is_admitted(self, address: Address) -> bool:
        return self._membership.is_admitted(address, self._tip.header)

    def _found(self, row: BlockRow) -> Tip:
        """The last block on disk; its certificate is passed on to the next one, so it has to be whole."""
        block = self._history.decoded(row)
        validators = self._membership.validators(block.header)
        deciders = Electorate(validators, self.chain_id)
        if row.number:
            parent = self._history.block(row.number - 1).header
            try:
                certificate = Certificate.decode(row.certificate)
                deciders = self._judge.check_sealed(certificate, block.header, block.raws, parent)
            except PeerError as error:
                raise self._database.damaged(f"the certificate of block {row.number}: {error}") from error
        return Tip(block.header, row.certificate, deciders, validators)

    def _read_state(self, digest: Digest) -> bytes:
        data = self._database.state(digest)
        if data is None:
            raise self._database.damaged(f"state {short(digest)} is missing")
        if keccak256(data) != digest:
            raise self._database.damaged(f"state {short(digest)} has the bytes of {short(keccak256(data))}")
        return data


def _genesis_row(genesis: Genesis) -> BlockRow:
    execution = genesis.execution
    payload = encode_payload(execution.block, b"")
    return BlockRow(0, genesis.hash, payload, b"", encode_receipts(()), execution.header.bloom)
