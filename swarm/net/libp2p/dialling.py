"""Where a member can be reached: multiaddrs of TCP, the places they name, and a connected socket to one of them."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from typing import TypeAlias

from swarm.config import Proxy
from swarm.encoding import Address
from swarm.errors import ConfigError
from swarm.identity import address_of_peer_id
from swarm.net.libp2p.proxy import connect_through

CONNECT_S = 3.0
"""For one address of a name; then the next one is tried."""

Place: TypeAlias = tuple[str, int]
"""Host and port."""


def places_of(address: Address, endpoint: str) -> tuple[Place, ...]:
    """The places of an endpoint: one multiaddr, or several with commas between them, in the order to try them.

    `/p2p-circuit/p2p/PEERID` names no place: that member is reached over a relay, whichever member offers one.

    Raises:
        ValueError: one is no multiaddr of TCP, or has another member's PeerID; says which.
    """
    places = []
    for text in endpoint.split(","):
        _, circuit, named = text.strip().partition("/p2p-circuit")
        if circuit:
            if not named.startswith("/p2p/"):
                raise ValueError(f"behind p2p-circuit in {text!r} stands no /p2p/PEERID")
            _check_peer_id(named.removeprefix("/p2p/"), address, text)
            continue
        host, port, peer_id = _parse(text.strip())
        if peer_id:
            _check_peer_id(peer_id, address, text)
        places.append((host, port))
    return tuple(dict.fromkeys(places))


def peer_id_in(endpoint: str) -> str:
    """The PeerID that an endpoint names, for those who can be reached over a relay; empty if it names none."""
    return endpoint.rpartition("/p2p/")[2] if "/p2p/" in endpoint else ""


def listen_place(listen: str) -> Place:
    """Host and port of the multiaddr to listen on; ConfigError if it is none."""
    try:
        host, port, _ = _parse(listen)
    except ValueError as error:
        raise ConfigError(f"listen = {listen!r}: {error}; it has the form /ip4/0.0.0.0/tcp/4101") from error
    return host, port


def cannot_listen(host: str, port: int, error: OSError) -> str:
    """Why a port cannot be listened on, and the way out."""
    why = {
        errno.EADDRINUSE: "another process has it; stop that one or choose another port",
        errno.EACCES: "this user may not take it; choose a port from 1024 on, or grant CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "this machine has no such address; 0.0.0.0 listens on all it has",
    }.get(error.errno or 0, str(error))
    return f"cannot listen on {host} port {port}: {why} (the setting `listen` of the site)"


async def connect(host: str, port: int, proxy: Proxy | None = None) -> socket.socket:
    """A connected socket, directly or through a proxy, as its rules say; OSError if neither way is open."""
    if proxy is None or not proxy.serves(host):
        return await _connect(host, port)
    direct: OSError | None = None
    if not proxy.always:
        try:
            return await _connect(host, port)
        except OSError as error:
            direct = error
    try:
        made = await _connect(proxy.host, proxy.port)
    except OSError as error:
        raise OSError(f"the proxy {proxy}: {error}") from error
    try:
        await connect_through(proxy, made, host, port)
    except BaseException as error:
        made.close()
        if direct is not None and isinstance(error, OSError):
            raise OSError(f"{direct}; and {error}") from error
        raise
    return made


async def _connect(host: str, port: int) -> socket.socket:
    """A connected socket, to the first address of the host that answers; OSError if none does.

    Not asyncio's own: its race between addresses leaves a socket open when it is cancelled at the wrong moment.
    """
    loop = asyncio.get_running_loop()
    last: OSError = OSError(f"{host} has no address")
    for family, address in await _addresses(host, port):
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            async with asyncio.timeout(CONNECT_S):
                await loop.sock_connect(made, address)
        except OSError as error:  # a time-out is one
            made.close()
            last = error if error.args else OSError(f"{address[0]} does not answer in {CONNECT_S:g} s")
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise last


async def _addresses(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
    """Family and address of each place that a name has; an address is its own, without a thread to ask in."""
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, (str(address[0]), int(address[1]))) for family, _, _, _, address in found]
    return [(socket.AF_INET if literal.version == 4 else socket.AF_INET6, (host, port))]


def _check_peer_id(peer_id: str, address: Address, text: str) -> None:
    if address_of_peer_id(peer_id) != address:
        raise ValueError(f"the PeerID in {text!r} is another member's")


def _parse(text: str) -> tuple[str, int, str]:
    """Host, port and PeerID ("" if there is none) of a multiaddr of TCP."""
    parts = text.split("/")
    if len(parts) not in (5, 7) or parts[0] or parts[1] not in ("ip4", "ip6", "dns", "dns4", "dns6"):
        raise ValueError("no multiaddr of the form /ip4/1.2.3.4/tcp/4101/p2p/PEERID")
    if parts[3] != "tcp" or not parts[4].isascii() or not parts[4].isdigit() or int(parts[4]) > 65535:
        raise ValueError(f"{'/'.join(parts[3:5])!r} is no TCP port")
    if len(parts) == 7 and parts[5] != "p2p":
        raise ValueError(f"{parts[5]!r} stands where p2p belongs")
    return parts[2], int(parts[4]), parts[6] if len(parts) == 7 else ""
