"""Who is at the other end: TLS 1.3 or noise over bytes, and the key that they prove. No I/O.

Only these two are offered: the library's default list ends in plaintext, where knowing a member's public key
is enough to pass for it. From the library come certificates and noise messages; the byte handling is ours,
because its own reads 4 KiB at a time, writes the private key to a file for every connection and takes errors
for an end.

Sources: https://github.com/libp2p/specs/blob/master/tls/tls.md and .../noise/README.md
"""

from __future__ import annotations

import logging
import os
import ssl
import struct
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Protocol

from cryptography import x509
from cryptography.x509.oid import NameOID
from libp2p.crypto.keys import KeyPair, KeyType, PublicKey
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.peer.id import ID
from libp2p.security.noise.messages import NoiseHandshakePayload, verify_handshake_payload_sig
from libp2p.security.noise.patterns import PatternXX
from libp2p.security.tls.certificate import generate_certificate, verify_certificate_chain
from libp2p.security.tls.openssl_verify import install_skip_pkix_peer_verification

from swarm.encoding import Address
from swarm.errors import PeerError
from swarm.identity import Identity, address_of_peer_id, peer_id_of

TLS = "/tls/1.0.0"
NOISE = "/noise"
PROTOCOLS = (TLS, NOISE)
"""Best first: TLS takes half the CPU."""

# The library logs an error for every wrong signature, and strangers may send as many as they like. They are counted.
logging.getLogger("libp2p.security.noise.messages").setLevel(logging.CRITICAL)

_RECORD_BYTES = 16 << 10
_PLAIN_BYTES = (256 << 10) + _RECORD_BYTES
"""What one read of a socket brings, decrypted, and the record that the one before it began."""
_NOISE_MAX = 65535
_NOISE_PLAIN_MAX = _NOISE_MAX - 16


class Channel(Protocol):
    """An encrypted connection: give it what arrives, send what `outgoing` holds."""

    remote: Address | None
    """The other side's address, once its key is proven."""
    peer_id: str
    """Its PeerID, from then on."""

    def receive(self, data: memoryview) -> Iterator[memoryview]:
        """Plain bytes; each view holds until the next is asked for. PeerError: the handshake or a record is wrong."""

    def write(self, data: bytes) -> None:
        """Encrypt, once the handshake is done."""

    def outgoing(self) -> bytes:
        """Bytes to send now."""

    def close(self) -> None:
        """Say goodbye, where the protocol knows how."""


class Credentials:
    """A node's key in the forms that TLS and noise want; made once, used for every connection."""

    def __init__(self, identity: Identity) -> None:
        self.keys: KeyPair = create_new_key_pair(identity.secret)
        self.noise_key = create_noise_key().private_key
        certificate, key = generate_certificate(self.keys.private_key, _template())
        self._server = _context(certificate, key, server=True)
        self._client = _context(certificate, key, server=False)
        self._spaces: list[memoryview] = []

    def channel(self, protocol: str, *, dialled: bool) -> Channel:
        """A channel that speaks `protocol`."""
        if protocol == TLS:
            return TlsChannel(self._client if dialled else self._server, dialled, self._spaces)
        return NoiseChannel(self, dialled)


class TlsChannel:
    """TLS 1.3 with certificates that carry the libp2p key.

    Args:
        spaces: where plain bytes are put before they are used up; all connections of a node take turns. A relayed one
            is read while the one that it lies in is, so there are as many as connections lie in each other.
    """

    def __init__(self, context: ssl.SSLContext, dialled: bool, spaces: list[memoryview]) -> None:
        self.remote: Address | None = None
        self.peer_id = ""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=not dialled)
        self._spaces = spaces
        self._handshake()

    def receive(self, data: memoryview) -> Iterator[memoryview]:
        self._incoming.write(data)
        spaces = self._spaces
        space = spaces.pop() if spaces else memoryview(bytearray(_PLAIN_BYTES))
        try:
            if self.remote is None and not self._handshake():
                return
            size = len(space)
            while size == len(space) and (size := self._read_into(space)):
                yield space[:size]
        except ssl.SSLError as error:
            raise PeerError(f"TLS: {error.reason or error}") from error
        finally:
            spaces.append(space)

    def _read_into(self, space: memoryview) -> int:
        """How many bytes are decrypted in one go; 0 if no record is whole. One call of OpenSSL gives one record."""
        tls, incoming = self._ssl, self._incoming
        size, room = 0, len(space)
        try:
            while size < room and (incoming.pending or tls.pending()):
                count = int(tls.read(room - size, space[size:]))
                if not count:
                    break
                size += count
        except ssl.SSLWantReadError:
            pass
        return size

    def write(self, data: bytes) -> None:
        count, size = 0, len(data)
        view = memoryview(data)
        try:
            while count < size:  # one call takes one record
                count += self._ssl.write(view[count:])
        except ssl.SSLError as error:
            raise PeerError(f"TLS: {error.reason or error}") from error

    def outgoing(self) -> bytes:
        return self._outgoing.read() if self._outgoing.pending else b""

    def close(self) -> None:
        if self.remote is not None:
            try:
                self._ssl.unwrap()
            except ssl.SSLError:
                return  # it asks to wait for the other side's goodbye; ours is written

    def _handshake(self) -> bool:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        certificate = self._ssl.getpeercert(binary_form=True)
        if certificate is None:
            raise PeerError("TLS: no certificate, so no key is proven")
        self.peer_id = proven_by_certificate(certificate)
        self.remote = address_of_peer_id(self.peer_id)
        return True


