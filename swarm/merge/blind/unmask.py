"""From frozen sets and revealed secrets to the masks that come off a sum; and what a member may reveal.

A survivor is a member whose vector is in the sum. Of a survivor only the self seed ever comes out, of one who joined
and is no survivor only pair seeds: with both, its vector would be open. What is revealed is checked against the
commitments in the blobs, and counts in the order of the ledger, so that everybody finds the same.

Source: Bonawitz et al., Practical Secure Aggregation, CCS 2017, figure 4; the recovery seed instead of a member's key,
as in Ma et al., Flamingo, IEEE S&P 2023, keeps what is opened to one round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from swarm.encoding import Address, Digest, short
from swarm.errors import PeerError
from swarm.merge.blind.blob import Blob, Held, open_seeds
from swarm.merge.blind.keys import (
    PAIR,
    RECOVERY,
    SEATS_MIN,
    SELF,
    SHARE,
    Attempt,
    Fresh,
    Keys,
    commitment,
    self_mask_key,
)
from swarm.merge.blind.masks import Mask
from swarm.merge.blind.shares import combine

Edge: TypeAlias = frozenset[Address]
"""Two members with a mask in common."""


@dataclass(frozen=True)
class Frozen:
    """Who takes part in an attempt, and which pairs use no common mask. `freeze` makes it; it does not change."""

    attempt: Attempt
    joined: frozenset[Address]
    dropped: frozenset[Edge]
    groups: tuple[frozenset[Address], ...] = ()
    """Where the round is merged in groups: all of `joined`, each in one. Members of two groups may have an edge, but
    they have no mask in common, so that each group's sum opens by itself."""

    def __post_init__(self) -> None:
        if self.groups and sorted(member for group in self.groups for member in group) != sorted(self.joined):
            raise ValueError(f"the groups of attempt {self.attempt.number} are not all members, each once")

    def neighbors(self, member: Address) -> tuple[Address, ...]:
        """With whom a member has edges, in address order; ValueError if it does not take part."""
        if member not in self.joined:
            raise ValueError(f"{short(member)} does not take part in attempt {self.attempt.number}")
        return tuple(
            sorted(o for o in self.joined if o != member and frozenset((member, o)) not in self.dropped)
        )  # fmt: skip

    def masked_with(self, member: Address) -> tuple[Address, ...]:
        """With whom a member has masks in common: its neighbours, of its own group where there are groups."""
        group = next((group for group in self.groups if member in group), self.joined)
        return tuple(other for other in self.neighbors(member) if other in group)

    @property
    def joined_in_order(self) -> tuple[Address, ...]:
        """In address order."""
        return tuple(sorted(self.joined))


def freeze(attempt: Attempt, confirmed: Mapping[Address, Iterable[Address]]) -> Frozen:
    """The largest set of confirmed members of whom each keeps t - 1 edges within it, whatever the order.

    Args:
        confirmed: who holds everybody's blob, with those whose edge to itself it drops.
    Raises:
        ValueError: somebody has no seat or drops itself; or fewer than t members remain: the attempt is void.
    """
    dropped = frozenset(
        frozenset((member, other)) for member, others in confirmed.items() for other in others
    )  # fmt: skip
    for edge in dropped:
        if len(edge) != 2:
            raise ValueError(f"{short(next(iter(edge)))} drops the edge to itself")
        for member in edge:
            attempt.place(member)
    joined = {member for member in confirmed if attempt.place(member) >= 0}
    while True:
        lonely = {
            member
            for member in joined
            if sum(other != member and frozenset((member, other)) not in dropped for other in joined)
            < attempt.threshold - 1
        }
        if not lonely:
            break
        joined -= lonely
    if len(joined) < max(attempt.threshold, SEATS_MIN):
        raise ValueError(
            f"attempt {attempt.number} at round {attempt.round}: {len(joined)} of the {len(confirmed)} members who "
            f"confirmed keep {attempt.threshold - 1} edges, {max(attempt.threshold, SEATS_MIN)} are needed"
        )
    return Frozen(attempt, frozenset(joined), frozenset(edge for edge in dropped if edge <= joined))


