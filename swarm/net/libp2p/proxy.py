"""Out through an HTTP proxy: CONNECT, then bytes as they are. For sites whose only way to the internet it is.

Source: RFC 9110, section 9.3.6.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from swarm.errors import ConfigError

ANSWER_MAX_BYTES = 8 << 10
"""Head of the proxy's answer; common ones have 40 to 300 bytes."""


@dataclass(frozen=True)
class Proxy:
    """A proxy, and when to use it."""

    host: str
    port: int
    authorization: str = ""
    """The value of `Proxy-Authorization`; a secret."""
    always: bool = True
    """False: only where the direct way fails."""
    exempt: tuple[str, ...] = ()
    """Hosts to reach without it: names with all below them, addresses, networks, or `*`."""

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}"

    def serves(self, host: str) -> bool:
        """Whether a host is reached through it; this machine and `exempt` never are."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            name = host.lower().rstrip(".")
            return name != "localhost" and not any(
                entry == "*" or name == entry or name.endswith("." + entry) for entry in self.exempt
            )
        return not address.is_loopback and not any(_covers(entry, address) for entry in self.exempt)


def proxy_of(setting: str | None, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy of a site: the one in its settings, else HTTPS_PROXY of the environment; None if there is none.

    The environment's is tried where the direct way fails, because it was set for all programs of the machine; the
    setting's is the only way, and "" sets aside the environment's.

    Raises:
        ConfigError: it is no address of an HTTP proxy.
    """
    exempt = environment.get("NO_PROXY", environment.get("no_proxy", ""))
    hosts = tuple(entry.strip().lower().lstrip(".") for entry in exempt.split(",") if entry.strip())
    if setting is not None:
        return _parse(setting, "proxy", always=True, exempt=hosts) if setting else None
    found = environment.get("HTTPS_PROXY", environment.get("https_proxy", ""))
    return _parse(found, "HTTPS_PROXY", always=False, exempt=hosts) if found else None


async def connect_through(proxy: Proxy, made: socket.socket, host: str, port: int) -> None:
    """Let the proxy at the other end of `made` join us to a host. OSError: it does not, and why."""
    loop = asyncio.get_running_loop()
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    await loop.sock_sendall(made, ("\r\n".join(lines) + "\r\n\r\n").encode())
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        byte = await loop.sock_recv(made, 1)  # what follows the head is the other side's, not the proxy's
        if not byte:
            raise OSError(f"the proxy {proxy} hung up{f' after {_status(head)!r}' if head else ''}")
        head += byte
        if len(head) > ANSWER_MAX_BYTES:
            raise OSError(f"the proxy {proxy} answers with more than {ANSWER_MAX_BYTES} bytes of head")
    status = _status(head)
    if re.match(r"HTTP/1\.[01] 2\d\d\b", status) is None:
        why = {"407": "it wants a name and a password: HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT in the environment"}
        code = status.split(" ")[1] if status.count(" ") else ""
        advice = why.get(code, f"is CONNECT to port {port} allowed there?")
        raise OSError(f"the proxy {proxy} answers {status!r} for {place}; {advice}")


def _status(head: bytes | bytearray) -> str:
    return bytes(head).split(b"\r\n", 1)[0][:200].decode("ascii", "replace")


def _parse(url: str, name: str, *, always: bool, exempt: tuple[str, ...]) -> Proxy:
    form = "it has the form http://HOST:PORT"
    try:
        parts = urlsplit(url if "://" in url or name == "proxy" else f"http://{url}")
        port, host = parts.port or 80, parts.hostname
    except ValueError as error:
        raise ConfigError(f"{name} is no address of a proxy: {error}; {form}") from error
    if parts.scheme != "http" or not host or parts.path not in ("", "/"):
        raise ConfigError(f"{name} = {_without_secret(url)!r}, but {form}; what it carries is encrypted all the same")
    if always and parts.username is not None:
        raise ConfigError(
            f"{name} has a password in it, and settings hold no secret; leave the key out and set HTTPS_PROXY "
            "in the node's environment"
        )
    secret = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
    authorization = "Basic " + base64.b64encode(secret).decode() if parts.username is not None else ""
    return Proxy(host, port, authorization, always, exempt)


def _without_secret(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", url)


def _covers(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if entry == "*":
        return True
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
