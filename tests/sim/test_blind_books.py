"""The simulator's model of `Runs` and `Blind` against the contracts: random calls to both, and the same of both."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from sim.blind.books import Books, Call, Refused, Terms
from swarm.blind import MaskSeat, MaskState, Stage
from swarm.encoding import Address, keccak256, sha256
from swarm.errors import RejectedError
from swarm.ledger.genesis import BLIND, RUNS
from swarm.ledger.masks import members_of, roster_digest
from swarm.rounds import Phase, RoundState, RunState, Submission
from tests.contracts.chain import node
from tests.contracts.rounds import ATTEST_MS, GENESIS, MERGE_MS, SUBMIT_MS, Rounds, RoundView, digest

ROUNDS = 2


class Both:
    """One run on the chain and in the books."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"{seed}/books")
        self.count = self.chance.choice([3, 4, 5, 7])
        self.members = [node(number) for number in range(self.count)]
        self.rounds = Rounds(self.count, rounds=ROUNDS, submissions_min=3, weight_max=0).open()
        self.chain = self.rounds.chain
        terms = Terms(ROUNDS, 3, SUBMIT_MS, MERGE_MS, ATTEST_MS)
        self.books = Books(self.members, terms, GENESIS, 0)
        self.books.opened = self.rounds.state().opened
        self.taken: list[str] = []
        self.lazy = self.chance.choice([0.0, 0.02, 0.2])
        self.quick = self.chance.choice([0, 0, 2_000])

    def play(self, steps: int) -> None:
        for _ in range(steps):
            self.chain.now_ms += self.chance.randint(0, self.quick)
            if self.chance.random() < self.lazy:
                self.chain.now_ms += self.chance.choice([MERGE_MS // 2, MERGE_MS, SUBMIT_MS // 2, SUBMIT_MS])
            self.do(self.chance.choice(self.members), self.call())
            if self.books.state is not RunState.OPEN:
                return

    def do(self, sender: Address, call: Call) -> None:
        """The same call to both."""
        to, function, arguments = self.as_contract(call)
        told = ""
        try:
            self.chain.send(sender, to, function, *arguments)
        except RejectedError as error:
            told = str(error)
        self.books.now, self.books.block = self.chain.now_ms, self.books.block + (not told)
        if not told:
            self.books.block = self.chain.head.number
        refusal = self.refusal(sender, call)
        assert bool(refusal) == bool(told), f"{call}: the books: {refusal or 'taken'}; the contract: {told or 'taken'}"
        assert refusal in told
        if not refusal:
            self.taken.append(call.name)
        assert self.round_state() == self.books.round_state()
        assert self.mask_state() == self.books.mask_state()

    def refusal(self, sender: Address, call: Call) -> str:
        try:
            self.books.take(sender, call)
        except Refused as refusal:
            return str(refusal)
        return ""

    # --- what is called

    def call(self) -> Call:
        books, masks = self.books, self.books.mask_state()
        sloppy = self.chance.random() < 0.15
        number = masks.attempt - (self.chance.random() < 0.03)
        some = frozenset(member for member in self.members if self.chance.random() < 0.6)
        if self.chance.random() < 0.04:
            return Call("set_key", (keccak256(b"key %d" % self.chance.randrange(100)),))
        if self.chance.random() < 0.02:
            return Call("run_join", ())
        kinds = {
            Phase.SUBMIT: ["set_key"] if masks.stage is Stage.CLOSED and self.chance.random() < 0.4 else ["join"],
            Phase.MERGE: ["reveal", "reveal", "reveal", "shares", "publish", "advance", "report"],
            Phase.ATTEST: ["attest", "attest", "attest", "refuse", "advance", "reveal", "shares"],
        }[books.phase]
        if masks.stage is Stage.JOINING:
            kinds = ["join", "confirm", "confirm", "freeze"]
        elif (masks.stage is Stage.FROZEN and books.phase is Phase.SUBMIT) or masks.spent:
            kinds = ["submit", "submit", "submit", "advance", *kinds]
        kind = self.chance.choice([*kinds, "reveal", "shares", "submit"] if sloppy else kinds)
        view = books.view + (self.chance.random() < 0.02)
        match kind:
            case "set_key":
                return Call("set_key", (keccak256(b"key %d" % self.chance.randrange(100)),))
            case "join":
                roster = digest(0) if sloppy else roster_digest(masks.seats)
                secret = sha256(b"self" + self.secret(masks.attempt))
                return Call("join", (number, roster, digest("blob", number), secret, digest("recovery")))
            case "confirm":
                held = masks.joined if not sloppy else some
                return Call("confirm", (number, held))
            case "freeze":
                return Call("freeze", (number,))
            case "submit":
                return Call("submit", (books.round, digest(books.round, books.view)))
            case "advance":
                return Call("advance", (books.round, view))
            case "publish":
                return Call("publish", (books.round, view, digest("checkpoint", books.round)))
            case "attest":
                return Call("attest", (books.round, view, books.published if any(books.published) else digest(1)))
            case "refuse":
                return Call("refuse", (books.round, view, digest("other")))
            case "report":
                return Call("report_missing", (books.round, self.chance.choice(self.members)))
            case "reveal":
                survivors = masks.survivors or books.unstruck & masks.frozen
                seeds = (digest("seed"),) * (len(masks.frozen - survivors) if not sloppy else 1)
                return Call("reveal", (number, some if sloppy else survivors, self.secret(masks.attempt), seeds))
        lacking = masks.survivors - masks.revealed, masks.frozen - masks.survivors
        both = [{m: bytes([7]) * 16 for m in (some if sloppy else part & some)} for part in lacking]
        return Call("reveal_shares", (number, *both))

    @staticmethod
    def secret(attempt: int) -> bytes:
        return keccak256(b"secret %d" % attempt)[:16]

    # --- the contract's side

    def bits(self, members: frozenset[Address]) -> int:
        return sum(1 << number for number, member in enumerate(self.members) if member in members)

    def pairs(self, shares: Mapping[Address, bytes]) -> list[tuple[int, bytes]]:
        return [(number, shares[member]) for number, member in enumerate(self.members) if member in shares]

    def as_contract(self, call: Call) -> tuple[Address, str, tuple[Any, ...]]:
        a = call.arguments
        match call.name:
            case "run_join":
                return RUNS, "join", (1, True)
            case "submit":
                return RUNS, "submit", (1, *a, 0, b"{}")
            case "report_missing":
                return RUNS, "reportMissing", (1, *a)
            case "publish" | "attest" | "advance":
                return RUNS, call.name, (1, *a)
            case "refuse":
                return RUNS, "refuse", (1, *a, digest("evidence"))
            case "confirm":
                return BLIND, "confirm", (1, a[0], self.bits(a[1]))
            case "reveal":
                return BLIND, "reveal", (1, a[0], self.bits(a[1]), a[2], list(a[3]))
            case "reveal_shares":
                return BLIND, "revealShares", (1, a[0], self.pairs(a[1]), self.pairs(a[2]))
            case "set_key":
                return BLIND, "setKey", (1, *a)
        return BLIND, call.name, (1, *a)

    def round_state(self) -> RoundState:
        """As the client reads it, but for parts that nobody verifies here."""
        view: RoundView = self.rounds.state()
        return RoundState(
            run=1, state=RunState(view.state), round=view.round, phase=Phase(view.phase), view=view.view,
            leader=view.leader, base=view.base, seed=view.seed, opened_s=view.opened / 1000,
            deadline_s=view.deadline / 1000, expected=tuple(view.expected),
            submissions=tuple(Submission(s.member, s.digest, s.weight, s.struck) for s in view.submissions),
            published=view.published if any(view.published) else None, attested=frozenset(view.attested),
            refused=frozenset(view.refused), missing=frozenset(view.missing), verifiers=view.verifiers,
        )  # fmt: skip

    def mask_state(self) -> MaskState:
        (
            stage, number, round_, threshold, opened, block, joined, confirmed, frozen, survivors, revealed, fixed,
            spent, places,
        ) = self.chain.ask(BLIND, "attempt_state", 1)  # fmt: skip
        members = dict(enumerate(self.members))
        seats = tuple(
            MaskSeat(s, member, key, n, blob if any(blob) else None, c, r, members_of(edges, members))
            for s, member, key, n, blob, c, r, edges in places
        )
        return MaskState(
            run=1, round=round_, stage=Stage(stage), attempt=number, threshold=threshold, opened_s=opened / 1000,
            block=block, fixed_s=fixed / 1000, spent=spent, seats=seats, joined=members_of(joined, members),
            confirmed=members_of(confirmed, members), frozen=members_of(frozen, members),
            survivors=members_of(survivors, members), revealed=members_of(revealed, members),
        )  # fmt: skip


def played(seed: int, steps: int = 150) -> Both:
    both = Both(seed)
    try:
        both.play(steps)
    except AssertionError as error:
        error.add_note(f"seed {seed}")
        raise
    return both


def test_the_books_are_the_contracts() -> None:
    taken = set[str]()
    for seed in range(3):
        taken |= set(played(seed).taken)
    assert {"join", "confirm", "submit", "reveal"} <= taken


@pytest.mark.slow
def test_the_books_are_the_contracts_whatever_is_called() -> None:
    taken = set[str]()
    for seed in range(1000, 1300):
        taken |= set(played(seed).taken)
    assert taken == {
        "set_key", "run_join", "join", "confirm", "freeze", "submit", "reveal", "reveal_shares", "report_missing",
        "publish", "attest", "refuse", "advance",
    }  # fmt: skip


@pytest.mark.slow
def test_books_with_a_mistake_are_not_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Books._fixed
    monkeypatch.setattr(Books, "_fixed", lambda books, here: right(books, here) | here.frozen)

    def play_all() -> None:
        for seed in range(60):
            played(seed)

    with pytest.raises(AssertionError):
        play_all()
