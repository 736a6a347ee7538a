"""What a liar or a broken disk can put in: each refused with who and what, and nothing revealed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from swarm.encoding import sha256
from swarm.errors import PeerError
from swarm.merge import Schema, Tensor, write_file
from swarm.merge import merge as visible_merge
from swarm.merge.blind import (
    BadVector,
    Blob,
    Encoding,
    Fresh,
    Keys,
    Masked,
    Missing,
    Reveal,
    Seat,
    Survivors,
    Unfit,
    Unmasking,
    blob_of,
    check_fits,
    encode,
    exponents_of,
    freeze,
    masks_of,
    merge,
    open_blob,
    public_key,
    reveal_of,
    shares_of,
    unmasking,
)
from swarm.merge.blind.blob import BLOB_BYTES_MAX
from swarm.merge.blind.merging import sum_masked
from swarm.merge.blind.shares import chance_bytes, combine, split
from tests.merge.blind.world import SCHEMA, Played, World, play, values_of, world
from tests.merge.reference import policy, vector_file


@pytest.fixture
def case(tmp_path: Path) -> World:
    """Seven honest members: t is 5."""
    return world(1, tmp_path, members=7, faults=())


def played(case: World) -> Played:
    return play(case, random.Random(0))


def with_fault(folder: Path, *faults: str) -> tuple[World, Played]:
    case = world(1, folder, members=7, faults=faults)
    return case, played(case)


def name_of(member: bytes) -> str:
    return member[:4].hex()


def test_a_secret_that_is_not_of_the_key_on_the_ledger_is_refused(case: World) -> None:
    site = case.sites[0]
    with pytest.raises(ValueError, match=f"not that of key 1 of {name_of(site.member)} on the ledger"):
        Keys(case.attempt, site.member, bytes(31) + b"\x01")


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31)])
def test_a_key_with_which_every_secret_is_zero_is_refused(case: World, key: bytes) -> None:
    seats = list(case.attempt.seats)
    seats[3] = Seat(seats[3].member, 2, key)
    keys = Keys(replace(case.attempt, seats=tuple(seats)), case.sites[0].member, case.sites[0].secret)
    with pytest.raises(PeerError, match=f"key 2 of {name_of(seats[3].member)} .* is no key") as caught:
        keys.root(seats[3].member)
    assert caught.value.member == seats[3].member


def test_an_attempt_has_three_seats_or_more_in_order_each_with_a_key(case: World) -> None:
    seats = case.attempt.seats
    with pytest.raises(ValueError, match="among 2 members; 3 to 128 can hide"):
        replace(case.attempt, seats=seats[:2])
    with pytest.raises(ValueError, match="order of their addresses, each once"):
        replace(case.attempt, seats=seats[::-1])
    with pytest.raises(ValueError, match="order of their addresses, each once"):
        replace(case.attempt, seats=(seats[0], *seats[:3]))
    with pytest.raises(ValueError, match=f"the key of {name_of(seats[0].member)} has 3 bytes, 32 belong"):
        replace(case.attempt, seats=(Seat(seats[0].member, 1, b"key"), *seats[1:]))
    with pytest.raises(ValueError, match="has no seat in attempt 1 at round 4"):
        case.attempt.place(b"\x01" * 20)


def test_seeds_and_keys_have_their_length(case: World) -> None:
    with pytest.raises(ValueError, match="32 bytes, found 16"):
        Fresh.of(bytes(16), case.attempt)
    with pytest.raises(ValueError, match="32 bytes, found 31"):
        public_key(bytes(31))


def blob_bytes(case: World, number: int) -> bytes:
    site = case.sites[number]
    return blob_of(case.keys(site), case.fresh(site)).encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "not canonical RLP"),
        (lambda data: b"", "no bytes"),
        (lambda data: data + b"\x00", "items where one belongs"),
        (lambda data: bytes(BLOB_BYTES_MAX + 1), f"at most {BLOB_BYTES_MAX} are read"),
        (lambda data: b"\xc0", "a list of 0 where 6 belong"),
    ],
)
def test_what_is_no_blob_is_refused_with_its_sender(case: World, change: object, words: str) -> None:
    sender = case.sites[2].member
    with pytest.raises(PeerError, match=f"what {name_of(sender)} joins attempt 1 at round 4 with.*{words}") as caught:
        Blob.decode(change(blob_bytes(case, 2)), case.attempt, sender)  # type: ignore[operator]
    assert caught.value.member == sender


def test_a_blob_of_another_attempt_or_member_is_refused(case: World) -> None:
    data, sender = blob_bytes(case, 2), case.sites[2].member
    with pytest.raises(PeerError, match=r"it is for the attempt .*, this one is"):
        Blob.decode(data, replace(case.attempt, number=2), sender)
    with pytest.raises(PeerError, match=f"it is by {name_of(sender)}"):
        Blob.decode(data, case.attempt, case.sites[3].member)


def test_every_flipped_bit_of_a_blob_is_noticed_by_those_whom_it_concerns(case: World) -> None:
    data, sender = blob_bytes(case, 0), case.sites[0].member
    source = random.Random(5)
    noticed = 0
    for _ in range(200):
        place = source.randrange(len(data))
        changed = bytearray(data)
        changed[place] ^= 1 << source.randrange(8)
        try:
            blob = Blob.decode(bytes(changed), case.attempt, sender)
        except PeerError:
            noticed += 1
            continue
        found = []
        for site in case.sites[1:]:
            try:
                found.append(open_blob(case.keys(site), blob).agrees)
            except PeerError:
                found.append(False)
        honest = Blob.decode(data, case.attempt, sender)
        whole = (blob.self_commitment, blob.recovery_commitment, blob.seeds) == (
            honest.self_commitment, honest.recovery_commitment, honest.seeds,
        )  # fmt: skip
        assert not all(found) or not whole
        noticed += 1
    assert noticed == 200


def test_a_share_that_does_not_open_or_match_names_its_sender(case: World) -> None:
    sender, me = case.sites[0], case.sites[1]
    blob = blob_of(case.keys(sender), case.fresh(sender))
    entry = blob.entry(case.attempt, me.member)
    place = blob.entries.index(entry)

    def with_entry(changed: object) -> Blob:
        return replace(blob, entries=(*blob.entries[:place], changed, *blob.entries[place + 1 :]))  # type: ignore[arg-type]

    with pytest.raises(PeerError, match=f"{name_of(sender.member)} sealed for {name_of(me.member)} do not open"):
        open_blob(case.keys(me), with_entry(replace(entry, sealed=bytes(60))))
    with pytest.raises(PeerError, match=r"the share of its self seed that .* differs from its commitment"):
        open_blob(case.keys(me), with_entry(replace(entry, self_share=bytes(32))))
    with pytest.raises(PeerError, match=r"the share of its recovery seed that .* differs from its commitment"):
        open_blob(case.keys(me), with_entry(replace(entry, recovery_share=bytes(32))))
    assert not open_blob(case.keys(me), with_entry(replace(entry, pair=bytes(32)))).agrees
    # What was sealed for one other member says nothing to a third.
    other = blob.entry(case.attempt, case.sites[2].member)
    with pytest.raises(PeerError, match="do not open"):
        open_blob(case.keys(me), with_entry(other))


def test_who_loses_too_many_edges_is_out_and_the_others_go_on(case: World) -> None:
    names = [site.member for site in case.sites]
    liar = names[3]
    everyone = {name: {liar} if name != liar else set() for name in names}
    assert freeze(case.attempt, everyone).joined == set(names) - {liar}
    # The saboteur removes its own edges only.
    assert freeze(case.attempt, {n: set() if n != liar else set(names) - {liar} for n in names}).joined == set(
        names
    ) - {liar}  # fmt: skip
    two = freeze(case.attempt, {name: {liar} if name in names[:2] else set() for name in names})
    assert two.joined == set(names)
    assert liar not in two.neighbors(names[0])
    assert names[0] not in two.neighbors(liar)
    assert two.neighbors(names[4]) == tuple(sorted(set(names) - {names[4]}))


def test_who_remains_does_not_depend_on_the_order(case: World) -> None:
    source = random.Random(3)
    names = [site.member for site in case.sites]
    for _ in range(50):
        dropped = {name: {o for o in names if o != name and source.random() < 0.15} for name in names}
        found = set()
        for _ in range(5):
            order = list(dropped.items())
            source.shuffle(order)
            try:
                found.add(freeze(case.attempt, dict(order)))
            except ValueError as error:
                found.add(str(error))  # type: ignore[arg-type]
        assert len(found) == 1


def test_an_attempt_of_too_few_is_void(case: World) -> None:
    names = [site.member for site in case.sites]
    with pytest.raises(ValueError, match="attempt 1 at round 4: 0 of the 4 members who confirmed keep 4 edges, 5"):
        freeze(case.attempt, dict.fromkeys(names[:4], ()))
    with pytest.raises(ValueError, match=f"{name_of(names[0])} drops the edge to itself"):
        freeze(case.attempt, {names[0]: [names[0]]})
    with pytest.raises(ValueError, match="has no seat"):
        freeze(case.attempt, {name: [b"\x01" * 20] for name in names})


def test_a_sum_of_too_few_or_of_strangers_is_never_unmasked(case: World) -> None:
    found = played(case)
    names = [site.member for site in case.sites]
    with pytest.raises(ValueError, match="4 updates would be in the sum, 5 are needed to hide one"):
        Survivors(found.frozen, frozenset(names[:4]))
    with pytest.raises(ValueError, match="does not take part in this attempt"):
        Survivors(found.frozen, frozenset([*names, b"\x01" * 20]))


def test_who_is_not_in_the_sum_reveals_nothing_of_itself(case: World) -> None:
    found = played(case)
    site = case.sites[0]
    without = Survivors(found.frozen, found.frozen.joined - {site.member})
    with pytest.raises(ValueError, match=f"{name_of(site.member)} is not in the sum and reveals nothing of itself"):
        reveal_of(without, case.keys(site), case.fresh(site))


def test_nobody_gives_a_self_share_of_the_vanished_or_a_recovery_share_of_a_survivor(case: World) -> None:
    found = played(case)
    names = frozenset(site.member for site in case.sites)
    survivors = Survivors(found.frozen, names - {case.sites[6].member})
    everything = Missing(names, names)
    for site in case.sites:
        said = shares_of(survivors, everything, site.member, site.held)
        assert set(said.self_shares) <= survivors.members
        assert set(said.recovery_shares) <= survivors.vanished
        assert not set(said.self_shares) & set(said.recovery_shares)


def test_a_reveal_for_another_set_of_survivors_opens_nothing(tmp_path: Path) -> None:
    case, found = with_fault(tmp_path, "vanishes after confirming")
    everybody = Survivors(found.frozen, found.frozen.joined)
    wrong = [
        reveal_of(everybody, case.keys(site), case.fresh(site)) for site in case.sites
    ]  # as if the vanished were in the sum: no pair seed comes out
    missing = unmasking(found.survivors, found.blobs, wrong)
    assert isinstance(missing, Missing)
    assert missing.recovery_seeds == found.survivors.vanished
    assert not missing.self_seeds


def test_wrong_reveals_count_as_silence_and_name_nobody_else(case: World) -> None:
    found = played(case)
    liar = case.sites[2].member
    said = [
        part if not isinstance(part, Reveal) or part.member != liar else Reveal(liar, bytes(16)) for part in found.said
    ]
    assert unmasking(found.survivors, found.blobs, said) == Missing(frozenset([liar]), frozenset())
    # Another member's word for it does not count either.
    said.append(Reveal(case.sites[3].member, case.fresh(case.sites[2]).self_seed))
    assert unmasking(found.survivors, found.blobs, said) == Missing(frozenset([liar]), frozenset())


def test_a_member_whose_own_shares_do_not_open_its_seed_is_to_blame(case: World) -> None:
    liar = case.sites[2]
    keys, fresh = case.keys(liar), case.fresh(liar)
    honest = blob_of(keys, fresh)
    # Shares of another secret, each with its own right commitment: nobody can see it beforehand.
    other = blob_of(keys, replace(fresh, self_seed=bytes(16), recovery_seed=bytes(16)))
    blob = replace(other, self_commitment=honest.self_commitment, recovery_commitment=honest.recovery_commitment)
    found = played(case)
    blobs = found.blobs | {liar.member: blob}
    held = {s.member: open_blob(case.keys(s), blob) for s in case.sites if s is not liar}
    for missing, survivors, what in (
        (Missing(frozenset([liar.member]), frozenset()), found.survivors, "self"),
        (
            Missing(frozenset(), frozenset([liar.member])),
            Survivors(found.frozen, found.frozen.joined - {liar.member}),
            "recovery",
        ),
    ):
        said = [shares_of(survivors, missing, s.member, {liar.member: held[s.member]}) for s in case.sites[3:]]
        said += [shares_of(survivors, missing, s.member, {liar.member: held[s.member]}) for s in case.sites[:2]]
        with pytest.raises(PeerError, match=f"{name_of(liar.member)} committed to do not open its {what}") as caught:
            unmasking(survivors, blobs, said)
        assert caught.value.member == liar.member


def test_who_sealed_other_pair_seeds_than_it_committed_to_is_to_blame(case: World) -> None:
    liar = case.sites[2]
    honest = blob_of(case.keys(liar), case.fresh(liar))
    for seeds, words in ((bytes(len(honest.seeds)), "do not open under its recovery seed"), (None, "not the one that")):
        if seeds is None:
            other = Keys(replace(case.attempt, round=9), liar.member, liar.secret)
            seeds = _sealed_seeds(case, other, liar.seed)
        blob = replace(honest, seeds=seeds)
        found = played(case)
        survivors = Survivors(found.frozen, found.frozen.joined - {liar.member})
        missing = Missing(frozenset(), frozenset([liar.member]))
        said = [shares_of(survivors, missing, s.member, s.held) for s in case.sites if s is not liar]
        with pytest.raises(PeerError, match=words) as caught:
            unmasking(survivors, found.blobs | {liar.member: blob}, said)
        assert caught.value.member == liar.member


def _sealed_seeds(case: World, other: Keys, seed: bytes) -> bytes:
    """Pair seeds of another round, sealed as those of this one."""
    from swarm.merge.blind.blob import _seeds_cipher

    pairs = b"".join(other.pair_seed(m) for m in case.attempt.members if m != other.me)
    cipher = _seeds_cipher(Fresh.of(seed, case.attempt).recovery_seed, case.attempt)
    return cipher.encrypt(bytes(12), pairs, case.attempt.context + other.me)


def test_shares_have_their_length_and_number() -> None:
    with pytest.raises(ValueError, match="16 bytes is split, found 15"):
        split(bytes(15), threshold=2, count=3, chance=bytes(16))
    with pytest.raises(ValueError, match="4 of 3 shares"):
        split(bytes(16), threshold=4, count=3, chance=bytes(48))
    with pytest.raises(ValueError, match="1 random bytes, 16 are used"):
        split(bytes(16), threshold=2, count=3, chance=b"x")
    with pytest.raises(ValueError, match="1 shares, 2 open"):
        combine({0: bytes(16)}, 2)
    assert chance_bytes(2) == 16


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("norm_max", [np.inf, 1.0])
def test_a_value_that_is_not_finite_names_its_place_and_leaves_no_file(
    tmp_path: Path, bad: float, norm_max: float
) -> None:
    values = np.zeros(200_000, np.float32)
    values[123_456] = bad
    update = tmp_path / "update"
    write_file(update, Schema.of([Tensor("x", "F32", values.shape)]), {"x": values})
    with pytest.raises(Unfit, match=rf"element 123456 of x F32\[200000\] is {bad}"):
        encode(update, 1, Encoding(3, (0,), 0, norm_max), (), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weight", [0, -1, 1.5, True, "3"])
def test_a_weight_is_a_positive_whole_number(tmp_path: Path, weight: object) -> None:
    update = vector_file(tmp_path / "update", np.zeros(3))
    with pytest.raises(ValueError, match="a positive whole number belongs there"):
        encode(update, weight, Encoding(3, (0,)), (), tmp_path / "out")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": 0}, "0 members encode nothing"),
        ({"exponents": (9,)}, "an exponent is out of 0 to 8"),
        ({"exponents": (-1,)}, "an exponent is out of 0 to 8"),
        ({"norm_max": 0.0}, "a length above 0"),
        ({"norm_max": np.nan}, "a length above 0"),
        ({"weight_max": -1}, "0 to 2"),
        ({"weight_max": 2**40}, "0 to 2"),
    ],
)
def test_an_encoding_that_cannot_be_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Encoding(**({"members": 3, "exponents": (0,)} | changes))  # type: ignore[arg-type]


def test_an_update_of_other_tensors_is_refused(case: World, tmp_path: Path) -> None:
    other = vector_file(tmp_path / "other", np.zeros(3))
    with pytest.raises(Unfit, match="the update has 1 float tensors, the checkpoint 6"):
        encode(other, 1, Encoding(3, exponents_of(case.base)), (), tmp_path / "out")
    with pytest.raises(Unfit, match="not the checkpoint's tensors"):
        check_fits(case.base, other)
    check_fits(case.base, case.updates[case.sites[0].member])
    whole = Schema.of([Tensor("n", "I64", (2,))])
    write_file(tmp_path / "whole", whole, {"n": np.zeros(2, np.int64)})
    with pytest.raises(Unfit, match="no float parameters"):
        encode(tmp_path / "whole", 1, Encoding(3, ()), (), tmp_path / "out")


def merge_args(case: World, found: Played) -> tuple[list[Masked], Unmasking, Encoding]:
    assert isinstance(found.found, Unmasking)
    vectors = [Masked(member, path) for member, path in found.vectors.items()]
    return vectors, found.found, case.encoding(found.frozen)


def test_a_merge_takes_the_survivors_vectors_and_no_others(case: World, tmp_path: Path) -> None:
    vectors, off, encoding = merge_args(case, played(case))
    with pytest.raises(ValueError, match="are merged"):
        merge(case.base, vectors[1:], off, encoding, None)
    with pytest.raises(ValueError, match="encoded for 6 members, but 7 take part"):
        merge(case.base, vectors, off, replace(encoding, members=6), None)
    with pytest.raises(ValueError, match="exponents are not those of the checkpoint"):
        merge(case.base, vectors, off, replace(encoding, exponents=(1,) * 6), None)
    with pytest.raises(ValueError, match="its result needs a file of its own"):
        merge(case.base, vectors, off, encoding, vectors[0].path)
    update = case.updates[vectors[0].member]
    with pytest.raises(BadVector, match=f"the masked vector of {name_of(vectors[0].member)}: not the chec") as caught:
        merge(case.base, [Masked(vectors[0].member, update), *vectors[1:]], off, encoding, None)
    assert caught.value.member == vectors[0].member
    (tmp_path / "short").write_bytes(vectors[0].path.read_bytes()[:-1])
    with pytest.raises(BadVector, match="but its tensors take"):
        merge(case.base, [Masked(vectors[0].member, tmp_path / "short"), *vectors[1:]], off, encoding, None)


def test_a_vector_of_another_attempt_is_refused_by_its_header(case: World, tmp_path: Path) -> None:
    encoding = case.encoding(freeze(case.attempt, dict.fromkeys(case.by_member, ())))
    paths = []
    for number, (member, update) in enumerate(sorted(case.updates.items())):
        context = sha256(b"the attempt before") if number == 1 else case.attempt.context
        paths.append(Masked(member, tmp_path / f"vector{number}"))
        encode(update, 1, replace(encoding, context=context), (), paths[-1].path)
    assert len({place.path.stat().st_size for place in paths}) == 1
    with pytest.raises(BadVector) as caught:
        sum_masked(case.base, paths, (), encoding, None)
    assert caught.value.member == paths[1].member


def test_a_visible_merge_takes_no_masked_vector(case: World) -> None:
    found = played(case)
    paths = list(found.vectors.values())
    with pytest.raises(ValueError, match="not the checkpoint's tensors"):
        visible_merge(case.base, paths, [1] * len(paths), policy(), None)


@pytest.mark.parametrize("values", [[9] * 6, [-1] * 6])
def test_a_checkpoint_with_exponents_that_cannot_be_is_refused(tmp_path: Path, values: list[int]) -> None:
    schema = Schema.of([*SCHEMA.tensors, Tensor("swarm.blind.exponents", "I8", (6,))])
    filled = values_of(np.random.default_rng(1), 1.0) | {"swarm.blind.exponents": np.array(values, np.int8)}
    write_file(tmp_path / "base", schema, filled)
    with pytest.raises(ValueError, match=r"the checkpoint's exponent of a.weight is -?\d+, not 0..8"):
        exponents_of(tmp_path / "base")
    schema = Schema.of([*SCHEMA.tensors, Tensor("swarm.blind.exponents", "I8", (5,))])
    write_file(tmp_path / "base", schema, filled | {"swarm.blind.exponents": np.zeros(5, np.int8)})
    with pytest.raises(ValueError, match=r"has swarm.blind.exponents I8\[5\] where swarm.blind.exponents I8\[6\]"):
        exponents_of(tmp_path / "base")


def test_a_base_that_is_not_finite_names_its_place(case: World, tmp_path: Path) -> None:
    vectors, off, encoding = merge_args(case, played(case))
    values = values_of(np.random.default_rng(1), 1.0)
    values["z.bias"] = np.array([0, 0, np.nan, 0, 0, 0, 0], np.float32)
    write_file(tmp_path / "bad", SCHEMA, values)
    with pytest.raises(ValueError, match=r"the checkpoint: element 2 of z.bias F32\[7\] is nan"):
        merge(tmp_path / "bad", vectors, off, encoding, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_secrets_never_print(case: World) -> None:
    site = case.sites[0]
    found = played(case)
    keys, fresh = case.keys(site), case.fresh(site)
    reveal = reveal_of(found.survivors, keys, fresh)
    said = shares_of(found.survivors, Missing(found.survivors.members, frozenset()), site.member, site.held)
    shown = repr(
        (keys, fresh, masks_of(found.frozen, keys, fresh), reveal, said, list(site.held.values()), found.found)
    )
    secrets = [
        site.secret,
        site.seed,
        fresh.self_seed,
        fresh.recovery_seed,
        fresh.chance,
        keys.pair_seed(case.sites[1].member),
    ]
    secrets += [held.self_share for held in site.held.values()]
    for secret in secrets:
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown
