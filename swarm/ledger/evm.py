"""Execution: parent state and transactions in, block out. The only door to py-evm (`eth`).

py-evm interprets the code by Cancun's rules. What stands around it is here: its chain, its mining path (which skips
Cancun's steps around a block) and its layers of database views are not used. Every block is a pure function of its
parent, its transactions, the time, the proposer and the parent certificate's hash, so a block is judged by making it
again and comparing bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import swarm.ledger.precompiles  # noqa: F401  # isort: skip  # before anything of py-evm is loaded
from eth.abc import ComputationAPI
from eth.exceptions import ContractCreationCollision, OutOfGas, Revert
from eth.vm.code_stream import CodeStream
from eth.vm.execution_context import ExecutionContext
from eth.vm.forks.cancun.computation import CancunComputation
from eth.vm.forks.cancun.state import CancunState
from eth.vm.forks.cancun.transaction_context import CancunTransactionContext
from eth.vm.message import Message

from swarm.encoding import ZERO_ADDRESS, ZERO_DIGEST, Address, Digest, keccak256, pack
from swarm.errors import RejectedError
from swarm.ledger.block import (
    EMPTY_CODE_HASH,
    EMPTY_TRIE_ROOT,
    Header,
    Log,
    Receipt,
    Transaction,
    bloom_of,
    encode_block,
)
from swarm.ledger.interpreter import run
from swarm.ledger.state import Changes, Snapshot, State
from swarm.ledger.trie import Nodes, ordered_root

TRANSACTION_GAS_MIN = 21_000
TRANSACTION_GAS_MAX = 20_000_000
CALL_GAS = 30_000_000
"""What a read-only call may burn: about a second of this node's time, and five times what the largest needs."""
REVERT_KEPT_BYTES = 1024
"""A reason for people is shorter."""

# EIP-4788: where a contract keeps the parents' beacon roots, and the length of its ring.
_BEACON_ROOTS = bytes.fromhex("000f3df6d732807ef1319fb7b8bb8522d0beac02")
_BEACON_RING = 8191
_REFUND_SHARE = 5  # EIP-3529


@dataclass(frozen=True)
class Allocation:
    """What genesis puts at an address."""

    code: bytes
    storage: Mapping[int, int]
    nonce: int = 1
    balance: int = 0


@dataclass(frozen=True)
class Execution:
    """A block that was executed, and all that it leads to."""

    block: bytes
    header: Header
    transactions: tuple[Transaction, ...]
    receipts: tuple[Receipt, ...]
    changes: Changes


@dataclass(frozen=True)
class Outcome:
    """What a read-only call gave."""

    succeeded: bool
    output: bytes
    """Return data; where the call reverted, its revert data."""
    gas_used: int
    error: str = ""
    """In py-evm's words, empty where the call succeeded."""
    reverted: bool = False
    """It failed because the code said so."""


