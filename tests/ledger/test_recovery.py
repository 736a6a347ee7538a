"""Recovery: what two thirds of the operators sign, which block it makes, and all that it must not make possible."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data

from swarm.consensus.certificate import Certificate
from swarm.encoding import Digest, to_hex
from swarm.errors import ConfigError, PeerError, RejectedError, StorageError
from swarm.identity import Identity, checksum
from swarm.ledger.abi import interface
from swarm.ledger.genesis import CONSORTIUM
from swarm.ledger.ledger import Ledger
from swarm.ledger.recovery import FILE_BYTES_MAX, Manifest, Recovery
from tests.ledger import world
from tests.ledger.world import BY_ADDRESS, CHAIN, MEMBERS, OPERATORS, STRANGER, open_ledger

LATER_MS = world.CREATED_MS + 86_400_000


def manifest(ledger: Ledger, *validators: int, **changes: Any) -> Manifest:
    """Members with these numbers are to be the validators of the next block."""
    made = Manifest(
        chain_id=ledger.chain_id,
        genesis=ledger.genesis_hash,
        height=ledger.head.number,
        head=ledger.head.hash,
        validators=tuple(sorted(MEMBERS[i].address for i in validators)),
        reason="two machine rooms burned down",
        created_ms=LATER_MS,
    )
    return replace(made, **changes)


def signed(made: Manifest, *operators: int) -> Recovery:
    found = Recovery(made)
    for index in operators:
        found = found.signed_by(OPERATORS[index])
    return found


def seals(ledger: Ledger, payload: bytes, voters: tuple[Identity, ...], vote_chain: int) -> Certificate:
    height, digest = ledger.head.number + 1, ledger.digest_of(payload)
    return world.certificate(digest, height, signers=voters, chain_id=vote_chain)


def recovery_block(ledger: Ledger, recovery: Recovery) -> tuple[bytes, Certificate]:
    """The block in which the manifest's validators record it, and their certificate."""
    ledger.begin_recovery(recovery)
    payload = ledger.build(world.now_ms(ledger), ledger.proposers()[0])
    assert payload is not None
    assert ledger.judge(payload, world.now_ms(ledger))
    voters = tuple(BY_ADDRESS[one] for one in recovery.manifest.validators)
    return payload, seals(ledger, payload, voters, recovery.electorate.vote_chain)


def test_the_block_after_the_last_one_replaces_the_validators(tmp_path: Path) -> None:
    ledger, follower = open_ledger(tmp_path / "a"), open_ledger(tmp_path / "b")
    for block in world.grow(ledger, 3):
        follower.append(*block)
    recovery = signed(manifest(ledger, 0, 1), 0, 1, 2)
    payload, certificate = recovery_block(ledger, recovery)
    assert ledger.validators() == recovery.manifest.validators
    ledger.append(payload, certificate)
    follower.append(payload, certificate)  # nobody imported anything there: the block proves itself
    for one in (ledger, follower):
        assert one.head.number == 4
        assert one.validators() == recovery.manifest.validators
        assert one.vote_chain == CHAIN
        assert one.recovery is None
    world.grow(ledger, 2)
    events = [interface("Consortium").event(log.topics, log.data) for log in ledger.block(4).receipts[0].logs]
    (recovered,) = [event for event in events if event is not None]
    assert recovered[0] == "Recovered"
    assert recovered[1]["head"] == recovery.manifest.head
    assert recovered[1]["signatures"] == 3
    assert recovered[1]["reason"] == "two machine rooms burned down"


