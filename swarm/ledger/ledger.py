"""The ledger of one node: decided blocks on disk, the state after the last one, and the transactions that wait.

Synchronous and without tasks: consensus asks it to build and to judge, and hands it what was decided. It never chooses
between blocks, since a decided block is final. A block is executed once on a node: whoever builds or judges it keeps
the result for `append`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.consensus.certificate import CERTIFICATE_BYTES_MAX, Certificate, check_certificate
from swarm.encoding import ZERO_ADDRESS, Address, Digest, keccak256, short
from swarm.errors import ConfigError, PeerError, RejectedError
from swarm.identity import recover as recover_secp256k1
from swarm.ledger.abi import interface
from swarm.ledger.block import (
    BLOCK_MAX_BYTES,
    TRANSACTION_MAX_BYTES,
    Header,
    Transaction,
    decode_block,
    decode_payload,
    encode_payload,
    encode_receipts,
    payload_digest,
)
from swarm.ledger.database import BlockRow, Database
from swarm.ledger.evm import CALL_GAS, TRANSACTION_GAS_MIN, Evm, Execution, Outcome, check_fits
from swarm.ledger.genesis import CONSORTIUM, RUNS, Genesis
from swarm.ledger.history import Block, History, LogEntry, Recent
from swarm.ledger.pool import Pool
from swarm.ledger.recovery import Electorate, Recovery, is_recovery
from swarm.ledger.state import Account

CLOCK_AHEAD_MS = 15_000
"""How far a block's time may be ahead of the judge's clock."""
ROTATE_EVERY = 16
"""A proposer goes on while it is up, so that a dead one costs one time-out and not one in every n blocks; the turn at
these heights bounds how long one proposer can keep a transaction out."""
BUILD_TRANSACTIONS_MAX = 256
"""What a proposer puts into one block: about half a second of execution, below the shortest view time-out in use."""


class ExecutionCache:
    """Results that are the same for every ledger: executed blocks, answered calls, checked certificates.

    A simulator shares one among its nodes; a node has its own.
    """

    def __init__(self) -> None:
        # A block's execution holds its changed trie nodes: some 100 KB. One height has a handful of candidates.
        self.blocks: Recent[Digest, Execution] = Recent(64)
        self.calls: Recent[tuple[Hashable, ...], Outcome] = Recent(1024)
        self.certificates: Recent[tuple[Digest, bytes], bool] = Recent(256)
        self.transactions: Recent[Digest, Transaction] = Recent(1024)


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


@dataclass(frozen=True)
class Proof:
    """Trie nodes from the state root to an account and from it to storage slots (EIP-1186)."""

    account: Account
    account_nodes: tuple[bytes, ...]
    slots: tuple[tuple[int, int, tuple[bytes, ...]], ...]
    """(slot, value, nodes)."""


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
        self._recover = recover
        self._evm = Evm(genesis.chain_id, self._read_state, database.block_hash)
        self._admitted: dict[Address, bool] = {}
        self._touched_members = True
        self._certificate = b""
        row = database.last()
        self._history = History(database, 0 if row is None else row.number)
        if row is None:
            database.begin(_genesis_row(genesis), genesis.execution.changes)
            self._header = genesis.execution.header
        else:
            self._header = self._history.decoded(row).header
            self._certificate = row.certificate
        self._validators = self._read_validators(self._header)
        self._deciders = Electorate(self._validators, self.chain_id)
        if row is not None and row.number:
            block = self._history.block(row.number)
            self._deciders = self._deciders_of(block.raws, self._history.block(row.number - 1).header)
            self._check_found(row)
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
        header = self._header
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
        return Electorate(self._validators, self.chain_id)

    def proposers(self) -> tuple[Address, ...]:
        """The same in the order in which they may propose the next block: view v is the turn of number v modulo n."""
        order, last = self.validators(), self._header.coinbase
        if self._header.number == 0:
            return order
        rotate = (self._header.number + 1) % ROTATE_EVERY == 0
        start = next((i for i, one in enumerate(order) if (one > last if rotate else one >= last)), 0)
        return order[start:] + order[:start]

    def touched_members(self) -> bool:
        """Whether the last appended block changed the Consortium contract."""
        return self._touched_members

    def number_of(self, payload: bytes) -> int:
        """The height of a payload's block; PeerError if it is none."""
        return _read_payload(payload)[0].number

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
        transaction = self._read_transaction(raw)
        self._check_target(transaction)
        if is_recovery(transaction):
            raise RejectedError("a recovery is imported at each node: `swarm recover import`")
        if not self._is_admitted(transaction.sender):
            raise RejectedError("the sender is neither a member nor a member's operator")
        account = self._evm.at(self._header.state_root).account(transaction.sender)
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

    def _read_transaction(self, raw: bytes) -> Transaction:
        digest = keccak256(raw)
        known = self._executions.transactions.get(digest)
        if known is not None:
            return known
        if len(raw) > TRANSACTION_MAX_BYTES:
            raise RejectedError(f"a transaction of {len(raw)} bytes, at most {TRANSACTION_MAX_BYTES} are taken")
        try:
            transaction = Transaction.read(raw, self.chain_id)
        except ValueError as error:
            raise RejectedError(f"not a transaction for this ledger: {error}") from error
        self._executions.transactions.put(digest, transaction)
        return transaction

    @staticmethod
    def _check_target(transaction: Transaction) -> None:
        # A contract of a member's own could keep every node busy for seconds a call; ours are bounded.
        if transaction.to not in (CONSORTIUM, RUNS):
            raise RejectedError("transactions on this ledger call the Consortium and Runs contracts and nothing else")

    # --- blocks

    def build(self, now_ms: int, coinbase: Address) -> bytes | None:
        """A payload for the next height, or None when no transaction can be executed.

        Args:
            coinbase: the proposer: this node's address.
        """
        transactions = [self._read_transaction(self._recovery.transaction())] if self._recovery is not None else []
        size_bytes = sum(len(transaction.raw) for transaction in transactions)
        for transaction in self._pool.executable():
            size_bytes += len(transaction.raw) + 9
            if size_bytes > BLOCK_MAX_BYTES // 2 or len(transactions) == BUILD_TRANSACTIONS_MAX:
                break
            transactions.append(transaction)
        if not transactions:
            return None
        execution = self._evm.execute(
            self._header,
            transactions,
            timestamp_ms=max(now_ms, self._header.timestamp_ms + 1),
            coinbase=coinbase,
            parent_beacon_block_root=keccak256(self._certificate),
            leave_out=True,
        )
        if not execution.transactions:
            return None
        self._executions.blocks.put(execution.header.hash, execution)
        return encode_payload(execution.block, self._certificate)

    def judge(self, payload: bytes, now_ms: int) -> bool:
        """Whether the payload is a good next block: this node executed it and came to the same bytes."""
        try:
            execution = self._verified(payload)
            raws = [transaction.raw for transaction in execution.transactions]
            if self._deciders_of(raws, self._header) != self._electorate:
                return False  # others decide a block like this
        except PeerError:
            return False
        # Where the ledger's own time is ahead of this clock, the least step is good: the ledger goes on meanwhile.
        return execution.header.timestamp_ms <= max(now_ms + CLOCK_AHEAD_MS, self._header.timestamp_ms + 1)

    def append(self, payload: bytes, certificate: Certificate) -> Head:
        """Take a decided block: verify it, its certificate and its parent's, and write all of it at once.

        Raises:
            PeerError: it is not the next block, breaks a rule, or is not certified by a quorum.
            StorageError: the disk would not take it; the ledger is as before.
        """
        header, raws, _, parent_certificate = _read_payload(payload)
        deciders = self._check_next(header, raws)
        self._check_certificate(certificate, header, deciders)
        execution = self._verified(payload)
        sealed = certificate.encode()
        self._database.append(
            BlockRow(header.number, header.hash, payload, sealed, encode_receipts(execution.receipts), header.bloom),
            state=execution.changes,
            transactions=[transaction.hash for transaction in execution.transactions],
            parent_certificate=parent_certificate,
        )
        self._evm.advance(self._header.state_root, execution.changes)
        self._header, self._certificate, self._deciders = header, sealed, deciders
        self._history.remember(Block(header, raws, execution.receipts, len(execution.block)))
        self._touched_members = any(address == CONSORTIUM for address, _ in execution.changes.slots)
        if self._touched_members:
            self._admitted.clear()
            self._validators = self._read_validators(header)
        self._recovery = self._recovery_due()
        self._pool.forget_used(self._is_admitted if self._touched_members else None)
        return self.head

    def blocks_from(self, number: int, max_bytes: int, *, blocks_max: int | None = None) -> list[tuple[bytes, bytes]]:
        """(payload, certificate) of the blocks from `number` on, in order: at least one, if there is one, and no more
        than `max_bytes` together otherwise."""
        found: list[tuple[bytes, bytes]] = []
        size_bytes = 0
        first = max(number, 1)
        last = self._header.number if blocks_max is None else min(self._header.number, first + blocks_max - 1)
        for row in self._database.blocks(first, last):
            size_bytes += len(row.payload) + len(row.certificate)
            if found and size_bytes > max_bytes:
                break
            found.append((row.payload, row.certificate))
        return found

    # --- conflicts

    def note_conflict(self, payload: bytes, certificate: Certificate) -> Conflict | None:
        """Keep a certified block that is not this ledger's at its height; None: there is no such conflict, or it is
        kept already, or the state that names the validators of that time is no longer here."""
        header, raws, _, _ = _read_payload(payload)
        if not 1 <= header.number <= self._header.number + 1:
            return None
        parent = self.block(header.number - 1).header
        ours = self.block(header.number).header.hash if header.number <= self._header.number else parent.hash
        theirs = header.hash if header.number <= self._header.number else header.parent_hash
        if ours == theirs or header.number - 1 < self._database.states_from():
            return None
        try:
            self._check_certificate(certificate, header, self._deciders_of(raws, parent))
        except PeerError:
            return None
        if not self._database.keep_conflict(header.number, header.hash, payload, certificate.encode()):
            return None
        return Conflict(header.number if header.number <= self._header.number else header.number - 1, ours, theirs)

    def conflicts(self) -> tuple[tuple[int, Digest], ...]:
        """(height, hash) of certified blocks that are not this ledger's."""
        return self._database.conflicts()

    def _verified(self, payload: bytes) -> Execution:
        """The execution of a payload that follows the head by all rules but the clock's.

        Raises:
            PeerError: it breaks a rule; says which.
        """
        header, raws, block, parent_certificate = _read_payload(payload)
        self._check_next(header, raws)
        self._check_parent_certificate(parent_certificate, header)
        execution = self._executions.blocks.get(header.hash)
        if execution is None:
            execution = self._execute(header, raws)
        if execution.block != block:
            raise PeerError(
                f"block {header.number} ({short(header.hash)}) differs from what its transactions give here "
                f"({short(execution.header.hash)})",
                evidence=payload,
            )
        self._executions.blocks.put(header.hash, execution)
        return execution

    def _check_next(self, header: Header, raws: Sequence[bytes]) -> Electorate:
        """Who decides this block, which follows the head."""
        parent = self._header
        if header.number != parent.number + 1 or header.parent_hash != parent.hash:
            raise PeerError(
                f"block {header.number} on {short(header.parent_hash)} does not follow block {parent.number} "
                f"({short(parent.hash)})"
            )
        if header.timestamp_ms <= parent.timestamp_ms:
            raise PeerError(f"block {header.number} has time {header.timestamp_ms}, its parent {parent.timestamp_ms}")
        deciders = self._deciders_of(raws, parent)
        if header.coinbase not in deciders.validators:
            raise PeerError(f"block {header.number} is proposed by {short(header.coinbase)}, which is no validator")
        return deciders

    def _execute(self, header: Header, raws: Sequence[bytes]) -> Execution:
        if not raws:
            raise PeerError(f"block {header.number} has no transaction")
        if len(raws) * TRANSACTION_GAS_MIN > self._header.gas_limit // 2:
            raise PeerError(f"block {header.number} has {len(raws)} transactions, more than its gas can pay")
        try:
            transactions = [self._read_transaction(raw) for raw in raws]
            for position, transaction in enumerate(transactions):
                self._check_target(transaction)
                if position and is_recovery(transaction):
                    raise RejectedError("a recovery is the first transaction of its block")
            execution = self._evm.execute(
                self._header,
                transactions,
                timestamp_ms=header.timestamp_ms,
                coinbase=header.coinbase,
                parent_beacon_block_root=header.parent_beacon_block_root,
            )
            if is_recovery(transactions[0]) and not execution.receipts[0].succeeded:
                raise RejectedError("the contract refuses the recovery")
        except RejectedError as error:
            raise PeerError(f"block {header.number} has a transaction that no block can have: {error}") from error
        return execution

    def _check_parent_certificate(self, data: bytes, header: Header) -> None:
        if keccak256(data) != header.parent_beacon_block_root:
            raise PeerError(f"block {header.number} commits to another certificate than the payload carries")
        if data != self._certificate:
            if self._header.number == 0:
                raise PeerError("genesis has no certificate, but block 1 carries one")
            if len(data) > CERTIFICATE_BYTES_MAX:
                raise PeerError(f"a certificate of {len(data)} bytes, at most {CERTIFICATE_BYTES_MAX} are read")
            certificate = Certificate.decode(data)
            if certificate.encode() != data:
                raise PeerError("the parent's certificate is not in canonical form")
            self._check_certificate(certificate, self._header, self._deciders)

    def _check_certificate(self, certificate: Certificate, header: Header, deciders: Electorate) -> None:
        key = (header.hash, certificate.encode())
        if self._executions.certificates.get(key):
            return
        check_certificate(
            certificate,
            chain_id=deciders.vote_chain,
            height=header.number,
            digest=header.hash,
            validators=deciders.validators,
            recover=self._recover,
        )
        self._executions.certificates.put(key, True)

    # --- recovery

    def begin_recovery(self, recovery: Recovery) -> None:
        """From now on the next block is decided by the manifest's validators, after a restart too.

        Raises:
            RejectedError: a later block is decided here, another or a newer manifest counts, or it is not signed by
                two thirds of the operators; says which.
        """
        self._check_recovery(recovery, self._header)
        earlier = self._recovery
        if earlier is not None and earlier.manifest == recovery.manifest:
            return
        if earlier is not None and earlier.manifest.created_ms >= recovery.manifest.created_ms:
            raise RejectedError(
                "another manifest that is as new or newer was imported here for this height; the newest one counts"
            )
        self._database.begin_recovery(self._header.number + 1, recovery.encode().encode())
        self._imported[self._header.number + 1] = self._recovery = recovery

    def _recovery_due(self) -> Recovery | None:
        """The recovery that was imported for the next height and fits the head."""
        found = self._imported.get(self._header.number + 1)
        if found is None or found.manifest.head != self._header.hash:
            return None
        self._check_recovery(found, self._header)
        return found

    def _check_recovery(self, recovery: Recovery, parent: Header) -> None:
        entries = self._ask(parent, "roster")
        assert isinstance(entries, (list, tuple))
        recovery.check(
            chain_id=self.chain_id,
            genesis=self.genesis_hash,
            height=parent.number,
            head=parent.hash,
            operators={record[0]: member for member, record in entries},
            recover=self._recover,
        )

    def _deciders_of(self, raws: Sequence[bytes], parent: Header) -> Electorate:
        """Who decides the block after `parent` with these transactions: the validators, unless the first is a recovery.

        Raises:
            PeerError: a recovery that breaks a rule; says which.
        """
        try:
            first = self._read_transaction(raws[0]) if raws else None
        except RejectedError:
            first = None  # whoever executes the block says what is wrong with it
        if first is not None and is_recovery(first):
            try:
                recovery = Recovery.of(first, self.chain_id)
                self._check_recovery(recovery, parent)
            except RejectedError as error:
                raise PeerError(f"block {parent.number + 1} begins with a false recovery: {error}") from error
            return recovery.electorate
        validators = self._validators if parent is self._header else self._read_validators(parent)
        return Electorate(validators, self.chain_id)

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
        header = self._kept(block) if block is not None else self._header
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
        state = self._evm.at(self._root(block))
        account = state.account(address)
        return Proof(
            account,
            tuple(state.nodes.proof(state.root, keccak256(address))),
            tuple(
                (slot, state.slot(address, slot), tuple(state.nodes.proof(account.storage_root, _slot_key(slot))))
                for slot in slots
            ),
        )

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
        return self._read_transaction(raw)

    def _root(self, block: int | None) -> Digest:
        return self._header.state_root if block is None else self._kept(block).state_root

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
        return self._evm.at(self._header.state_root).account(address).nonce

    def _check_found(self, row: BlockRow) -> None:
        """The last block's certificate is passed on to the next one: it has to be whole."""
        try:
            self._check_certificate(Certificate.decode(row.certificate), self._header, self._deciders)
        except PeerError as error:
            raise self._database.damaged(f"the certificate of block {row.number}: {error}") from error

    def _read_state(self, digest: Digest) -> bytes:
        data = self._database.state(digest)
        if data is None:
            raise self._database.damaged(f"state {short(digest)} is missing")
        if keccak256(data) != digest:
            raise self._database.damaged(f"state {short(digest)} has the bytes of {short(keccak256(data))}")
        return data

    def _ask(self, header: Header, function: str, *arguments: object) -> object:
        call = interface("Consortium")
        outcome = self._evm.call(header, sender=ZERO_ADDRESS, to=CONSORTIUM, data=call.call(function, *arguments))
        assert outcome.succeeded, f"Consortium.{function} reverts: {outcome.error}"
        return call.result(function, outcome.output)

    def _read_validators(self, header: Header) -> tuple[Address, ...]:
        answer = self._ask(header, "getValidators")
        assert isinstance(answer, (list, tuple))
        return tuple(sorted(answer))

    def _is_admitted(self, address: Address) -> bool:
        found = self._admitted.get(address)
        if found is None:
            if len(self._admitted) > 4096:
                self._admitted.clear()
            found = bool(self._ask(self._header, "isMember", address)) or (
                self._ask(self._header, "memberOf", address) != ZERO_ADDRESS
            )
            self._admitted[address] = found
        return found


def _genesis_row(genesis: Genesis) -> BlockRow:
    execution = genesis.execution
    payload = encode_payload(execution.block, b"")
    return BlockRow(0, genesis.hash, payload, b"", encode_receipts(()), execution.header.bloom)


def _read_payload(payload: bytes) -> tuple[Header, tuple[bytes, ...], bytes, bytes]:
    """Header, raw transactions, block bytes and parent certificate; PeerError if it is no payload."""
    try:
        block, certificate = decode_payload(payload)
        header, raws = decode_block(block)
    except ValueError as error:
        raise PeerError(f"not a payload: {error}", evidence=payload[:1024]) from error
    return header, raws, block, certificate


def _slot_key(slot: int) -> Digest:
    return keccak256(slot.to_bytes(32, "big"))
