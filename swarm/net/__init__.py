"""How bytes travel: the `Transport` port, libp2p and memory behind it, and the transfer of large objects."""
