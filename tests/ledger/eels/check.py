"""Does the Ethereum specification (EELS) accept these blocks? Runs in an environment of its own.

EELS wants another coincurve than libp2p does, so it cannot be installed beside the project; `make others` gives it a
Python of its own.

Reads a JSON list of chains from standard input (`alloc` by address, `blocks` in hexadecimal), writes how many blocks it
accepted, or fails at the first that it refuses.
"""

# mypy: ignore-errors

from __future__ import annotations

import json
import sys

from ethereum.forks.cancun.blocks import Block
from ethereum.forks.cancun.fork import BlockChain, state_transition
from ethereum.forks.cancun.fork_types import Account, Address
from ethereum.forks.cancun.state import State, set_account, set_storage, state_root
from ethereum_rlp import rlp
from ethereum_types.bytes import Bytes
from ethereum_types.numeric import U64, U256, Uint


def main() -> None:
    accepted = 0
    for number, chain in enumerate(json.load(sys.stdin)):
        state = State()
        for text, account in chain["alloc"].items():
            address = Address(bytes.fromhex(text))
            code = Bytes(bytes.fromhex(account["code"]))
            set_account(state, address, Account(Uint(account["nonce"]), U256(account["balance"]), code))
            for slot, value in account["storage"].items():
                set_storage(state, address, U256(int(slot)).to_be_bytes32(), U256(value))
        genesis, *blocks = [rlp.decode_to(Block, bytes.fromhex(block)) for block in chain["blocks"]]
        assert state_root(state) == genesis.header.state_root, f"chain {number}: the state of genesis differs"
        known = BlockChain(blocks=[genesis], state=state, chain_id=U64(chain["chain_id"]))
        for block in blocks:
            state_transition(known, block)
            accepted += 1
    print(accepted)


main()
