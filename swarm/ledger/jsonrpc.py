"""JSON-RPC 2.0's envelope: requests out of a stranger's bytes, answers into bytes. What methods do is `rpc`'s.

Source: https://www.jsonrpc.org/specification; the codes below -32000 are those of EIP-1474.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from swarm.ledger.rpc import RpcError

PARSE_ERROR, INVALID_REQUEST, INTERNAL_ERROR = -32700, -32600, -32603
ANSWER_TOO_LARGE, LIMIT_EXCEEDED = -32003, -32005


@dataclass(frozen=True)
class Request:
    """One call."""

    id: str | int | float | None
    method: str
    params: Any
    answered: bool
    """False: a notification, which gets no answer."""


def read(body: bytes | str) -> Any:
    """The JSON value of a body.

    Raises:
        RpcError: it is none (NaN, Infinity and what nests a thousand deep are none).
    """
    try:
        return json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RpcError(PARSE_ERROR, f"this is no JSON: {error}") from error


def request(item: Any) -> Request:
    """One request of a body; RpcError if it is none."""
    if not isinstance(item, dict):
        raise RpcError(INVALID_REQUEST, "a request is an object with jsonrpc, id, method and params")
    number = item.get("id")
    if not (number is None or (isinstance(number, (str, int, float)) and not isinstance(number, bool))):
        raise RpcError(INVALID_REQUEST, "a request's id is a string, a number or null")
    if item.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, 'a request says "jsonrpc": "2.0"')
    method, params = item.get("method"), item.get("params")
    if not isinstance(method, str):
        raise RpcError(INVALID_REQUEST, "a request's method is a string")
    if not (params is None or isinstance(params, (list, dict))):
        raise RpcError(INVALID_REQUEST, "a request's params are a list")
    return Request(number, method, [] if params is None else params, "id" in item)


def id_of(item: Any) -> str | int | float | None:
    """The id that the answer to a request that is none carries: its own if it has one."""
    found = item.get("id") if isinstance(item, dict) else None
    return found if isinstance(found, (str, int, float)) and not isinstance(found, bool) else None


def result(number: str | int | float | None, value: Any) -> str:
    """An answer."""
    return _text({"jsonrpc": "2.0", "id": number, "result": value})


def failure(number: str | int | float | None, error: RpcError) -> str:
    """An answer that says why there is none."""
    return _text({"jsonrpc": "2.0", "id": number, "error": error.as_json()})


def notification(subscription: str, value: Any) -> str:
    """What a subscriber gets unasked."""
    params = {"subscription": subscription, "result": value}
    return _text({"jsonrpc": "2.0", "method": "eth_subscription", "params": params})


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
