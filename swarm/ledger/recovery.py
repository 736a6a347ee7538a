"""Recovery: when more than a third of the validators are gone for good, two thirds of the operators name new ones.

What they sign is a manifest (EIP-712 typed data, so that any wallet can show it). It counts for one block only: the one
right after the block that it names. That block's first transaction carries the manifest to the `Consortium` contract,
and the block is decided by the manifest's validators; so whoever reads the ledger sees who replaced whom, and checks it
without having been there. Votes for that block name the manifest: votes of the validators before never count for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swarm.config import MEMBERS_MAX
from swarm.encoding import Address, Digest, from_hex, keccak256, short, to_hex
from swarm.errors import ConfigError, RejectedError
from swarm.identity import Identity, checksum
from swarm.identity import recover as recover_secp256k1
from swarm.ledger.abi import interface
from swarm.ledger.block import Transaction
from swarm.ledger.genesis import CONSORTIUM
from swarm.ledger.signing import Terms, signed
from swarm.quorum import quorum

REASON_BYTES_MAX = 256
"""The contract's bound."""
FILE_BYTES_MAX = 64 << 10
"""128 validators and 128 signatures come to 32 KB."""
RECOVERY_GAS = 20_000_000

_FIELDS = ("chain_id", "genesis", "height", "head", "validators", "reason", "created_ms", "signatures")
_TYPES = {
    "Recovery": [
        {"name": "genesis", "type": "bytes32"},
        {"name": "height", "type": "uint256"},
        {"name": "head", "type": "bytes32"},
        {"name": "validators", "type": "address[]"},
        {"name": "reason", "type": "string"},
        {"name": "created", "type": "uint256"},
    ]
}


@dataclass(frozen=True)
class Electorate:
    """Who decides a block."""

    validators: tuple[Address, ...]
    """Sorted."""
    vote_chain: int
    """What their votes name as the chain: its id, or a number that stands for one recovery, so that votes of the
    validators before and of those after it never count together."""


@dataclass(frozen=True)
class Manifest:
    """New validators for the block right after one block."""

    chain_id: int
    genesis: Digest
    height: int
    """Of the last certified block: nobody has a later one."""
    head: Digest
    """That block's hash."""
    validators: tuple[Address, ...]
    """Sorted."""
    reason: str
    created_ms: int
    """Unix time in milliseconds. Of two manifests for one height, the newer one counts."""

    @property
    def digest(self) -> Digest:
        """What operators sign (EIP-712)."""
        domain = {
            "name": "Swarm Consortium",
            "version": "1",
            "chainId": self.chain_id,
            "verifyingContract": checksum(CONSORTIUM),
        }
        content = {
            "genesis": self.genesis,
            "height": self.height,
            "head": self.head,
            "validators": [checksum(one) for one in self.validators],
            "reason": self.reason,
            "created": self.created_ms,
        }
        from eth_account.messages import encode_typed_data  # half a second, for the day on which a ledger is recovered

        message = encode_typed_data(domain, _TYPES, content)
        return keccak256(b"\x19" + message.version + message.header + message.body)