def test_a_recovery_right_after_genesis_is_possible(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.append(*recovery_block(ledger, signed(manifest(ledger, 2), 0, 1, 3)))
    assert ledger.validators() == (MEMBERS[2].address,)


def test_what_waits_goes_into_the_same_block_behind_the_recovery(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.add_transaction(world.propose(OPERATORS[0], 0))
    payload, certificate = recovery_block(ledger, signed(manifest(ledger, 0, 1), 0, 1, 2))
    ledger.append(payload, certificate)
    assert [receipt.succeeded for receipt in ledger.block(1).receipts] == [True, True]
    assert not ledger.pending()


def test_an_imported_manifest_survives_a_restart_and_so_does_the_block_that_follows(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    world.grow(ledger, 2)
    ledger.save_vote(3, b"what was said under the validators before")
    recovery = signed(manifest(ledger, 0, 1), 0, 1, 2)
    ledger.begin_recovery(recovery)
    ledger.close()
    ledger = open_ledger(tmp_path)
    assert ledger.recovery == recovery
    assert ledger.pending()
    assert ledger.saved_vote(3) is None, "an old vote binds the new validators"
    ledger.save_vote(3, b"what is said now")
    ledger.begin_recovery(recovery)  # again: nothing happens
    assert ledger.saved_vote(3) == b"what is said now"
    payload = ledger.build(world.now_ms(ledger), ledger.proposers()[0])
    assert payload is not None
    ledger.append(payload, seals(ledger, payload, MEMBERS[:2], ledger.vote_chain))
    ledger.close()
    ledger = open_ledger(tmp_path)
    assert ledger.head.number == 3
    assert ledger.recovery is None
    world.grow(ledger, 1)


def test_votes_of_one_set_never_count_for_another(tmp_path: Path) -> None:
    """The validators before, those of the manifest, and those of another manifest: a seal counts in one place."""
    ledger, other = open_ledger(tmp_path / "a"), open_ledger(tmp_path / "b")
    plain = world.build(other, world.propose(OPERATORS[0], 0))
    recovery = signed(manifest(ledger, 0, 1, 2), 0, 1, 2)
    newer = signed(manifest(ledger, 0, 1, 2, created_ms=LATER_MS + 1), 0, 1, 2)
    payload, _ = recovery_block(ledger, recovery)
    assert not ledger.judge(plain, world.now_ms(ledger)), "who imported a manifest votes for nothing else"
    assert not other.judge(payload, world.now_ms(ledger)), "who did not does not vote for it"
    chains = (CHAIN, recovery.electorate.vote_chain, newer.electorate.vote_chain)
    assert len(set(chains)) == 3
    for block, right in ((plain, CHAIN), (payload, recovery.electorate.vote_chain)):
        for vote_chain in chains:
            if vote_chain != right:
                with pytest.raises(PeerError, match="no validator sealed"):
                    other.append(block, seals(other, block, MEMBERS[:3], vote_chain))
    with pytest.raises(PeerError, match="no validator sealed"):
        other.append(payload, seals(other, payload, MEMBERS[1:4], recovery.electorate.vote_chain))
    other.append(payload, seals(other, payload, MEMBERS[:3], recovery.electorate.vote_chain))


def test_a_block_that_the_validators_before_decided_after_all_ends_an_import(tmp_path: Path) -> None:
    """Nobody decided the recovery's block: the longer certified ledger stands, as everywhere."""
    ledger, other = open_ledger(tmp_path / "a"), open_ledger(tmp_path / "b")
    ((payload, certificate),) = world.grow(other, 1)
    ledger.begin_recovery(signed(manifest(ledger, 0, 1), 0, 1, 2))
    ledger.append(payload, certificate)
    assert ledger.recovery is None
    assert len(ledger.validators()) == 4
    world.grow(ledger, 1)


def test_where_both_were_decided_the_second_is_refused_everywhere(tmp_path: Path) -> None:
    ledger, other = open_ledger(tmp_path / "a"), open_ledger(tmp_path / "b")
    block = recovery_block(ledger, signed(manifest(ledger, 0, 1), 0, 1, 2))
    ((payload, certificate),) = world.grow(other, 1)
    ledger.append(*block)
    for one, second in ((ledger, (payload, certificate)), (other, block)):
        with pytest.raises(PeerError, match="does not follow"):
            one.append(*second)


REFUSED: dict[str, tuple[dict[str, Any], tuple[int, ...], str]] = {
    "another chain": ({"chain_id": 7}, (0, 1, 2), "is for chain 7"),
    "another genesis": ({"genesis": b"\1" * 32}, (0, 1, 2), "this is chain"),
    "a longer ledger": ({"height": 1}, (0, 1, 2), "block 2 is decided: the longer ledger stands"),
    "blocks that are missing here": ({"height": 3}, (0, 1, 2), "this ledger is at block 2"),
    "another block": ({"head": b"\1" * 32}, (0, 1, 2), "two blocks were decided at one height"),
    "too few signatures": ({}, (0, 1), "2 signatures; 3 of the 4 members' operators"),
    "nobody's signature": ({}, (), "0 signatures"),
    "no validators": ({"validators": ()}, (0, 1, 2), "names no validator"),
    "a stranger as validator": ({"validators": (STRANGER.address,)}, (0, 1, 2), "which is no member"),
    "an operator as validator": ({"validators": (OPERATORS[0].address,)}, (0, 1, 2), "which is no member"),
    "a validator twice": ({"validators": (MEMBERS[0].address,) * 2}, (0, 1, 2), "named twice"),
    "a long reason": ({"reason": "ä" * 129}, (0, 1, 2), "at most 256 bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_not_replace_validators_is_refused(tmp_path: Path, case: str) -> None:
    changes, operators, reason = REFUSED[case]
    ledger = open_ledger(tmp_path)
    world.grow(ledger, 2)
    with pytest.raises(RejectedError, match=reason):
        ledger.begin_recovery(signed(manifest(ledger, 0, 1, **changes), *operators))
    assert ledger.recovery is None
    assert len(ledger.validators()) == 4
    world.grow(ledger, 1)


def test_signatures_of_others_and_doubled_ones_are_refused(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    made = manifest(ledger, 0, 1)
    good = signed(made, 0, 1, 2)
    for identity in (STRANGER, MEMBERS[3], OPERATORS[5]):
        with pytest.raises(RejectedError, match="no member's operator"):
            ledger.begin_recovery(signed(made, 0, 1).signed_by(identity))
    with pytest.raises(RejectedError, match="one operator signed twice"):
        ledger.begin_recovery(replace(good, signatures=(*good.signatures[:2], good.signatures[1])))
    with pytest.raises(RejectedError, match="not sorted by operator"):
        ledger.begin_recovery(replace(good, signatures=good.signatures[::-1]))
    changed = replace(good, manifest=replace(made, reason="another reason"))
    with pytest.raises(RejectedError, match="over other lines"):
        ledger.begin_recovery(changed)
    with pytest.raises(ConfigError, match="has signed this manifest already"):
        good.signed_by(OPERATORS[1])


def test_the_newest_manifest_for_a_height_counts(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    first = signed(manifest(ledger, 0, 1), 0, 1, 2)
    ledger.begin_recovery(first)
    for stale in (LATER_MS, LATER_MS - 1):
        with pytest.raises(RejectedError, match="the newest one counts"):
            ledger.begin_recovery(signed(manifest(ledger, 0, 2, created_ms=stale), 0, 1, 2))
    ledger.save_vote(1, b"said under the first manifest")
    second = signed(manifest(ledger, 0, 2, created_ms=LATER_MS + 1), 0, 1, 2)
    payload, certificate = recovery_block(ledger, second)
    assert ledger.saved_vote(1) is None
    ledger.append(payload, certificate)
    with pytest.raises(RejectedError, match="the longer ledger stands"):
        ledger.begin_recovery(first)  # an old manifest, used again


def test_a_recovery_comes_by_import_only_and_first_in_its_block(tmp_path: Path) -> None:
    ledger, other = open_ledger(tmp_path / "a"), open_ledger(tmp_path / "b")
    recovery = signed(manifest(ledger, *range(4)), 0, 1, 2)
    with pytest.raises(RejectedError, match="swarm recover import"):
        ledger.add_transaction(recovery.transaction())
    behind = world.forge(other, world.propose(OPERATORS[0], 0), recovery.transaction())
    for vote_chain in (CHAIN, recovery.electorate.vote_chain):
        with pytest.raises(PeerError, match=r"the first transaction of its block|no validator sealed"):
            ledger.append(behind, seals(ledger, behind, MEMBERS[:4], vote_chain))
    data = interface("Consortium").call(
        "recover", recovery.manifest.genesis, 0, recovery.manifest.head, recovery.manifest.validators,
        recovery.manifest.reason, recovery.manifest.created_ms, recovery.signatures,
    )  # fmt: skip
    for carried in (
        world.signed(MEMBERS[0], 0, CONSORTIUM, data),
        world.signed(MEMBERS[0], 0, CONSORTIUM, data[:100]),
        signed(manifest(ledger, 0, 1), 0, 1).transaction(),
    ):
        payload = world.forge(other, carried)
        with pytest.raises(PeerError, match="begins with a false recovery"):
            ledger.append(payload, seals(ledger, payload, MEMBERS[:4], CHAIN))


def test_the_contract_comes_to_the_same_verdict(tmp_path: Path) -> None:
    """On another network the contract stands alone: it refuses by itself what the ledger refuses before it."""
    ledger = open_ledger(tmp_path)
    world.grow(ledger, 2)
    good = signed(manifest(ledger, 0, 1), 0, 1, 2)
    high = bytearray(good.signatures[1])
    s = int.from_bytes(high[32:64], "big")
    high[32:64] = (0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 - s).to_bytes(32, "big")
    high[64] ^= 1
    for recovery, reason in [
        (good, ""),
        (signed(manifest(ledger, 0, 1, height=1), 0, 1, 2), "for another height"),
        (signed(manifest(ledger, 0, 1, head=b"\1" * 32), 0, 1, 2), "for another block"),
        (signed(manifest(ledger, 0, 1), 0, 1), "two thirds of the operators have to sign"),
        (signed(manifest(ledger, 0, 1), 0, 1).signed_by(STRANGER), "only operators of members sign"),
        (replace(good, signatures=good.signatures[::-1]), "sorted by operator, and nobody signs twice"),
        (replace(good, signatures=(good.signatures[0],) * 3), "sorted by operator, and nobody signs twice"),
        (replace(good, signatures=(good.signatures[0], bytes(high), good.signatures[2])), "the lower half"),
        (replace(good, signatures=(b"", *good.signatures[1:])), "a signature has 65 bytes"),
        (replace(good, signatures=(bytes(65), *good.signatures[1:])), "only operators of members sign"),
        (replace(good, manifest=replace(good.manifest, reason="x")), "only operators of members sign"),
        (replace(good, manifest=replace(good.manifest, created_ms=1)), "only operators of members sign"),
        (signed(manifest(ledger, validators=()), 0, 1, 2), "at least one validator"),
        (signed(manifest(ledger, validators=(STRANGER.address,)), 0, 1, 2), "only a member can be a validator"),
        (signed(manifest(ledger, validators=(MEMBERS[0].address,) * 2), 0, 1, 2), "none is named twice"),
    ]:
        payload = world.forge(ledger, recovery.transaction())
        execution = ledger._executions.blocks.get(ledger.digest_of(payload)) or ledger._evm.execute(
            ledger.block(2).header,
            [ledger.decode_transaction(recovery.transaction())],
            timestamp_ms=world.now_ms(ledger),
            coinbase=MEMBERS[0].address,
            parent_beacon_block_root=bytes(32),
        )
        (receipt,) = execution.receipts
        assert receipt.succeeded is not bool(reason), reason
        assert reason.encode() in receipt.revert
        assert receipt.gas_used < 2_000_000


def test_a_wallet_that_knows_eip_712_signs_the_same(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    made = manifest(ledger, 0, 1)
    document = {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "Recovery": [
                {"name": "genesis", "type": "bytes32"},
                {"name": "height", "type": "uint256"},
                {"name": "head", "type": "bytes32"},
                {"name": "validators", "type": "address[]"},
                {"name": "reason", "type": "string"},
                {"name": "created", "type": "uint256"},
            ],
        },
        "primaryType": "Recovery",
        "domain": {
            "name": "Swarm Consortium",
            "version": "1",
            "chainId": CHAIN,
            "verifyingContract": checksum(CONSORTIUM),
        },
        "message": {
            "genesis": to_hex(made.genesis),
            "height": made.height,
            "head": to_hex(made.head),
            "validators": [checksum(one) for one in made.validators],
            "reason": made.reason,
            "created": made.created_ms,
        },
    }
    wallet = Account.sign_message(encode_typed_data(full_message=document), OPERATORS[0].secret).signature
    (ours,) = signed(made, 0).signatures
    assert bytes(wallet)[:64] == ours[:64]
    assert wallet[64] - 27 == ours[64]


def test_a_manifest_is_read_as_it_was_written_and_nothing_else_is(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    recovery = signed(manifest(ledger, 0, 1), 0, 2, 1)
    text = recovery.encode()
    assert Recovery.decode(text.encode()) == recovery
    assert recovery.signers == tuple(sorted(OPERATORS[i].address for i in range(3)))

    def changed(**fields: object) -> bytes:
        return json.dumps({**json.loads(text), **fields}).encode()

    forged: dict[str, Digest] = json.loads(text)["signatures"]
    first, *rest = forged
    for data, reason in [
        (b"", "not a recovery manifest"),
        (b"[]", "it has the fields"),
        (b"[" * 30_000, "not a recovery manifest"),
        (b" " * (FILE_BYTES_MAX + 1), "at most 65536 are read"),
        (changed(extra=1), "it has the fields"),
        (changed(height=-1), "height = -1"),
        (changed(height=True), "height = True"),
        (changed(created_ms=1.5), "created_ms = 1.5"),
        (changed(genesis="0x00"), "not a recovery manifest"),
        (changed(reason="x" * 257), "at most 256 bytes"),
        (changed(reason=7), "at most 256 bytes"),
        (changed(validators="all"), "validators is a list"),
        (changed(validators=[checksum(MEMBERS[0].address)] * 129), "validators is a list"),
        (changed(validators=[checksum(MEMBERS[1].address)]), "one of them was changed after it was signed"),
        (changed(signatures={first: forged[rest[0]]}), "not over these lines"),
        (changed(signatures={first: "0x1234"}), "is broken"),
        (changed(signatures=[]), "not a recovery manifest"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            Recovery.decode(data)


def test_a_damaged_manifest_on_disk_stops_the_node_and_says_so(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.begin_recovery(signed(manifest(ledger, 0, 1), 0, 1, 2))
    ledger.close()
    with sqlite3.connect(tmp_path / "votes.sqlite") as votes:
        votes.execute("UPDATE recoveries SET manifest = ?", (b"{}",))
    votes.close()
    with pytest.raises(StorageError, match="the manifest for height 1 has not the bytes that were written"):
        open_ledger(tmp_path)
