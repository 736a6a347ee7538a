"""A real chain on loopback that nobody here wrote: anvil, started, cut off, wound back and killed."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from swarm.encoding import Address, to_hex
from tests import others

CHAIN = 31_337
READY_S = 30.0
ETHER = 10**18


class Anvil:
    """One anvil process; `with` starts and ends it. What is asked of it blocks the test: it is a process of its own.

    Args:
        block_s: seconds between blocks; 0: a block a transaction.
        base_fee: of the first block in wei; 0: gas is free.
        options: of anvil, besides.
    """

    def __init__(self, *, block_s: float = 0, base_fee: int = 10**9, options: Sequence[str] = ()) -> None:
        self.port = _free_port()
        self._command = [
            str(others.foundry("anvil")), "--silent", "--host", "127.0.0.1", "--port", str(self.port),
            "--hardfork", "cancun", "--chain-id", str(CHAIN), "--accounts", "0", "--base-fee", str(base_fee),
            *options,
        ]  # fmt: skip
        if block_s:
            self._command += ["--block-time", str(block_s)]
        if base_fee == 0:
            self._command += ["--gas-price", "0", "--disable-min-priority-fee"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its JSON-RPC over HTTP; WebSocket is on the same port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        """Its JSON-RPC over WebSocket."""
        return f"ws://127.0.0.1:{self.port}"

    def __enter__(self) -> Anvil:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process, or a new one in place of the one that was stopped."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        until_s = time.monotonic() + READY_S
        while True:
            try:
                self.ask("eth_chainId")
                return
            except OSError:
                assert time.monotonic() < until_s, "anvil does not answer"
                assert self._process.poll() is None, "anvil ended at once"
                time.sleep(0.02)

    def stop(self) -> None:
        """End it in order (SIGTERM), so that it writes its state where `--state` says."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def ask(self, method: str, *params: object) -> Any:
        """The result of a request; AssertionError with anvil's reason where it refuses."""
        answer = self.answer(method, *params)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def answer(self, method: str, *params: object) -> dict[str, Any]:
        """The whole answer to a request, an error too."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def fund(self, *accounts: Address, wei: int = 100 * ETHER) -> None:
        """Give accounts the network's currency."""
        for account in accounts:
            self.ask("anvil_setBalance", to_hex(account), hex(wei))

    @property
    def height(self) -> int:
        """The number of the last block."""
        return int(self.ask("eth_blockNumber"), 16)

    def mine(self, blocks: int = 1) -> None:
        """Empty blocks."""
        self.ask("anvil_mine", hex(blocks))

    def reorg(self, depth: int) -> None:
        """Replace the last blocks by empty ones."""
        self.ask("anvil_reorg", depth, [])


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
