"""Building, judging and appending: the same bytes everywhere, and nothing that breaks a rule gets in."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import rlp

from swarm.consensus.certificate import Certificate
from swarm.encoding import keccak256, pack
from swarm.errors import PeerError, RejectedError
from swarm.identity import Identity
from swarm.ledger.abi import interface
from swarm.ledger.block import decode_payload, encode_payload
from swarm.ledger.genesis import CONSORTIUM, RUNS
from swarm.ledger.judging import ExecutionCache
from swarm.ledger.ledger import CLOCK_AHEAD_MS, ROTATE_EVERY, Ledger
from swarm.ledger.trie import ordered_root
from tests.ledger import world
from tests.ledger.world import MEMBERS, OPERATORS, STRANGER

Make = Callable[..., Ledger]


def refuse(ledger: Ledger, payload: bytes, reason: str | None = None, *, seals: Certificate | None = None) -> None:
    """Neither this ledger's vote nor a quorum of seals gets the payload in."""
    before = ledger.head
    assert not ledger.judge(payload, world.now_ms(ledger))
    if seals is None:
        try:
            seals = world.decision(ledger, payload)
        except (ValueError, PeerError):
            seals = world.certificate(keccak256(payload), ledger.head.number + 1)
    with pytest.raises(PeerError, match=reason):
        ledger.append(payload, seals)
    assert ledger.head == before


# --- agreement


def test_every_ledger_comes_to_the_same_hashes(make_ledger: Make) -> None:
    first, second, third = make_ledger(), make_ledger(), make_ledger()
    assert first.genesis_hash == second.genesis_hash
    for payload, seals in world.grow(first, 5):
        assert second.judge(payload, world.now_ms(second))
        second.append(payload, seals)
    for payload, seals_bytes in first.blocks_from(1, 1 << 30):
        third.append(payload, Certificate.decode(seals_bytes))
    assert first.head == second.head == third.head
    assert first.head.number == 5
    assert first.blocks_from(0, 1 << 30) == second.blocks_from(0, 1 << 30) == third.blocks_from(0, 1 << 30)


def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    ledger = world.open_ledger(tmp_path)
    world.grow(ledger, 3)
    before = (ledger.head, ledger.validators(), ledger.proposers(), ledger.blocks_from(1, 1 << 30))
    ledger.close()
    again = world.open_ledger(tmp_path)
    assert before == (again.head, again.validators(), again.proposers(), again.blocks_from(1, 1 << 30))
    world.grow(again, 2)
    assert again.head.number == 5
    again.close()


def test_an_execution_is_shared_and_never_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ExecutionCache()
    ledgers = [world.open_ledger(tmp_path / str(i), executions=shared) for i in range(3)]
    count = 0
    for ledger in ledgers:
        execute = ledger._evm.execute

        def counted(*args: object, execute: Callable[..., object] = execute, **kwargs: object) -> object:
            nonlocal count
            count += 1
            return execute(*args, **kwargs)

        monkeypatch.setattr(ledger._evm, "execute", counted)
    for payload, seals in world.grow(ledgers[0], 2):
        for ledger in ledgers[1:]:
            assert ledger.judge(payload, world.now_ms(ledger))
            ledger.append(payload, seals)
    assert count == 2
    assert len({ledger.head for ledger in ledgers}) == 1
    for ledger in ledgers:
        ledger.close()


def test_building_twice_and_judging_other_payloads_leaves_no_trace(make_ledger: Make) -> None:
    ledger, other = make_ledger(), make_ledger()
    ledger.add_transaction(world.propose(OPERATORS[0], 0))
    first = ledger.build(world.now_ms(ledger), MEMBERS[0].address)
    second = ledger.build(world.now_ms(ledger), MEMBERS[1].address)
    assert first is not None
    assert second is not None
    assert first != second
    assert ledger.judge(world.build(other, world.propose(OPERATORS[1], 0)), world.now_ms(ledger))
    assert ledger.head.number == 0
    world.decide(ledger, first)
    world.decide(other, first)
    assert ledger.head == other.head


def test_nothing_is_built_when_nothing_waits(ledger: Ledger) -> None:
    assert not ledger.pending()
    assert ledger.build(world.now_ms(ledger), MEMBERS[0].address) is None
    ledger.add_transaction(world.propose(OPERATORS[0], 3))
    assert not ledger.pending()
    assert ledger.build(world.now_ms(ledger), MEMBERS[0].address) is None


