"""js-libp2p as a peer in a process of its own: `peer.mjs`, asked by lines of JSON."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from swarm.identity import Identity
from tests.others import node_modules

PATIENCE_S = 60.0
LINE_MAX_BYTES = 32 << 20
"""An answer may hold a payload in hexadecimal."""


class JsPeer:
    """A js-libp2p peer; skips the test where it is not installed.

    Args:
        who: its key.
        security: "tls" or "noise".
        reserves_at: the multiaddr of a relay where it asks for a place.
    """

    def __init__(self, who: Identity, security: str, *, reserves_at: str = "nowhere") -> None:
        self._who = who
        self._security = security
        self._reserves_at = reserves_at
        self._modules = node_modules("libp2p")
        self._process: asyncio.subprocess.Process | None = None
        self.endpoint = ""
        """Its multiaddr with the PeerID, once it runs."""

    async def __aenter__(self) -> JsPeer:
        script = Path(__file__).with_name("peer.mjs").read_text()
        # Given as text, it finds its packages from the working directory.
        self._process = await asyncio.create_subprocess_exec(
            "node", "--input-type=module", "--eval", script, "--", self._who.secret.hex(), self._security,
            self._reserves_at,
            cwd=self._modules.parent, limit=LINE_MAX_BYTES,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            self.endpoint = (await self._answer())["endpoint"]
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType) -> None:
        await self._end()

    async def ask(self, question: str, **details: object) -> dict[str, Any]:
        """The answer to one of `peer.mjs`'s questions; ConnectionError with JavaScript's words if there is none."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"ask": question, **details}).encode() + b"\n")
        answer = await self._answer()
        if "error" in answer:
            raise ConnectionError(answer["error"])
        return answer

    async def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            line = await self._process.stdout.readline()
        if not line:
            raise ConnectionError("js-libp2p ended, its reason is in stderr")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def _end(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
