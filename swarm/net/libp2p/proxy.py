"""Out through an HTTP proxy: CONNECT, then bytes as they are. For sites whose only way to the internet it is.

Source: RFC 9110, section 9.3.6.
"""

from __future__ import annotations

import asyncio
import re
import socket

from swarm.config import Proxy

ANSWER_MAX_BYTES = 8 << 10
"""Head of the proxy's answer; common ones have 40 to 300 bytes."""


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
