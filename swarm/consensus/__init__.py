"""How validators agree on the next block: QBFT as a pure machine, its messages, and the certificate it ends with."""

from swarm.consensus.certificate import Certificate, check_certificate
from swarm.consensus.contradiction import Contradiction
from swarm.consensus.effects import Accuse, Authenticator, Broadcast, Decide, Effect, Help, Save
from swarm.consensus.heights import Consensus
from swarm.consensus.messages import PAYLOAD_BYTES_MAX
from swarm.consensus.qbft import Qbft
from swarm.consensus.turns import turns

__all__ = [
    "PAYLOAD_BYTES_MAX",
    "Accuse",
    "Authenticator",
    "Broadcast",
    "Certificate",
    "Consensus",
    "Contradiction",
    "Decide",
    "Effect",
    "Help",
    "Qbft",
    "Save",
    "check_certificate",
    "turns",
]
