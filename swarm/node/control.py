"""The node's Unix socket: JSON-RPC 2.0, one object a line, for this site's training process and command line.

`eth_*` methods are the ledger's (any web3 client speaks them over IPC); `swarm_*` are the node's. Who may open the
socket is decided by the file's mode: the user that runs the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swarm.encoding import from_hex, to_hex
from swarm.errors import ConfigError, SwarmError, UnavailableError
from swarm.ledger.endpoint import Call
from swarm.ledger.recovery import Recovery
from swarm.ledger.rpc import RpcError
from swarm.merge import Schema
from swarm.net.transfer import pull
from swarm.node.embedded import EmbeddedChain
from swarm.node.metrics import Metrics
from swarm.node.node import Node
from swarm.node.training import Checkpoint

logger = logging.getLogger(__name__)

LINE_MAX_BYTES = 4 << 20
"""A request is one line; a transaction of 64 KiB is the longest thing asked for."""
OBJECT_MAX_BYTES = 8 << 30
TRANSACTION_S = 50.0
"""A client waits a minute for an answer."""

Method = Callable[[dict[str, Any]], Awaitable[Any]]


class Control:
    """Serves one node on a Unix socket."""

    def __init__(self, node: Node, path: Path) -> None:
        self._node = node
        self._path = path
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.Task[None]] = set()
        self._methods: dict[str, Method] = {
            "swarm_status": self._status,
            "swarm_recover": self._recover,
            "swarm_leave": self._leave,
            "swarm_return": self._return,
            "swarm_network": self._network,
            "swarm_metrics": self._metrics,
            "swarm_probe": self._probe,
            "swarm_put": self._put,
            "swarm_put_model": self._put_model,
            "swarm_object": self._object,
            "swarm_run": self._run,
            "swarm_reports": self._reports,
            "swarm_attach": self._attach,
            "swarm_submit": self._submit,
            "swarm_wait": self._wait,
        }

    async def start(self) -> None:
        """Listen. A socket file that a killed node left is replaced (the ledger's lock says that nobody runs)."""
        self._path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=LINE_MAX_BYTES)
        except OSError as error:
            raise ConfigError(f"the node's socket {self._path} cannot be made: {error}") from error
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """Stop listening and hang up."""
        if self._server is not None:
            self._server.close()
        for session in self._sessions:
            session.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = asyncio.current_task()
        assert session is not None
        self._sessions.add(session)
        answers: set[asyncio.Task[None]] = set()
        try:
            while line := await reader.readline():
                answer = asyncio.create_task(self._answer(line, writer))
                answers.add(answer)
                answer.add_done_callback(answers.discard)
        except (ValueError, ConnectionError) as error:
            logger.info("a local client was cut off: %s", error)
        finally:
            for answer in answers:
                answer.cancel()
            self._sessions.discard(session)
            writer.close()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        request_id: object = None
        try:
            request = json.loads(line)
            request_id = request.get("id")
            result = await self._call(request["method"], request.get("params") or [])
            answer = {"jsonrpc": "2.0", "id": request_id, "result": result}
        except RpcError as error:
            answer = {"jsonrpc": "2.0", "id": request_id, "error": error.as_json()}
        except SwarmError as error:
            answer = _failure(request_id, -32000, str(error), type(error).__name__)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            answer = _failure(request_id, -32602, f"not a request that can be answered: {error!r}", "ValueError")
        except Exception as error:
            logger.exception("%r could not be answered", line[:200])
            answer = _failure(
                request_id, -32603, f"the node made a mistake: {error!r}; its log says more", "AssertionError"
            )
        with contextlib.suppress(ConnectionError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

    async def _call(self, method: str, params: Any) -> Any:
        if method in self._methods:
            if isinstance(params, list):
                params = params[0] if params else {}
            return await self._methods[method](params)
        return await self._node.chain.request(method, params)

    async def _status(self, params: dict[str, Any]) -> Any:
        return await self._node.status()

    async def _recover(self, params: dict[str, Any]) -> Any:
        chain = self._node.chain
        if not isinstance(chain, EmbeddedChain):
            raise ConfigError("the chain is kept by others, whose validators are their own")
        chain.agreement.recover(Recovery.decode(str(params["manifest"]).encode()))

    async def _leave(self, params: dict[str, Any]) -> Any:
        return await self._sign(self._node.contracts.stand_down())

    async def _return(self, params: dict[str, Any]) -> Any:
        return await self._sign(self._node.contracts.resume())

    async def _sign(self, call: Call) -> Any:
        """The block that took a call which this node signs."""
        receipt = await self._node.contracts.transact(self._node.identity, call, timeout_s=TRANSACTION_S)
        return {"block": receipt.block}

    async def _network(self, params: dict[str, Any]) -> Any:
        return {"members": self._node.network(), "refused": dict(self._node.transport.meter.refused)}

    async def _metrics(self, params: dict[str, Any]) -> Any:
        return Metrics(self._node).text().decode()

    async def _probe(self, params: dict[str, Any]) -> Any:
        return asdict(await self._node.probe.measure(from_hex(str(params["member"]), size=20)))

    async def _put(self, params: dict[str, Any]) -> Any:
        digest = await asyncio.to_thread(self._node.store.put_file, Path(params["path"]))
        return {"digest": to_hex(digest)}

    async def _put_model(self, params: dict[str, Any]) -> Any:
        try:
            Schema.of_file(Path(params["path"]))
        except ValueError as error:
            raise ConfigError(
                f"{params['path']} is no checkpoint in canonical form ({error}); `swarm.learn.save_model` writes one"
            ) from error
        return await self._put(params)

    async def _object(self, params: dict[str, Any]) -> Any:
        digest = from_hex(params["digest"], size=32)
        store = self._node.store
        if not store.has(digest):
            sources = tuple(sorted(self._node.transport.connected()))
            if not sources:
                raise UnavailableError("no other member is connected, and this site does not have the object")
            await pull(self._node.transport, store, digest, sources, size_max=OBJECT_MAX_BYTES)
        return {"path": str(store.path(digest)), "size": store.size(digest)}

    async def _reports(self, params: dict[str, Any]) -> Any:
        """What this node's merges of a run saw, and the run's policy where this node has it."""
        effort = await self._node.training.find(str(params["run"]))
        work = self._node.participation
        policy = effort.policy
        if policy is None and self._node.store.has(effort.run.policy):
            policy = work.read_policy(effort.run)
        return {"policy": asdict(policy) if policy else None, "rounds": work.reports.of(effort.run.id)}

    async def _run(self, params: dict[str, Any]) -> Any:
        effort = await self._node.training.find(str(params["run"]))
        run = effort.run
        return {
            "id": run.id,
            "name": run.name,
            "state": run.state.name.lower(),
            "round": run.round,
            "rounds": run.rounds,
            "checkpoint": to_hex(run.checkpoint),
        }

    async def _attach(self, params: dict[str, Any]) -> Any:
        checkpoint, policy = await self._node.training.attach(str(params["run"]))
        return {"id": checkpoint.run, "policy": json.loads(policy.encode())} | _place(checkpoint)

    async def _submit(self, params: dict[str, Any]) -> Any:
        digest, submitted = await self._node.training.submit(
            int(params["run"]),
            int(params["round"]),
            Path(params["path"]),
            int(params["weight"]),
            {str(key): float(value) for key, value in params.get("metrics", {}).items()},
        )
        return {"digest": to_hex(digest), "submitted": submitted}

    async def _wait(self, params: dict[str, Any]) -> Any:
        checkpoint = await self._node.training.wait(int(params["run"]), int(params["round"]))
        return _place(checkpoint)


def _place(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where training goes on from, for the training process."""
    best = checkpoint.best
    return {
        "round": checkpoint.round,
        "checkpoint": to_hex(checkpoint.digest),
        "path": str(checkpoint.path),
        "finished": checkpoint.finished,
        "sync_interval": checkpoint.sync_interval,
        "epsilon": checkpoint.epsilon,
        "best": None
        if best is None
        else {"round": best.round, "checkpoint": to_hex(best.checkpoint), "value": best.value},
    }


def _failure(request_id: object, code: int, message: str, kind: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message, "data": {"kind": kind}}}
