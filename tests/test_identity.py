"""One key is an institution's account and its network identity; a stranger's bytes are refused in words."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import base58
import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.peer.id import ID

from swarm.encoding import keccak256
from swarm.errors import ConfigError
from swarm.identity import (
    SIGNATURE_BYTES,
    Identity,
    address_of_peer_id,
    checksum,
    load_keystore,
    peer_id_of,
    recover,
    save_keystore,
)

GROUP_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
secrets = st.integers(1, GROUP_ORDER - 1).map(lambda number: number.to_bytes(32, "big"))


def save_quickly(identity: Identity, path: Path, password: str) -> None:
    """The keystore's work factor is a cost, not a claim of these tests."""
    save_keystore(identity, path, password, scrypt_n=2)


def test_the_published_example_has_its_address() -> None:
    """EIP-155's example key, and the first account that Ethereum's tools derive from it."""
    identity = Identity(b"\x46" * 32)
    assert checksum(identity.address) == "0x9d8A62f656a8d1615C1294fd71e9CFb3E4855A4F"


@given(secrets)
def test_address_and_peer_id_follow_from_each_other(secret: bytes) -> None:
    identity = Identity(secret)
    assert address_of_peer_id(identity.peer_id) == identity.address
    assert peer_id_of(identity.public_key) == identity.peer_id
    assert identity.peer_id.startswith("16Uiu2")
    assert identity.address.hex() == Account.from_key(secret).address[2:].lower()


@pytest.mark.parametrize("number", [1, 2, 7**50, GROUP_ORDER - 1])
def test_the_peer_id_is_the_one_libp2p_makes(number: int) -> None:
    secret = number.to_bytes(32, "big")
    assert str(ID.from_pubkey(create_new_key_pair(secret).public_key)) == Identity(secret).peer_id


@given(secrets, st.binary(max_size=40))
def test_a_signature_tells_who_signed(secret: bytes, message: bytes) -> None:
    identity = Identity(secret)
    signature = identity.sign(keccak256(message))
    assert len(signature) == SIGNATURE_BYTES
    assert recover(keccak256(message), signature) == identity.address
    assert identity.sign(keccak256(message)) == signature
    s = int.from_bytes(signature[32:64], "big")
    assert s <= GROUP_ORDER // 2, "the other of the two s would make a second signature of the same words"


@given(secrets, st.integers(0, 64), st.integers(1, 255))
def test_a_changed_signature_is_another_signer_or_none(secret: bytes, at: int, change: int) -> None:
    identity, digest = Identity(secret), keccak256(b"words")
    changed = bytearray(identity.sign(digest))
    changed[at] ^= change
    try:
        found = recover(digest, bytes(changed))
    except ValueError:
        return
    assert found != identity.address


@given(st.binary(max_size=70))
def test_any_bytes_are_a_signer_or_a_value_error(signature: bytes) -> None:
    try:
        assert len(recover(keccak256(b"x"), signature)) == 20
    except ValueError:
        return


@pytest.mark.parametrize("fill", [b"\x00", b"\xff"])
def test_a_signature_of_extremes_is_no_signature(fill: bytes) -> None:
    for v in range(256):
        with pytest.raises(ValueError):
            recover(keccak256(b"x"), fill * 64 + bytes([v]))


def test_the_signature_with_the_high_s_is_refused() -> None:
    """Whoever turns s into n - s and flips v has another signature by the same key: two of one vote."""
    identity, digest = Identity.generate(), keccak256(b"vote")
    signature = identity.sign(digest)
    high = GROUP_ORDER - int.from_bytes(signature[32:64], "big")
    with pytest.raises(ValueError):
        recover(digest, signature[:32] + high.to_bytes(32, "big") + bytes([signature[64] ^ 1]))


@pytest.mark.parametrize("secret", [b"", b"\x01" * 31, b"\x01" * 33, bytes(32), GROUP_ORDER.to_bytes(32, "big")])
def test_what_is_no_private_key_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes below the group order"):
        Identity(secret)


def test_an_identity_never_prints_its_secret() -> None:
    identity = Identity.generate()
    assert identity.secret.hex() not in repr(identity) + str(identity) + f"{identity!r:>200}"


