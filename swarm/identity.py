"""Who an institution is: one secp256k1 key is its ledger account and its libp2p identity.

Keys rest in Ethereum keystore v3 files. A PeerID of a secp256k1 key is the identity multihash of the
key itself (libp2p peer-ids specification), so the address follows from the PeerID.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import base58
import py_ecc  # noqa: F401
from coincurve import PrivateKey, PublicKey
from eth_keys import keys
from eth_keys.exceptions import ValidationError
from eth_utils import to_checksum_address

from swarm.encoding import Address, Digest, keccak256
from swarm.errors import ConfigError

# py_ecc, which comes with py-evm and eth_account, raises the interpreter's recursion limit to 100,000 when it is
# loaded. Nested JSON of 100 kB then overflows the C stack before it meets the limit, and a stranger's line kills the
# process. So it is loaded here, without its curves, and its limit taken back. py-evm asks for this many.
RECURSION_MAX = 12 * 1024
sys.setrecursionlimit(min(sys.getrecursionlimit(), RECURSION_MAX))

# Multihash code "identity", 37 bytes; protobuf PublicKey{type: Secp256k1 (2), data: 33 bytes}.
_PEER_ID_PREFIX = bytes([0x00, 0x25, 0x08, 0x02, 0x12, 0x21])
SIGNATURE_BYTES = 65
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


class Identity:
    """A private key and what follows from it. It signs 32-byte digests and never prints itself."""

    def __init__(self, secret: bytes) -> None:
        try:
            self._key = keys.PrivateKey(secret)
        except (ValidationError, ValueError) as error:
            raise ValueError("a secp256k1 private key has 32 bytes below the group order") from error
        # Not through eth_keys: consensus signs and recovers all day, and its wrappers double the time.
        self._signer = PrivateKey(secret)
        self.secret = secret
        self.address: Address = self._key.public_key.to_canonical_address()
        self.public_key: bytes = self._key.public_key.to_compressed_bytes()
        """33 bytes, compressed."""

    @classmethod
    def generate(cls) -> Identity:
        """A new key from the operating system's randomness."""
        return cls(os.urandom(32))

    @property
    def peer_id(self) -> str:
        """The libp2p PeerID, base58 (`16Uiu2…`)."""
        return peer_id_of(self.public_key)

    def sign(self, digest: Digest) -> bytes:
        """65 bytes r ‖ s ‖ v (v is 0 or 1), deterministic (RFC 6979), low s."""
        return bytes(self._signer.sign_recoverable(digest, hasher=None))

    def __repr__(self) -> str:
        return f"Identity({checksum(self.address)})"


# A seal is checked as a vote, in its block's certificate and in the next block: once is enough.
@lru_cache(maxsize=4096)
def recover(digest: Digest, signature: bytes) -> Address:
    """The address whose key signed `digest`.

    Raises:
        ValueError: not a signature, or the second one that anybody can make of it (high s, EIP-2).
    """
    if len(signature) != SIGNATURE_BYTES:
        raise ValueError(f"a signature has {SIGNATURE_BYTES} bytes, found {len(signature)}")
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        raise ValueError("a signature whose s is above half of the group order")
    try:
        key = PublicKey.from_signature_and_message(signature, digest, hasher=None)
    except ValueError as error:
        raise ValueError(f"not a signature of this digest: {error}") from error
    return keccak256(key.format(compressed=False)[1:])[12:]


def peer_id_of(public_key: bytes) -> str:
    """The PeerID of a compressed secp256k1 public key (33 bytes)."""
    return peer_id_text(_PEER_ID_PREFIX + public_key)


def address_of_peer_id(peer_id: str) -> Address:
    """The ledger address of the key inside a PeerID; ValueError if it holds no secp256k1 key."""
    raw = peer_id_bytes(peer_id)
    if not raw.startswith(_PEER_ID_PREFIX) or len(raw) != len(_PEER_ID_PREFIX) + 33:
        raise ValueError(f"PeerID {peer_id} holds no secp256k1 key")
    try:
        key = keys.PublicKey.from_compressed_bytes(raw[len(_PEER_ID_PREFIX) :])
    except ValidationError as error:
        raise ValueError(f"PeerID {peer_id} holds no secp256k1 key: {error}") from error
    return bytes(key.to_canonical_address())


def peer_id_bytes(peer_id: str) -> bytes:
    """A PeerID as it stands in messages: the multihash without base58. ValueError if it is no base58."""
    return bytes(base58.b58decode(peer_id))


def peer_id_text(raw: bytes) -> str:
    """A PeerID as people read it, of the bytes that stand in messages."""
    return str(base58.b58encode(raw).decode())


def checksum(address: Address) -> str:
    """`0x…` in mixed case (EIP-55)."""
    return str(to_checksum_address(address))


SCRYPT_N = 1 << 18
"""The keystore's usual work: about a second and 256 MiB a guess, for a password that a person made up."""
SCRYPT_N_RANDOM = 1 << 12
"""For a password of 128 random bits or more, which nobody guesses however quick a guess is."""


SCRYPT_BYTES_MAX = 1 << 30
"""What opening a keystore may take of memory; four times what the usual work does."""


def save_keystore(identity: Identity, path: Path, password: str, *, scrypt_n: int = SCRYPT_N) -> None:
    """Write an Ethereum keystore v3 file (scrypt, AES-128-CTR), readable by its owner only."""
    document = _account().encrypt(identity.secret, password, kdf="scrypt", iterations=scrypt_n)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(document, file, indent=1)


def load_keystore(path: Path, password: str) -> Identity:
    """The identity in a keystore v3 file.

    Raises:
        ConfigError: no such file, not a keystore, or the wrong password; names the file and the way out.
    """
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"no key at {path}: the site's settings name it under `keystore`; `swarm init` makes keys"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a readable keystore file: {error}") from error
    try:
        return Identity(_opened(document, password))
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"{path} does not open with this password; it is read from the site's `password_file` or from the "
            f"environment variable SWARM_PASSWORD ({error})"
        ) from error


def _opened(document: Any, password: str) -> bytes:
    """The key in a keystore's document. The usual kind without the library for all kinds, half a second to load."""
    match document:
        case {
            "version": 3,
            "crypto": {
                "kdf": "scrypt",
                "kdfparams": {"n": int(n), "r": int(r), "p": int(p), "dklen": 32, "salt": str(salt)},
                "cipher": "aes-128-ctr",
                "cipherparams": {"iv": str(iv)},
                "ciphertext": str(ciphertext),
                "mac": str(mac),
            },
        } if 128 * n * r * p <= SCRYPT_BYTES_MAX // 2:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

            derived = hashlib.scrypt(
                password.encode(), salt=bytes.fromhex(salt), n=n, r=r, p=p, maxmem=SCRYPT_BYTES_MAX, dklen=32
            )
            sealed = bytes.fromhex(ciphertext)
            if not hmac.compare_digest(keccak256(derived[16:] + sealed), bytes.fromhex(mac)):
                raise ValueError("MAC mismatch")
            opening = Cipher(algorithms.AES(derived[:16]), modes.CTR(bytes.fromhex(iv))).decryptor()
            return opening.update(sealed) + opening.finalize()
    return bytes(_account().decrypt(document, password))


def _account() -> Any:
    """The library for keystores of every kind."""
    from eth_account import Account

    return Account