@dataclass(frozen=True)
class Survivors:
    """Whose vectors are in the sum. Once fixed, they are never others in the attempt.

    Raises:
        ValueError: fewer than t or than 3, or somebody who does not take part.
    """

    frozen: Frozen
    members: frozenset[Address]

    def __post_init__(self) -> None:
        strangers = self.members - self.frozen.joined
        if strangers:
            raise ValueError(f"{short(min(strangers))} submitted, but does not take part in this attempt")
        needed = max(self.frozen.attempt.threshold, SEATS_MIN)
        if len(self.members) < needed:
            raise ValueError(f"{len(self.members)} updates would be in the sum, {needed} are needed to hide one")
        for group in self.frozen.groups:
            if len(group & self.members) < SEATS_MIN:
                raise ValueError(
                    f"{len(group & self.members)} updates would be in a group's sum, {SEATS_MIN} are needed to hide one"
                )

    @property
    def summed(self) -> tuple[frozenset[Address], ...]:
        """The sets whose sums open: all survivors, or those of each group."""
        return tuple(group & self.members for group in self.frozen.groups) or (self.members,)

    @property
    def in_order(self) -> tuple[Address, ...]:
        """In address order, as their vectors are summed."""
        return tuple(sorted(self.members))

    @property
    def vanished(self) -> frozenset[Address]:
        """Who takes part, but is not in the sum."""
        return self.frozen.joined - self.members

    def open_edges(self, member: Address) -> tuple[Address, ...]:
        """The vanished with whom a survivor has an edge: their seeds are revealed, which the ledger asks for."""
        return tuple(other for other in self.frozen.neighbors(member) if other in self.vanished)

    def open_masks(self, member: Address) -> tuple[Address, ...]:
        """The vanished with whom a survivor has a mask in common: those masks do not cancel."""
        return tuple(other for other in self.frozen.masked_with(member) if other in self.vanished)


@dataclass(frozen=True)
class Reveal:
    """What a survivor says of itself: its self seed, and the pair seeds with those who vanished."""

    member: Address
    self_seed: bytes
    pair_seeds: Mapping[Address, bytes] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Reveal(by {short(self.member)}, {len(self.pair_seeds)} pair seeds)"


@dataclass(frozen=True)
class Shares:
    """A member's shares of what others did not reveal."""

    member: Address
    self_shares: Mapping[Address, bytes] = field(default_factory=dict)
    """Of survivors that are silent."""
    recovery_shares: Mapping[Address, bytes] = field(default_factory=dict)
    """Of the vanished whose edge to a silent survivor is open."""

    def __repr__(self) -> str:
        return f"Shares(by {short(self.member)}, {len(self.self_shares)} self, {len(self.recovery_shares)} recovery)"


Said: TypeAlias = Reveal | Shares


@dataclass(frozen=True)
class Missing:
    """What has to be revealed before the sum can be unmasked."""

    self_seeds: frozenset[Address]
    """Survivors whose self seed is not known."""
    recovery_seeds: frozenset[Address]
    """Vanished members with a pair seed that is not known."""

    def __bool__(self) -> bool:
        return bool(self.self_seeds or self.recovery_seeds)


@dataclass(frozen=True)
class Unmasking:
    """The masks that come off the survivors' sum."""

    survivors: Survivors
    by_member: Mapping[Address, tuple[Mask, ...]]
    """What comes off on account of each survivor's vector."""

    @property
    def masks(self) -> tuple[Mask, ...]:
        """Of all survivors."""
        return self.masks_of(self.survivors.members)

    def masks_of(self, members: frozenset[Address]) -> tuple[Mask, ...]:
        """Of some: of all survivors of a group, its sum's."""
        return tuple(mask for member in sorted(members) for mask in self.by_member[member])


def masks_of(frozen: Frozen, keys: Keys, fresh: Fresh) -> tuple[Mask, ...]:
    """The masks on this site's vector: its own, and one with every neighbour, which the later of the two subtracts.

    Raises:
        ValueError: this site does not take part.
    """
    me, context = keys.me, frozen.attempt.context
    pairs = [Mask(keys.pair_seed(other), other > me) for other in frozen.masked_with(me)]
    return (Mask(self_mask_key(fresh.self_seed, context), True), *pairs)


def reveal_of(survivors: Survivors, keys: Keys, fresh: Fresh) -> Reveal:
    """What this site reveals: only after it wrote into its log that it does so for these survivors and no others.

    Raises:
        ValueError: this site is no survivor; its self seed stays a secret.
    """
    if keys.me not in survivors.members:
        raise ValueError(f"{short(keys.me)} is not in the sum and reveals nothing of itself")
    return Reveal(keys.me, fresh.self_seed, {other: keys.pair_seed(other) for other in survivors.open_edges(keys.me)})


def shares_of(survivors: Survivors, missing: Missing, me: Address, held: Mapping[Address, Held]) -> Shares:
    """This site's shares of what is missing: never of both secrets of one member.

    Args:
        held: this site's shares of others' secrets, by their sender; who is not there gave none that opened.
    """
    return Shares(
        me,
        {
            member: held[member].self_share
            for member in sorted(missing.self_seeds & survivors.members)
            if member in held and member != me
        },
        {
            member: held[member].recovery_share
            for member in sorted(missing.recovery_seeds & survivors.vanished)
            if member in held and member != me
        },
    )


