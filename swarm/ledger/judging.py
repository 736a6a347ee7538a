"""May this block follow? Every rule for it but the clock's: it is executed here and has to come out the same.

A block is executed once on a node: the result is kept for whoever writes it. Who decides a block is known from the one
before, unless it begins with a recovery (`recovery.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from swarm.consensus.certificate import CERTIFICATE_BYTES_MAX, Certificate, check_certificate
from swarm.encoding import Address, Digest, keccak256, short
from swarm.errors import PeerError, RejectedError
from swarm.ledger.block import TRANSACTION_MAX_BYTES, Header, Transaction, check_follows, decode_block, decode_payload
from swarm.ledger.evm import TRANSACTION_GAS_MIN, Evm, Execution, Outcome
from swarm.ledger.genesis import BLIND, CONSORTIUM, RUNS, Genesis
from swarm.ledger.history import Recent
from swarm.ledger.membership import Membership
from swarm.ledger.recovery import Electorate, Recovery, is_recovery


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
class Tip:
    """The last decided block, as far as the next one builds on it."""

    header: Header
    certificate: bytes
    """Encoded; empty for genesis."""
    deciders: Electorate
    """Who decided it."""
    validators: tuple[Address, ...]
    """Who decides the next one, unless that records a recovery; sorted."""


class Judge:
    """The rules of one ledger, over the states that its EVM reads."""

    def __init__(
        self,
        genesis: Genesis,
        evm: Evm,
        membership: Membership,
        executions: ExecutionCache,
        recover: Callable[[Digest, bytes], Address],
    ) -> None:
        self._chain_id, self._genesis_hash = genesis.chain_id, genesis.hash
        self._evm = evm
        self._membership = membership
        self._executions = executions
        self._recover = recover

    def verified(self, payload: bytes, tip: Tip) -> Execution:
        """The execution of a payload that follows `tip` by all rules but the clock's.

        Raises:
            PeerError: it breaks a rule; says which.
        """
        header, raws, block, parent_certificate = read_payload(payload)
        self.check_next(header, raws, tip)
        self._check_parent_certificate(parent_certificate, header, tip)
        execution = self._executions.blocks.get(header.hash)
        if execution is None:
            execution = self._execute(header, raws, tip.header)
        if execution.block != block:
            raise PeerError(
                f"block {header.number} ({short(header.hash)}) differs from what its transactions give here "
                f"({short(execution.header.hash)})",
                evidence=payload,
            )
        self._executions.blocks.put(header.hash, execution)
        return execution

    def check_next(self, header: Header, raws: Sequence[bytes], tip: Tip) -> Electorate:
        """Who decides this block, which follows `tip`.

        Raises:
            PeerError: it does not follow, or nobody who decides it proposed it.
        """
        try:
            check_follows(header, tip.header)
        except ValueError as error:
            raise PeerError(str(error)) from error
        deciders = self.deciders(raws, tip.header, tip.validators)
        if header.coinbase not in deciders.validators:
            raise PeerError(f"block {header.number} is proposed by {short(header.coinbase)}, which is no validator")
        return deciders

    def deciders(self, raws: Sequence[bytes], parent: Header, validators: tuple[Address, ...]) -> Electorate:
        """Who decides the block after `parent` with these transactions: the validators, unless the first is a recovery.

        Raises:
            PeerError: a recovery that breaks a rule; says which.
        """
        try:
            first = self.transaction(raws[0]) if raws else None
        except RejectedError:
            first = None  # whoever executes the block says what is wrong with it
        if first is None or not is_recovery(first):
            return Electorate(validators, self._chain_id)
        try:
            recovery = Recovery.of(first, self._chain_id)
            self.check_recovery(recovery, parent)
        except RejectedError as error:
            raise PeerError(f"block {parent.number + 1} begins with a false recovery: {error}") from error
        return recovery.electorate

    def check_recovery(self, recovery: Recovery, parent: Header) -> None:
        """Nothing, if the block after `parent` may record this recovery; RejectedError says why it may not."""
        recovery.check(
            chain_id=self._chain_id,
            genesis=self._genesis_hash,
            height=parent.number,
            head=parent.hash,
            operators=self._membership.operators(parent),
            recover=self._recover,
        )

    def check_sealed(
        self, certificate: Certificate, header: Header, raws: Sequence[bytes], parent: Header
    ) -> Electorate:
        """Who decided the block after `parent`, a quorum of whom sealed it.

        Raises:
            PeerError: a recovery that breaks a rule, or no quorum sealed it.
        """
        deciders = self.deciders(raws, parent, self._membership.validators(parent))
        self.check_certificate(certificate, header, deciders)
        return deciders

    def check_certificate(self, certificate: Certificate, header: Header, deciders: Electorate) -> None:
        """Nothing, if a quorum of `deciders` sealed this block; PeerError says what is missing."""
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

    def transaction(self, raw: bytes) -> Transaction:
        """The fields of a transaction of this ledger; RejectedError if it is none."""
        digest = keccak256(raw)
        known = self._executions.transactions.get(digest)
        if known is not None:
            return known
        if len(raw) > TRANSACTION_MAX_BYTES:
            raise RejectedError(f"a transaction of {len(raw)} bytes, at most {TRANSACTION_MAX_BYTES} are taken")
        try:
            transaction = Transaction.read(raw, self._chain_id)
        except ValueError as error:
            raise RejectedError(f"not a transaction for this ledger: {error}") from error
        self._executions.transactions.put(digest, transaction)
        return transaction

    def _check_parent_certificate(self, data: bytes, header: Header, tip: Tip) -> None:
        if keccak256(data) != header.parent_beacon_block_root:
            raise PeerError(f"block {header.number} commits to another certificate than the payload carries")
        if data != tip.certificate:
            if tip.header.number == 0:
                raise PeerError("genesis has no certificate, but block 1 carries one")
            if len(data) > CERTIFICATE_BYTES_MAX:
                raise PeerError(f"a certificate of {len(data)} bytes, at most {CERTIFICATE_BYTES_MAX} are read")
            certificate = Certificate.decode(data)
            if certificate.encode() != data:
                raise PeerError("the parent's certificate is not in canonical form")
            self.check_certificate(certificate, tip.header, tip.deciders)

    def _execute(self, header: Header, raws: Sequence[bytes], parent: Header) -> Execution:
        if not raws:
            raise PeerError(f"block {header.number} has no transaction")
        if len(raws) * TRANSACTION_GAS_MIN > parent.gas_limit // 2:
            raise PeerError(f"block {header.number} has {len(raws)} transactions, more than its gas can pay")
        try:
            transactions = [self.transaction(raw) for raw in raws]
            for position, transaction in enumerate(transactions):
                check_target(transaction)
                if position and is_recovery(transaction):
                    raise RejectedError("a recovery is the first transaction of its block")
            execution = self._evm.execute(
                parent,
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


def check_target(transaction: Transaction) -> None:
    """Nothing, if a transaction calls one of the ledger's contracts; RejectedError if not."""
    # A contract of a member's own could keep every node busy for seconds a call; ours are bounded.
    if transaction.to not in (CONSORTIUM, RUNS, BLIND):
        raise RejectedError("transactions on this ledger call the members' own contracts and nothing else")


def read_payload(payload: bytes) -> tuple[Header, tuple[bytes, ...], bytes, bytes]:
    """Header, raw transactions, block bytes and parent certificate; PeerError if it is no payload."""
    try:
        block, certificate = decode_payload(payload)
        header, raws = decode_block(block)
    except ValueError as error:
        raise PeerError(f"not a payload: {error}", evidence=payload[:1024]) from error
    return header, raws, block, certificate
