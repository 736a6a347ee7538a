"""Ethereum's public test vectors: RLP, tries, keystores; and those of QBFT's messages, as RLP.

RLP and tries come from the npm package `ethereum-tests`. Where ETHEREUM_TESTS or QBFT_TESTS name checkouts of
github.com/ethereum/tests and github.com/Consensys/qbft-tests, their newer and other vectors are tried as well.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swarm.encoding import Digest, Item, from_hex, keccak256, pack, unpack
from swarm.errors import ConfigError
from swarm.identity import Identity, load_keystore, save_keystore
from swarm.ledger.block import EMPTY_TRIE_ROOT
from swarm.ledger.trie import Nodes
from tests.others import foundry, node_modules

PASSWORD = "correct horse"


def checkout(variable: str) -> Path:
    """The folder that the variable names; skips without it."""
    if variable not in os.environ:
        pytest.skip(f"{variable} names no checkout of the public vectors")
    return Path(os.environ[variable])


def ethereum_tests(source: str) -> Path:
    return checkout("ETHEREUM_TESTS") if source == "checkout" else node_modules() / "ethereum-tests"


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def item_of(value: object) -> Item:
    """A vector's value as bytes and lists; `#` starts a decimal number that JSON would round."""
    if isinstance(value, list):
        return [item_of(one) for one in value]
    if isinstance(value, int):
        return value
    assert isinstance(value, str)
    return int(value[1:]) if value.startswith("#") else value.encode()


def undone(item: Item) -> object:
    """What unpacking gives: numbers are bytes then."""
    if isinstance(item, int):
        return item.to_bytes((item.bit_length() + 7) // 8, "big")
    return [undone(one) for one in item] if isinstance(item, list | tuple) else item


@pytest.mark.parametrize("source", ["package", "checkout"])
def test_rlp_is_written_and_read_byte_for_byte(source: str) -> None:
    folder = ethereum_tests(source)
    path = folder / ("RLPTests" if source == "checkout" else "BasicTests") / "rlptest.json"
    vectors = read(path)
    assert len(vectors) >= 16
    for name, vector in vectors.items():
        item, wanted = item_of(vector["in"]), bytes.fromhex(vector["out"].removeprefix("0x"))
        assert pack(item) == wanted, name
        assert unpack(wanted, max_bytes=1 << 20) == undone(item), name


def test_rlp_that_is_wrong_is_refused() -> None:
    vectors = read(checkout("ETHEREUM_TESTS") / "RLPTests" / "invalidRLPTest.json")
    assert len(vectors) > 20
    for vector in vectors.values():
        with pytest.raises(ValueError):
            unpack(bytes.fromhex(vector["out"].removeprefix("0x")), max_bytes=1 << 20)


def bytes_of(text: str) -> bytes:
    return bytes.fromhex(text[2:]) if text.startswith("0x") else text.encode()


def changes_of(vector: dict[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    pairs = vector["in"].items() if isinstance(vector["in"], dict) else vector["in"]
    for key, value in pairs:
        yield keccak256(bytes_of(key)), b"" if value is None else bytes_of(value)


@pytest.mark.parametrize("source", ["package", "checkout"])
@pytest.mark.parametrize("name", ["trietest_secureTrie", "trieanyorder_secureTrie", "hex_encoded_securetrie_test"])
def test_tries_of_hashed_keys_have_the_published_roots(source: str, name: str) -> None:
    vectors = read(ethereum_tests(source) / "TrieTests" / f"{name}.json")
    assert vectors
    for title, vector in vectors.items():
        one_by_one: dict[Digest, bytes] = {}
        nodes, root = Nodes(one_by_one.get), EMPTY_TRIE_ROOT
        for key, value in changes_of(vector):
            root = nodes.update(root, {key: value}, one_by_one)
        assert root == from_hex(vector["root"]), title
        at_once: dict[Digest, bytes] = {}
        changes = {key: value for key, value in dict(changes_of(vector)).items() if value}
        assert Nodes(at_once.get).update(EMPTY_TRIE_ROOT, changes, at_once) == root, title


def test_keystores_of_the_public_vectors_open(tmp_path: Path) -> None:
    opened = 0
    for name, vector in read(checkout("ETHEREUM_TESTS") / "KeyStoreTests" / "basic_tests.json").items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(vector["json"]))
        secret = bytes.fromhex(vector["priv"])
        if len(secret) == 32:
            assert load_keystore(file, vector["password"]).secret == secret, name
            opened += 1
        else:  # what is in it is no key of secp256k1
            with pytest.raises(ConfigError):
                load_keystore(file, vector["password"])
    assert opened


def test_ethers_opens_our_keystore_and_we_open_that_of_ethers(tmp_path: Path) -> None:
    identity = Identity(bytes(range(1, 33)))
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    save_keystore(identity, ours, PASSWORD, scrypt_n=1 << 12)
    script = """
        const { Wallet } = require("ethers"), fs = require("fs");
        const [ours, theirs, password] = process.argv.slice(1);
        const wallet = Wallet.fromEncryptedJsonSync(fs.readFileSync(ours, "utf8"), password);
        console.log(wallet.privateKey);
        const options = { scrypt: { N: 4096 } };
        fs.writeFileSync(theirs, wallet.encryptSync(password, options));
    """
    environment = {**os.environ, "NODE_PATH": str(node_modules())}
    command = ["node", "-e", script, str(ours), str(theirs), PASSWORD]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert from_hex(answer.stdout.strip()) == identity.secret
    assert load_keystore(theirs, PASSWORD).secret == identity.secret


def test_cast_opens_our_keystore(tmp_path: Path) -> None:
    identity = Identity(bytes(range(1, 33)))
    save_keystore(identity, tmp_path / "key", PASSWORD, scrypt_n=1 << 12)
    command = [str(foundry("cast")), "wallet", "address", "--keystore", str(tmp_path / "key"), "--password", PASSWORD]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert from_hex(answer.stdout.strip()) == identity.address


@pytest.mark.parametrize("name", ["MessageRLPTests/messages.json", "BftExtraDataRLPTests/bft_extra_data.json"])
def test_qbft_messages_of_the_public_vectors_are_read_and_written_byte_for_byte(name: str) -> None:
    found = 0
    for title, vector in read(checkout("QBFT_TESTS") / name).items():
        wanted = from_hex(vector["rlp"])
        assert pack(again(unpack(wanted, max_bytes=1 << 20))) == wanted, title
        found += 1
    assert found


def again(item: object) -> Item:
    return [again(one) for one in item] if isinstance(item, list | tuple) else item  # type: ignore[return-value]