def test_time_goes_on_even_where_the_proposers_clock_stands_still(ledger: Ledger) -> None:
    for nonce in range(3):
        ledger.add_transaction(world.propose(OPERATORS[0], nonce))
        payload = ledger.build(0, MEMBERS[0].address)
        assert payload is not None
        assert ledger.judge(payload, 10 * CLOCK_AHEAD_MS + world.CREATED_MS)
        world.decide(ledger, payload)
    assert ledger.head.timestamp_ms == world.CREATED_MS + 3


# --- what does not get in


@pytest.mark.parametrize("field", range(20))
def test_a_change_of_any_header_field_is_refused(ledger: Ledger, field: int) -> None:
    world.grow(ledger, 1)
    block, parent = decode_payload(world.build(ledger, world.propose(OPERATORS[1], 0)))
    parts = rlp.decode(block)
    value = parts[0][field]
    for changed in {
        bytes([value[0] ^ 1]) + value[1:] if value else b"\x01",
        value[:-1] + bytes([value[-1] ^ 1]) if value else b"\x02",
        value + b"\x01",
        value[1:],
        b"",
        b"\x00",
    } - {value}:
        header = [*parts[0][:field], changed, *parts[0][field + 1 :]]
        payload = encode_payload(rlp.encode([header, *parts[1:]]), parent)
        if field == 11 and int.from_bytes(changed, "big") > ledger.head.timestamp_ms and changed[0]:
            # The time is the proposer's to choose; what is wrong with the future is another test's.
            continue
        refuse(ledger, payload)


def test_other_transactions_under_the_same_header_are_refused(ledger: Ledger) -> None:
    raws = [world.propose(operator, 0, kind=kind) for kind, operator in enumerate(OPERATORS[:3])]
    block, parent = decode_payload(world.build(ledger, *raws))
    header, transactions, uncles, withdrawals = rlp.decode(block)
    other = world.propose(OPERATORS[3], 0)
    for wrong in (
        [*reversed(transactions)],
        transactions[1:],
        [*transactions, transactions[0]],
        [*transactions[:2], other],
        [*transactions, b"\x80"],
        [*transactions, b""],
        [],
    ):
        refuse(ledger, encode_payload(rlp.encode([header, wrong, uncles, withdrawals]), parent))
    refuse(ledger, encode_payload(rlp.encode([header, transactions, [header], withdrawals]), parent))
    refuse(ledger, encode_payload(rlp.encode([header, transactions, uncles, [[b"", b"", bytes(20), b""]]]), parent))
    refuse(ledger, encode_payload(rlp.encode([header, transactions, uncles]), parent))
    refuse(ledger, encode_payload(block + b"\x00", parent))
    refuse(ledger, encode_payload(block[:-1], parent))
    assert ledger.judge(encode_payload(block, parent), world.now_ms(ledger))


def test_a_good_block_is_still_taken_after_its_header_came_with_a_wrong_body(ledger: Ledger) -> None:
    payload = world.forge(ledger, world.propose(OPERATORS[0], 0))
    block, parent = decode_payload(payload)
    header, _, uncles, withdrawals = rlp.decode(block)
    body = [world.propose(OPERATORS[1], 0)]
    refuse(ledger, encode_payload(rlp.encode([header, body, uncles, withdrawals]), parent))
    world.decide(ledger, payload)
    assert ledger.head.number == 1


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (lambda ledger: world.forge(ledger), "no transaction"),
        (
            lambda ledger: world.forge(ledger, world.signed(OPERATORS[0], 0, STRANGER.address, b"")),
            "call the members' own contracts",
        ),
        (
            lambda ledger: world.forge(ledger, world.signed(OPERATORS[0], 0, None, b"\x00")),
            "call the members' own contracts",
        ),
        (
            lambda ledger: world.forge(ledger, world.propose(OPERATORS[0], 0), coinbase=STRANGER.address),
            "no validator",
        ),
        (
            lambda ledger: world.forge(ledger, world.propose(OPERATORS[0], 0), timestamp_ms=ledger.head.timestamp_ms),
            "has time",
        ),
        (lambda ledger: b"", "not a payload"),
        (lambda ledger: pack([b"", b"", b""]), "not a payload"),
        (lambda ledger: pack([b"\xc0", b""]), "not a payload"),
        (lambda ledger: b"\xff" * 100, "not a payload"),
    ],
)
def test_a_block_that_breaks_this_ledgers_own_rules_is_refused(
    ledger: Ledger, payload: Callable[[Ledger], bytes], reason: str
) -> None:
    refuse(ledger, payload(ledger), reason)


