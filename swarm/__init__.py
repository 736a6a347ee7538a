"""Hospitals train one model together, with no server in the middle and a ledger that proves what happened.

What a training loop needs is here: `SwarmCallback`, its like for Lightning and for Transformers' Trainer,
`sum_over_members`, and `SwarmError`, which all refusals are. All but the last bring in torch, so they are loaded when
they are first asked for: a node never loads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarm.errors import SwarmError

if TYPE_CHECKING:
    from swarm.learn import SwarmCallback, SwarmLightningCallback, SwarmTrainerCallback, sum_over_members

__all__ = ["SwarmCallback", "SwarmError", "SwarmLightningCallback", "SwarmTrainerCallback", "sum_over_members"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import swarm.learn

        return getattr(swarm.learn, name)
    raise AttributeError(f"module 'swarm' has no attribute {name!r}")
