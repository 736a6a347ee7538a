"""py-evm without the precompiles of a fork after ours.

BLS12-381 came with Prague; its tables take a fifth of a second to make at every start, and no contract of a Cancun
block can reach it. In the place of that package stands one whose functions say so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

_PACKAGE = "eth.precompiles.bls12_381"


class _Absent(ModuleType):
    """Has every function that is asked for; none can be called."""

    def __getattr__(self, name: str) -> Callable[[object], NoReturn]:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

        def call(computation: object) -> NoReturn:
            raise AssertionError(f"{name} is a precompile of Prague, and blocks here follow Cancun")

        return call


def leave_out() -> None:
    """Have py-evm load without them, unless it is loaded."""
    sys.modules.setdefault(_PACKAGE, _Absent(_PACKAGE))


leave_out()
