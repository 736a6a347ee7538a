"""The machines under a libp2p connection, without a socket: negotiation, frames, yamux, TLS and noise, all of it."""

from __future__ import annotations

import random
import ssl
import struct
from collections.abc import Callable, Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.security.noise.messages import NoiseHandshakePayload
from libp2p.security.tls.certificate import (
    LIBP2P_EXTENSION_OID,
    create_cert_template,
    encode_signed_key,
    generate_certificate,
)

from swarm.encoding import Address
from swarm.errors import PeerError
from swarm.net.inbox import Done
from swarm.net.libp2p import frames, security, yamux
from swarm.net.libp2p.connection import PING, Connection
from swarm.net.libp2p.frames import Frame, Kind
from swarm.net.libp2p.negotiation import LINE_MAX, OFFERS_MAX, Negotiation
from swarm.net.libp2p.pipe import Holder, Pipe
from swarm.net.libp2p.security import NOISE, PROTOCOLS, TLS, Credentials, NoiseChannel, TlsChannel
from swarm.net.libp2p.windows import ALL_BYTES, STREAM_MAX_BYTES
from swarm.net.libp2p.yamux import FRAME_MAX, WINDOW_INITIAL, Session, What
from swarm.net.transport import MESSAGE_MAX_BYTES
from tests.net.kit import identity


def pieces(data: bytes, chance: random.Random) -> list[bytes]:
    """`data` as a socket may give it: cut anywhere."""
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# multistream-select


@pytest.mark.parametrize("seed", range(20))
def test_both_sides_agree_on_the_first_offer_that_is_served(seed: int) -> None:
    chance = random.Random(seed)
    known = [f"/p{number}/1.0.0" for number in range(6)]
    offers, serves = chance.sample(known, 3), set(chance.sample(known, 4))
    wanted = next(offer for offer in offers if offer in serves)
    opening, answering = Negotiation(offers=offers), Negotiation(serves=serves)
    there = opening.start()
    while opening.chosen is None:
        back = b"".join(answering.receive(piece) for piece in pieces(there, chance))
        there = b"".join(opening.receive(piece) for piece in pieces(back, chance))
    assert opening.chosen == answering.chosen == wanted


def test_what_follows_the_agreement_is_kept() -> None:
    opening, answering = Negotiation(offers=["/a"]), Negotiation(serves={"/a"})
    reply = answering.receive(opening.start() + b"at once")
    assert answering.rest == b"at once"
    opening.receive(reply + b"\x00\xff")
    assert opening.rest == b"\x00\xff"


def test_nothing_in_common_ends_the_opening_side() -> None:
    opening, answering = Negotiation(offers=["/a", "/b"]), Negotiation(serves={"/c"})
    second = opening.receive(answering.receive(opening.start()))
    with pytest.raises(PeerError, match="no protocol in common"):
        opening.receive(answering.receive(second))
    assert answering.chosen is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00",
        b"\x13/multistream/9.0.0\n",
        b"\x13/multistream/1.0.0 ",
        b"\x13/multistream/1.0.0\n\xff\xff\xff\xff\x7f",  # a line of 34 GB
        b"\x13/multistream/1.0.0\n" + bytes([0x81 | (LINE_MAX & 0x7F), LINE_MAX >> 7]),  # one byte more than is read
        b"\x13/multistream/1.0.0\n\x00",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_strangers_first_bytes_are_refused_before_they_are_kept(data: bytes) -> None:
    with pytest.raises(PeerError):
        Negotiation(serves=PROTOCOLS).receive(data)


def test_a_negotiation_without_end_is_ended() -> None:
    answering = Negotiation(serves=PROTOCOLS)
    answering.receive(Negotiation(offers=["/plaintext/2.0.0"]).start())
    assert answering.chosen is None
    replies = [answering.receive(b"\x03ls\n") for _ in range(OFFERS_MAX - 1)]
    assert replies == [b"\x03na\n"] * (OFFERS_MAX - 1)
    with pytest.raises(PeerError, match="no agreement"):
        answering.receive(b"\x03ls\n")


# Frames


