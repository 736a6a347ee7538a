"""The door to py-libp2p: its modules without its packages' own start-up.

`libp2p/__init__.py` loads every transport, discovery and pubsub with their libraries, half a second, of which a node
uses certificates, keys and a few messages. Here packages stand in `sys.modules` whose `__init__` has not run; it runs
when somebody asks one for a name that it does not have yet.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

_PACKAGES = (
    "libp2p",
    "libp2p.identity",
    "libp2p.identity.identify",
    "libp2p.pubsub",
    "libp2p.security",
    "libp2p.security.tls",
    "libp2p.tools",
    "libp2p.tools.anyio_service",
    "libp2p.transport",
    "libp2p.transport.quic",
)


class _Late(ModuleType):
    """A package that runs its `__init__` when a name is asked for that is not there yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(self)
        return getattr(self, name)


def postpone() -> None:
    """Have these packages start late, unless they have started."""
    for name in _PACKAGES:
        if name in sys.modules:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(f"{name} is not installed")
        package = importlib.util.module_from_spec(spec)
        package.__class__ = _Late
        sys.modules[name] = package


postpone()