@dataclass(frozen=True)
class Recovery:
    """A manifest and who signed it."""

    manifest: Manifest
    signatures: tuple[bytes, ...] = ()
    """65 bytes r ‖ s ‖ v, sorted by the signers' addresses."""

    @property
    def signers(self) -> tuple[Address, ...]:
        """Whose signatures these are, in their order; ValueError if one is nobody's."""
        digest = self.manifest.digest
        return tuple(recover_secp256k1(digest, signature) for signature in self.signatures)

    @property
    def electorate(self) -> Electorate:
        """Who decides the block that records this recovery."""
        votes = keccak256(b"swarm/recovery votes" + self.manifest.digest)
        return Electorate(self.manifest.validators, int.from_bytes(votes, "big"))

    def signed_by(self, operator: Identity) -> Recovery:
        """The same with one more signature; ConfigError if the operator signed before."""
        if operator.address in self.signers:
            raise ConfigError(f"{checksum(operator.address)} has signed this manifest already")
        signature = operator.sign(self.manifest.digest)
        found = {**dict(zip(self.signers, self.signatures, strict=True)), operator.address: signature}
        return replace(self, signatures=tuple(found[signer] for signer in sorted(found)))

    def encode(self) -> str:
        """The manifest's file: JSON, for people and programs."""
        manifest = self.manifest
        document = {
            "chain_id": manifest.chain_id,
            "genesis": to_hex(manifest.genesis),
            "height": manifest.height,
            "head": to_hex(manifest.head),
            "validators": [checksum(one) for one in manifest.validators],
            "reason": manifest.reason,
            "created_ms": manifest.created_ms,
            "signatures": {
                checksum(signer): to_hex(signature)
                for signer, signature in zip(self.signers, self.signatures, strict=True)
            },
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def decode(cls, data: bytes) -> Recovery:
        """The recovery in a manifest's file.

        Raises:
            ConfigError: too long, not this form, or a signature that is not its signer's; says which.
        """
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"a manifest of {len(data)} bytes, at most {FILE_BYTES_MAX} are read")
        try:
            document = json.loads(data)
            if not isinstance(document, dict) or set(document) != set(_FIELDS):
                raise ValueError(f"it has the fields {', '.join(_FIELDS)}")
            manifest = _manifest(document)
            listed = {from_hex(signer, size=20): from_hex(text) for signer, text in document["signatures"].items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"not a recovery manifest: {error}; `swarm recover propose` writes one") from error
        if len(listed) > MEMBERS_MAX:
            raise ConfigError(f"a manifest with {len(listed)} signatures, at most {MEMBERS_MAX} are read")
        for signer, signature in listed.items():
            try:
                found = recover_secp256k1(manifest.digest, signature)
            except ValueError as error:
                raise ConfigError(f"the manifest's signature of {checksum(signer)} is broken: {error}") from error
            if found != signer:
                raise ConfigError(
                    f"the manifest's signature of {checksum(signer)} is not over these lines: one of them was changed "
                    "after it was signed"
                )
        return cls(manifest, tuple(listed[signer] for signer in sorted(listed)))

    def check(
        self,
        *,
        chain_id: int,
        genesis: Digest,
        height: int,
        head: Digest,
        operators: Mapping[Address, Address],
        recover: Callable[[Digest, bytes], Address] = recover_secp256k1,
    ) -> None:
        """Nothing, if this recovery may decide the block after `head`.

        Args:
            height, head: of the last certified block.
            operators: who may sign, and the member that each stands for, after that block.
        Raises:
            RejectedError: it may not; why.
        """
        manifest = self.manifest
        if (manifest.chain_id, manifest.genesis) != (chain_id, genesis):
            raise RejectedError(
                f"the manifest is for chain {manifest.chain_id} that began from {short(manifest.genesis)}, "
                f"this is chain {chain_id} from {short(genesis)}"
            )
        if manifest.height < height:
            raise RejectedError(
                f"the manifest says that block {manifest.height} is the last, but block {height} is decided: "
                "the longer ledger stands, and a recovery is not needed or starts from there"
            )
        if manifest.height > height:
            raise RejectedError(f"the manifest follows block {manifest.height}, this ledger is at block {height}")
        if manifest.head != head:
            raise RejectedError(
                f"the manifest follows block {height} ({short(manifest.head)}), but that is {short(head)} here; "
                "two blocks were decided at one height, which operators have to look into first"
            )
        _check_validators(manifest.validators, frozenset(operators.values()))
        if len(manifest.reason.encode()) > REASON_BYTES_MAX:
            raise RejectedError(f"a reason has at most {REASON_BYTES_MAX} bytes")
        _check_signers(self._recovered(recover), operators)

    def _recovered(self, recover: Callable[[Digest, bytes], Address]) -> tuple[Address, ...]:
        digest = self.manifest.digest
        try:
            return tuple(recover(digest, signature) for signature in self.signatures)
        except ValueError as error:
            raise RejectedError(f"the manifest has a broken signature: {error}") from error

    def transaction(self) -> bytes:
        """The signed transaction that carries this recovery: the same bytes at every validator.

        The signatures inside are what counts, so its sender is a key that follows from them (as with keyless
        deployments): no member's nonce is used up.
        """
        manifest = self.manifest
        data = interface("Consortium").call(
            "recover", manifest.genesis, manifest.height, manifest.head, manifest.validators, manifest.reason,
            manifest.created_ms, self.signatures,
        )  # fmt: skip
        carrier = Identity(keccak256(b"swarm/recovery carrier" + data))
        terms = Terms(manifest.chain_id, nonce=0, gas=RECOVERY_GAS, price=0)
        return signed(carrier, terms, CONSORTIUM, data)[0]

    @classmethod
    def of(cls, transaction: Transaction, chain_id: int) -> Recovery:
        """The recovery that a transaction carries, which `is_recovery`.

        Raises:
            RejectedError: nothing can be made of it, or another transaction belongs to this recovery.
        """
        try:
            genesis, height, head, validators, reason, created, signatures = interface("Consortium").arguments(
                "recover", transaction.data
            )
        except ValueError as error:
            raise RejectedError(f"a recovery that cannot be read: {error}") from error
        manifest = Manifest(chain_id, genesis, height, head, tuple(validators), reason, created)
        found = cls(manifest, tuple(signatures))
        if found.transaction() != transaction.raw:
            raise RejectedError("a recovery is carried by the transaction that follows from it and by no other")
        return found