class Evm:
    """Executes blocks and calls over a database of trie nodes and code.

    Args:
        read: the bytes behind a hash, None where the database has none.
        block_hash: the hash of a decided block by number (the BLOCKHASH instruction).
    """

    def __init__(
        self, chain_id: int, read: Callable[[Digest], bytes | None], block_hash: Callable[[int], Digest | None]
    ) -> None:
        self.chain_id = chain_id
        self._read = read
        self._block_hash = block_hash
        self._nodes = Nodes(read)
        self._head = Snapshot(self._nodes, read, EMPTY_TRIE_ROOT)

    def advance(self, parent_root: Digest, changes: Changes) -> None:
        """Take note that a block was decided: its state is the one that most is asked of from now on."""
        if self._head.root != parent_root:
            self._head = Snapshot(self._nodes, self._read, parent_root)
        self._head.advance(changes)

    def at(self, root: Digest) -> Snapshot:
        """The state at a root."""
        if self._head.root != root:
            if self._head.root == EMPTY_TRIE_ROOT:
                self._head = Snapshot(self._nodes, self._read, root)
            else:
                return Snapshot(self._nodes, self._read, root)
        return self._head

    def genesis(self, allocations: Mapping[Address, Allocation], *, timestamp_ms: int, gas_limit: int) -> Execution:
        """Block 0: it has no parent and no transactions, only state."""
        state = State(Snapshot(self._nodes, self._read, EMPTY_TRIE_ROOT))
        for address, allocation in allocations.items():
            state.set_nonce(address, allocation.nonce)
            state.set_balance(address, allocation.balance)
            state.set_code(address, allocation.code)
            for slot, value in allocation.storage.items():
                state.set_storage(address, slot, value)
        changes = state.changes()
        header = Header(
            parent_hash=ZERO_DIGEST, coinbase=ZERO_ADDRESS, state_root=changes.root, transactions_root=EMPTY_TRIE_ROOT,
            receipts_root=EMPTY_TRIE_ROOT, bloom=bytes(256), number=0, gas_limit=gas_limit, gas_used=0,
            timestamp_ms=timestamp_ms, parent_beacon_block_root=ZERO_DIGEST,
        )  # fmt: skip
        return Execution(encode_block(header, ()), header, (), (), changes)

    def execute(
        self,
        parent: Header,
        transactions: Iterable[Transaction],
        *,
        timestamp_ms: int,
        coinbase: Address,
        parent_beacon_block_root: Digest,
        leave_out: bool = False,
    ) -> Execution:
        """The block on `parent` with these transactions in this order.

        Args:
            leave_out: transactions that cannot be included are left out, instead of an error.
        Raises:
            RejectedError: a transaction cannot be included, and why.
        """
        state = State(self.at(parent.state_root))
        number = parent.number + 1
        machine = self._machine(state, number, timestamp_ms, coinbase, parent.gas_limit)
        _note_beacon_root(state, timestamp_ms, parent_beacon_block_root)
        included: list[Transaction] = []
        receipts: list[Receipt] = []
        # A block that uses at most half of its limit keeps the base fee at zero (EIP-1559).
        gas_used, gas_target = 0, parent.gas_limit // 2
        for transaction in transactions:
            try:
                if gas_used + transaction.gas > gas_target:
                    raise RejectedError(f"the block has {gas_target - gas_used} gas left, {transaction.gas} are asked")
                receipt = _apply(machine, state, transaction, gas_used)
            except RejectedError:
                if leave_out:
                    continue
                raise
            gas_used = receipt.gas_used_total
            included.append(transaction)
            receipts.append(receipt)
        changes = state.changes()
        header = Header(
            parent_hash=parent.hash,
            coinbase=coinbase,
            state_root=changes.root,
            transactions_root=ordered_root([transaction.raw for transaction in included]),
            receipts_root=ordered_root([receipt.encode() for receipt in receipts]),
            bloom=bloom_of([log for receipt in receipts for log in receipt.logs]),
            number=number,
            gas_limit=parent.gas_limit,
            gas_used=gas_used,
            timestamp_ms=timestamp_ms,
            parent_beacon_block_root=parent_beacon_block_root,
        )
        block = encode_block(header, [transaction.raw for transaction in included])
        return Execution(block, header, tuple(included), tuple(receipts), changes)

    def call(
        self, header: Header, *, sender: Address, to: Address | None, data: bytes, value: int = 0, gas: int = CALL_GAS
    ) -> Outcome:
        """What a transaction would answer right after the block `header`; nothing is kept."""
        state = State(self.at(header.state_root))
        machine = self._machine(state, header.number, header.timestamp_ms, header.coinbase, header.gas_limit)
        if intrinsic_gas(to, data, ()) > gas:
            return Outcome(False, b"", gas, "intrinsic gas too low")
        if value > state.get_balance(sender):
            return Outcome(False, b"", 0, "insufficient funds for value")
        computation = _run(machine, state, sender, to, value, data, gas, 0, ())
        remaining = computation.get_gas_remaining()
        error = "" if computation.is_success else f"{type(computation.error).__name__}: {computation.error}"
        reverted = computation.is_error and isinstance(computation.error, Revert)
        return Outcome(computation.is_success, bytes(computation.output), gas - remaining, error, reverted)

    def deploy(self, address: Address, code: bytes, *, others: Mapping[Address, Allocation]) -> Allocation:
        """What a constructor leaves at `address` when it runs in a world of its own beside `others`.

        Args:
            code: creation bytecode with the constructor's arguments.
        Raises:
            ValueError: the constructor reverts.
        """
        state = State(Snapshot(self._nodes, self._read, EMPTY_TRIE_ROOT))
        for other, allocation in others.items():
            state.set_nonce(other, allocation.nonce)
            state.set_code(other, allocation.code)
            for slot, value in allocation.storage.items():
                state.set_storage(other, slot, value)
        machine = self._machine(state, 0, 0, ZERO_ADDRESS, 1 << 40)
        machine.computation_class = _Constructor
        # A constructor with 128 founders writes thousands of slots; nothing but this machine's time bounds it.
        message = Message(1 << 40, b"", ZERO_ADDRESS, 0, b"", code, create_address=address)
        computation = machine.computation_class.apply_create_message(
            machine, message, CancunTransactionContext(0, ZERO_ADDRESS)
        )
        if computation.is_error:
            raise ValueError(f"the constructor failed: {computation.error!r}")
        storage = {slot: value for (owner, slot), value in state.slots.items() if owner == address and value}
        return Allocation(state.get_code(address), dict(sorted(storage.items())), nonce=state.get_nonce(address))

    def _machine(self, state: State, number: int, timestamp_ms: int, coinbase: Address, gas_limit: int) -> _Machine:
        context = ExecutionContext(
            coinbase=coinbase, timestamp=timestamp_ms, block_number=number, difficulty=0, mix_hash=ZERO_DIGEST,
            gas_limit=gas_limit, prev_hashes=(), chain_id=self.chain_id, base_fee_per_gas=0, excess_blob_gas=0,
        )  # fmt: skip
        return _Machine(state, context, self._block_hash)