def unmasking(survivors: Survivors, blobs: Mapping[Address, Blob], said: Sequence[Said]) -> Unmasking | Missing:
    """The masks to take off, or what has to be revealed before.

    What does not match its commitment, or is of the wrong kind, counts as not said.

    Args:
        blobs: of all who take part.
        said: in the order of the ledger, which decides whose shares open a secret.
    Raises:
        PeerError: a quorum of shares that match a member's own commitments do not open its secret, or what that opens
            is not what it committed to. Everybody finds so; the attempt is void, and the member is to blame.
    """
    return _Unmasking(survivors, blobs, said).found()


class _Unmasking:
    """What is known of the secrets in one attempt."""

    def __init__(self, survivors: Survivors, blobs: Mapping[Address, Blob], said: Sequence[Said]) -> None:
        self._survivors = survivors
        self._attempt = survivors.frozen.attempt
        self._blobs = blobs
        self._reveals = [part for part in said if isinstance(part, Reveal)]
        self._shares = [part for part in said if isinstance(part, Shares)]

    def found(self) -> Unmasking | Missing:
        context = self._attempt.context
        self_seeds = {member: self._self_seed(member) for member in self._survivors.in_order}
        pair_seeds = dict(self._pair_seeds())
        missing = Missing(
            frozenset(member for member, seed in self_seeds.items() if seed is None),
            frozenset(gone for (_, gone), seed in pair_seeds.items() if seed is None),
        )
        if missing:
            return missing
        off = {
            member: [Mask(self_mask_key(seed, context), False)]
            for member, seed in self_seeds.items()
            if seed is not None
        }
        for (member, gone), seed in pair_seeds.items():
            # On the survivor's vector the mask was added where it is the earlier one of the two.
            off[member] += [Mask(seed, gone < member)] if seed is not None else []
        return Unmasking(self._survivors, {member: tuple(masks) for member, masks in off.items()})

    def _self_seed(self, member: Address) -> bytes | None:
        wanted = self._blobs[member].self_commitment
        for reveal in self._reveals:
            if reveal.member == member and commitment(SELF, reveal.self_seed) == wanted:
                return reveal.self_seed
        return self._combined(member, recovery=False)

    def _pair_seeds(self) -> Iterator[tuple[tuple[Address, Address], bytes | None]]:
        """Of every edge between a survivor and a vanished member."""
        opened: dict[Address, dict[Address, bytes] | None] = {}
        for member in self._survivors.in_order:
            for gone in self._survivors.open_masks(member):
                wanted = self._blobs[member].entry(self._attempt, gone).pair
                if wanted != self._blobs[gone].entry(self._attempt, member).pair:
                    # Two who agree on nothing and did not say so: an honest one would have dropped the edge.
                    continue
                seed = self._revealed(member, gone, wanted)
                if seed is None:
                    if gone not in opened:
                        opened[gone] = self._opened(gone)
                    seed = self._checked(gone, member, opened[gone], wanted)
                yield (member, gone), seed

    def _revealed(self, member: Address, gone: Address, wanted: Digest) -> bytes | None:
        for reveal in self._reveals:
            seed = reveal.pair_seeds.get(gone) if reveal.member == member else None
            if seed is not None and commitment(PAIR, seed) == wanted:
                return seed
        return None

    def _opened(self, gone: Address) -> dict[Address, bytes] | None:
        recovery = self._combined(gone, recovery=True)
        return None if recovery is None else open_seeds(self._attempt, self._blobs[gone], recovery)

    def _checked(
        self, gone: Address, member: Address, opened: Mapping[Address, bytes] | None, wanted: Digest
    ) -> bytes | None:
        if opened is None:
            return None
        if commitment(PAIR, opened[member]) != wanted:
            raise PeerError(
                f"the pair seed with {short(member)} that {short(gone)} sealed is not the one that it committed to",
                member=gone, evidence=self._blobs[gone],
            )  # fmt: skip
        return opened[member]

    def _combined(self, member: Address, *, recovery: bool) -> bytes | None:
        """A secret from the first t shares that match their commitments; None while there are fewer."""
        blob, found = self._blobs[member], dict[int, bytes]()
        for part in self._shares:
            share = (part.recovery_shares if recovery else part.self_shares).get(member)
            if share is None or part.member == member:
                continue
            entry = blob.entry(self._attempt, part.member)
            if commitment(SHARE, share) == (entry.recovery_share if recovery else entry.self_share):
                found.setdefault(self._attempt.place(part.member), share)
            if len(found) == self._attempt.threshold:
                break
        if len(found) < self._attempt.threshold:
            return None
        secret = combine(found, self._attempt.threshold)
        wanted = blob.recovery_commitment if recovery else blob.self_commitment
        if commitment(RECOVERY if recovery else SELF, secret) != wanted:
            raise PeerError(
                f"{len(found)} shares that {short(member)} committed to do not open its "
                f"{'recovery' if recovery else 'self'} seed",
                member=member, evidence=blob,
            )  # fmt: skip
        return secret
