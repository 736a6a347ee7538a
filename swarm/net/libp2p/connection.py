"""One connection to one member, from the first byte to the last, as a machine without I/O.

It agrees on TLS or noise, proves both keys, asks whether the other side may stay, and then carries messages:
one long-lived stream outward for what needs no answer, and a few kept streams outward for requests, one at a
time on each. What it decides it tells its `Owner`; what it wants sent it holds in `outgoing`.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from swarm.encoding import Address, short
from swarm.errors import PeerError
from swarm.net.inbox import Backlog, Done
from swarm.net.libp2p import frames, identify, security, yamux
from swarm.net.libp2p.asks import Answered, Ask, Inward, Outward
from swarm.net.libp2p.frames import Kind
from swarm.net.libp2p.negotiation import Negotiation
from swarm.net.libp2p.pipe import Holder, Pipe
from swarm.net.libp2p.windows import Windows
from swarm.net.libp2p.yamux import Stream, What
from swarm.net.transport import MESSAGE_MAX_BYTES

REQUESTS_MAX = 8
"""Requests under way to one member; the next ones wait. Each may hold one message of memory."""
UNPROVEN_MAX_BYTES = 64 << 10
"""What is read before a key is proven; a handshake takes 3 KiB."""
MESSAGES_AHEAD_BYTES = 64 << 10
"""Messages handed to the stream ahead of the socket; the rest wait where the oldest can still go."""
UNREAD_MAX_BYTES = 1 << 10
"""What may wait on a stream when it brings its next request: its protocol's confirmation, but not the last answer."""
HELD_MAX_BYTES = 4 * MESSAGE_MAX_BYTES
"""Of all messages and answers on their way here that are not whole: twice what eight answers of an object have."""
PIPES_MAX = 16
"""Streams of the other side that are no frames: relayed connections, in the main."""
PING = "/ipfs/ping/1.0.0"
ECHOES_MAX_BYTES = 64 * 32
"""What waits to be echoed: a pinger that does not read its echoes is cut off, not remembered."""
_SERVED = (frames.PROTOCOL, PING, identify.PROTOCOL)


class Owner(Protocol):
    """Who a connection reports to. None of these may raise."""

    def admit(self, connection: Connection, remote: Address) -> None:
        """The other side has proven to be `remote`. PeerError: it may not stay."""

    def opened(self, connection: Connection) -> None:
        """Messages can travel."""

    def message(self, connection: Connection, protocol: str, payload: bytes) -> None:
        """A message that wants no answer."""

    def request(self, connection: Connection, protocol: str, payload: bytes, done: Done) -> None:
        """A message that wants one."""

    def leaving(self, connection: Connection) -> None:
        """The other side opens nothing new here."""

    def piped(self, connection: Connection, protocol: str, pipe: Pipe) -> Holder | None:
        """The other side opened a stream of a protocol in `pipes`; who takes its bytes, or None to refuse it."""

    def stirred(self, connection: Connection) -> None:
        """There is something to send, though nothing arrived and nobody asked."""


