"""What a training loop uses; loaded when it is asked for, because it brings in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarm.learn.callback import SwarmCallback
    from swarm.learn.once import sum_over_members
    from swarm.learn.state import save_model

__all__ = ["SwarmCallback", "save_model", "sum_over_members"]


def __getattr__(name: str) -> Any:
    if name == "SwarmCallback":
        from swarm.learn.callback import SwarmCallback

        return SwarmCallback
    if name == "sum_over_members":
        from swarm.learn.once import sum_over_members

        return sum_over_members
    if name == "save_model":
        from swarm.learn.state import save_model

        return save_model
    raise AttributeError(f"module 'swarm.learn' has no attribute {name!r}")
