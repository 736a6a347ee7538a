"""Real peers: libp2p over TCP, members only, behind the `Transport` port."""

from swarm.net.libp2p.transport import Libp2pTransport

__all__ = ["Libp2pTransport"]
