"""Sees everything that members of a simulated blind run show each other, and raises at what must not be.

It knows the plain vectors, which nobody else does. What liars give away of themselves is theirs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim.blind.books import RUN, Books, Call
from swarm.encoding import Address, Digest, from_hex, short
from swarm.merge.blind.masks import Ring
from swarm.merkle import digest_of


class Violation(Exception):
    """A rule of blind rounds was broken."""


class Watch:
    """The observer of one run.

    Args:
        folders: each site's own folder of its masks.
        name: of a member, for people.
        upon: hears of steps, for who waits to kill a member at one.
    """

    def __init__(
        self,
        books: Books,
        liars: frozenset[Address],
        folders: Mapping[Address, Path],
        *,
        name: Callable[[Address], str],
        upon: Callable[[Address, str, bool], None],
        say: Callable[[str], None],
    ) -> None:
        self._books = books
        self._liars = liars
        self._folders = folders
        self._name = name
        self._upon = upon
        self._say = say
        self._made: dict[tuple[Address, Digest], tuple[int, frozenset[bytes], Ring]] = {}
        self._used: dict[tuple[Address, bytes], Digest] = {}
        self._sets: dict[tuple[int, int], set[frozenset[Address]]] = defaultdict(set)
        """By round and attempt: for whom honest members opened anything."""
        self._opened: dict[tuple[int, str], set[Address]] = defaultdict(set)
        """By attempt and kind: whose secrets honest members told, whole or as shares."""
        self._taken: dict[tuple[int, str], set[Address]] = defaultdict(set)
        """The same of what the contract took from anybody."""
        self._fixed: dict[int, frozenset[Address]] = {}
        self._given: dict[int, list[tuple[Address, Call]]] = defaultdict(list)
        """By attempt: every opening that others saw, in the ledger or not."""
        self._frozen: dict[int, tuple[int, frozenset[Address], dict[Address, frozenset[Address]], int]] = {}
        self._submitted: dict[int, dict[Address, Digest]] = defaultdict(dict)
        self.bases: dict[Digest, bytes] = {}
        self.closed: list[tuple[int, str]] = []
        self.counts: dict[str, int] = defaultdict(int)
        self.failure: Violation | None = None

    def step(self, site: Address, step: str, *, before: bool) -> None:
        """A member is at a step."""
        self._upon(site, step, before)

    # --- vectors

    def made(self, site: Address, attempt: int, digest: Digest, keys: Sequence[bytes], plain: Ring) -> None:
        """A vector was masked."""
        self.counts["vectors masked"] += 1
        self._made[site, digest] = attempt, frozenset(keys), plain.copy()

    def exposed(self, site: Address, digest: Digest) -> None:
        """Others are given a vector."""
        found = self._made.get((site, digest))
        if found is None or site in self._liars:
            return
        attempt, keys, _ = found
        for key in keys:
            if self._used.setdefault((site, key), digest) != digest:
                self._break(f"{self._name(site)} uses a mask of attempt {attempt} for two vectors")
        if self._logged(site, attempt).get("masked") != "0x" + digest.hex():
            self._break(f"{self._name(site)} gives out a vector of attempt {attempt} that is not in its log")

    def _logged(self, site: Address, attempt: int) -> dict[str, Any]:
        place = self._folders[site] / f"{RUN}-{attempt}.json"
        found: dict[str, Any] = json.loads(place.read_bytes()) if place.exists() else {}
        return found

    # --- openings

    def told(self, sender: Address, call: Call) -> None:
        """Others can see a call, whatever the ledger makes of it."""
        self.counts["calls"] += 1
        if call.name in ("reveal", "reveal_shares"):
            self._given[call.arguments[0]].append((sender, call))
            if sender not in self._liars:
                self._opening(sender, call)
        self._say(f"{self._name(sender)}: {call.name}")
        self.step(sender, call.name, before=False)

    def _opening(self, sender: Address, call: Call) -> None:
        attempt = call.arguments[0]
        if call.name == "reveal_shares":
            secrets, seeds = frozenset(call.arguments[1]), frozenset(call.arguments[2])
        else:
            survivors = call.arguments[1]
            logged = self._logged(sender, attempt).get("survivors")
            if logged is None or {from_hex(one) for one in logged} != survivors:
                self._break(f"{self._name(sender)} opens its mask of attempt {attempt} before it is in its log")
            round_, members, edges, _ = self._frozen[attempt]
            self._sets[round_, attempt].add(survivors)
            if len(self._sets[round_, attempt]) > 1:
                self._break(f"masks of attempt {attempt} are opened for two sets")
            secrets, seeds = frozenset({sender}), edges[sender] & members - survivors
        self._both(self._opened, attempt, secrets, seeds)

    def _both(
        self,
        known: dict[tuple[int, str], set[Address]],
        attempt: int,
        secrets: frozenset[Address],
        seeds: frozenset[Address],
    ) -> None:
        known[attempt, "secrets"] |= secrets
        known[attempt, "seeds"] |= seeds
        both = known[attempt, "secrets"] & known[attempt, "seeds"]
        if both:
            self._break(f"both secrets of {self._name(min(both))} are told in attempt {attempt}")

    # --- what the ledger took

    def decided(self, sender: Address, call: Call, events: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """The ledger took a call."""
        for name, args in events:
            self.counts[name] += 1
            upon = getattr(self, f"_upon_{name}", None)
            if upon is not None:
                upon(args)

    def _upon_AttemptFrozen(self, args: Mapping[str, Any]) -> None:
        members: frozenset[Address] = args["members"]
        edges = {member: self._books.places[member].edges & members for member in members}
        self._frozen[args["attempt"]] = args["round"], members, edges, self._books.attempt.threshold
        self._say(f"round {args['round']} attempt {args['attempt']}: {len(members)} are frozen")

    def _upon_Submitted(self, args: Mapping[str, Any]) -> None:
        self._submitted[self._books.attempt.number][args["member"]] = args["digest"]

    def _upon_SurvivorsFixed(self, args: Mapping[str, Any]) -> None:
        survivors: frozenset[Address] = args["survivors"]
        if self._fixed.setdefault(args["attempt"], survivors) != survivors:
            self._break(f"the survivors of attempt {args['attempt']} change")
        self._say(f"round {args['round']} attempt {args['attempt']}: the sum is of {len(survivors)}")

    def _upon_Revealed(self, args: Mapping[str, Any]) -> None:
        self._both(self._taken, args["attempt"], frozenset({args["member"]}), args["gone"])

    def _upon_SharesRevealed(self, args: Mapping[str, Any]) -> None:
        self._both(self._taken, args["attempt"], frozenset(args["secrets"]), frozenset(args["seeds"]))

    def _upon_RoundRestarted(self, args: Mapping[str, Any]) -> None:
        self._say(f"round {args['round']}: starts again")

    def _upon_RoundClosed(self, args: Mapping[str, Any]) -> None:
        round_, found = args["round"], args["checkpoint"]
        base = args["base"]
        kind = "as it began" if found == base else "with a sum"
        right = self._right(base) if found != base else None
        if right is None and found != base:
            # A liar's vector: the real merge's range test is not in this model.
            self.counts["sums of something else"] += 1
        elif found not in (base, right):
            self._break(f"round {round_} closes with another checkpoint than the sum of its survivors")
        if found == base and self._books.spent[0] != round_:
            self._break(f"round {round_} closes as it began, and no sum of it may be known")
        self.closed.append((round_, kind))
        self._say(f"round {round_}: closes {kind}")

    def _right(self, base: Digest) -> Digest | None:
        attempt = self._books.attempt.number
        survivors = self._fixed.get(attempt)
        if survivors is None or base not in self.bases:
            return None
        total = np.zeros(0, np.uint32)
        for member in survivors:
            made = self._made.get((member, self._submitted[attempt].get(member, b"")))
            if made is None or made[0] != attempt:
                if member not in self._liars:
                    self._break(f"{self._name(member)}'s vector of another attempt is in the sum of attempt {attempt}")
                return None
            total = made[2] if not len(total) else total + made[2]
        data = digest_of(self.bases[base]) + total.astype("<u4").tobytes()
        self.bases[digest_of(data)] = data
        return digest_of(data)

    # --- the end

    def known_sums(self, round_: int) -> dict[int, frozenset[Address]]:
        """The attempts at a round whose sum liars together with everybody who listened can open, and its members."""
        return {
            attempt: survivors
            for (at, attempt), sets in self._sets.items()
            if at == round_
            for survivors in sets
            if self._openable(attempt, survivors)
        }

    def _openable(self, attempt: int, survivors: frozenset[Address]) -> bool:
        _, members, edges, threshold = self._frozen[attempt]
        own, pairs = set(self._liars), set[frozenset[Address]]()
        shares: dict[tuple[str, Address], set[Address]] = defaultdict(set)
        for sender, call in self._given[attempt]:
            if call.name == "reveal":
                own.add(sender)
                pairs |= {frozenset({sender, gone}) for gone in edges.get(sender, frozenset()) & members - survivors}
            else:
                for kind, some in zip(("own", "seeds"), call.arguments[1:], strict=True):
                    for member in some:
                        shares[kind, member].add(sender)

        def opened(kind: str, member: Address) -> bool:
            return len(shares[kind, member] | self._liars - {member}) >= threshold

        return all(one in own or opened("own", one) for one in survivors) and all(
            frozenset({one, gone}) in pairs or {one, gone} & self._liars or opened("seeds", gone)
            for one in survivors
            for gone in edges[one] & members - survivors
        )

    def check_sums(self, rounds: int) -> None:
        """Of each round one sum is known at most: the difference of two is somebody's update."""
        for round_ in range(rounds):
            known = self.known_sums(round_)
            honest = {survivors - self._liars for survivors in known.values()}
            if len(honest) > 1:
                self._break(f"sums over {len(honest)} sets of members are known of round {round_}")
        self.counts["sums known"] += sum(len(self.known_sums(round_)) for round_ in range(rounds))

    def check_erased(self, site: Address) -> None:
        """After the run no seed and no plain update is on a disk."""
        for place in self._folders[site].glob(f"{RUN}-*.json"):
            if len(json.loads(place.read_bytes())["seed"]) > 2:
                self._break(f"{self._name(site)} keeps the seed of attempt {place.stem} after the run")
        if list(self._folders[site].glob("plain-*")):
            self._break(f"{self._name(site)} keeps a plain update after the run")

    def _break(self, what: str) -> None:
        self._say(f"BROKEN: {what}")
        if self.failure is None:
            self.failure = Violation(what)
        raise self.failure


def named(member: Address, names: Mapping[Address, str]) -> str:
    """For people."""
    return names.get(member, short(member))
