"""The line to the node: what it carries, and what happens when it is cut. The other end is a real socket here;
the node itself stands at it in test_training.py."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swarm.config import SiteConfig
from swarm.errors import ConfigError, PeerError, RejectedError, SwarmError, UnavailableError
from swarm.learn import attach
from swarm.learn.attach import Node

Request = dict[str, Any]
Script = Callable[[Request, socket.socket], bool]
"""Answers one request on a line; False hangs up."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteConfig:
    monkeypatch.setattr(attach, "PAUSE_MIN_S", 0.001)
    return SiteConfig(
        path=tmp_path / "north.toml", name="north", swarm=tmp_path, keystore=tmp_path, password_file=None,
        operator_keystore=None, operator_password_file=None, folder=tmp_path, listen="",
    )  # fmt: skip


@pytest.fixture
def serve(site: SiteConfig) -> Iterator[Callable[[Script], list[Request]]]:
    """Puts a script at the other end of the site's socket; gives the requests that came."""
    listener = socket.socket(socket.AF_UNIX)

    def start(script: Script) -> list[Request]:
        listener.bind(str(site.socket))
        listener.listen()
        came: list[Request] = []

        def accept() -> None:
            while True:
                try:
                    line, _ = listener.accept()
                except OSError:
                    return
                with line, line.makefile("rb") as requests:
                    for text in requests:
                        came.append(json.loads(text))
                        if not script(came[-1], line):
                            break

        threading.Thread(target=accept, daemon=True).start()
        return came

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def answer(line: socket.socket, request: Request, **rest: Any) -> bool:
    line.sendall(json.dumps({"jsonrpc": "2.0", "id": request["id"], **rest}).encode() + b"\n")
    return True


def test_a_request_is_one_line_of_json_rpc_and_its_result_comes_back(site: SiteConfig, serve: Any) -> None:
    came = serve(lambda request, line: answer(line, request, result={"round": 3}))
    node = Node(site, patience_s=1)
    assert node.call("swarm_wait", run=1, round=2) == {"round": 3}
    assert came == [{"jsonrpc": "2.0", "id": 1, "method": "swarm_wait", "params": {"run": 1, "round": 2}}]
    node.close()


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("ConfigError", ConfigError), ("RejectedError", RejectedError), ("PeerError", PeerError),
        ("Address", SwarmError), ("annotations", SwarmError), (None, SwarmError),
    ],
)  # fmt: skip
def test_a_refusal_comes_back_as_its_family(
    kind: str | None, family: type[SwarmError], site: SiteConfig, serve: Any
) -> None:
    error = {"code": -32000, "message": "not approved by your operator", "data": {"kind": kind}}
    serve(lambda request, line: answer(line, request, error=error))
    with pytest.raises(SwarmError, match="not approved by your operator") as found:
        Node(site, patience_s=1).call("swarm_attach", run="heart")
    assert type(found.value) is family


def test_a_request_whose_line_was_cut_is_asked_again(site: SiteConfig, serve: Any) -> None:
    def script(request: Request, line: socket.socket) -> bool:
        return len(came) > 2 and answer(line, request, result="at last")

    came = serve(script)
    assert Node(site, patience_s=5).call("swarm_submit", round=1) == "at last"
    assert [request["method"] for request in came] == ["swarm_submit"] * 3


def test_after_a_cut_the_node_is_told_once_more_who_we_are_before_anything_else(site: SiteConfig, serve: Any) -> None:
    def script(request: Request, line: socket.socket) -> bool:
        return len(came) != 2 and answer(line, request, result=request["method"])

    came = serve(script)
    node = Node(site, patience_s=5)
    node.call("swarm_attach")
    node.on_return = lambda: node.call("swarm_attach", again=True)
    assert node.call("swarm_wait") == "swarm_wait"
    methods = [request["method"] for request in came]
    assert methods == ["swarm_attach", "swarm_wait", "swarm_attach", "swarm_wait"]


def test_what_the_node_cannot_do_yet_is_asked_again(site: SiteConfig, serve: Any) -> None:
    def script(request: Request, line: socket.socket) -> bool:
        if len(came) < 3:
            return answer(line, request, error={"message": "not yet", "data": {"kind": "UnavailableError"}})
        return answer(line, request, result=1)

    came = serve(script)
    assert Node(site, patience_s=5).call("swarm_attach") == 1


def test_patience_ends_and_says_why_and_a_person_is_told_before(
    site: SiteConfig, serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attach, "TELL_S", 0.01)
    error = {"message": "nobody has the checkpoint", "data": {"kind": "UnavailableError"}}
    came = serve(lambda request, line: answer(line, request, error=error))
    with (
        caplog.at_level(logging.WARNING, "swarm.learn.attach"),
        pytest.raises(UnavailableError, match="nobody has the checkpoint; waited"),
    ):
        Node(site, patience_s=0.1).call("swarm_attach")
    assert len(came) > 3
    assert [record.message for record in caplog.records] == [
        "the node of north cannot do this yet: nobody has the checkpoint; waiting"
    ]


def test_an_answer_to_another_request_is_not_taken_for_this_ones(site: SiteConfig, serve: Any) -> None:
    def script(request: Request, line: socket.socket) -> bool:
        answer(line, {"id": 99}, result="another's")
        line.sendall(b'{"jsonrpc":"2.0","method":"eth_subscription","params":{}}\n')
        return answer(line, request, result="mine")

    serve(script)
    assert Node(site, patience_s=1).call("swarm_status") == "mine"


def test_an_answer_without_end_is_refused_before_it_fills_the_memory(
    site: SiteConfig, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "ANSWER_MAX_BYTES", 100_000)

    def script(request: Request, line: socket.socket) -> bool:
        try:
            while True:
                line.sendall(b"x" * 65536)
        except OSError:
            return False

    serve(script)
    node = Node(site, patience_s=1)
    with pytest.raises(SwarmError, match="longer than 100000 bytes"):
        node.call("swarm_status")
    node.close()


def test_a_node_that_cannot_start_says_what_to_mend(site: SiteConfig) -> None:
    site.path.write_text("[site]\nname = 'north'\ncolour = 'red'\n")
    with pytest.raises(ConfigError, match=r"the node of north ended with status \d+.*node\.log"):
        Node(site, patience_s=60, starts=True).call("swarm_status")
    assert "colour" in (site.folder / "node.log").read_text()
