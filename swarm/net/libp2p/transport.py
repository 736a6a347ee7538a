"""The `Transport` port over libp2p, on the caller's own asyncio loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from swarm.config import Proxy, RelayConfig
from swarm.encoding import Address, short
from swarm.errors import UnavailableError
from swarm.identity import Identity
from swarm.net.inbox import Inbox
from swarm.net.libp2p.dialling import listen_place
from swarm.net.libp2p.mesh import Mesh
from swarm.net.libp2p.pace import Pace
from swarm.net.libp2p.security import Credentials
from swarm.net.meter import Meter
from swarm.net.transport import MESSAGE_MAX_BYTES, Handler, answer_into

PING_S = 15.0


class Libp2pTransport:
    """A libp2p peer that speaks with members only.

    Args:
        identity: the node's key; its PeerID is what others dial.
        listen: a multiaddr, `/ip4/0.0.0.0/tcp/4101`; port 0 takes a free one.
        ping_s: how often a member is asked for a sign of life; three times of silence and it is given up.
        upload_bytes_s: the most to send in a second, over all members; votes and blocks do not wait for it.
        relay: that this peer joins members that cannot reach each other, and how much of that; None: it does not.
        proxy: through which members are dialled, as `proxy_of` reads it; None: none.

    Raises:
        ConfigError: `listen` is no such multiaddr.
    """

    def __init__(
        self,
        identity: Identity,
        listen: str,
        *,
        ping_s: float = PING_S,
        upload_bytes_s: float | None = None,
        relay: RelayConfig | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        self._identity = identity
        self._listen = listen
        self._inbox = Inbox()
        place = listen_place(listen)
        credentials, pace = Credentials(identity), Pace(upload_bytes_s)
        self._mesh = Mesh(
            identity.address, credentials, place, self._inbox, ping_s=ping_s, pace=pace, relay=relay, proxy=proxy
        )
        self._port = place[1]

    @property
    def me(self) -> Address:
        """This node's address."""
        return self._identity.address

    @property
    def endpoint(self) -> str:
        """The multiaddr listened on, with the PeerID; after `start` with the port that was taken."""
        head, _, _ = self._listen.partition("/tcp/")
        return f"{head}/tcp/{self._port}/p2p/{self._identity.peer_id}"

    @property
    def meter(self) -> Meter:
        """What was exchanged with whom, and who was sent away."""
        return self._mesh.meter

    async def start(self) -> None:
        """Listen and begin to keep connections to the members. ConfigError: the port is in use, or not ours."""
        self._port = await self._mesh.start()

    async def close(self) -> None:
        """Close every connection; no task, thread or socket is left."""
        await self._mesh.close()
        await self._inbox.close()

    def serve(self, protocol: str, handler: Handler) -> None:
        """Answer `protocol`."""
        self._inbox.serve(protocol, handler)

    def set_members(self, members: Mapping[Address, str]) -> None:
        """The members and their endpoints; who is no longer one is cut at once."""
        self._mesh.set_members(members)

    def connected(self) -> frozenset[Address]:
        """The members that messages reach now."""
        return self._mesh.connected()

    async def request(self, member: Address, protocol: str, payload: bytes, *, timeout_s: float) -> bytes:
        """The member's answer; errors as the port says."""
        answer = await self._answer(member, protocol, payload, None, timeout_s)
        return answer if isinstance(answer, bytes) else bytes(answer)

    async def request_into(
        self, member: Address, protocol: str, payload: bytes, into: memoryview, *, timeout_s: float
    ) -> int:
        """The size of the member's answer, which is in `into`; errors as the port says."""
        answer = await self._answer(member, protocol, payload, into, timeout_s)
        return answer_into(answer, into, member)

    async def _answer(
        self, member: Address, protocol: str, payload: bytes, into: memoryview | None, timeout_s: float
    ) -> bytes | memoryview:
        _check_size(payload)
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[bytes | memoryview] = loop.create_future()
        ended = False

        def done(answer: bytes | memoryview | None, reason: str) -> None:
            nonlocal ended
            ended = True
            if answered.done():
                return
            if answer is None:
                answered.set_exception(UnavailableError(f"{protocol} at {short(member)}: {reason}"))
            else:
                answered.set_result(answer)

        def late() -> None:
            if not answered.done():
                reason = f"no answer in {timeout_s:g} s"
                answered.set_exception(UnavailableError(f"{protocol} at {short(member)}: {reason}"))

        asked = self._mesh.ask(member, protocol, payload, done, into)
        timer = loop.call_later(timeout_s, late)
        try:
            return await answered
        finally:
            timer.cancel()
            if asked is not None and not ended:
                self._mesh.withdraw(asked)

    def send(self, member: Address, protocol: str, payload: bytes) -> None:
        """Hand over a message that needs no answer, in order per member."""
        _check_size(payload)
        self._mesh.send(member, protocol, payload)

    def broadcast(self, protocol: str, payload: bytes) -> None:
        """`send` to every member but this one."""
        _check_size(payload)
        self._mesh.broadcast(protocol, payload)


def _check_size(payload: bytes) -> None:
    if len(payload) > MESSAGE_MAX_BYTES:
        raise ValueError(f"a message of {len(payload)} bytes, at most {MESSAGE_MAX_BYTES} travel")
