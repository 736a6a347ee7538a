"""What a member joins a blind round with, for the fuzzing campaign: read, opened and used as the others would."""

from __future__ import annotations

from functools import cache

from swarm.merge.blind import (
    Blob,
    Fresh,
    Keys,
    Missing,
    Survivors,
    blob_of,
    freeze,
    open_blob,
    shares_of,
    unmasking,
)
from tests.merge.blind.world import attempt_of

SECRETS = {bytes([number]) * 20: bytes([number]) * 32 for number in range(1, 5)}
ATTEMPT = attempt_of(SECRETS)
SENDER, *OTHERS = ATTEMPT.members


@cache
def keys(member: bytes) -> Keys:
    """A member's."""
    return Keys(ATTEMPT, member, SECRETS[member])


@cache
def blob(member: bytes) -> Blob:
    """An honest member's."""
    return blob_of(keys(member), Fresh.of(bytes(12) + member, ATTEMPT))


def feed(data: bytes) -> None:
    """One member's blob, whatever it holds: the others confirm, the member vanishes, and its seeds are opened.

    Raises:
        PeerError: it is no blob, its shares do not open, or they contradict what it committed to.
    """
    blobs = {member: blob(member) for member in OTHERS} | {SENDER: Blob.decode(data, ATTEMPT, SENDER)}
    frozen = freeze(ATTEMPT, dict.fromkeys(ATTEMPT.members, ()))
    held = {member: open_blob(keys(member), blobs[SENDER]) for member in OTHERS}
    for survivors, missing in (
        (Survivors(frozen, frozenset(OTHERS)), Missing(frozenset(), frozenset([SENDER]))),
        (Survivors(frozen, frozen.joined), Missing(frozenset([SENDER]), frozenset())),
    ):
        said = [shares_of(survivors, missing, member, {SENDER: held[member]}) for member in OTHERS]
        unmasking(survivors, blobs, said)
