"""Calls, answers and events of a contract as bytes and back, by names.

The selectors, topics and codecs are made once: web3's own contract object makes them at each call, and a node asks
for a round's state at each block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from eth_abi.codec import ABICodec
from eth_abi.decoding import AddressDecoder, StringDecoder
from eth_abi.exceptions import DecodingError, EncodingError
from eth_abi.registry import BaseEquals
from eth_abi.registry import registry as plain_registry

from swarm.encoding import Digest, keccak256
from swarm.ledger.artifact import Artifact, artifact


class _Raw(AddressDecoder):
    """Addresses as 20 bytes, as everywhere in this project, instead of text."""

    decoder_fn = bytes


class _Text(StringDecoder):
    """Text that a member wrote: what is not UTF-8 is replaced, or one bad name made all of an answer unreadable."""

    def __init__(self) -> None:
        super().__init__(handle_string_errors="replace")  # type: ignore[no-untyped-call]


_registry = plain_registry.copy()  # type: ignore[no-untyped-call]
_registry.unregister_decoder("address")
_registry.unregister_decoder("string")
_registry.register_decoder(BaseEquals("string"), _Text, label="string")  # type: ignore[no-untyped-call]
_registry.register_decoder(BaseEquals("address"), _Raw, label="address")  # type: ignore[no-untyped-call]
abi = ABICodec(_registry)

# Error(string), which a refusal's reason comes in (Solidity ABI).
_ERROR = keccak256(b"Error(string)")[:4]


@dataclass(frozen=True)
class _Function:
    selector: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class _Event:
    name: str
    indexed: tuple[tuple[str, str], ...]
    """(name, kind) of what stands in the topics."""
    data: tuple[tuple[str, str], ...]


class Interface:
    """What a contract understands, answers and logs."""

    def __init__(self, compiled: Artifact) -> None:
        self.name = compiled.name
        self._functions: dict[str, _Function] = {}
        self._events: dict[Digest, _Event] = {}
        self.topics: dict[str, Digest] = {}
        """The first topic of each event, by its name."""
        for entry in compiled.abi:
            if entry["type"] == "function":
                inputs, outputs = _kinds(entry["inputs"]), _kinds(entry["outputs"])
                selector = keccak256(f"{entry['name']}({','.join(inputs)})".encode())[:4]
                self._functions[entry["name"]] = _Function(selector, inputs, outputs)
            elif entry["type"] == "event":
                topic = keccak256(f"{entry['name']}({','.join(_kinds(entry['inputs']))})".encode())
                named = [(part["name"], _kind(part), part["indexed"]) for part in entry["inputs"]]
                self._events[topic] = _Event(
                    entry["name"],
                    tuple((name, kind) for name, kind, indexed in named if indexed),
                    tuple((name, kind) for name, kind, indexed in named if not indexed),
                )
                self.topics[entry["name"]] = topic

    def call(self, function: str, *arguments: object) -> bytes:
        """The data of a call.

        Raises:
            ValueError: an argument is not what the contract takes.
        """
        found = self._functions[function]
        try:
            return found.selector + abi.encode(found.inputs, arguments)
        except (EncodingError, OverflowError, TypeError) as error:
            raise ValueError(f"{self.name}.{function} does not take {arguments!r}: {error}") from error

    def calls(self, function: str, data: bytes) -> bool:
        """Whether the data of a call is for this function."""
        return data[:4] == self._functions[function].selector

    def arguments(self, function: str, data: bytes) -> tuple[Any, ...]:
        """What a call of this function was given; addresses as 20 bytes, structs as tuples.

        Raises:
            ValueError: not the data of such a call.
        """
        try:
            return tuple(abi.decode(self._functions[function].inputs, data[4:]))
        except (DecodingError, OverflowError) as error:
            raise ValueError(f"{len(data)} bytes are no call of {self.name}.{function}: {error}") from error

    def result(self, function: str, data: bytes) -> Any:
        """What a call answered: the value, or a tuple of them; addresses as 20 bytes, structs as tuples.

        Raises:
            ValueError: not an answer of this function.
        """
        outputs = self._functions[function].outputs
        try:
            values = abi.decode(outputs, data)
        except (DecodingError, OverflowError) as error:
            raise ValueError(
                f"{len(data)} bytes are no answer of {self.name}.{function}; is the contract at this address? ({error})"
            ) from error
        return values[0] if len(outputs) == 1 else values

    def event(self, topics: Sequence[bytes], data: bytes) -> tuple[str, Mapping[str, Any]] | None:
        """The name and arguments of a logged event, None if this contract has no such event.

        Raises:
            ValueError: the event's bytes are not what its name says.
        """
        found = self._events.get(bytes(topics[0])) if topics else None
        if found is None:
            return None
        try:
            values = abi.decode([kind for _, kind in found.data], data)
            values += abi.decode([kind for _, kind in found.indexed], b"".join(bytes(topic) for topic in topics[1:]))
        except (DecodingError, OverflowError) as error:
            raise ValueError(f"not a {found.name} event of {self.name}: {error}") from error
        return found.name, dict(zip((name for name, _ in found.data + found.indexed), values, strict=True))


@cache
def interface(name: str) -> Interface:
    """The interface of the contract called `Consortium` or `Runs`."""
    return Interface(artifact(name))


def reason(data: bytes) -> str:
    """Why a call was refused, from its revert data; plain words even where the contract gave none."""
    if data[:4] == _ERROR:
        try:
            return str(abi.decode(["string"], data[4:])[0])
        except (DecodingError, OverflowError, UnicodeDecodeError):
            return "the contract refused and its reason is unreadable"
    return f"the contract refused with data 0x{data.hex()}" if data else "the contract refused and gave no reason"


def _kinds(entries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(_kind(entry) for entry in entries)


def _kind(entry: Mapping[str, Any]) -> str:
    kind = str(entry["type"])
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(_kinds(entry['components']))}){kind.removeprefix('tuple')}"