@given(st.text(max_size=70))
def test_any_text_is_a_peer_id_or_a_value_error(text: str) -> None:
    try:
        assert len(address_of_peer_id(text)) == 20
    except ValueError:
        return


@given(st.binary(max_size=45))
def test_any_base58_is_a_peer_id_or_a_value_error(raw: bytes) -> None:
    prefixed = bytes([0x00, 0x25, 0x08, 0x02, 0x12, 0x21]) + raw
    for data in (raw, prefixed):
        try:
            assert len(address_of_peer_id(base58.b58encode(data).decode())) == 20
        except ValueError:
            continue


def test_the_peer_id_of_another_kind_of_key_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no secp256k1 key"):
        address_of_peer_id("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")


def test_a_keystore_opens_with_its_password_and_only_for_its_owner(tmp_path: Path) -> None:
    identity = Identity.generate()
    path = tmp_path / "keys" / "site.json"
    save_quickly(identity, path, "a pass word")
    assert load_keystore(path, "a pass word").address == identity.address
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert identity.secret.hex() not in path.read_text()
    with pytest.raises(ConfigError, match=rf"{path} does not open with this password.*SWARM_PASSWORD"):
        load_keystore(path, "another")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "site.json"
    save_quickly(Identity.generate(), path, "x")
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        save_quickly(Identity.generate(), path, "x")
    assert path.read_bytes() == before


def test_a_missing_key_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no key at {tmp_path}/site\.json.*`keystore`.*`swarm init`"):
        load_keystore(tmp_path / "site.json", "x")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b'{"version":3}',
        b'{"version":9,"crypto":{}}',
        b'{"version":3,"crypto":3}',
        b'{"version":3,"crypto":{"kdf":"none"}}',
        b'{"version":3,"crypto":{"kdf":"pbkdf2","kdfparams":{"c":"x"},"ciphertext":"zz"}}',
        b"[" * 50_000,
    ],
)
def test_a_file_that_is_no_keystore_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "site.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        load_keystore(path, "x")


def test_a_keystore_with_a_part_missing_opens_or_is_named(tmp_path: Path) -> None:
    path = tmp_path / "site.json"
    identity, named = Identity.generate(), list[str]()
    save_quickly(identity, path, "x")
    document = json.loads(path.read_text())
    for part in list(document["crypto"]):
        broken = document | {"crypto": {k: v for k, v in document["crypto"].items() if k != part}}
        path.write_text(json.dumps(broken))
        try:
            assert load_keystore(path, "x").address == identity.address
        except ConfigError as error:
            named.append(part)
            assert str(path) in str(error)  # noqa: PT017 (a missing `cipher` is harmless, the others are not)
    assert {"ciphertext", "cipherparams", "kdf", "kdfparams", "mac"} <= set(named)


def test_nested_json_is_an_error_and_no_crash() -> None:
    """The planted mistake is py_ecc's: with its limit of 100,000 the same line ends the process by a signal."""
    script = (
        "import sys, json, swarm.identity, eth\n"
        "sys.setrecursionlimit(int(sys.argv[1]) or sys.getrecursionlimit())\n"
        "try:\n    json.loads('[' * 200_000)\n"
        "except RecursionError:\n    print('refused')\n"
    )

    def ends(limit: int) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", script, str(limit)], capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout

    assert ends(0) == (0, "refused\n")
    assert ends(100_000)[0] < 0


@pytest.mark.parametrize("kdf", ["pbkdf2", "scrypt"])
def test_a_keystore_of_either_kind_opens_as_the_library_opens_it(tmp_path: Path, kdf: str) -> None:
    identity, path = Identity.generate(), tmp_path / "site.json"
    path.write_text(json.dumps(Account.encrypt(identity.secret, "pa55 wörd", kdf=kdf, iterations=4096)))
    assert load_keystore(path, "pa55 wörd").secret == identity.secret
    with pytest.raises(ConfigError, match="does not open with this password"):
        load_keystore(path, "pa55 word")


def test_a_keystore_that_asks_for_too_much_memory_is_refused(tmp_path: Path) -> None:
    identity, path = Identity.generate(), tmp_path / "site.json"
    save_quickly(identity, path, "x")
    document = json.loads(path.read_text())
    document["crypto"]["kdfparams"]["n"] = 1 << 40
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=str(path)):
        load_keystore(path, "x")
