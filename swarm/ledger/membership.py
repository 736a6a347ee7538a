"""What the `Consortium` contract says after a block: who decides the next one, who may send, who signs a recovery."""

from __future__ import annotations

from swarm.encoding import ZERO_ADDRESS, Address
from swarm.ledger.abi import interface
from swarm.ledger.block import Header
from swarm.ledger.evm import Evm
from swarm.ledger.genesis import CONSORTIUM

# Strangers may ask for any address.
_ADMITTED_MAX = 4096


class Membership:
    """The contract's answers, read by calls."""

    def __init__(self, evm: Evm) -> None:
        self._evm = evm
        self._admitted: dict[Address, bool] = {}

    def validators(self, header: Header) -> tuple[Address, ...]:
        """Who decides the block after this one, sorted by address."""
        answer = self._ask(header, "getValidators")
        assert isinstance(answer, (list, tuple))
        return tuple(sorted(answer))

    def operators(self, header: Header) -> dict[Address, Address]:
        """Who signs a recovery after this block, and the member that each stands for."""
        entries = self._ask(header, "roster")
        assert isinstance(entries, (list, tuple))
        return {record[0]: member for member, record in entries}

    def is_admitted(self, address: Address, head: Header) -> bool:
        """Whether an address is a member or a member's operator, by the last block; kept until `changed`."""
        found = self._admitted.get(address)
        if found is None:
            if len(self._admitted) > _ADMITTED_MAX:
                self._admitted.clear()
            found = bool(self._ask(head, "isMember", address)) or self._ask(head, "memberOf", address) != ZERO_ADDRESS
            self._admitted[address] = found
        return found

    def changed(self) -> None:
        """A block touched the contract."""
        self._admitted.clear()

    def _ask(self, header: Header, function: str, *arguments: object) -> object:
        call = interface("Consortium")
        outcome = self._evm.call(header, sender=ZERO_ADDRESS, to=CONSORTIUM, data=call.call(function, *arguments))
        assert outcome.succeeded, f"Consortium.{function} reverts: {outcome.error}"
        return call.result(function, outcome.output)
