"""A light follower comes to the ledger's own validators block by block, and stops at whatever is not certified."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from swarm.config import MemberConfig, SwarmConfig
from swarm.consensus import Certificate
from swarm.encoding import Digest, keccak256
from swarm.errors import PeerError
from swarm.identity import Identity, recover
from swarm.ledger.abi import interface, reason
from swarm.ledger.block import decode_block, decode_payload
from swarm.ledger.genesis import CONSORTIUM
from swarm.ledger.ledger import Ledger
from swarm.ledger.light import LightFollower, Roll, Sealed, tells_of_members, tells_of_recovery
from swarm.ledger.recovery import Manifest, Recovery
from swarm.quorum import quorum
from tests.ledger import world
from tests.ledger.world import MEMBERS, OPERATORS

ENDPOINT = "/ip4/127.0.0.1/tcp/4100"
NO_PRINT = bytes(32)


def sealed(ledger: Ledger, number: int) -> Sealed:
    """A block of a ledger as a light follower takes it."""
    block = ledger.block(number)
    return Sealed(block.header, Certificate.decode(ledger.certificate(number)), block.receipts, block.raws)


def follower(ledger: Ledger, members: int = 5) -> LightFollower:
    return LightFollower(ledger.block(0).header, Roll.of(world.config(members)), chain_id=world.CHAIN)


def act(ledger: Ledger, *acts: tuple[Identity, str, tuple[object, ...]]) -> None:
    """One block with these calls of the Consortium contract, all of which succeed."""
    nonces: dict[bytes, int] = {}
    raws = []
    for who, function, arguments in acts:
        nonce = nonces.get(who.address, ledger.next_nonce(who.address))
        nonces[who.address] = nonce + 1
        raws.append(world.signed(who, nonce, CONSORTIUM, interface("Consortium").call(function, *arguments)))
    world.decide(ledger, world.build(ledger, *raws))
    for receipt in ledger.block(ledger.head.number).receipts:
        assert receipt.succeeded, (acts, reason(receipt.revert))


def vote(ledger: Ledger, function: str, *arguments: object, voters: tuple[int, ...] = (1, 2, 3)) -> None:
    """A proposal of the first operator, and the approvals that carry it."""
    act(ledger, (OPERATORS[0], function, arguments))
    id_ = interface("Consortium").result(
        "proposals", ledger.call(to=CONSORTIUM, data=interface("Consortium").call("proposals")).output
    )
    act(ledger, *((OPERATORS[one], "approve", (id_,)) for one in voters))


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Every way in which validators change, with rounds' business in between."""
    ledger = world.open_ledger(tmp_path_factory.mktemp("light"), 5)
    world.grow(ledger, 2)
    act(ledger, (MEMBERS[4], "standDown", ()))
    world.grow(ledger, 1)
    newcomer = (MEMBERS[5].address, OPERATORS[5].address, "sixth", ENDPOINT, NO_PRINT, True)
    vote(ledger, "nominate", *newcomer)
    act(ledger, (MEMBERS[4], "resume", ()))
    act(ledger, (OPERATORS[0], "rotateKey", (MEMBERS[6].address, ENDPOINT, NO_PRINT)))
    vote(ledger, "proposeValidator", MEMBERS[1].address, False)
    vote(ledger, "proposeRemoval", MEMBERS[2].address, voters=(1, 3, 4))
    # A vote and a leave in one block.
    vote(ledger, "proposeValidator", MEMBERS[1].address, True, voters=(1, 3, 4))
    for _ in range(2):
        world.decide(ledger, world.build(ledger, world.propose(OPERATORS[0], ledger.next_nonce(OPERATORS[0].address))))
    yield ledger
    ledger.close()


def test_it_comes_to_the_same_validators_as_the_ledger_after_every_block(tmp_path: Path, ledger: Ledger) -> None:
    light = follower(ledger)
    again = world.open_ledger(tmp_path, 5)
    for payload, certificate in ledger.blocks_from(1, 1 << 30):
        again.append(payload, Certificate.decode(certificate))
        light.follow(sealed(ledger, again.head.number))
        assert light.validators == again.validators()
        assert light.head.hash == again.head.hash
    assert light.head.number == ledger.head.number
    assert light.changes >= 6
    again.close()


def test_it_needs_receipts_where_members_change_and_nowhere_else(ledger: Ledger) -> None:
    needed = [number for number in range(1, ledger.head.number + 1) if tells_of_members(ledger.block(number).header)]
    assert 0 < len(needed) < ledger.head.number
    light = follower(ledger)
    for number in range(1, ledger.head.number + 1):
        block = sealed(ledger, number)
        light.follow(block if number in needed else replace(block, receipts=(), transactions=()))
    assert light.validators == ledger.validators()


