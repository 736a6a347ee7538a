"""What a node asks of the chain that holds the contracts, wherever that is kept.

`EmbeddedChain` is the members' own ledger, `ExternalChain` somebody else's EVM network. What follows from the
contracts' state is the same on both and knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from swarm.ledger.client import Contracts


class Chain(Protocol):
    """The contracts, and the blocks that change them."""

    contracts: Contracts
    """Both contracts as of the last block that counts."""

    async def start(self, on_block: Callable[[], None], on_failure: Callable[[BaseException], None]) -> None:
        """Be ready to answer; call before the transport starts.

        Args:
            on_block: called after each block that counts from now on.
            on_failure: called with what this node cannot go on with.
        Raises:
            ConfigError: this is not the chain that the settings mean.
            UnavailableError: it does not answer.
        """

    def show_metrics(self, metrics: Callable[[], bytes]) -> None:
        """Answer `/metrics` with this where the site's `[rpc]` says; before `start`."""

    def run(self) -> None:
        """Begin to follow, and to vote where this node does; call when the transport runs."""

    async def stop(self) -> None:
        """Stop following; call before the transport closes."""

    async def close(self) -> None:
        """Let go of files and connections."""

    def let_go(self) -> None:
        """Let go of files alone: for who made a chain that never started."""

    @property
    def height(self) -> int:
        """The number of the last block that counts."""

    @property
    def caught_up(self) -> bool:
        """Whether this node knows of no later block."""

    @property
    def touched_members(self) -> bool:
        """Whether the last block may have changed who is a member, or where it is reached."""

    async def request(self, method: str, params: Sequence[Any]) -> Any:
        """The `result` of a JSON-RPC request about the blocks that count; RpcError otherwise."""

    async def status(self) -> Mapping[str, Any]:
        """Where the chain is, for people and scripts: height, height_seen, head, timestamp_ms, chain_id, validators,
        faults_tolerated, and what one kind of chain has alone.
        """
