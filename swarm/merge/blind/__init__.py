"""Updates that nobody reads: masked vectors whose sum is the merge, and the secrets that take the masks off."""

from swarm.merge.blind.blob import Blob, Entry, Held, blob_of, open_blob
from swarm.merge.blind.encode import Encoded, Encoding, Unfit, check_fits, encode, exponents_of
from swarm.merge.blind.keys import Attempt, Fresh, Keys, Seat, public_key
from swarm.merge.blind.merging import BadVector, BlindMerged, merge
from swarm.merge.blind.unmask import (
    Frozen,
    Missing,
    Reveal,
    Said,
    Shares,
    Survivors,
    Unmasking,
    freeze,
    masks_of,
    reveal_of,
    shares_of,
    unmasking,
)
from swarm.merge.blind.vector import Masked, Vector

__all__ = [
    "Attempt",
    "BadVector",
    "BlindMerged",
    "Blob",
    "Encoded",
    "Encoding",
    "Entry",
    "Fresh",
    "Frozen",
    "Held",
    "Keys",
    "Masked",
    "Missing",
    "Reveal",
    "Said",
    "Seat",
    "Shares",
    "Survivors",
    "Unfit",
    "Unmasking",
    "Vector",
    "blob_of",
    "check_fits",
    "encode",
    "exponents_of",
    "freeze",
    "masks_of",
    "merge",
    "open_blob",
    "public_key",
    "reveal_of",
    "shares_of",
    "unmasking",
]
