"""A consortium on paper: keys, settings, signed calls of the real contracts, and certificates for what they build."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from eth_account import Account

from swarm.config import MemberConfig, SwarmConfig
from swarm.consensus.certificate import Certificate
from swarm.consensus.messages import commit_digest
from swarm.encoding import Address, Digest, keccak256
from swarm.identity import Identity, checksum
from swarm.ledger.abi import interface
from swarm.ledger.block import Transaction, encode_payload
from swarm.ledger.genesis import CONSORTIUM, RUNS, Genesis
from swarm.ledger.judging import ExecutionCache
from swarm.ledger.ledger import Head, Ledger
from swarm.quorum import quorum

CHAIN = 4242
CREATED_MS = 1_700_000_000_000
MEMBERS = tuple(Identity(bytes([1, i + 1]) * 16) for i in range(8))
OPERATORS = tuple(Identity(bytes([2, i + 1]) * 16) for i in range(8))
STRANGER = Identity(bytes([9]) * 32)
BY_ADDRESS = {one.address: one for one in (*MEMBERS, *OPERATORS)}


def config(members: int = 4, *, validators: int | None = None, chain_id: int = CHAIN) -> SwarmConfig:
    """The settings of a consortium of the first `members`."""
    return SwarmConfig(
        name="test",
        chain_id=chain_id,
        created_ms=CREATED_MS,
        members=tuple(
            MemberConfig(
                name=f"site {i}",
                address=member.address,
                operator=operator.address,
                endpoint=f"/ip4/127.0.0.1/tcp/{4000 + i}/p2p/{member.peer_id}",
                validator=i < (members if validators is None else validators),
            )
            for i, (member, operator) in enumerate(zip(MEMBERS[:members], OPERATORS, strict=False))
        ),
    )


@cache
def genesis(members: int = 4, validators: int | None = None, chain_id: int = CHAIN) -> Genesis:
    """Its genesis."""
    return Genesis.of(config(members, validators=validators, chain_id=chain_id))


def open_ledger(folder: Path, members: int = 4, *, executions: ExecutionCache | None = None) -> Ledger:
    """Its ledger."""
    return Ledger.open(folder, genesis(members), executions=executions)


def signed(
    identity: Identity,
    nonce: int,
    to: Address | None,
    data: bytes,
    *,
    gas: int = 5_000_000,
    kind: int = 2,
    price: int = 0,
    value: int = 0,
    chain_id: int = CHAIN,
) -> bytes:
    """A signed transaction's bytes."""
    fields: dict[str, object] = {"nonce": nonce, "gas": gas, "value": value, "data": data, "chainId": chain_id}
    fields["to"] = b"" if to is None else checksum(to)
    if kind == 0:
        fields["gasPrice"] = price
    elif kind == 1:
        access = {"address": checksum(RUNS), "storageKeys": ["0x" + "00" * 32]}
        fields.update(type=1, gasPrice=price, accessList=[access])
    else:
        fields.update(type=2, maxFeePerGas=price, maxPriorityFeePerGas=price)
    return bytes(Account.sign_transaction(fields, identity.secret).raw_transaction)


def call(identity: Identity, nonce: int, function: str, *arguments: object, **fields: int) -> bytes:
    """A signed call of a function of `Runs`, or of `Consortium` where only that has it."""
    to, contract = (RUNS, "Runs") if function in RUN_CALLS else (CONSORTIUM, "Consortium")
    return signed(identity, nonce, to, interface(contract).call(function, *arguments), **fields)


RUN_CALLS = frozenset({"propose", "join", "withdraw", "submit", "publish", "attest", "advance", "stop", "approve"})


def propose(identity: Identity, nonce: int, name: str = "hearts", **fields: int) -> bytes:
    """A signed proposal of a run: always a good transaction for an operator."""
    arguments = (name, b"\x01" * 32, b"\x02" * 32, 10, 2, 60_000, 60_000, 60_000, 1_000_000)
    return call(identity, nonce, "propose", *arguments, **fields)


def certificate(
    digest: Digest, height: int, *, view: int = 0, signers: tuple[Identity, ...] = MEMBERS[:4], chain_id: int = CHAIN
) -> Certificate:
    """The seals of these signers."""
    order = sorted(signers, key=lambda one: one.address)
    return Certificate(view, tuple(one.sign(commit_digest(chain_id, height, view, digest)) for one in order))


def decide(ledger: Ledger, payload: bytes, *, view: int = 0) -> Head:
    """Append a payload with a quorum of its validators' seals."""
    return ledger.append(payload, decision(ledger, payload, view=view))


def decision(ledger: Ledger, payload: bytes, *, view: int = 0) -> Certificate:
    """A quorum of the ledger's validators' seals on a payload."""
    voters = tuple(BY_ADDRESS[address] for address in ledger.validators())
    height, digest = ledger.head.number + 1, ledger.digest_of(payload)
    return certificate(digest, height, view=view, signers=voters[: quorum(len(voters))], chain_id=ledger.chain_id)


def now_ms(ledger: Ledger) -> int:
    """A clock that is a little ahead of the head."""
    return ledger.head.timestamp_ms + 250


def build(ledger: Ledger, *raws: bytes) -> bytes:
    """The payload that the next height's first proposer makes of the pool and these transactions."""
    for raw in raws:
        ledger.add_transaction(raw)
    payload = ledger.build(now_ms(ledger), ledger.proposers()[0])
    assert payload is not None
    return payload


def grow(ledger: Ledger, blocks: int) -> list[tuple[bytes, Certificate]]:
    """Decide some blocks of one proposal each, and return them."""
    decided = []
    for _ in range(blocks):
        operator = OPERATORS[ledger.head.number % 4]
        payload = build(ledger, propose(operator, ledger.next_nonce(operator.address)))
        seals = decision(ledger, payload)
        ledger.append(payload, seals)
        decided.append((payload, seals))
    return decided


def forge(ledger: Ledger, *raws: bytes, timestamp_ms: int | None = None, coinbase: Address | None = None) -> bytes:
    """A payload whose block is executed faithfully, whatever the ledger's own rules say about what is in it."""
    parent = b"" if ledger.head.number == 0 else ledger.certificate(ledger.head.number)
    execution = ledger._evm.execute(
        ledger.block(ledger.head.number).header,
        [Transaction.read(raw, CHAIN) for raw in raws],
        timestamp_ms=now_ms(ledger) if timestamp_ms is None else timestamp_ms,
        coinbase=ledger.proposers()[0] if coinbase is None else coinbase,
        parent_beacon_block_root=keccak256(parent),
    )
    return encode_payload(execution.block, parent)
