"""Accounts and storage while a block executes: a journal over what the trie of the parent holds.

It speaks the language that py-evm expects of its account database, and replaces it: reads come from flat caches, a
revert undoes the journal, and the tries are touched once, when the block ends. Accounts that are empty (EIP-161) do
not exist here, in the caches or in the trie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import rlp

from swarm.encoding import Address, Digest, keccak256, pack
from swarm.ledger.block import EMPTY_CODE_HASH, EMPTY_TRIE_ROOT
from swarm.ledger.pruning import replaced
from swarm.ledger.trie import Nodes

Slot = tuple[Address, int]
# A cached slot takes about 200 bytes.
_CACHE_MAX = 200_000


class Account(NamedTuple):
    """What the state trie holds for an address."""

    nonce: int
    balance: int
    storage_root: Digest
    code_hash: Digest


NOBODY = Account(0, 0, EMPTY_TRIE_ROOT, EMPTY_CODE_HASH)


@dataclass(frozen=True)
class Changes:
    """What a block changed, by key: enough to bring flat caches from the parent's root to `root`."""

    root: Digest
    accounts: Mapping[Address, Account]
    slots: Mapping[Slot, int]
    writes: Mapping[bytes, bytes]
    """New trie nodes and code, by hash: what a database has to keep."""
    gone: Mapping[Digest, int]
    """How many places of the tries lost a node or code, by hash."""
    come: Mapping[Digest, int]
    """How many places got one."""


@dataclass(frozen=True)
class Proof:
    """Trie nodes from the state root to an account and from it to storage slots (EIP-1186)."""

    account: Account
    account_nodes: tuple[bytes, ...]
    slots: tuple[tuple[int, int, tuple[bytes, ...]], ...]
    """(slot, value, nodes)."""


class Snapshot:
    """The state at one root, read through flat caches."""

    def __init__(self, nodes: Nodes, read: Callable[[Digest], bytes | None], root: Digest) -> None:
        self.nodes = nodes
        self.root = root
        self._read = read
        self._accounts: dict[Address, Account] = {}
        self._slots: dict[Slot, int] = {}
        self._codes: dict[Digest, bytes] = {EMPTY_CODE_HASH: b""}

    def account(self, address: Address) -> Account:
        """The account, `NOBODY` where there is none."""
        account = self._accounts.get(address)
        if account is None:
            data = self.nodes.get(self.root, keccak256(address))
            account = _decode_account(data) if data else NOBODY
            self._keep(self._accounts, address, account)
        return account

    def slot(self, address: Address, slot: int) -> int:
        """A storage slot's value."""
        key = (address, slot)
        value = self._slots.get(key)
        if value is None:
            root = self.account(address).storage_root
            data = self.nodes.get(root, _slot_key(slot)) if root != EMPTY_TRIE_ROOT else b""
            value = int.from_bytes(rlp.decode(data), "big") if data else 0
            self._keep(self._slots, key, value)
        return value

    def code(self, code_hash: Digest) -> bytes:
        """The code with this hash."""
        code = self._codes.get(code_hash)
        if code is None:
            code = self._read(code_hash)
            if code is None:
                raise KeyError(f"code {code_hash.hex()} is not in the database")
            self._codes[code_hash] = code
        return code

    def proof(self, address: Address, slots: Sequence[int]) -> Proof:
        """An account and some of its storage, with what proves them against the state root."""
        account, nodes = self.account(address), self.nodes
        return Proof(
            account,
            tuple(nodes.proof(self.root, keccak256(address))),
            tuple(
                (slot, self.slot(address, slot), tuple(nodes.proof(account.storage_root, _slot_key(slot))))
                for slot in slots
            ),
        )

    def advance(self, changes: Changes) -> None:
        """Become the state after a block on top of this one."""
        self.root = changes.root
        if len(self._slots) + len(self._accounts) > 2 * _CACHE_MAX:
            self._slots.clear()
            self._accounts.clear()
        self._accounts.update(changes.accounts)
        self._slots.update(changes.slots)

    @staticmethod
    def _keep(cache: dict, key: object, value: object) -> None:  # type: ignore[type-arg]
        if len(cache) >= _CACHE_MAX:
            cache.clear()
        cache[key] = value


def _slot_key(slot: int) -> Digest:
    return keccak256(slot.to_bytes(32, "big"))


def _decode_account(data: bytes) -> Account:
    nonce, balance, storage_root, code_hash = rlp.decode(data)
    return Account(int.from_bytes(nonce, "big"), int.from_bytes(balance, "big"), storage_root, code_hash)


