"""What has to hold in every blind run, whoever does what: told from the calls that were taken and their events.

It keeps its own books with sets of members instead of bitmaps, and finds the frozen set by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from swarm.blind import MaskSeat
from swarm.encoding import Address, sha256
from swarm.ledger.masks import roster_digest
from swarm.rounds import Phase, RunState
from tests.contracts.referee import hold
from tests.contracts.rounds import MERGE_MS, SUBMIT_MS, RoundView

Args = dict[str, Any]


class BlindReferee:
    """The books of run 1's masks.

    Args:
        submissions_min: of the run.
    """

    def __init__(self, *, members: Collection[Address], submissions_min: int) -> None:
        self.members = members
        self.needed = max(3, submissions_min)
        self.keys: dict[int, list[tuple[Address, bytes]]] = {}
        """By seat: every key that was set."""
        self.attempt = 0
        self.open = False
        self.spent: set[int] = set()
        """Rounds with a sum that may be known in an attempt that is over."""
        self.known: set[int] = set()
        """Rounds in which more revealed than may lie."""
        self.sums: dict[int, set[frozenset[int]]] = {}
        """By round: the sets for which more than liars revealed anything."""
        self.seen: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        self.roster: dict[int, tuple[Address, bytes, int]] = {}
        """By seat: member, key, and the number of the key."""
        self.place = (-1, -1)
        self.opened_ms = 0
        self.joined: dict[int, tuple[bytes, bytes, bytes]] = {}
        self.held: dict[int, frozenset[int]] = {}
        self.frozen: frozenset[int] = frozenset()
        self.over = False
        self.survivors: frozenset[int] = frozenset()
        self.fixed_ms = 0
        self.revealed: set[int] = set()
        self.secrets_of: set[int] = set()
        """Whose own secret is told, or shares of it."""
        self.seeds_of: set[int] = set()
        self.given: set[tuple[int, int]] = set()

    @property
    def threshold(self) -> int:
        return 2 * len(self.roster) // 3 + 1

    def edges(self, one: int) -> set[int]:
        """With whom a member has masks in common."""
        return {two for two in self.held if two != one and two in self.held[one] and one in self.held[two]}

    def core(self) -> frozenset[int]:
        """The members that keep enough edges, dropping one at a time in an order of its own."""
        members = set(self.held)
        while True:
            weak = sorted(m for m in members if len(self.edges(m) & members) < self.threshold - 1)
            if not weak:
                return frozenset(members)
            members.remove(weak[-1])

    def watch(self, sender: Address, before: RoundView, arguments: tuple[Any, ...], now_ms: int, events: Any) -> None:
        """A call of the contract that was taken, and the round as it was when it came."""
        self.sender, self.arguments, self.now_ms, self.round = sender, arguments, now_ms, before
        hold(sender in self.members, "only members call")
        hold(before.state == RunState.OPEN, "a run that is not open stays as it is")
        for name, args in events:
            self.seen.add(name)
            BOOKS[name](self, args)

    def restarted(self, round_: int) -> None:
        """The round takes submissions again."""
        if round_ in self.known:
            self.spent.add(round_)
        self._forget()


def _key_set(book: BlindReferee, args: Args) -> None:
    hold(args["member"] == book.sender, "a member sets its own key")
    keys = book.keys.setdefault(args["seat"], [])
    keys.append((args["member"], args["key"]))
    hold(args["number"] == len(keys), "keys count up")


def _opened(book: BlindReferee, args: Args) -> None:
    hold(args["attempt"] == book.attempt + 1, "attempts count up")
    hold(book.round.phase == Phase.SUBMIT, "attempts open while submissions come")
    hold(args["round"] not in book.spent, "no second sum of a round is prepared")
    same = book.place == (args["round"], book.round.view)
    hold(not same or book.over, "one attempt at a time")
    book._forget()
    book.attempt, book.place, book.opened_ms = args["attempt"], (args["round"], book.round.view), book.now_ms
    seats = [seat for seat in range(128) if args["roster"] >> seat & 1]
    book.roster = {seat: (*book.keys[seat][-1], len(book.keys[seat])) for seat in seats}
    awaited = {member for member, *_ in book.roster.values()}
    late = book.now_ms >= book.round.opened + SUBMIT_MS
    hold(awaited <= set(book.round.expected), "who is awaited is on the roster")
    hold(late or awaited == set(book.round.expected), "an attempt waits for all who are awaited, or for the deadline")
    hold(len(seats) >= book.needed, "an attempt has enough members")
    hold(args["threshold"] == book.threshold, "threshold")


def _joined(book: BlindReferee, args: Args) -> None:
    seat = args["seat"]
    hold(args["attempt"] == book.attempt and seat in book.roster, "members of the roster join the open attempt")
    hold(book.roster[seat][0] == book.sender == args["member"], "a member joins for itself, with its own key")
    hold(seat not in book.joined and not book.frozen and not book.over, "a member joins once, before the freeze")
    hold(book.now_ms < book.opened_ms + SUBMIT_MS / 2, "half of the time is for joining")
    seats = [MaskSeat(s, member, key, number) for s, (member, key, number) in sorted(book.roster.items())]
    hold(book.arguments[2] == roster_digest(seats), "who joins names the roster that its blob is for")
    book.joined[seat] = args["blob"], args["commitment"], args["recovery"]
    hold(all(any(part) for part in book.joined[seat]), "nothing that is told is zero")


def _confirmed(book: BlindReferee, args: Args) -> None:
    seat = next(s for s, (member, *_) in book.roster.items() if member == args["member"])
    hold(args["member"] == book.sender and seat in book.joined, "who joined confirms for itself")
    hold(seat not in book.held and not book.frozen and not book.over, "a member confirms once, before the freeze")
    held = frozenset(s for s in range(128) if args["held"] >> s & 1)
    hold(held <= book.joined.keys() and seat not in held, "only who joined is held, and not oneself")
    book.held[seat] = held


def _frozen(book: BlindReferee, args: Args) -> None:
    _ended(book, args)
    book.frozen = frozenset(s for s in range(128) if args["members"] >> s & 1)
    hold(book.frozen == book.core(), "the largest set in which all keep their edges is frozen")
    hold(len(book.frozen) >= max(book.needed, book.threshold), "enough are frozen")


def _failed(book: BlindReferee, args: Args) -> None:
    _ended(book, args)
    book.over = True
    hold(len(book.core()) < max(book.needed, book.threshold), "an attempt fails for lack of members")


def _ended(book: BlindReferee, args: Args) -> None:
    hold(args["attempt"] == book.attempt and not book.frozen and not book.over, "an attempt is frozen once")
    hold(book.round.phase == Phase.SUBMIT, "an attempt is frozen while submissions come")
    late = book.now_ms >= book.opened_ms + SUBMIT_MS
    hold(late or book.held.keys() == book.roster.keys(), "the freeze waits for all, or for the deadline")


def _fixed(book: BlindReferee, args: Args) -> None:
    hold(not book.survivors, "survivors are settled once")
    hold(book.round.phase != Phase.SUBMIT, "survivors are settled when the submissions are complete")
    book.survivors = frozenset(s for s in range(128) if args["survivors"] >> s & 1)
    submitted = {s for s, (member, *_) in book.roster.items() if member in book.round.submitters}
    hold(book.survivors == book.frozen & submitted, "survivors submitted and take part")
    hold(len(book.survivors) >= max(book.needed, book.threshold), "a sum has enough members")
    hold(args["round"] not in book.spent, "one sum of a round is opened at most")
    book.fixed_ms = book.now_ms


def _revealed(book: BlindReferee, args: Args) -> None:
    seat = next(s for s, (member, *_) in book.roster.items() if member == args["member"])
    hold(args["attempt"] == book.attempt and args["member"] == book.sender, "a member reveals its own, in the attempt")
    hold(seat in book.survivors and seat not in book.revealed, "a survivor reveals once")
    hold(sha256(b"self" + args["secret"]) == book.joined[seat][1], "what is revealed opens its commitment")
    named = frozenset(s for s in range(128) if book.arguments[2] >> s & 1)
    hold(named == book.survivors, "who reveals names for whom")
    gone = book.edges(seat) & (book.frozen - book.survivors)
    hold(len(args["seeds"]) == len(gone), "a seed for each who dropped out and shares a mask")
    book.revealed.add(seat)
    book.secrets_of.add(seat)
    book.seeds_of |= gone
    hold(not book.secrets_of & book.seeds_of, "never both secrets of one member")
    if len(book.revealed) * 3 > len(book.frozen) - 1:
        book.known.add(args["round"])
        book.sums.setdefault(args["round"], set()).add(book.survivors)
        hold(len(book.sums[args["round"]]) == 1, "one sum of a round is opened at most")


def _shared(book: BlindReferee, args: Args) -> None:
    giver = next(s for s, (member, *_) in book.roster.items() if member == args["member"])
    hold(args["member"] == book.sender and giver in book.frozen, "who takes part gives shares")
    hold(book.now_ms >= book.fixed_ms + MERGE_MS // 2 and book.fixed_ms > 0, "the others had time to reveal")
    secrets, seeds = ([seat for seat, _ in args[kind]] for kind in ("secrets", "seeds"))
    hold(len(secrets) + len(seeds) > 0, "shares are given")
    for seat in secrets:
        hold(seat in book.survivors - book.revealed, "shares of a secret are of a silent survivor")
    for seat in seeds:
        hold(seat in book.frozen - book.survivors, "shares of seeds are of one who dropped out")
    for seat in (*secrets, *seeds):
        hold((giver, seat) not in book.given, "a share is given once")
        book.given.add((giver, seat))
    book.secrets_of |= set(secrets)
    book.seeds_of |= set(seeds)
    hold(not book.secrets_of & book.seeds_of, "never both secrets of one member")


def _spent(book: BlindReferee, args: Args) -> None:
    hold(args["round"] in book.known, "a round is spent when more revealed than may lie")


BOOKS: dict[str, Callable[[BlindReferee, Args], None]] = {
    "KeySet": _key_set,
    "AttemptOpened": _opened,
    "MasksJoined": _joined,
    "MasksConfirmed": _confirmed,
    "AttemptFrozen": _frozen,
    "AttemptFailed": _failed,
    "SurvivorsFixed": _fixed,
    "Revealed": _revealed,
    "SharesRevealed": _shared,
    "RoundSpent": _spent,
}
