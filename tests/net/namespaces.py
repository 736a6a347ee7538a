"""Sites as network namespaces on one machine, each with a line of its own; `tests.net.router` is what lies between."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Line:
    """A site's line to the internet, the same in both directions."""

    rate_bytes_s: float = 125e6
    delay_s: float = 0.0005
    """One way, of this line alone: a round trip between two sites is twice the sum of theirs."""
    loss: float = 0.0
    inbound: bool = True
    """False: a firewall or NAT lets no connection in, only out."""
    nat: bool = False
    """Its own address is another than the one that others see; implies no `inbound`."""
    forgets_s: int = 0
    """A firewall, the kernel's own, forgets a connection that carries nothing for so long, tells nobody, and from then
    on drops what belongs to it; lets no connection in. 0: there is none."""


FIREWALL = """
table ip firewall {
    chain in {
        type filter hook input priority 0; policy drop;
        iif "lo" accept
        ct state established accept
    }
    chain out {
        type filter hook output priority 0; policy drop;
        oif "lo" accept
        ct state established accept
        ct state new accept
    }
}
"""
"""What is not of a connection that the table knows is dropped, both ways (with `tcp_loose` = 0, see below)."""


@cache
def why_not() -> str:
    """Why namespaces cannot be used here, or nothing."""
    if shutil.which("ip") is None:
        return "there is no `ip` (Debian: iproute2)"
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun"
    name = f"swarm-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


class Internet:
    """Namespaces and the router between them, gone when the `with` ends. Skips the test where that is not permitted."""

    def __init__(self, lines: dict[str, Line], *, seed: int = 0) -> None:
        if reason := why_not():
            pytest.skip(reason)
        if any(line.forgets_s for line in lines.values()) and shutil.which("nft") is None:
            pytest.skip("there is no `nft` (Debian: nftables)")
        self.names = list(lines)
        self._lines = lines
        self._seed = seed
        self._router: subprocess.Popen[str] | None = None

    def __enter__(self) -> Internet:
        sites = []
        for number, (name, line) in enumerate(self._lines.items(), 1):
            subprocess.run(["ip", "netns", "add", self._namespace(name)], check=True)
            public = self.address(name)
            inner = f"192.168.{number}.2" if line.nat else public
            sites.append(
                asdict(line)
                | {"name": name, "namespace": self._namespace(name), "public": public, "inner": inner}
                | {"inbound": line.inbound and not line.nat}
            )
        command = [sys.executable, "-m", "tests.net.router"]
        self._router = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT
        )
        assert self._router.stdin is not None
        assert self._router.stdout is not None
        self._router.stdin.write(json.dumps({"seed": self._seed, "sites": sites}) + "\n")
        assert self._router.stdout.readline() == "ready\n"
        for name, line in self._lines.items():
            if line.forgets_s:
                self._fence(name, line.forgets_s)
        return self

    def __exit__(self, *_: object) -> None:
        if self._router is not None:
            self._router.kill()
            self._router.wait(10)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", self._namespace(name)], check=False)

    def address(self, name: str) -> str:
        """Where others see the site."""
        return f"10.77.0.{self.names.index(name) + 1}"

    def inside(self, name: str, command: list[str]) -> list[str]:
        """The command, run in the site's namespace."""
        return ["ip", "netns", "exec", self._namespace(name), *command]

    def tell(self, **wanted: list[str]) -> dict[str, dict[str, int]]:
        """`cut` and `heal` lines; answers what each has carried: bytes `sent` and `received`, packets `lost`."""
        assert self._router is not None
        assert self._router.stdin is not None
        assert self._router.stdout is not None
        self._router.stdin.write(json.dumps(wanted) + "\n")
        found: dict[str, Any] = json.loads(self._router.stdout.readline())
        return found

    def _fence(self, name: str, forgets_s: int) -> None:
        kept = "/proc/sys/net/netfilter/nf_conntrack_tcp"
        settings = f"echo 0 > {kept}_loose && echo {forgets_s} > {kept}_timeout_established"
        subprocess.run(self.inside(name, ["sh", "-c", settings]), check=True)
        subprocess.run(self.inside(name, ["nft", "-f", "-"]), input=FIREWALL, text=True, check=True)

    def _namespace(self, name: str) -> str:
        return f"swarm-{os.getpid()}-{name}"
