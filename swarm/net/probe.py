"""How good is the way to a member? Round trip, speed both ways, its clock, whether it reaches us too, and relays.

A member answers from the ledger's own facts: it dials nobody but the asker, at the endpoint that the ledger has for it,
and one asker costs it at most `BYTES_MAX` in `WINDOW_S`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from swarm.config import Proxy
from swarm.encoding import Address, data_of, list_of, number, pack, short, unpack
from swarm.errors import PeerError, UnavailableError
from swarm.net.libp2p.dialling import connect, places_of
from swarm.net.transport import Transport

logger = logging.getLogger(__name__)

PROBE = "/swarm/probe/1"
SIZE_MAX_BYTES = 4 << 20
"""Of one question or answer."""
BYTES_MAX, WINDOW_S = 64 << 20, 60.0
"""What one member may make this node send and receive for probes in a while."""
DIALS_MAX = 6
"""How often one member may have itself dialled in `WINDOW_S`."""
SMALL, LARGE_S = 5, 1.0
"""Round trips that are measured; how long a transfer is repeated to tell its speed."""
TIMEOUT_S = 20.0
_ECHO, _DIAL, _RELAYS = 0, 1, 2


@dataclass(frozen=True)
class Finding:
    """What was measured of the way to one member."""

    round_trip_s: float
    """The least of several."""
    down_bytes_s: float
    up_bytes_s: float
    clock_ahead_s: float
    """How far its clock is ahead of ours, within half a round trip."""
    reaches_us: str
    """Empty where it can dial us, else why not, in its words."""
    relays: bool
    """Whether it relays for members that cannot reach each other, by its word."""


@dataclass
class _Allowance:
    since_s: float
    bytes: int = 0
    dials: int = 0


class Probe:
    """Measures, and answers those who do.

    Args:
        endpoints: the members' endpoints by the ledger.
        clock: Unix seconds.
        proxy: through which this node dials, if any.
        relays: that this node relays for members.
    """

    def __init__(
        self,
        transport: Transport,
        endpoints: Callable[[], Mapping[Address, str]],
        clock: Callable[[], float],
        *,
        proxy: Proxy | None = None,
        relays: bool = False,
    ) -> None:
        self._proxy = proxy
        self._relays = relays
        self._transport = transport
        self._endpoints = endpoints
        self._clock = clock
        self._allowances: dict[Address, _Allowance] = {}

    def serve(self) -> None:
        """Answer members; call before the transport starts."""
        self._transport.serve(PROBE, self._answer)

    async def measure(self, member: Address) -> Finding:
        """What the way to a connected member is like; takes a few seconds.

        Raises:
            UnavailableError: it cannot be reached, or it declines for now.
            PeerError: its answer is none.
        """
        round_trips, ahead_s = [], 0.0
        for _ in range(SMALL):
            began_s, at_s = time.perf_counter(), self._clock()
            their_s, _ = await self._echo(member, 0, 0)
            round_trips.append(time.perf_counter() - began_s)
            if round_trips[-1] == min(round_trips):
                ahead_s = their_s - at_s - round_trips[-1] / 2
        down, up = await self._speed(member, up=False), await self._speed(member, up=True)
        reason = await self._transport.request(member, PROBE, pack([_DIAL, 0, b""]), timeout_s=TIMEOUT_S)
        if len(reason) > 1000:
            raise PeerError(f"{short(member)} answers a probe with {len(reason)} bytes", member=member)
        relays = await self._ask_relays(member)
        return Finding(min(round_trips), down, up, ahead_s, reason.decode(errors="replace"), relays)

    async def _ask_relays(self, member: Address) -> bool:
        answer = await self._transport.request(member, PROBE, pack([_RELAYS, 0, b""]), timeout_s=TIMEOUT_S)
        if answer not in (b"\0", b"\1"):
            raise PeerError(f"{short(member)} does not say whether it relays, but {answer[:20]!r}", member=member)
        return answer == b"\1"

    async def _speed(self, member: Address, *, up: bool) -> float:
        """Bytes a second of transfers that grow until one takes long enough, or is as large as may be."""
        size = 64 << 10
        while True:
            began_s = time.perf_counter()
            await self._echo(member, 0 if up else size, size if up else 0)
            took_s = time.perf_counter() - began_s
            if took_s > LARGE_S or size >= SIZE_MAX_BYTES:
                return size / took_s
            size = min(size * 4, SIZE_MAX_BYTES)

    async def _echo(self, member: Address, wanted: int, given: int) -> tuple[float, int]:
        question = pack([_ECHO, wanted, bytes(given)])
        answer = await self._transport.request(member, PROBE, question, timeout_s=TIMEOUT_S)
        try:
            clock, filling = list_of(unpack(answer, max_bytes=SIZE_MAX_BYTES + 64), size=2)
            found = number(clock) / 1000, len(data_of(filling))
        except ValueError as error:
            raise PeerError(f"{short(member)} answers a probe with nonsense: {error}", member=member) from error
        if found[1] != wanted:
            raise PeerError(f"{short(member)} answers a probe with {found[1]} bytes, not {wanted}", member=member)
        return found

    # --- for others

    async def _answer(self, member: Address, payload: bytes) -> bytes:
        kind, wanted, given = list_of(unpack(payload, max_bytes=SIZE_MAX_BYTES + 64), size=3)
        size = number(wanted)
        if size > SIZE_MAX_BYTES:
            raise PeerError(f"a probe asks for {size} bytes, at most {SIZE_MAX_BYTES} are sent", member=member)
        allowance = self._allowance(member)
        if number(kind) == _DIAL:
            allowance.dials += 1
            if allowance.dials > DIALS_MAX:
                raise UnavailableError(f"a member is dialled back {DIALS_MAX} times in {WINDOW_S:g} s; ask later")
            return (await self._dial(member)).encode()[:1000]
        if number(kind) == _RELAYS:
            return b"\1" if self._relays else b"\0"
        allowance.bytes += size + len(data_of(given))
        if allowance.bytes > BYTES_MAX:
            raise UnavailableError(f"a member may probe with {BYTES_MAX >> 20} MiB in {WINDOW_S:g} s; ask later")
        return pack([int(self._clock() * 1000), bytes(size)])

    def _allowance(self, member: Address) -> _Allowance:
        now_s = asyncio.get_running_loop().time()
        found = self._allowances.get(member)
        if found is None or now_s - found.since_s > WINDOW_S:
            found = self._allowances[member] = _Allowance(now_s)
        return found

    async def _dial(self, member: Address) -> str:
        endpoint = self._endpoints().get(member)
        if endpoint is None:
            return "the ledger has no endpoint of yours"
        try:
            places = places_of(member, endpoint)
        except ValueError as error:
            return f"your endpoint on the ledger, {endpoint!r}: {error}"
        if not places:
            return "your endpoint names no place to dial, only a relay"
        reasons = []
        for host, port in places:
            try:
                (await connect(host, port, self._proxy)).close()
            except OSError as error:
                reasons.append(f"{host} port {port}: {error}")
            else:
                return ""
        return "; ".join(reasons)