def test_every_event_of_the_contract_has_a_meaning_for_who_votes() -> None:
    """An event that the follower passed over would leave it with the wrong validators."""
    quiet: set[str] = set()
    told: set[str] = set()
    for name in interface("Consortium").topics:
        source = Path("swarm/ledger/light.py").read_text()
        assert f'"{name}"' in source, f"light.py does not say what {name} means for who votes"
        (quiet if name in source.split("_NO_VOTER_CHANGES")[1].split(")")[0] else told).add(name)
    assert {"Admitted", "Removed", "KeyRotated", "StoodDown", "Resumed", "ValidatorChanged"} <= told
    assert "Approved" in quiet


def forgeries(ledger: Ledger, number: int) -> dict[str, tuple[Sealed, str]]:
    """A block at a height, forged in one way each, and what the follower says."""
    block = sealed(ledger, number)
    header, certificate = block.header, block.certificate
    strangers = world.certificate(header.hash, number, signers=MEMBERS[:1] + OPERATORS[:3])
    return {
        "too few seals": (replace(block, certificate=Certificate(0, certificate.seals[:-1])), "seals"),
        "a seal twice": (replace(block, certificate=Certificate(0, certificate.seals[:1] * 4)), "repeated"),
        "another view": (replace(block, certificate=replace(certificate, view=1)), "no validator"),
        "strangers' seals": (replace(block, certificate=strangers), "no validator"),
        "other content": (replace(block, header=replace(header, state_root=keccak256(b"other"))), "no validator"),
        "another parent": (replace(block, header=replace(header, parent_hash=keccak256(b"other"))), "parent"),
        "no validator's block": (replace(block, header=replace(header, coinbase=OPERATORS[0].address)), "proposed by"),
        "an old time": (replace(block, header=replace(header, timestamp_ms=1)), "time"),
        "the block after": (sealed(ledger, number + 1), "parent"),
    }


FORGERIES = (
    "too few seals", "a seal twice", "another view", "strangers' seals", "other content", "another parent",
    "no validator's block", "an old time", "the block after",
)  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_block_is_refused_and_the_right_one_taken_after_it(ledger: Ledger, name: str) -> None:
    number = 5
    light = follower(ledger)
    for height in range(1, number):
        light.follow(sealed(ledger, height))
    found = forgeries(ledger, number)
    assert set(found) == set(FORGERIES)
    forged, why = found[name]
    with pytest.raises(PeerError, match=why):
        light.follow(forged)
    light.follow(sealed(ledger, number))
    assert light.head.number == number


def test_receipts_that_hide_a_change_are_refused(ledger: Ledger) -> None:
    light = follower(ledger)
    for number in range(1, ledger.head.number + 1):
        block = sealed(ledger, number)
        if tells_of_members(block.header):
            hidden = tuple(replace(one, logs=()) for one in block.receipts)
            for receipts in ((), hidden, block.receipts[:-1]):
                with pytest.raises(PeerError, match="who votes"):
                    light.follow(replace(block, receipts=receipts))
        light.follow(block)


def test_who_was_removed_seals_nothing_any_more(ledger: Ledger) -> None:
    light, tried = follower(ledger), 0
    for number in range(1, ledger.head.number + 1):
        before = light.validators
        light.follow(sealed(ledger, number))
        gone = tuple(one for one in before if one not in light.validators)
        if gone and number < ledger.head.number:
            rest = tuple(one for one in before if one in light.validators)
            signers = tuple(world.BY_ADDRESS[one] for one in (gone + rest)[: quorum(len(light.validators))])
            block = sealed(ledger, number + 1)
            forged = world.certificate(block.header.hash, number + 1, signers=signers)
            with pytest.raises(PeerError, match="no validator sealed"):
                light.follow(replace(block, certificate=forged))
            tried += 1
    assert tried >= 4


def test_a_truncated_ledger_is_followed_to_its_end_and_not_beyond(ledger: Ledger) -> None:
    light = follower(ledger)
    for number in range(1, 4):
        light.follow(sealed(ledger, number))
    assert light.head.number == 3
    with pytest.raises(PeerError, match="parent"):
        light.follow(sealed(ledger, 5))  # a gap is no way on