def test_a_block_from_the_future_gets_no_vote(ledger: Ledger) -> None:
    payload = world.build(ledger, world.propose(OPERATORS[0], 0))
    now = world.now_ms(ledger)
    assert ledger.judge(payload, now - CLOCK_AHEAD_MS)
    assert not ledger.judge(payload, now - CLOCK_AHEAD_MS - 1)
    # But where a quorum's clocks agreed, a follower with a slow clock goes along.
    world.decide(ledger, payload)


def test_only_the_next_block_is_taken(make_ledger: Make) -> None:
    ledger, other = make_ledger(), make_ledger()
    decided = world.grow(other, 3)
    refuse(ledger, decided[1][0], "does not follow", seals=decided[1][1])
    ledger.append(*decided[0])
    refuse(ledger, decided[0][0], "does not follow", seals=decided[0][1])
    fork = make_ledger()
    world.decide(fork, world.build(fork, world.propose(OPERATORS[3], 0)))
    payload = world.build(fork, world.propose(OPERATORS[3], 1))
    refuse(ledger, payload, "does not follow", seals=world.decision(fork, payload))


def test_a_transaction_of_another_chain_is_refused(ledger: Ledger) -> None:
    payload = world.forge(ledger, world.propose(OPERATORS[0], 0))
    block, parent = decode_payload(payload)
    header, _, uncles, withdrawals = rlp.decode(block)
    for kind in (0, 1, 2):
        raw = world.propose(OPERATORS[0], 0, kind=kind, chain_id=1)
        item = rlp.decode(raw) if kind == 0 else raw
        fields = [*header[:4], ordered_root([raw]), *header[5:]]
        refuse(ledger, encode_payload(rlp.encode([fields, [item], uncles, withdrawals]), parent), "chain")


# --- certificates


def test_a_block_without_a_quorums_seals_is_refused(ledger: Ledger) -> None:
    payload = world.build(ledger, world.propose(OPERATORS[0], 0))
    digest = ledger.digest_of(payload)

    def sealed(*signers: Identity, height: int = 1, view: int = 0, chain: int = world.CHAIN) -> Certificate:
        return world.certificate(digest, height, view=view, signers=signers, chain_id=chain)

    good = sealed(*MEMBERS[:3])
    mixed = Certificate(0, tuple(sorted((*sealed(*MEMBERS[:2]).seals, *sealed(MEMBERS[2], view=1).seals))))
    for wrong in (
        Certificate(0, ()),
        sealed(*MEMBERS[:2]),
        sealed(*MEMBERS[:2], STRANGER),
        sealed(*MEMBERS[:2], MEMBERS[5]),
        sealed(*MEMBERS[:2], OPERATORS[2]),
        sealed(*MEMBERS[:3], height=2),
        sealed(*MEMBERS[:3], chain=1),
        Certificate(1, good.seals),
        Certificate(0, tuple(reversed(good.seals))),
        Certificate(0, (*good.seals, good.seals[-1])),
        Certificate(0, (*good.seals[:2], bytes(65))),
        mixed,
        world.certificate(keccak256(payload), 1),
    ):
        with pytest.raises(PeerError, match="certificate"):
            ledger.append(payload, wrong)
    assert ledger.head.number == 0
    ledger.append(payload, good)


def test_a_block_that_carries_a_wrong_certificate_of_its_parent_is_refused(ledger: Ledger) -> None:
    world.grow(ledger, 1)
    raw = world.propose(OPERATORS[1], 0)
    good = ledger.certificate(1)
    head = ledger.head.hash

    def carrying(parent: bytes) -> bytes:
        execution = ledger._evm.execute(
            ledger.block(1).header,
            [ledger.decode_transaction(raw)],
            timestamp_ms=world.now_ms(ledger),
            coinbase=MEMBERS[0].address,
            parent_beacon_block_root=keccak256(parent),
        )
        return encode_payload(execution.block, parent)

    for parent in (
        b"",
        b"\x80",
        good + b"\x00",
        bytes(20_000),
        Certificate(1, Certificate.decode(good).seals).encode(),
        world.certificate(head, 1, signers=MEMBERS[:2]).encode(),
        world.certificate(head, 1, signers=(*MEMBERS[:2], STRANGER)).encode(),
        world.certificate(bytes(32), 1).encode(),
    ):
        refuse(ledger, carrying(parent))
    block, _ = decode_payload(carrying(good))
    refuse(ledger, encode_payload(block, world.certificate(head, 1).encode()))
    # Another quorum's seals, of another view too, are as good as ours.
    other = world.certificate(head, 1, view=3, signers=MEMBERS[1:4]).encode()
    assert ledger.judge(carrying(other), world.now_ms(ledger))