def is_recovery(transaction: Transaction) -> bool:
    """Whether a transaction calls `recover`: it may only be the first of its block."""
    return transaction.to == CONSORTIUM and interface("Consortium").calls("recover", transaction.data)


def _check_validators(validators: Sequence[Address], members: frozenset[Address]) -> None:
    if not validators:
        raise RejectedError("the manifest names no validator; at least one has to stand")
    if list(validators) != sorted(set(validators)):
        raise RejectedError("the manifest's validators are not sorted, or one is named twice")
    for one in validators:
        if one not in members:
            raise RejectedError(f"the manifest makes {checksum(one)} a validator, which is no member")


def _check_signers(signers: Sequence[Address], operators: Mapping[Address, Address]) -> None:
    for signer in signers:
        if signer not in operators:
            raise RejectedError(
                f"the manifest is signed by {checksum(signer)}, which is no member's operator, or over other lines"
            )
    if list(signers) != sorted(set(signers)):
        raise RejectedError("the manifest's signatures are not sorted by operator, or one operator signed twice")
    needed = quorum(len(operators))
    if len(signers) < needed:
        raise RejectedError(
            f"the manifest has {len(signers)} signatures; {needed} of the {len(operators)} members' operators have to "
            "sign: `swarm recover sign`"
        )


def _manifest(document: Mapping[str, Any]) -> Manifest:
    for key in ("chain_id", "height", "created_ms"):
        if type(document[key]) is not int or not 0 <= document[key] < 1 << 53:
            raise ValueError(f"{key} = {document[key]!r}, but a whole number belongs there")
    reason, validators = document["reason"], document["validators"]
    if not isinstance(reason, str) or len(reason.encode()) > REASON_BYTES_MAX:
        raise ValueError(f"reason is text of at most {REASON_BYTES_MAX} bytes")
    if not isinstance(validators, list) or len(validators) > MEMBERS_MAX:
        raise ValueError(f"validators is a list of at most {MEMBERS_MAX} addresses")
    return Manifest(
        chain_id=document["chain_id"],
        genesis=from_hex(document["genesis"], size=32),
        height=document["height"],
        head=from_hex(document["head"], size=32),
        validators=tuple(sorted(from_hex(text, size=20) for text in validators)),
        reason=reason,
        created_ms=document["created_ms"],
    )