def _fail(reason: str) -> NoReturn:
    """An exceptional halt. Which one it is makes no difference: each burns the frame's gas and undoes its changes."""
    raise OutOfGas(reason)


class _Code(CodeStream):  # type: ignore[misc]
    """What py-evm iterates over to learn the next instruction: ours are executed on the way."""

    __slots__ = ("_frame",)

    def __init__(self, frame: _Computation) -> None:
        super().__init__(frame.msg.code)
        self._frame = frame

    def __iter__(self) -> Iterator[int]:
        return run(self._frame, _fail)


class _Computation(CancunComputation):  # type: ignore[misc]
    """py-evm's computation, whose plain instructions are executed in one loop."""

    def __init__(self, state: _Machine, message: Message, context: CancunTransactionContext) -> None:
        super().__init__(state, message, context)
        self.code = _Code(self)


class _Constructor(_Computation):
    """A constructor that runs for genesis. 128 founders are more than EIP-3860 lets a transaction carry."""

    @classmethod
    def validate_create_message(cls, message: Message) -> None:
        """Anything goes: what counts is the code that it leaves, and that has its own bound."""


class _Machine(CancunState):  # type: ignore[misc]
    """py-evm's state object over our accounts."""

    computation_class = _Computation

    def __init__(self, state: State, context: ExecutionContext, block_hash: Callable[[int], Digest | None]) -> None:
        # Not the parent's __init__: it builds the layers that `State` replaces.
        self._account_db = state
        self.execution_context = context
        self._block_hash = block_hash

    def snapshot(self) -> tuple[Digest, int]:
        return ZERO_DIGEST, self._account_db.record()

    def revert(self, snapshot: tuple[Digest, int]) -> None:
        self._account_db.discard(snapshot[1])

    def commit(self, snapshot: tuple[Digest, int]) -> None:
        """Nothing: the journal of the outer call goes on."""

    def get_transient_storage(self, address: Address, slot: int) -> bytes:
        return self._account_db.get_transient_storage(address, slot)

    def set_transient_storage(self, address: Address, slot: int, value: bytes) -> None:
        self._account_db.set_transient_storage(address, slot, value)

    def get_ancestor_hash(self, block_number: int) -> Digest:
        if not 0 < self.block_number - block_number <= 256 or block_number < 0:
            return b""
        return self._block_hash(block_number) or b""


def intrinsic_gas(to: Address | None, data: bytes, access_list: Sequence[tuple[Address, Sequence[int]]]) -> int:
    """What a transaction costs before it does anything (EIP-2028, 2930, 3860)."""
    zeros = data.count(0)
    gas = TRANSACTION_GAS_MIN + 4 * zeros + 16 * (len(data) - zeros)
    if to is None:
        gas += 32_000 + _init_code_gas(data)
    return gas + sum(2_400 + 1_900 * len(slots) for _, slots in access_list)