class NoiseChannel:
    """Noise XX with the libp2p payload."""

    def __init__(self, credentials: Credentials, dialled: bool) -> None:
        self.remote: Address | None = None
        self.peer_id = ""
        self._pattern = PatternXX(
            ID.from_pubkey(credentials.keys.public_key), credentials.keys.private_key, credentials.noise_key
        )
        self._noise = self._pattern.create_noise_state()
        self._dialled = dialled
        self._out = bytearray()
        self._buffer = bytearray()
        self._messages = 0
        if dialled:
            self._noise.set_as_initiator()
        else:
            self._noise.set_as_responder()
        self._noise.start_handshake()
        self._state = self._noise.noise_protocol.handshake_state  # dropped there once the handshake is done
        if dialled:
            self._put(self._noise.write_message(b""))

    def receive(self, data: memoryview) -> Iterator[memoryview]:
        buffer = self._buffer
        buffer += data
        position = 0
        try:
            while len(buffer) - position >= 2:
                (size,) = struct.unpack_from("!H", buffer, position)
                if len(buffer) - position - 2 < size:
                    break
                message = bytes(buffer[position + 2 : position + 2 + size])
                position += 2 + size
                if self.remote is None:
                    self._handshake(message)
                else:
                    yield memoryview(self._noise.decrypt(message))
        except PeerError:
            raise
        except Exception as error:  # the library raises a dozen kinds for a stranger's bytes
            raise PeerError(f"noise: {error or type(error).__name__}") from error
        finally:
            del buffer[:position]

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), _NOISE_PLAIN_MAX):
            self._put(self._noise.encrypt(data[start : start + _NOISE_PLAIN_MAX]))

    def outgoing(self) -> bytes:
        data = bytes(self._out)
        self._out.clear()
        return data

    def close(self) -> None:
        return  # noise has no goodbye

    def _handshake(self, message: bytes) -> None:
        """XX is: → e, ← e ee s es + payload, → s se + payload."""
        plain = bytes(self._noise.read_message(message))
        self._messages += 1
        if not self._dialled and self._messages == 1:
            self._put(self._noise.write_message(self._pattern.make_handshake_payload().serialize()))
            return
        peer_id = proven_by_payload(plain, self._pattern._get_pubkey_from_noise_keypair(self._state.rs))
        if self._dialled:
            self._put(self._noise.write_message(self._pattern.make_handshake_payload().serialize()))
        self.peer_id = peer_id
        self.remote = address_of_peer_id(self.peer_id)

    def _put(self, message: bytes) -> None:
        self._out += struct.pack("!H", len(message)) + message


def proven_by_certificate(der: bytes) -> str:
    """The PeerID whose key signed for the key of this certificate. PeerError: it proves none, or none of a member's."""
    try:
        key = verify_certificate_chain([x509.load_der_x509_certificate(der)])
    except Exception as error:  # the library promises ValueError; a stranger's DER finds others
        raise PeerError(f"TLS: the certificate proves no libp2p key: {error}") from error
    return _peer_id(key)


def proven_by_payload(payload: bytes, static: PublicKey) -> str:
    """The PeerID whose key signed for the noise key `static`. PeerError: it proves none, or none of a member's."""
    try:
        found = NoiseHandshakePayload.deserialize(payload)
        proven = verify_handshake_payload_sig(found, static)
    except Exception as error:  # protobuf's, the curves' and the library's own
        raise PeerError(f"noise: no payload of a handshake: {error or type(error).__name__}") from error
    if not proven:
        raise PeerError("noise: the signature of the static key is not the identity's")
    return _peer_id(found.id_pubkey)


def _peer_id(key: PublicKey) -> str:
    if key.get_type() != KeyType.Secp256k1:
        raise PeerError("a key of another kind than secp256k1 belongs to no member")
    return peer_id_of(key.to_bytes())


def _template() -> x509.CertificateBuilder:
    """A certificate without extensions of its own: js-libp2p looks for the key in the first one only."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "libp2p")])
    since = datetime.now(UTC) - timedelta(hours=1)  # the other side's clock may be behind
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(since + timedelta(days=365 * 100))
        .subject_name(name)
        .issuer_name(name)
    )


def _context(certificate: str, key: str, *, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    # Certificates are self-signed by the specification: the key inside is checked after the handshake instead.
    context.verify_mode = ssl.CERT_OPTIONAL if server else ssl.CERT_NONE
    context.set_alpn_protocols(["libp2p"])
    with tempfile.TemporaryDirectory(prefix="swarm-") as folder:
        # The standard library reads keys from files only. This one is not the identity: it is new in each process.
        path = os.path.join(folder, "tls.pem")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(key + certificate)
        context.load_cert_chain(path)
    if server:
        context.num_tickets = 0  # sessions are not resumed
        install_skip_pkix_peer_verification(context)
    return context
