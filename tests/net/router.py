"""The internet between network namespaces, in user space: delay, loss, speed, NAT, firewalls and cuts of every packet.

`netem` is not in every kernel, a TUN device nearly is. Each site has one, whose other end is held here: an IPv4 packet
is read from one site, shaped by both sites' links, and written to the other. Run by `tests.net.namespaces` as
`python -m tests.net.router`; the first line of its input says what there is, each later line is a command.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
TCP, SYN, ACK = 6, 0x02, 0x10
MTU = 1500
QUEUE_S = 0.25
"""So much waits at a link's slow end; what comes then is lost, as in a real router."""


@dataclass
class Site:
    """One namespace's end."""

    name: str
    tun: int
    public: bytes
    inner: bytes
    """Its own address: another than `public` behind a NAT."""
    inbound: bool
    rate_bytes_s: float
    delay_s: float
    loss: float
    cut: bool = False
    free_s: dict[str, float] = field(default_factory=lambda: {"up": 0.0, "down": 0.0})
    counted: dict[str, int] = field(default_factory=lambda: {"sent": 0, "received": 0, "lost": 0})

    def passes(self, way: str, size: int, now_s: float, chance: random.Random) -> float | None:
        """When a packet has left this link, or None if it is lost on it."""
        wait_s = max(self.free_s[way] - now_s, 0.0)
        if self.cut or wait_s > QUEUE_S or (self.loss and chance.random() < self.loss):
            self.counted["lost"] += 1
            return None
        self.free_s[way] = now_s + wait_s + size / self.rate_bytes_s
        return self.free_s[way] + self.delay_s


class Router:
    """Moves packets until its input ends."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.chance = random.Random(plan["seed"])
        self.sites = {one["name"]: open_site(one) for one in plan["sites"]}
        self.by_address = {site.public: site for site in self.sites.values()}
        self.flying: list[tuple[float, int, Site, bytes]] = []
        self.number = 0

    def run(self) -> None:
        """Forward; a command a line."""
        poll = selectors.DefaultSelector()
        for site in self.sites.values():
            poll.register(site.tun, selectors.EVENT_READ, site)
        poll.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
        print("ready", flush=True)
        while True:
            wait_s = max(self.flying[0][0] - time.monotonic(), 0.0) if self.flying else None
            for key, _ in poll.select(wait_s):
                if key.data is not None:
                    self._read(key.data)
                elif not self._command(os.read(key.fd, 65536)):
                    return
            now_s = time.monotonic()
            while self.flying and self.flying[0][0] <= now_s:
                _, _, site, packet = heapq.heappop(self.flying)
                site.counted["received"] += len(packet)
                os.write(site.tun, packet)

    def _read(self, site: Site) -> None:
        for _ in range(64):
            try:
                packet = os.read(site.tun, MTU + 100)
            except BlockingIOError:
                return
            self._forward(site, packet)

    def _forward(self, source: Site, packet: bytes) -> None:
        if packet[0] >> 4 != 4:
            return
        target = self.by_address.get(packet[16:20])
        if target is None or target is source or packet[12:16] != source.inner:
            return
        if not target.inbound and packet[9] == TCP and packet[(packet[0] & 15) * 4 + 13] & (SYN | ACK) == SYN:
            return  # a firewall that lets nobody in says nothing
        now_s = time.monotonic()
        source.counted["sent"] += len(packet)
        left_s = source.passes("up", len(packet), now_s, self.chance)
        arrives_s = None if left_s is None else target.passes("down", len(packet), left_s, self.chance)
        if arrives_s is not None:
            packet = rewritten(rewritten(packet, 12, source.public), 16, target.inner)
            self.number += 1
            heapq.heappush(self.flying, (arrives_s, self.number, target, packet))

    def _command(self, data: bytes) -> bool:
        for line in data.splitlines():
            wanted = json.loads(line)
            for name in wanted.get("cut", []):
                self.sites[name].cut = True
            for name in wanted.get("heal", []):
                self.sites[name].cut = False
            print(json.dumps({name: site.counted for name, site in self.sites.items()}), flush=True)
        return bool(data)


def rewritten(packet: bytes, at: int, address: bytes) -> bytes:
    """The packet with another source (12) or destination (16) address, and its checksums mended (RFC 1624)."""
    before = packet[at : at + 4]
    if before == address:
        return packet
    changed = bytearray(packet)
    changed[at : at + 4] = address
    places = [10] + ([(packet[0] & 15) * 4 + 16] if packet[9] == TCP else [])
    for place in places:
        total = ~int.from_bytes(packet[place : place + 2], "big") & 0xFFFF
        for old, new in zip(struct.unpack("!2H", before), struct.unpack("!2H", address), strict=True):
            total += (~old & 0xFFFF) + new
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        changed[place : place + 2] = (~total & 0xFFFF).to_bytes(2, "big")
    return bytes(changed)


def open_site(plan: dict[str, Any]) -> Site:
    """Make the TUN device in the site's namespace and give it its address."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{plan['namespace']}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(there, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter the namespace {plan['namespace']}")
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", b"wan", IFF_TUN | IFF_NO_PI))
        for command in (
            f"addr add {plan['inner']}/32 dev wan",
            f"link set wan mtu {MTU} up",
            "route add default dev wan",
            "link set lo up",
        ):
            subprocess.run(["ip", *command.split()], check=True)
    finally:
        if libc.setns(home, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot leave the namespace")
        os.close(home)
        os.close(there)
    return Site(
        name=plan["name"],
        tun=tun,
        public=bytes(map(int, plan["public"].split("."))),
        inner=bytes(map(int, plan["inner"].split("."))),
        inbound=plan["inbound"],
        rate_bytes_s=plan["rate_bytes_s"],
        delay_s=plan["delay_s"],
        loss=plan["loss"],
    )


if __name__ == "__main__":
    # Byte by byte: what follows the first line is left for the router's own loop.
    plan_line = b"".join(iter(lambda: os.read(sys.stdin.fileno(), 1).replace(b"\n", b""), b""))
    Router(json.loads(plan_line)).run()
