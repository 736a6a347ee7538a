"""The line to a node's socket: what else comes on it is passed over, and a line that ends is no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm.errors import UnavailableError
from swarm.ledger.client import Contracts
from swarm.ledger.line import line_to


def height_over(path: Path, answer: Callable[[bytes], bytes]) -> int:
    """The height that a node tells that answers each line so, and then hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(await reader.readline()))
        await writer.drain()
        writer.close()

    async def ask() -> int:
        server = await asyncio.start_unix_server(serve, path)
        try:
            async with line_to(path) as line:
                return await Contracts(line).height()
        finally:
            server.close()

    return asyncio.run(ask())


def test_other_news_on_the_line_is_passed_over(tmp_path: Path) -> None:
    news = b'{"jsonrpc": "2.0", "method": "eth_subscription", "params": {}}\n{"id": 99, "result": "0x7"}\n'
    assert height_over(tmp_path / "s", lambda line: news + b'{"id": 1, "result": "0x2a"}\n') == 42


@pytest.mark.parametrize("answer", [b"", b'{"id": 1, "res', b"no json\n"])
def test_a_line_that_ends_or_tells_nonsense_is_no_answer(tmp_path: Path, answer: bytes) -> None:
    with pytest.raises(UnavailableError, match="does not answer eth_blockNumber"):
        height_over(tmp_path / "s", lambda line: answer)


def test_an_answer_without_an_end_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.ledger.line.ANSWER_MAX_BYTES", 1 << 16)
    with pytest.raises(UnavailableError, match="an answer of more than"):
        height_over(tmp_path / "s", lambda line: b"x" * (1 << 18))