def test_the_first_block_carries_no_certificate(ledger: Ledger) -> None:
    block, _ = decode_payload(world.build(ledger, world.propose(OPERATORS[0], 0)))
    parts = rlp.decode(block)
    parts[0][19] = keccak256(b"\xc0")
    refuse(ledger, encode_payload(rlp.encode(parts), b"\xc0"))


def test_all_ledgers_end_with_the_certificate_that_the_child_carries(make_ledger: Make) -> None:
    first, second = make_ledger(), make_ledger()
    payload = world.build(first, world.propose(OPERATORS[0], 0))
    digest = first.digest_of(payload)
    first.append(payload, world.certificate(digest, 1, signers=MEMBERS[:3]))
    second.append(payload, world.certificate(digest, 1, view=2, signers=MEMBERS[1:4]))
    assert first.certificate(1) != second.certificate(1)
    child = world.build(first, world.propose(OPERATORS[0], 1))
    seals = world.decision(first, child)
    first.append(child, seals)
    second.append(child, seals)
    assert first.certificate(1) == second.certificate(1) == decode_payload(child)[1]


# --- members and proposers


def admit(ledger: Ledger, index: int) -> None:
    """Member `index` is nominated and approved by a quorum of four."""
    nominee = (MEMBERS[index].address, OPERATORS[index].address, f"site {index}", "/ip4/1/p2p/x", bytes(32), True)
    nonces = [ledger.next_nonce(operator.address) for operator in OPERATORS[:3]]
    world.decide(ledger, world.build(ledger, world.call(OPERATORS[0], nonces[0], "nominate", *nominee)))
    data = interface("Consortium").call("approve", 1)
    raws = [world.signed(one, nonce, CONSORTIUM, data) for one, nonce in zip(OPERATORS[1:3], nonces[1:], strict=True)]
    world.decide(ledger, world.build(ledger, *raws))


def test_an_admitted_validator_decides_from_the_next_block_on(make_ledger: Make) -> None:
    ledger, follower = make_ledger(), make_ledger()
    assert ledger.touched_members()
    with pytest.raises(RejectedError, match="neither a member"):
        ledger.add_transaction(world.call(MEMBERS[4], 0, "join", 1, True))
    world.grow(ledger, 1)
    assert not ledger.touched_members()
    admit(ledger, 4)
    assert ledger.touched_members()
    assert set(ledger.validators()) == {member.address for member in MEMBERS[:5]}
    world.grow(ledger, 1)
    ledger.add_transaction(world.call(MEMBERS[4], 0, "join", 1, True))
    payload = world.build(ledger)
    with pytest.raises(PeerError, match="3 seals; 4 to 5"):
        ledger.append(payload, world.certificate(ledger.digest_of(payload), 5, signers=MEMBERS[:3]))
    for payload, seals in ledger.blocks_from(1, 1 << 30):
        follower.append(payload, Certificate.decode(seals))
    assert follower.head == ledger.head
    assert follower.validators() == ledger.validators()


def test_after_a_restart_the_parents_certificate_is_checked_against_those_who_decided_it(tmp_path: Path) -> None:
    ledger = world.open_ledger(tmp_path)
    admit(ledger, 4)
    head = ledger.head.hash
    ledger.close()
    again = world.open_ledger(tmp_path)
    world.decide(again, world.build(again, world.propose(OPERATORS[3], 0)))
    # The block that admitted the fifth was decided by four.
    assert len(Certificate.decode(again.certificate(2)).seals) == 3
    assert again.block(3).header.parent_hash == head
    again.close()


def test_a_proposer_goes_on_and_hands_over_at_every_sixteenth_block(ledger: Ledger) -> None:
    order = ledger.validators()
    assert ledger.proposers() == order
    for height in range(1, 2 * ROTATE_EVERY + 2):
        if ledger.head.number:
            last = order.index(ledger.head.coinbase)
            first = (last + 1) % 4 if height % ROTATE_EVERY == 0 else last
            assert ledger.proposers() == order[first:] + order[:first], height
        # At height 5 the proposer is dead and the next one's block is decided.
        coinbase = ledger.proposers()[1 if height == 5 else 0]
        ledger.add_transaction(world.propose(OPERATORS[0], height - 1))
        payload = ledger.build(world.now_ms(ledger), coinbase)
        assert payload is not None
        world.decide(ledger, payload)
    assert ledger.head.coinbase == order[3]