def recovered(tmp_path: Path, *, signers: int) -> tuple[Ledger, Recovery]:
    """A ledger whose next block records that two validators go on alone."""
    ledger = world.open_ledger(tmp_path, 5)
    world.grow(ledger, 2)
    new = tuple(sorted(one.address for one in MEMBERS[:2]))
    manifest = Manifest(
        world.CHAIN, ledger.genesis_hash, 2, ledger.head.hash, new, "three sites burnt down", world.CREATED_MS + 1
    )
    recovery = Recovery(manifest)
    for operator in OPERATORS[:signers]:
        recovery = recovery.signed_by(operator)
    return ledger, recovery


def test_a_recovery_changes_the_validators_of_its_own_block(tmp_path: Path) -> None:
    ledger, recovery = recovered(tmp_path, signers=4)
    ledger.begin_recovery(recovery)
    payload = ledger.build(world.now_ms(ledger), ledger.proposers()[0])
    assert payload is not None
    header = decode_block(decode_payload(payload)[0])[0]
    voters = tuple(world.BY_ADDRESS[one] for one in recovery.manifest.validators)
    ledger.append(payload, world.certificate(header.hash, 3, signers=voters, chain_id=recovery.electorate.vote_chain))
    light = follower(ledger)
    for number in (1, 2):
        light.follow(sealed(ledger, number))
    assert tells_of_recovery(header)
    with pytest.raises(PeerError, match="transactions"):
        light.follow(replace(sealed(ledger, 3), transactions=()))
    light.follow(sealed(ledger, 3))
    assert light.validators == ledger.validators() == recovery.manifest.validators
    assert light.recoveries == 1
    ledger.close()


def test_two_validators_cannot_recover_by_themselves(tmp_path: Path) -> None:
    """Their block claims in its receipts that they are the validators; too few operators say so."""
    ledger, recovery = recovered(tmp_path, signers=2)
    raw = recovery.transaction()
    payload = world.forge(ledger, raw, coinbase=recovery.manifest.validators[0])
    header, raws = decode_block(decode_payload(payload)[0])
    claimed = replace(header, bloom=b"\xff" * 256)
    voters = tuple(world.BY_ADDRESS[one] for one in recovery.manifest.validators)
    seals = world.certificate(claimed.hash, 3, signers=voters, chain_id=recovery.electorate.vote_chain)
    light = follower(ledger)
    for number in (1, 2):
        light.follow(sealed(ledger, number))
    with pytest.raises(PeerError, match="4 of the 5 members' operators"):
        light.follow(Sealed(claimed, seals, (), raws))
    ledger.close()


# --- speed


def fifty(blocks: int, *, start_ms: int = 1) -> tuple[SwarmConfig, list[Sealed], LightFollower]:
    """Headers of a consortium of fifty validators, each with a quorum of 34 real seals."""
    keys = [Identity(keccak256(bytes([one]))) for one in range(50)]
    config = world.config()
    members = tuple(
        MemberConfig(name=f"s{i}", address=k.address, operator=bytes([i]) * 20, endpoint=ENDPOINT, validator=True)
        for i, k in enumerate(keys)
    )
    config = replace(config, members=members)
    genesis = world.genesis(4).execution.header
    light = LightFollower(genesis, Roll.of(config), chain_id=world.CHAIN)
    chain, parent = [], genesis
    for number in range(1, blocks + 1):
        header = replace(
            parent, parent_hash=parent.hash, number=number, timestamp_ms=parent.timestamp_ms + start_ms,
            coinbase=keys[0].address, bloom=bytes(256),
        )  # fmt: skip
        seals = world.certificate(header.hash, number, signers=tuple(keys[: quorum(50)]))
        chain.append(Sealed(header, seals))
        parent = header
    return config, chain, light


def test_a_block_of_fifty_validators_costs_little_more_than_its_34_signatures() -> None:
    """Both are measured here, in CPU time, each over signatures that nobody has recovered before."""
    took, plain = [], []
    for attempt in range(3):
        _, chain, light = fifty(20, start_ms=1 + attempt)
        began_s = time.process_time()
        for block in chain:
            light.follow(block)
        took.append(time.process_time() - began_s)
        assert light.head.number == 20
        _, others, _ = fifty(20, start_ms=100 + attempt)
        began_s = time.process_time()
        for block in others:
            for seal in block.certificate.seals:
                recover(_sealed_digest(block), seal)
        plain.append(time.process_time() - began_s)
    told = f"{1000 * min(took) / 20:.2f} ms a block, its signatures {1000 * min(plain) / 20:.2f} ms"
    assert min(plain) > 20 * 34 * 5e-6, f"that is too fast for 34 recoveries: {told}"
    assert min(took) < 1.5 * min(plain), told


def _sealed_digest(block: Sealed) -> Digest:
    from swarm.consensus.messages import commit_digest

    return commit_digest(world.CHAIN, block.header.number, block.certificate.view, block.header.hash)
