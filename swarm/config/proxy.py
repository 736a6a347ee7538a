"""An HTTP proxy through which a site dials the others: from its settings, or from the environment."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import unquote, urlsplit

from swarm.errors import ConfigError


@dataclass(frozen=True)
class Proxy:
    """A proxy, and when to use it."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)
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
            address = ip_address(host)
        except ValueError:
            name = host.lower().rstrip(".")
            return name != "localhost" and not any(
                entry == "*" or name == entry or name.endswith("." + entry) for entry in self.exempt
            )
        return not address.is_loopback and not any(_covers(entry, address) for entry in self.exempt)


def proxy_of(setting: str | None, where: str = "proxy", environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy of a site: the one in its settings, else HTTPS_PROXY of the environment; None if there is none.

    The environment's is tried where the direct way fails, because it was set for all programs of the machine; the
    setting's is the only way, and "" sets aside the environment's.

    Raises:
        ConfigError: it is no address of an HTTP proxy.
    """
    exempt = environment.get("NO_PROXY", environment.get("no_proxy", ""))
    hosts = tuple(entry.strip().lower().lstrip(".") for entry in exempt.split(",") if entry.strip())
    if setting is not None:
        return _parse(setting, where, always=True, exempt=hosts) if setting else None
    found = environment.get("HTTPS_PROXY", environment.get("https_proxy", ""))
    return _parse(found, "HTTPS_PROXY", always=False, exempt=hosts) if found else None


def _parse(url: str, name: str, *, always: bool, exempt: tuple[str, ...]) -> Proxy:
    form = "it has the form http://HOST:PORT"
    try:
        parts = urlsplit(url if always or "://" in url else f"http://{url}")
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


def _covers(entry: str, address: IPv4Address | IPv6Address) -> bool:
    if entry == "*":
        return True
    try:
        return address in ip_network(entry, strict=False)
    except ValueError:
        return False