@pytest.mark.parametrize("seed", range(20))
def test_frames_arrive_whole_however_they_are_cut(seed: int) -> None:
    chance = random.Random(seed)
    sent = [
        Frame(
            chance.choice(list(Kind)),
            f"/p{chance.randrange(3)}",
            chance.randbytes(chance.choice([0, 1, 7, 900, 70_000])),
        )
        for _ in range(12)
    ]
    data = b"".join(frames.head(kind, protocol, len(payload)) + payload for kind, protocol, payload in sent)
    reader = frames.Reader()
    found = [frame for piece in pieces(data, chance) for frame in reader.receive(memoryview(piece))]
    assert found == sent


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_goes_where_it_is_wanted_if_there_is_room(seed: int) -> None:
    chance = random.Random(seed)
    payloads = [chance.randbytes(size) for size in (70_000, 7, 70_001, 20_000, 0)]
    reader = frames.Reader()
    for number, payload in enumerate(payloads):
        reader.into = into = memoryview(bytearray(70_000))
        name = "/named" if number == 3 else ""
        data = frames.head(Kind.ANSWER, name, len(payload)) + payload
        found = [(bytes(frame.payload), frame.protocol, isinstance(frame.payload, memoryview))
                 for piece in pieces(data, chance) for frame in reader.receive(memoryview(piece))]  # fmt: skip
        assert found == [(payload, name, number < 2)]
        assert (into[: len(payload)] == payload) == (number in (0, 1, 4))
        assert reader.held_bytes == 0
    reader.into = memoryview(bytearray(100))
    assert list(reader.receive(memoryview(frames.head(Kind.ANSWER, "", 100) + bytes(50)))) == []
    assert reader.held_bytes == 0, "the memory is the asker's"


def test_a_frame_is_refused_by_its_length_and_not_by_its_bytes() -> None:
    too_long = struct.pack("!BBI", 0, 2, MESSAGE_MAX_BYTES + 1)
    with pytest.raises(PeerError, match="on its way"):
        list(frames.Reader().receive(memoryview(too_long)))
    reader = frames.Reader()
    for byte in too_long[:-1]:
        assert list(reader.receive(memoryview(bytes([byte])))) == []
    with pytest.raises(PeerError, match="on its way"):
        list(reader.receive(memoryview(too_long[-1:])))


@pytest.mark.parametrize(
    "head", [b"\x04\x01\x00\x00\x00\x01", b"\x00\x41\x00\x00\x00\x01", b"\x00\x01\x00\x00\x00\x00\xff"]
)
def test_what_is_no_frame_is_refused(head: bytes) -> None:
    with pytest.raises(PeerError):
        list(frames.Reader().receive(memoryview(head)))


# Yamux


