"""The training process's line to its site's node: one request and one answer at a time, over the Unix socket.

Plain blocking sockets and JSON lines: neither the ledger nor the network is loaded into the training process.
A node that is started again in the middle is waited for, and the request is asked again.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from swarm import errors
from swarm.config import SiteConfig
from swarm.errors import ConfigError, SwarmError, UnavailableError
from swarm.learn.keeper import Keeper

logger = logging.getLogger(__name__)

ANSWER_MAX_BYTES = 16 << 20
"""A policy has 64 KiB at most; far above what a node answers, far below what memory holds."""
PAUSE_MIN_S, PAUSE_MAX_S = 0.02, 0.1
"""A look at a socket on the same machine costs nothing, and training starts when its node does."""
WORKED_S = 2.0
"""A request that failed after so long was worked on: this is another failure than the one before."""
QUIET_S = 60.0
"""How often a person is told that this process still waits for an answer."""
TELL_S = 5.0
"""How long a missing node goes unmentioned: a restart takes about this."""

_keepers: dict[Path, Keeper] = {}
"""The nodes that this process started, by socket: the second run of a script finds the first one's node."""
_others: set[Path] = set()
"""Sockets where somebody else's node answered: if it goes away it is waited for, and no second one is started."""


class Node:
    """A site's node: `call` asks it, `close` hangs up and stops the node if this process started it.

    Args:
        site: whose node.
        patience_s: how long a node that is away, or that cannot do a thing yet, is waited for.
        starts: where no node runs for the site, start one. False waits for it.
    """

    def __init__(self, site: SiteConfig, *, patience_s: float, starts: bool = False) -> None:
        self.site = site
        self._patience_s = patience_s
        self._starts = starts
        self._socket: socket.socket | None = None
        self._received = b""
        self._number = 0
        self._lost = False
        self.on_return: Callable[[], None] | None = None
        """Called once the node is back after it was away, before the request is asked again."""

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, **params: Any) -> Any:
        """The node's answer.

        A lost line is taken up again, and what the node cannot do just now is asked again, until the patience ends.

        Raises:
            UnavailableError: no node, or the node could not, for as long as `patience_s`.
            ConfigError, RejectedError, StorageError, PeerError: what the node refuses.
        """
        waited_s, tell_s, pause_s = 0.0, TELL_S, PAUSE_MIN_S
        while True:
            asked_s = time.monotonic()
            try:
                if self._socket is None:
                    self._connect()
                self._come_back()
                return self._exchange(method, params)
            except (OSError, EOFError) as error:
                self.hang_up()
                self._lost = True
                reason = f"the node of {self.site.name} does not answer at {self.site.socket} ({error})"
            except UnavailableError as error:
                reason = f"the node of {self.site.name} cannot do this yet: {error}"
            if time.monotonic() - asked_s > WORKED_S:
                waited_s, tell_s, pause_s = 0.0, TELL_S, PAUSE_MIN_S
            if waited_s >= self._patience_s:
                raise UnavailableError(f"{reason}; waited {waited_s:.0f} s")
            if waited_s >= tell_s:
                tell_s += QUIET_S
                logger.warning("%s; waiting", reason)
            time.sleep(pause_s)
            waited_s += pause_s
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    def hang_up(self) -> None:
        """Close the line; a node that this process started keeps running for its next run."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Close the line, and stop the node if this process started it."""
        self.hang_up()
        keeper = _keepers.pop(self.site.socket, None)
        if keeper is not None:
            keeper.stop()

    # --- the line

    def _come_back(self) -> None:
        """After the line was lost: what the node has forgotten is said again, once, before anything else."""
        if self._lost and self.on_return is not None:
            hook, self.on_return = self.on_return, None
            try:
                self._lost = False
                hook()
            except UnavailableError:
                self._lost = True
                raise
            finally:
                self.on_return = hook
        self._lost = False

    def _connect(self) -> None:
        """Reach the node; where there is none, start one. OSError while it is not there yet."""
        keeper = _keepers.get(self.site.socket)
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.connect(os.fspath(self.site.socket))
        except OSError:
            line.close()
            if keeper is not None and keeper.ended is not None:
                del _keepers[self.site.socket]
                found = f"the node of {self.site.name} ended with status {keeper.ended}; {keeper.log} ends with:\n"
                if not keeper.answered:  # what its operator has to mend stands there
                    raise ConfigError(found + keeper.last_words()) from None
                logger.warning("%s%s", found, keeper.last_words())
                keeper = None
            if keeper is None and self._starts and self.site.socket not in _others:
                logger.info("no node runs for %s: starting one", self.site.name)
                _keepers[self.site.socket] = Keeper(self.site)
            raise
        if keeper is not None:
            keeper.answered = True
        else:
            _others.add(self.site.socket)
        line.settimeout(QUIET_S)
        self._socket, self._received = line, b""

    def _exchange(self, method: str, params: Mapping[str, Any]) -> Any:
        assert self._socket is not None
        self._number += 1
        request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = json.loads(self._line(method))
            if answer.get("id") != self._number:
                continue  # the answer to a request that was given up, or a notification
            if "error" in answer:
                raise _refusal(answer["error"])
            return answer.get("result")

    def _line(self, method: str) -> bytes:
        assert self._socket is not None
        while b"\n" not in self._received:
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                logger.info("%s: still waiting for the node's answer to %s", self.site.name, method)
                continue
            if not data:
                raise EOFError("it closed the line")
            self._received += data
            if len(self._received) > ANSWER_MAX_BYTES:
                raise SwarmError(f"the node's answer to {method} is longer than {ANSWER_MAX_BYTES} bytes")
        line, _, self._received = self._received.partition(b"\n")
        return line


def _refusal(error: Mapping[str, Any]) -> SwarmError:
    message = str(error.get("message", "the node gave no reason"))
    data = error.get("data")
    kind = data.get("kind") if isinstance(data, dict) else None
    family = getattr(errors, kind, None) if isinstance(kind, str) else None
    if isinstance(family, type) and issubclass(family, SwarmError):
        return family(message)
    return SwarmError(message)


@atexit.register
def _stop_keepers() -> None:
    for keeper in _keepers.values():
        keeper.stop()
    _keepers.clear()