def _init_code_gas(code: bytes) -> int:
    return 2 * ((len(code) + 31) // 32)


def check_fits(transaction: Transaction, nonce: int, balance: int, code_hash: Digest) -> None:
    """RejectedError, with the reason, unless an account with these values can send the transaction now."""
    if transaction.nonce != nonce:
        raise RejectedError(f"the sender's next nonce is {nonce}, the transaction has {transaction.nonce}")
    if code_hash != EMPTY_CODE_HASH:
        raise RejectedError("a contract cannot send transactions (EIP-3607)")
    if balance < transaction.gas * transaction.max_fee + transaction.value:
        raise RejectedError("the sender cannot pay: on this ledger gas is free and value is not used")
    needed = intrinsic_gas(transaction.to, transaction.data, transaction.access_list)
    if transaction.to is None and len(transaction.data) > 49_152:
        raise RejectedError("the init code is longer than 49152 bytes (EIP-3860)")
    if not needed <= transaction.gas <= TRANSACTION_GAS_MAX:
        raise RejectedError(f"a gas limit of {transaction.gas}, where {needed} to {TRANSACTION_GAS_MAX} are possible")


def _apply(machine: _Machine, state: State, transaction: Transaction, gas_used_before: int) -> Receipt:
    sender = transaction.sender
    account = state.account(sender)
    check_fits(transaction, account.nonce, account.balance, account.code_hash)
    state.lock_changes()
    price = min(transaction.max_fee, transaction.max_priority_fee)
    state.set_balance(sender, account.balance - transaction.gas * price)
    state.increment_nonce(sender)
    computation = _run(
        machine, state, sender, transaction.to, transaction.value, transaction.data, transaction.gas, price,
        transaction.access_list,
    )  # fmt: skip
    remaining = computation.get_gas_remaining()
    used = transaction.gas - remaining
    used -= min(computation.get_gas_refund(), used // _REFUND_SHARE)
    if price:
        state.set_balance(sender, state.get_balance(sender) + (transaction.gas - used) * price)
        state.set_balance(machine.coinbase, state.get_balance(machine.coinbase) + used * price)
    for address in computation.get_accounts_for_deletion():
        state.delete_account(address)
    logs = tuple(
        Log(address, tuple(topic.to_bytes(32, "big") for topic in topics), bytes(data))
        for address, topics, data in computation.get_log_entries()
    )
    revert = b"" if computation.is_success else bytes(computation.output)[:REVERT_KEPT_BYTES]
    return Receipt(transaction.kind, computation.is_success, used, gas_used_before + used, logs, revert)


def _run(
    machine: _Machine,
    state: State,
    sender: Address,
    to: Address | None,
    value: int,
    data: bytes,
    gas: int,
    price: int,
    access_list: Sequence[tuple[Address, Sequence[int]]],
) -> ComputationAPI:
    context = CancunTransactionContext(price, sender)
    state.mark_address_warm(sender)
    for address, slots in access_list:
        state.mark_address_warm(address)
        for slot in slots:
            state.mark_storage_warm(address, slot)
    kind: Any = machine.computation_class
    gas -= intrinsic_gas(to, data, access_list)
    if to is not None:
        state.mark_address_warm(to)
        return kind.apply_message(machine, Message(gas, to, sender, value, data, state.get_code(to)), context)
    # py-evm charges for the init code itself, when it starts it (EIP-3860).
    gas += _init_code_gas(data)
    created = contract_address(sender, max(state.get_nonce(sender) - 1, 0))
    state.mark_address_warm(created)
    message = Message(gas, b"", sender, value, b"", data, create_address=created)
    if state.account_has_code_or_nonce(created):
        computation = kind(machine, message, context)
        computation.error = ContractCreationCollision(f"a contract is at {created.hex()} already")
        return computation
    return kind.apply_create_message(machine, message, context)


def contract_address(sender: Address, nonce: int) -> Address:
    """Where a transaction with this nonce creates its contract."""
    return keccak256(pack([sender, nonce]))[12:]


def _note_beacon_root(state: State, timestamp: int, root: Digest) -> None:
    """EIP-4788's system call. It does nothing on a ledger whose genesis has no such contract, as ours."""
    if state.get_code_hash(_BEACON_ROOTS) != EMPTY_CODE_HASH:
        index = timestamp % _BEACON_RING
        state.set_storage(_BEACON_ROOTS, index, timestamp)
        state.set_storage(_BEACON_ROOTS, index + _BEACON_RING, int.from_bytes(root, "big"))