class Connection:
    """The machine.

    Args:
        dialled: the address that this side dialled and expects, or None where the other side did.
        pipes: protocols that the other side may open a stream for, whose bytes `Owner.piped` takes as they are.
        windows: what may be under way to this node, over all its connections; None: this is the only one.
    """

    def __init__(
        self,
        credentials: security.Credentials,
        owner: Owner,
        *,
        dialled: Address | None,
        pipes: tuple[str, ...] = (),
        windows: Windows | None = None,
    ) -> None:
        self.dialled = dialled
        self.remote: Address | None = None
        self.open = False
        self.pongs = 0
        self._credentials = credentials
        self._owner = owner
        self._windows = windows
        self._round_trips_s: deque[float] = deque(maxlen=8)
        self._clear = bytearray()
        self._plain = bytearray()
        self._channel: security.Channel | None = None
        self._session: yamux.Session | None = None
        self._unproven = 0
        self._messages = Backlog()
        self._message_stream: Stream | None = None
        self._idle: list[Stream] = []
        self._active: dict[Ask, Stream] = {}
        self._answering = 0
        self._waiting: deque[Ask] = deque()
        self._serves = (*_SERVED, *pipes)
        self._pipes: set[Pipe] = set()
        self._gone = False
        self._unchecked = 0
        """Bytes that came since it was looked how much is held."""
        self._negotiation = self._negotiate(security.PROTOCOLS, self._clear)

    # What the shell does

    def receive(self, data: memoryview) -> None:
        """Take what arrived.

        Raises:
            PeerError: the other side broke a rule or may not stay; close the connection.
        """
        if self._channel is None:
            data = self._agree_on_security(data)
        if self._channel is not None and len(data):
            if self.remote is None:
                self._count_unproven(data)
            for plain in self._channel.receive(data):
                self._proven()
                self._take_plain(plain)
            self._proven()

    def outgoing(self, size_bytes: int, *, bulk: bool = True) -> bytes:
        """The next bytes for the socket, about `size_bytes`; empty if nothing is to be sent.

        Args:
            bulk: requests and answers may go too, not only messages and what keeps the connection.
        """
        clear = bytes(self._clear)
        self._clear.clear()
        if self._channel is None:
            return clear
        if self._plain:
            self._channel.write(bytes(self._plain))
            self._plain.clear()
        if self._session is not None:
            if self._messages:
                self._feed_messages()
            plain = self._session.outgoing(size_bytes, bulk=bulk)
            if plain:
                self._channel.write(plain)
                if self._pipes:
                    self._tend_pipes()
        return clear + self._channel.outgoing() if clear else self._channel.outgoing()

    def ping(self) -> None:
        """Ask for a sign of life: `pongs` grows when it comes."""
        if self._session is not None:
            self._session.ping(self.pongs)

    def note_round_trip(self, round_trip_s: float) -> None:
        """A ping took so long; the shortest of the last ones tells what the line itself takes."""
        self._round_trips_s.append(round_trip_s)
        if self._session is not None:
            self._session.round_trip_s = min(self._round_trips_s)

    def leave(self) -> None:
        """Tell the other side to open nothing new here; what is under way goes on."""
        if self._session is not None:
            self._session.go_away()

    def farewell(self) -> bytes:
        """The last bytes: goodbye in the channel's own way."""
        data = self.outgoing(yamux.FRAME_MAX)
        if self._channel is not None:
            self._channel.close()
            data += self._channel.outgoing()
        return data

    @property
    def bulk_waits(self) -> bool:
        """Requests or answers have bytes to send, and room for them at the other side."""
        return self._session is not None and self._session.bulk_waits

    @property
    def short_frames(self) -> int:
        """Short frames that came."""
        return self._session.short if self._session is not None else 0

    @property
    def dropped(self) -> int:
        """Messages that gave way because the queue was full."""
        return self._messages.dropped

    @property
    def busy(self) -> bool:
        """A request is under way, in either direction."""
        return bool(self._active or self._waiting or self._answering)

    def lost(self) -> None:
        """The connection is gone: every request of ours fails."""
        if self._gone:
            return
        self._gone = True
        self.open = False
        asks = [*self._active, *self._waiting]
        self._active.clear()
        self._waiting.clear()
        for ask in asks:
            ask.done(None, "the connection was lost")
        for pipe in tuple(self._pipes):
            pipe.lose("the connection was lost")
        self._pipes.clear()
        # Something may know of the connection for a while: not of the megabytes that came over it or were to leave.
        self._messages = Backlog()
        if self._session is not None:
            self._session.drop()

    # What members say to each other

    def send(self, protocol: str, payload: bytes) -> None:
        """Queue a message; when the queue is full the oldest goes."""
        self._messages.add(protocol, payload)

    def ask(self, protocol: str, payload: bytes, done: Answered, into: memoryview | None = None) -> Ask:
        """Queue a request; `done` is called once unless it is withdrawn before.

        Args:
            into: where the answer goes if it has room: `done` gets a view of it. Nothing is written there afterwards.
        """
        ask = Ask(frames.head(Kind.REQUEST, protocol, len(payload)), payload, done, into)
        if self._gone:
            done(None, "the connection was lost")
        elif len(self._active) < REQUESTS_MAX:
            self._begin(ask)
        else:
            self._waiting.append(ask)
        return ask

    def withdraw(self, ask: Ask) -> None:
        """Nobody waits for the answer any more."""
        stream = self._active.get(ask)
        if stream is not None and self._session is not None:
            self._session.reset(stream)
            self._released(ask, None)
        elif ask in self._waiting:
            self._waiting.remove(ask)

    def open_pipe(self, protocol: str, holder: Holder) -> Pipe:
        """A stream for `protocol` as it is; `holder` hears whether the other side serves it. Only while `open`."""
        assert self._session is not None
        pipe = Pipe(self._session, self._session.open(), self._stir, protocol=protocol)
        pipe.holder = holder
        self._pipes.add(pipe)
        self._stir()
        return pipe

    @property
    def peer_id(self) -> str:
        """The other side's PeerID, once its key is proven."""
        return self._channel.peer_id if self._channel is not None else ""

    # From the first byte to an open session

    def _negotiate(self, offers: tuple[str, ...], out: bytearray) -> Negotiation:
        if self.dialled is None:
            return Negotiation(serves=offers)
        negotiation = Negotiation(offers=offers)
        out += negotiation.start()
        return negotiation

    def _agree_on_security(self, data: memoryview) -> memoryview:
        self._count_unproven(data)
        self._clear += self._negotiation.receive(data)
        if self._negotiation.chosen is None:
            return memoryview(b"")
        self._channel = self._credentials.channel(self._negotiation.chosen, dialled=self.dialled is not None)
        return memoryview(self._negotiation.rest)

    def _count_unproven(self, data: memoryview) -> None:
        self._unproven += len(data)
        if self._unproven > UNPROVEN_MAX_BYTES:
            raise PeerError(f"{self._unproven} bytes and no key is proven")

    def _proven(self) -> None:
        if self.remote is not None or self._channel is None or self._channel.remote is None:
            return
        remote = self._channel.remote
        if self.dialled is not None and remote != self.dialled:
            raise PeerError(f"dialled {short(self.dialled)}, but {short(remote)} answered", member=remote)
        self._owner.admit(self, remote)
        self.remote = remote
        self._negotiation = self._negotiate((yamux.PROTOCOL,), self._plain)

    def _take_plain(self, data: memoryview) -> None:
        if self._session is None:
            self._plain += self._negotiation.receive(data)
            if self._negotiation.chosen is None:
                return
            # Streams that have not said yet what they are hold nothing.
            streams_max = yamux.STREAMS_MAX + PIPES_MAX
            initiator = self.dialled is not None
            self._session = yamux.Session(initiator=initiator, streams_max=streams_max, windows=self._windows)
            self.open = True
            self._owner.opened(self)
            data = memoryview(self._negotiation.rest)
        for what, stream, part in self._session.receive(data):
            if what is What.DATA:
                if stream is not None and not stream.gone:
                    self._stream_data(stream, part)
            elif what is What.OPENED:
                if stream is not None:
                    stream.owner = Inward(self._serves)
            elif what is What.PONG:
                self.pongs += 1
            elif what is What.GO_AWAY:
                self._owner.leaving(self)
            elif stream is not None:
                self._stream_over(stream, what)
        self._unchecked += len(data)
        if self._unchecked >= HELD_MAX_BYTES // 64:
            self._bound_held()
            self._unchecked = 0

    # Streams

    def _stream_data(self, stream: Stream, data: memoryview) -> None:
        owner = stream.owner
        if isinstance(owner, Inward):
            self._inward(stream, owner, data)
        elif isinstance(owner, Outward):
            self._outward(stream, owner, data)
        elif isinstance(owner, Pipe):
            owner.take(data)

    def _bound_held(self) -> None:
        assert self._session is not None
        held = 0
        for stream in self._session.all():
            owner = stream.owner
            if isinstance(owner, Inward | Outward):
                held += owner.reader.held_bytes
        if held > HELD_MAX_BYTES:
            raise PeerError(f"{held} bytes of unfinished messages, at most {HELD_MAX_BYTES} are kept")

    def _inward(self, stream: Stream, owner: Inward, data: memoryview) -> None:
        session = self._session
        assert session is not None
        if owner.negotiation is not None:
            reply = owner.negotiation.receive(data)
            session.write(stream, reply)
            if owner.negotiation.chosen is None:
                return
            chosen, data = owner.negotiation.chosen, memoryview(owner.negotiation.rest)
            owner.negotiation = None
            if chosen not in _SERVED:
                self._pipe_inward(stream, chosen, data)
                return
            owner.pinging = chosen == PING
            if self._inwards(Inward) > yamux.STREAMS_MAX:
                session.reset(stream)
                return
            if chosen == identify.PROTOCOL:
                session.write(stream, identify.about(self._credentials.keys.public_key.serialize(), self._serves))
                session.finish(stream)
                return
        if owner.pinging:
            session.short += 1  # however few bytes an echo has, it is a frame of ours, and who asks for it pays
            if stream.queued + len(data) > ECHOES_MAX_BYTES:
                session.reset(stream)
            else:
                session.write(stream, bytes(data))
            return
        for frame in owner.reader.receive(data):
            if frame.kind is Kind.MESSAGE:
                self._owner.message(self, frame.protocol, bytes(frame.payload))
            elif frame.kind is Kind.REQUEST and stream.queued > UNREAD_MAX_BYTES:
                raise PeerError("a stream brings a request, and the last answer was not read")
            elif frame.kind is Kind.REQUEST and not owner.answering:
                owner.answering = True
                self._answering += 1
                self._owner.request(self, frame.protocol, bytes(frame.payload), self._answerer(stream, owner))
            else:
                raise PeerError("a stream brings a request before the last one is answered, or an answer to none")

    def _pipe_inward(self, stream: Stream, protocol: str, data: memoryview) -> None:
        assert self._session is not None
        pipe = Pipe(self._session, stream, self._stir)
        pipe.holder = self._owner.piped(self, protocol, pipe) if self._inwards(Pipe) <= PIPES_MAX else None
        if pipe.holder is None:
            pipe.reset()
            return
        self._pipes.add(pipe)
        pipe.take(data)

    def _inwards(self, kind: type) -> int:
        """Streams of this kind that the other side has open and that have said what they are."""
        assert self._session is not None
        owners = [stream.owner for stream in self._session.theirs() if isinstance(stream.owner, kind)]
        return sum(not isinstance(owner, Inward) or owner.negotiation is None for owner in owners)

    def _tend_pipes(self) -> None:
        for pipe in tuple(self._pipes):
            if pipe.over:
                self._pipes.discard(pipe)
            else:
                pipe.sent_some()

    def _stir(self) -> None:
        self._owner.stirred(self)

    def _answerer(self, stream: Stream, owner: Inward) -> Done:
        def done(answer: bytes | None, reason: str) -> None:
            owner.answering = False
            self._answering -= 1
            if stream.gone or self._session is None:
                return
            kind, payload = (Kind.DECLINED, reason.encode()[:500]) if answer is None else (Kind.ANSWER, answer)
            self._session.write(stream, frames.head(kind, "", len(payload)))
            self._session.write(stream, payload)
            if owner.ended:
                self._session.finish(stream)

        return done

    def _outward(self, stream: Stream, owner: Outward, data: memoryview) -> None:
        if owner.negotiation is not None:
            owner.negotiation.receive(data)
            if owner.negotiation.chosen is None:
                return
            data = memoryview(owner.negotiation.rest)
            owner.negotiation = None
        for frame in owner.reader.receive(data):
            ask, owner.ask, owner.reader.into = owner.ask, None, None
            if ask is None or frame.kind not in (Kind.ANSWER, Kind.DECLINED):
                raise PeerError(f"{frame.kind.name} arrived on a stream that waits for none", evidence=frame[:2])
            self._released(ask, stream)
            if frame.kind is Kind.ANSWER:
                ask.done(frame.payload, "")
            else:
                ask.done(None, "declined: " + bytes(frame.payload).decode(errors="replace"))

    def _stream_over(self, stream: Stream, what: What) -> None:
        """The other side ended or reset a stream: frames' streams are kept open, so both mean that it is gone."""
        session, owner = self._session, stream.owner
        assert session is not None
        if isinstance(owner, Pipe):
            if what is What.END:
                owner.end()
            else:
                self._pipes.discard(owner)
                owner.lose("the other side gave the stream up")
            return
        if isinstance(owner, Inward):
            owner.ended = True
            if not owner.answering:
                session.finish(stream)
            return
        if not stream.gone:
            session.reset(stream)
        if stream is self._message_stream:
            self._message_stream = None
        elif stream in self._idle:
            self._idle.remove(stream)
        elif isinstance(owner, Outward) and owner.ask is not None:
            ask, owner.ask = owner.ask, None
            self._released(ask, None)
            ask.done(None, "the request was given up at the other side")

    def _begin(self, ask: Ask) -> None:
        session = self._session
        assert session is not None
        stream = self._idle.pop() if self._idle else self._open_stream(urgent=False)
        assert isinstance(stream.owner, Outward)
        stream.owner.ask, stream.owner.reader.into = ask, ask.into
        self._active[ask] = stream
        session.write(stream, ask.head)
        session.write(stream, ask.payload)

    def _released(self, ask: Ask, stream: Stream | None) -> None:
        """A request of ours has ended; its stream, if it is still good, serves the next one."""
        del self._active[ask]
        if stream is not None:
            self._idle.append(stream)
        if self._waiting:
            self._begin(self._waiting.popleft())

    def _open_stream(self, *, urgent: bool) -> Stream:
        assert self._session is not None
        stream = self._session.open(urgent=urgent)
        stream.owner = owner = Outward()
        assert owner.negotiation is not None
        # The answer is not waited for: who serves no frames resets the stream.
        self._session.write(stream, owner.negotiation.start())
        return stream

    def _feed_messages(self) -> None:
        session, stream = self._session, self._message_stream
        assert session is not None
        if stream is None:
            stream = self._message_stream = self._open_stream(urgent=True)
        while stream.queued < MESSAGES_AHEAD_BYTES:
            message = self._messages.take()
            if message is None:
                return
            protocol, payload = message
            session.write(stream, frames.head(Kind.MESSAGE, protocol, len(payload)) + payload)
