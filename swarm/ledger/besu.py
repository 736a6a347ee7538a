"""A genesis file for Hyperledger Besu, whose QBFT then takes its validators from the `Consortium` contract.

Source: Besu's documentation, "Configure QBFT consensus", contract validator selection; "Free gas network".
"""

from __future__ import annotations

from typing import Any

from swarm.config import SwarmConfig
from swarm.encoding import ZERO_ADDRESS, ZERO_DIGEST, pack, to_hex
from swarm.ledger.genesis import CONSORTIUM, allocations

TICKS_PER_SECOND = 1
"""Besu's timestamps are seconds."""
GAS_LIMIT = 100_000_000
"""A block's; a round of 128 members, all in one block, takes a tenth of it."""
EPOCH_BLOCKS = 30_000
BFT_MIX_HASH = to_hex(b"ctical byzantine fault tolerance")
"""Says that BFT validators seal the chain's blocks (EIP-650); Besu asks for it."""
_FORKS = (
    "homestead", "eip150", "eip155", "eip158", "byzantium", "constantinople", "petersburg", "istanbul", "muirGlacier",
    "berlin", "london",
)  # fmt: skip


def extra_data() -> bytes:
    """The genesis block's extra data: vanity, no validators (they are the contract's), no vote, round 0, no seals."""
    return pack([ZERO_DIGEST, [], [], 0, []])


def besu_genesis(config: SwarmConfig, *, block_period_s: int = 1, request_timeout_s: int = 4) -> dict[str, Any]:
    """Block 0 of a Besu network with the contracts as they are in this consortium's own genesis, in its clock.

    Gas is free. Every fork that the contracts need is there from the first block.

    Raises:
        ConfigError: the contracts refuse the founders.
    """
    return {
        "config": {
            "chainId": config.chain_id,
            **{f"{fork}Block": 0 for fork in _FORKS},
            "shanghaiTime": 0,
            "cancunTime": 0,
            "zeroBaseFee": True,
            "qbft": {
                "epochlength": EPOCH_BLOCKS,
                "blockperiodseconds": block_period_s,
                "requesttimeoutseconds": request_timeout_s,
                "validatorcontractaddress": to_hex(CONSORTIUM),
            },
        },
        "nonce": "0x0",
        "timestamp": hex(config.created_ms // 1000),
        "extraData": to_hex(extra_data()),
        "gasLimit": hex(GAS_LIMIT),
        "difficulty": "0x1",
        "mixHash": BFT_MIX_HASH,
        "coinbase": to_hex(ZERO_ADDRESS),
        "alloc": {
            to_hex(address): {
                "nonce": hex(one.nonce),
                "balance": hex(one.balance),
                "code": to_hex(one.code),
                "storage": {f"0x{slot:064x}": f"0x{value:064x}" for slot, value in one.storage.items()},
            }
            for address, one in allocations(config, ticks_per_second=TICKS_PER_SECOND).items()
        },
    }
