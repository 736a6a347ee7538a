"""Real peers: libp2p over TCP, members only, behind the `Transport` port."""

import swarm.net.libp2p.library  # noqa: F401  before anything of libp2p is loaded
from swarm.net.libp2p.transport import Libp2pTransport

__all__ = ["Libp2pTransport"]