class Ends:
    """Two sessions with a line between them that cuts the bytes anywhere."""

    def __init__(self, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        self.sides = [Session(initiator=True), Session(initiator=False)]
        self.heard: list[dict[int, bytearray]] = [{}, {}]
        self.events: list[list[tuple[What, int]]] = [[], []]
        self.streams: list[dict[int, yamux.Stream]] = [{}, {}]

    def carry(self, size: int = 10_000) -> bool:
        """One turn each way; whether anything moved."""
        moved = False
        for here, there in ((0, 1), (1, 0)):
            data = self.sides[here].outgoing(size)
            moved = moved or bool(data)
            for piece in pieces(data, self.chance):
                for what, stream, part in self.sides[there].receive(memoryview(piece)):
                    number = stream.id if stream is not None else 0
                    if stream is not None:
                        self.streams[there][number] = stream
                    if what is What.DATA:
                        self.heard[there].setdefault(number, bytearray()).extend(part)
                    else:
                        self.events[there].append((what, number))
        return moved

    def settle(self) -> None:
        while self.carry():
            pass


@pytest.mark.parametrize("seed", range(15))
def test_streams_both_ways_arrive_whole_and_apart(seed: int) -> None:
    ends = Ends(seed)
    chance = ends.chance
    sent: dict[tuple[int, int], bytes] = {}
    open_streams: list[tuple[int, yamux.Stream]] = []
    for _ in range(60):
        if len(open_streams) < 10 and chance.random() < 0.3:
            side = chance.randrange(2)
            open_streams.append((side, ends.sides[side].open(urgent=chance.random() < 0.3)))
        if open_streams:
            side, stream = chance.choice(open_streams)
            data = chance.randbytes(chance.choice([1, 50, 3_000, 200_000]))
            ends.sides[side].write(stream, data)
            sent[1 - side, stream.id] = sent.get((1 - side, stream.id), b"") + data
        ends.carry(chance.choice([1, 2_000, 100_000]))
    for side, stream in open_streams:
        ends.sides[side].finish(stream)
    ends.settle()
    for (side, number), whole in sent.items():
        assert ends.heard[side][number] == whole
    for side, stream in open_streams:
        assert (What.END, stream.id) in ends.events[1 - side]


def test_a_sender_without_window_waits_and_goes_on_with_the_first_credit() -> None:
    sender = Session(initiator=True)
    stream = sender.open()
    sender.write(stream, bytes(WINDOW_INITIAL + 5))
    sent = 0
    while data := sender.outgoing(1 << 20):
        sent += len(data)
    assert sent < WINDOW_INITIAL + 200
    assert stream.queued == 5
    assert sender.receive(memoryview(struct.pack("!BBHII", 0, 1, 0, stream.id, 3))) == []
    assert len(sender.outgoing(1 << 20)) == 12 + 3
    assert stream.queued == 2


@pytest.mark.parametrize(("round_trip_s", "most"), [(0.0, ALL_BYTES), (0.1, STREAM_MAX_BYTES)])
def test_the_window_grows_while_data_flows_and_is_bounded(round_trip_s: float, most: int) -> None:
    ends = Ends()
    ends.sides[1].round_trip_s = round_trip_s
    stream = ends.sides[0].open()
    for _ in range(60):
        ends.sides[0].write(stream, bytes(1 << 20))
        while ends.carry(1 << 20):
            pass
    assert len(ends.heard[1][stream.id]) == 60 << 20
    assert WINDOW_INITIAL < ends.streams[1][stream.id].limit == most
    assert ends.streams[1][stream.id].receivable <= most


def test_a_peer_that_ignores_the_window_is_cut_before_its_bytes_are_read() -> None:
    # The library only logs a warning and keeps everything.
    receiver = Session(initiator=False)
    receiver.receive(memoryview(struct.pack("!BBHII", 0, 1, 1, 1, 0)))
    with pytest.raises(PeerError, match="past its window"):
        receiver.receive(memoryview(struct.pack("!BBHII", 0, 0, 0, 1, WINDOW_INITIAL + 1)))


def test_an_urgent_message_waits_for_one_frame_at_most() -> None:
    ends = Ends()
    sender = ends.sides[0]
    bulk, vote = sender.open(), sender.open(urgent=True)
    for _ in range(10):
        sender.write(bulk, bytes(100_000))
    sender.outgoing(1)
    sender.outgoing(1)
    sender.write(vote, b"vote")
    assert sender.outgoing(1).endswith(b"vote")
    assert bulk.queued >= 10 * 100_000 - 2 * FRAME_MAX


def test_bulk_streams_take_turns() -> None:
    sender = Session(initiator=True)
    streams = [sender.open() for _ in range(3)]
    for stream in streams:
        sender.write(stream, bytes(150_000))
    sender.outgoing(3 * FRAME_MAX)
    assert max(stream.queued for stream in streams) - min(stream.queued for stream in streams) <= FRAME_MAX


def test_a_flood_of_streams_is_refused_and_then_cut() -> None:
    receiver = Session(initiator=False)
    opened = 0

    def syn(number: int) -> int:
        receiver.outgoing(1 << 20)
        return len(receiver.receive(memoryview(struct.pack("!BBHII", 0, 1, 1, 2 * number + 1, 0))))

    opened = sum(syn(number) for number in range(yamux.STREAMS_MAX + yamux.REFUSED_MAX))
    assert opened == yamux.STREAMS_MAX
    with pytest.raises(PeerError, match="opened more than"):
        syn(5000)


def test_pings_are_answered_and_a_flood_that_is_not_read_is_cut() -> None:
    ends = Ends()
    ends.sides[0].ping(7)
    ends.settle()
    assert ends.events[0] == [(What.PONG, 0)]
    flood = memoryview(struct.pack("!BBHII", 0, 2, 1, 0, 1) * (yamux.CONTROL_MAX_BYTES // 12 + 1))
    with pytest.raises(PeerError, match="does not read"):
        Session(initiator=False).receive(flood)


@pytest.mark.parametrize(
    "header",
    [
        (1, 0, 0, 1, 0),  # another version
        (0, 4, 0, 1, 0),  # no such type
        (0, 1, 1, 2, 0),  # a number that is ours to give
        (0, 1, 1, 0, 0),  # stream 0
        (0, 0, 0, 9, 1 << 30),  # a gigabyte for a stream that is not there
    ],
)
def test_what_breaks_yamux_cuts_the_connection(header: tuple[int, ...]) -> None:
    with pytest.raises(PeerError):
        Session(initiator=False).receive(memoryview(struct.pack("!BBHII", *header)))


def test_a_stream_number_is_given_once() -> None:
    session = Session(initiator=False)
    syn = memoryview(struct.pack("!BBHII", 0, 1, 1, 1, 0))
    session.receive(syn)
    with pytest.raises(PeerError, match="twice"):
        session.receive(syn)


def test_a_reset_frees_what_was_queued_and_late_data_is_passed_over() -> None:
    ends = Ends()
    stream = ends.sides[0].open()
    ends.sides[0].write(stream, b"hello")
    ends.settle()
    theirs = ends.streams[1][stream.id]
    ends.sides[1].reset(theirs)
    ends.sides[0].write(stream, bytes(500_000))
    ends.settle()
    assert stream.gone
    assert (What.RESET, stream.id) in ends.events[0]
    assert stream.queued == 0
    assert ends.heard[1][stream.id] == b"hello"
    assert ends.sides[0].outgoing(1000) == b""


@pytest.mark.parametrize("seed", range(200))
def test_random_bytes_raise_nothing_but_peer_errors(seed: int) -> None:
    chance = random.Random(seed)
    reader = frames.Reader()
    machines: list[Callable[[memoryview], object]] = [
        Session(initiator=False).receive,
        Session(initiator=True).receive,
        lambda data: list(reader.receive(data)),
        Negotiation(serves=PROTOCOLS).receive,
        Negotiation(offers=PROTOCOLS).receive,
    ]
    for machine in machines:
        try:
            for _ in range(20):
                data = bytes(chance.choice([0, 0, 0, 1, 2, 4, 255, chance.randrange(256)]) for _ in range(30))
                machine(memoryview(data))
        except PeerError:
            continue


# TLS and noise

CREDENTIALS = [Credentials(identity(number)) for number in (1, 2, 3)]


def shake(client: security.Channel, server: security.Channel, chance: random.Random | None = None) -> None:
    """Carry bytes between two channels until both rest."""
    chance = chance or random.Random(0)
    while True:
        there, back = client.outgoing(), server.outgoing()
        if not there and not back:
            return
        for target, data in ((server, there), (client, back)):
            for piece in pieces(data, chance):
                for _ in target.receive(memoryview(piece)):
                    raise AssertionError("plain bytes came out of a handshake")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(5))
def test_both_sides_prove_their_keys_and_bytes_arrive_whole(protocol: str, seed: int) -> None:
    chance = random.Random(seed)
    client = CREDENTIALS[0].channel(protocol, dialled=True)
    server = CREDENTIALS[1].channel(protocol, dialled=False)
    shake(client, server, chance)
    assert (client.remote, server.remote) == (identity(2).address, identity(1).address)
    for source, target in ((client, server), (server, client)):
        sent, heard = b"", b""
        for size in (1, 100, 70_000, 600_000):
            data = chance.randbytes(size)
            sent += data
            source.write(data)
            for piece in pieces(source.outgoing(), chance):
                heard += b"".join(bytes(part) for part in target.receive(memoryview(piece)))
        assert heard == sent


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_changed_byte_on_the_line_is_noticed(protocol: str) -> None:
    client = CREDENTIALS[0].channel(protocol, dialled=True)
    server = CREDENTIALS[1].channel(protocol, dialled=False)
    shake(client, server)
    client.write(b"weight 10")
    data = bytearray(client.outgoing())
    data[-3] ^= 1
    with pytest.raises(PeerError):
        list(server.receive(memoryview(bytes(data))))


def tls_client(certificate: str | None, key: str | None, tmp_path_factory: pytest.TempPathFactory) -> TlsChannel:
    """A client of our server with a certificate of its own making, or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["libp2p"])
    if certificate is not None and key is not None:
        path = tmp_path_factory.mktemp("keys") / "tls.pem"
        path.write_text(key + certificate)
        context.load_cert_chain(path)
    return TlsChannel(context, True, [])


def forged(extension: bytes | None) -> tuple[str, str]:
    """A certificate with a TLS key of its own and someone else's words in the extension."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = create_cert_template().public_key(key.public_key())
    if extension is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(LIBP2P_EXTENSION_OID, extension), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    return (
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


def members_extension(keys: KeyPair) -> bytes:
    """The extension of a member's genuine certificate, as anyone who met it has it."""
    pem, _ = generate_certificate(keys.private_key, create_cert_template())
    extension = x509.load_pem_x509_certificate(pem.encode()).extensions.get_extension_for_oid(LIBP2P_EXTENSION_OID)
    assert isinstance(extension.value, x509.UnrecognizedExtension)
    return extension.value.value


def test_who_only_knows_a_members_public_key_does_not_pass_for_it_over_tls(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    member, stranger = create_new_key_pair(identity(1).secret), create_new_key_pair(identity(9).secret)
    signed_by_other = encode_signed_key(
        member.public_key.serialize(), stranger.private_key.sign(b"libp2p-tls-handshake:")
    )
    attempts: Sequence[tuple[str | None, str | None]] = [
        (None, None),
        forged(None),
        forged(b""),
        forged(b"\x30\x03\x04\x01"),
        forged(signed_by_other),
        forged(members_extension(member)),
        generate_certificate(ed25519_key().private_key, create_cert_template()),
    ]
    for certificate, key in attempts:
        client = tls_client(certificate, key, tmp_path_factory)
        server = CREDENTIALS[1].channel(TLS, dialled=False)
        with pytest.raises(PeerError):
            shake(client, server)
        assert server.remote is None
    certificate, key = generate_certificate(member.private_key, create_cert_template())
    server = CREDENTIALS[1].channel(TLS, dialled=False)
    shake(tls_client(certificate, key, tmp_path_factory), server)
    assert server.remote == identity(1).address


class ForgingNoise(NoiseChannel):
    """A client that claims a member's public key with a signature of its own."""

    def __init__(self, claimed: KeyPair) -> None:
        super().__init__(CREDENTIALS[2], True)
        genuine = self._pattern.make_handshake_payload
        self._pattern.make_handshake_payload = lambda: NoiseHandshakePayload(claimed.public_key, genuine().id_sig)


def test_who_only_knows_a_members_public_key_does_not_pass_for_it_over_noise() -> None:
    server = CREDENTIALS[1].channel(NOISE, dialled=False)
    with pytest.raises(PeerError):
        shake(ForgingNoise(create_new_key_pair(identity(1).secret)), server)
    assert server.remote is None


# All of it


class Side:
    """One end of a connection and what it heard."""

    def __init__(self, number: int, *, dialled: Address | None, members: set[Address]) -> None:
        self.members = members
        self.heard: list[tuple[str, bytes]] = []
        self.ready = False
        self.connection = Connection(CREDENTIALS[number - 1], self, dialled=dialled)

    def admit(self, connection: Connection, remote: Address) -> None:
        if remote not in self.members:
            raise PeerError("no member")

    def opened(self, connection: Connection) -> None:
        self.ready = True

    def message(self, connection: Connection, protocol: str, payload: bytes) -> None:
        self.heard.append((protocol, payload))

    def request(self, connection: Connection, protocol: str, payload: bytes, done: Done) -> None:
        if protocol == "/echo":
            done(payload, "")
        else:
            done(None, "no")

    def piped(self, connection: Connection, protocol: str, pipe: Pipe) -> Holder | None:
        return None

    def stirred(self, connection: Connection) -> None:
        return

    def leaving(self, connection: Connection) -> None:
        self.heard.append(("leaving", b""))


def ends(*, answers: int = 2) -> tuple[Side, Side]:
    a, b = identity(1).address, identity(2).address
    return Side(1, dialled=b, members={b}), Side(answers, dialled=None, members={a})


def carry(one: Side, two: Side, chance: random.Random) -> bool:
    moved = False
    for here, there in ((one, two), (two, one)):
        data = here.connection.outgoing(chance.choice([100, 100_000]))
        moved = moved or bool(data)
        for piece in pieces(data, chance):
            there.connection.receive(memoryview(piece))
    return moved


def settle(one: Side, two: Side, chance: random.Random | None = None) -> None:
    chance = chance or random.Random(0)
    while carry(one, two, chance):
        pass


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(4))
def test_messages_and_requests_cross_a_line_that_cuts_anywhere(
    seed: int, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "PROTOCOLS", (protocol,))
    chance = random.Random(seed)
    one, two = ends()
    settle(one, two, chance)
    assert one.ready
    assert two.ready
    sent: list[tuple[str, bytes]] = []
    answers: list[tuple[bytes | memoryview | None, str]] = []
    asked: list[tuple[bytes | None, str]] = []
    for _ in range(40):
        payload = chance.randbytes(chance.choice([0, 10, 5_000, 70_000]))
        one.connection.send("/vote", payload)
        sent.append(("/vote", payload))
        question = chance.choice(["/echo", "/other"])
        into = chance.choice([None, memoryview(bytearray(5_000))])
        two.connection.ask(question, payload, lambda answer, reason: answers.append((answer, reason)), into)
        asked.append((payload, "") if question == "/echo" else (None, "declined: no"))
        carry(one, two, chance)
    settle(one, two, chance)
    assert two.heard == sent
    found = [(None if answer is None else bytes(answer), reason) for answer, reason in answers]
    assert sorted(found, key=repr) == sorted(asked, key=repr)
    assert not one.connection.busy
    assert not two.connection.busy


def test_another_member_at_the_dialled_place_is_refused() -> None:
    one, two = ends(answers=3)
    with pytest.raises(PeerError, match="answered"):
        settle(one, two)
    assert not one.ready


def test_who_is_no_member_is_refused_before_anything_is_read_from_it() -> None:
    one, two = ends()
    two.members.clear()
    with pytest.raises(PeerError, match="no member"):
        settle(one, two)
    assert not two.ready


def test_a_stranger_may_not_send_much_before_its_key_is_proven() -> None:
    _, two = ends()
    opening = Negotiation(offers=[NOISE]).start()
    two.connection.receive(memoryview(opening))
    two.connection.receive(memoryview(b"\xff\xff" + bytes(60_000)))
    with pytest.raises(PeerError, match="no key is proven"):
        two.connection.receive(memoryview(bytes(6_000)))


@pytest.mark.parametrize("how", ["withdrawn", "lost"])
def test_nothing_is_written_for_who_does_not_wait_any_more(how: str) -> None:
    """The asker may use the memory for something else at once, though the rest of the answer is read already."""
    one, two = ends()
    settle(one, two, random.Random(2))
    into = memoryview(bytearray(100_000))
    ask = one.connection.ask("/echo", b"x" * 100_000, lambda answer, reason: None, into)
    two.connection.receive(memoryview(b"".join(iter(lambda: one.connection.outgoing(30_000), b""))))
    sent = b"".join(iter(lambda: two.connection.outgoing(30_000), b""))
    one.connection.receive(memoryview(sent)[:50_000])
    written = bytes(into).count(b"x")
    assert 0 < written < 100_000
    if how == "withdrawn":
        one.connection.withdraw(ask)
    else:
        one.connection.lost()
    one.connection.receive(memoryview(sent)[50_000:])
    assert bytes(into).count(b"x") == written


def test_a_lost_connection_fails_every_request_once_and_later_ones_at_once() -> None:
    chance = random.Random(1)
    one, two = ends()
    settle(one, two, chance)
    outcomes: list[tuple[bytes | memoryview | None, str]] = []
    for _ in range(20):
        one.connection.ask("/echo", b"x", lambda answer, reason: outcomes.append((answer, reason)))
    one.connection.lost()
    one.connection.lost()
    one.connection.ask("/echo", b"x", lambda answer, reason: outcomes.append((answer, reason)))
    assert outcomes == [(None, "the connection was lost")] * 21


def test_an_answer_that_nobody_asked_for_cuts_the_connection() -> None:
    chance = random.Random(2)
    one, two = ends()
    settle(one, two, chance)
    one.connection.ask("/echo", b"x", lambda answer, reason: None)
    settle(one, two, chance)
    session = two.connection._session
    assert session is not None
    stream = session._streams[1]
    session.write(stream, frames.head(Kind.ANSWER, "", 1) + b"!")
    with pytest.raises(PeerError, match="waits for none"):
        settle(one, two, chance)


def test_who_asks_for_echoes_pays_for_each_however_its_bytes_come() -> None:
    """One long frame in small records was no short frame, and each record cost us a frame of our own."""
    one, two = ends()
    settle(one, two)
    session, channel = one.connection._session, one.connection._channel
    assert session is not None
    assert channel is not None
    stream = session.open()
    stream.owner = object()  # nobody hears the echoes
    session.write(stream, Negotiation(offers=(PING,)).start())
    settle(one, two)
    before = two.connection.short_frames
    session.write(stream, bytes(32 * 500))
    frame = session.outgoing(1 << 20)
    for start in range(0, len(frame), 32):
        channel.write(frame[start : start + 32])
        two.connection.receive(memoryview(channel.outgoing()))
        two.connection.outgoing(1 << 20)
    assert two.connection.short_frames - before >= 500