@dataclass
class State:
    """A block's changes over a snapshot. The names of its methods are py-evm's (`eth.abc.AccountDatabaseAPI`)."""

    base: Snapshot
    accounts: dict[Address, Account] = field(default_factory=dict)
    slots: dict[Slot, int] = field(default_factory=dict)
    codes: dict[Digest, bytes] = field(default_factory=dict)
    _journal: list[Callable[[], object]] = field(default_factory=list)
    _original: dict[Slot, int] = field(default_factory=dict)
    _warm: set[Address | Slot] = field(default_factory=set)
    _transient: dict[Slot, bytes] = field(default_factory=dict)

    # --- storage

    def get_storage(self, address: Address, slot: int, from_journal: bool = True) -> int:
        key = (address, slot)
        if not from_journal:
            value = self._original.get(key)
            if value is not None:
                return value
        value = self.slots.get(key)
        return self.base.slot(address, slot) if value is None else value

    def set_storage(self, address: Address, slot: int, value: int) -> None:
        key = (address, slot)
        slots = self.slots
        before = slots.get(key)
        if before is None:
            self._original.setdefault(key, self.base.slot(address, slot))
            self._journal.append(lambda: slots.pop(key, None))
        else:
            self._original.setdefault(key, before)
            self._journal.append(lambda: slots.__setitem__(key, before))
        slots[key] = value

    def delete_storage(self, address: Address) -> None:
        """Empty an address's storage. Only a contract created in this transaction can have any (EIP-6780)."""
        for key, value in self.slots.items():
            if key[0] == address and value:
                self.set_storage(address, key[1], 0)

    def is_storage_warm(self, address: Address, slot: int) -> bool:
        return (address, slot) in self._warm

    def mark_storage_warm(self, address: Address, slot: int) -> None:
        self._mark((address, slot))

    def warm_slot(self, key: Slot) -> bool:
        """Whether this transaction touched the slot before; from now on it did."""
        warm = self._warm
        if key in warm:
            return True
        warm.add(key)
        self._journal.append(lambda: warm.discard(key))
        return False

    def get_transient_storage(self, address: Address, slot: int) -> bytes:
        return self._transient.get((address, slot), b"")

    def set_transient_storage(self, address: Address, slot: int, value: bytes) -> None:
        key, transient = (address, slot), self._transient
        before = transient.get(key, b"")
        self._journal.append(lambda: transient.__setitem__(key, before))
        transient[key] = value

    # --- accounts

    def account(self, address: Address) -> Account:
        account = self.accounts.get(address)
        return self.base.account(address) if account is None else account

    def _put(self, address: Address, account: Account) -> None:
        accounts = self.accounts
        before = accounts.get(address)
        if before is None:
            self._journal.append(lambda: accounts.pop(address, None))
        else:
            self._journal.append(lambda: accounts.__setitem__(address, before))
        accounts[address] = account

    def get_balance(self, address: Address) -> int:
        return self.account(address).balance

    def set_balance(self, address: Address, balance: int) -> None:
        account = self.account(address)
        if account.balance != balance:
            self._put(address, account._replace(balance=balance))

    def get_nonce(self, address: Address) -> int:
        return self.account(address).nonce

    def set_nonce(self, address: Address, nonce: int) -> None:
        self._put(address, self.account(address)._replace(nonce=nonce))

    def increment_nonce(self, address: Address) -> None:
        self.set_nonce(address, self.get_nonce(address) + 1)

    def get_code(self, address: Address) -> bytes:
        code_hash = self.account(address).code_hash
        code = self.codes.get(code_hash)
        return self.base.code(code_hash) if code is None else code

    def get_code_hash(self, address: Address) -> Digest:
        return self.account(address).code_hash

    def set_code(self, address: Address, code: bytes) -> None:
        code_hash = keccak256(code)
        self.codes[code_hash] = code
        self._put(address, self.account(address)._replace(code_hash=code_hash))

    def delete_account(self, address: Address) -> None:
        self.delete_storage(address)
        self._put(address, NOBODY)

    def account_has_code_or_nonce(self, address: Address) -> bool:
        account = self.account(address)
        return account.nonce != 0 or account.code_hash != EMPTY_CODE_HASH

    def account_exists(self, address: Address) -> bool:
        return not self.account_is_empty(address)

    def account_is_empty(self, address: Address) -> bool:
        nonce, balance, _, code_hash = self.account(address)
        return nonce == 0 and balance == 0 and code_hash == EMPTY_CODE_HASH

    def touch_account(self, address: Address) -> None:
        """Nothing: touching matters only to empty accounts, which do not exist."""

    def is_address_warm(self, address: Address) -> bool:
        return address in self._warm

    def mark_address_warm(self, address: Address) -> None:
        self._mark(address)

    def _mark(self, key: Address | Slot) -> None:
        warm = self._warm
        if key not in warm:
            warm.add(key)
            self._journal.append(lambda: warm.discard(key))

    # --- transactions

    def record(self) -> int:
        """A point to come back to."""
        return len(self._journal)

    def discard(self, checkpoint: int) -> None:
        """Undo everything since `checkpoint`."""
        journal = self._journal
        while len(journal) > checkpoint:
            journal.pop()()

    def lock_changes(self) -> None:
        """A transaction ended: what it did stays, what only it could see is forgotten."""
        self._journal.clear()
        self._original.clear()
        self._warm.clear()
        self._transient.clear()

    def changes(self) -> Changes:
        """The new root, and what leads there."""
        base, writes = self.base, dict(self.codes)
        changed_slots: dict[Address, dict[bytes, bytes]] = {}
        for (address, slot), value in self.slots.items():
            if value != base.slot(address, slot):
                digest = keccak256(slot.to_bytes(32, "big"))
                encoded = pack(value) if value else b""
                changed_slots.setdefault(address, {})[digest] = encoded
        accounts = dict(self.accounts)
        for address, slots in changed_slots.items():
            account = accounts.get(address) or base.account(address)
            root = base.nodes.update(account.storage_root, slots, writes)
            accounts[address] = account._replace(storage_root=root)
        leaves = {}
        for address, account in accounts.items():
            empty = account.nonce == 0 and account.balance == 0 and account.code_hash == EMPTY_CODE_HASH
            if empty:
                accounts[address] = NOBODY
            leaves[keccak256(address)] = b"" if empty else _encode_account(account)
        root = base.nodes.update(base.root, leaves, writes)
        gone, come = replaced(base.nodes, writes, base.root, root)
        return Changes(root, accounts, dict(self.slots), writes, gone, come)


def _encode_account(account: Account) -> bytes:
    nonce, balance, storage_root, code_hash = account
    return pack([nonce, balance, storage_root, code_hash])