def test_the_turn_of_a_removed_validator_goes_to_the_next_by_address(make_ledger: Make) -> None:
    ledger = make_ledger(5)
    order = ledger.validators()
    gone = order[2]
    member = world.BY_ADDRESS[gone]
    ledger.add_transaction(world.signed(member, 0, CONSORTIUM, interface("Consortium").call("standDown")))
    payload = ledger.build(world.now_ms(ledger), gone)
    assert payload is not None
    world.decide(ledger, payload)
    assert ledger.validators() == tuple(one for one in order if one != gone)
    assert ledger.proposers() == (order[3], order[4], order[0], order[1])


# --- waiting transactions


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not a transaction"),
        (b"\x00" * 10, "not a transaction"),
        (b"\x03" + b"\x00" * 10, "type 3"),
        (b"\xf8", "not a transaction"),
        (b"\x02\xc0", "not a transaction"),
        (bytes(70_000), "at most 65536"),
        (world.propose(STRANGER, 0), "neither a member nor"),
        (world.propose(OPERATORS[5], 0), "neither a member nor"),
        (world.propose(OPERATORS[0], 0, chain_id=1), "chain 1"),
        (world.propose(OPERATORS[0], 0, kind=0, chain_id=1), "EIP-155"),
        (world.propose(OPERATORS[0], 0, price=1), "cannot pay"),
        (world.propose(OPERATORS[0], 0, value=1), "cannot pay"),
        (world.propose(OPERATORS[0], 0, gas=20_999), "gas limit"),
        (world.propose(OPERATORS[0], 0, gas=20_000_001), "gas limit"),
        (world.propose(OPERATORS[0], 64), "too far ahead"),
        (world.signed(OPERATORS[0], 0, STRANGER.address, b""), "call the members' own contracts"),
        (world.signed(OPERATORS[0], 0, None, b""), "call the members' own contracts"),
    ],
)
def test_a_transaction_that_no_block_will_have_is_refused_with_the_reason(
    ledger: Ledger, raw: bytes, reason: str
) -> None:
    with pytest.raises(RejectedError, match=reason):
        ledger.add_transaction(raw)
    assert not ledger.pending_transactions()


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_transaction_is_refused_or_somebody_elses(ledger: Ledger, seed: int) -> None:
    rng = random.Random(seed)
    raw = bytearray(world.propose(OPERATORS[0], 0, kind=seed % 3))
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    with pytest.raises(RejectedError):
        ledger.add_transaction(bytes(raw))


def test_a_known_transaction_is_taken_again_without_a_word(ledger: Ledger) -> None:
    raw = world.propose(OPERATORS[0], 0)
    digest = ledger.add_transaction(raw)
    assert ledger.add_transaction(raw) == digest == keccak256(raw)
    assert ledger.pending_transactions() == [raw]
    world.decide(ledger, world.build(ledger))
    assert ledger.pending_transactions() == []
    assert ledger.add_transaction(raw) == digest
    assert ledger.pending_transactions() == []
    with pytest.raises(RejectedError, match="nonce 0 is used"):
        ledger.add_transaction(world.propose(OPERATORS[0], 0, "other"))


def test_a_removed_members_waiting_transactions_are_dropped(make_ledger: Make) -> None:
    ledger = make_ledger(5)
    ledger.add_transaction(world.call(MEMBERS[4], 1, "join", 1, True))
    removal = world.signed(
        OPERATORS[0], 0, CONSORTIUM, interface("Consortium").call("proposeRemoval", MEMBERS[4].address)
    )
    world.decide(ledger, world.build(ledger, removal))
    assert len(ledger.pending_transactions()) == 1
    data = interface("Consortium").call("approve", 1)
    world.decide(ledger, world.build(ledger, *[world.signed(one, 0, CONSORTIUM, data) for one in OPERATORS[1:4]]))
    assert MEMBERS[4].address not in ledger.validators()
    assert ledger.pending_transactions() == []


def test_blocks_are_handed_out_within_the_bytes_that_are_asked_for(ledger: Ledger) -> None:
    decided = world.grow(ledger, 6)
    sizes = [len(payload) + len(seals.encode()) for payload, seals in decided]
    assert len(ledger.blocks_from(1, 0)) == 1
    assert len(ledger.blocks_from(2, sum(sizes[1:4]))) == 3
    assert [payload for payload, _ in ledger.blocks_from(4, 1 << 30)] == [payload for payload, _ in decided[3:]]
    assert ledger.blocks_from(7, 1 << 30) == []
    assert ledger.blocks_from(1 << 62, 1 << 30) == []


def test_only_bounded_contracts_can_be_called() -> None:
    """The rule that keeps one member from keeping every node busy names both contracts."""
    assert {CONSORTIUM, RUNS} == {bytes(18) + b"\x10\x01", bytes(18) + b"\x10\x02"}
