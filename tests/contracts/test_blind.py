"""The contract of blind rounds: what it takes and refuses, random calls watched by a referee, and planted mistakes."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest

from contracts.compile import SOURCES, compile_source
from swarm.audit.replay import Difference
from swarm.audit.retell import runs_of
from swarm.blind import MaskSeat
from swarm.encoding import Address, from_hex, keccak256, sha256
from swarm.errors import RejectedError
from swarm.ledger.abi import interface
from swarm.ledger.artifact import Artifact
from swarm.ledger.genesis import BLIND, RUNS
from swarm.ledger.masks import roster_digest
from swarm.rounds import Phase
from tests.contracts.blind_referee import BOOKS, BlindReferee
from tests.contracts.chain import node
from tests.contracts.referee import Foul
from tests.contracts.rounds import MERGE_MS, SUBMIT_MS, Rounds, digest, names

FIELDS = (
    "stage", "number", "round", "threshold", "opened", "block", "joined", "confirmed", "frozen", "survivors",
    "revealed", "fixed", "spent", "places",
)  # fmt: skip
JOINING, FROZEN = 1, 2


def secret(attempt: int, index: int) -> bytes:
    """What is behind a member's own mask."""
    return keccak256(b"%d %d" % (attempt, index))[:16]


class Masked:
    """A blind run on a chain of its own, driven in few words."""

    def __init__(
        self,
        members: int = 4,
        *,
        submissions_min: int = 3,
        joined: range | None = None,
        blind: Artifact | None = None,
        rounds: int = 3,
    ) -> None:
        self.members = members
        self.rounds = Rounds(
            members, rounds=rounds, submissions_min=submissions_min, weight_max=0, blind=blind
        ).open(joined=joined)  # fmt: skip
        self.chain = self.rounds.chain

    def send(self, index: int, function: str, *arguments: object) -> list[tuple[str, dict[str, Any]]]:
        return self.chain.send(node(index), BLIND, function, *arguments)

    def state(self) -> dict[str, Any]:
        """`attempt_state` by names."""
        return dict(zip(FIELDS, self.chain.ask(BLIND, "attempt_state", 1), strict=True))

    def roster(self) -> bytes:
        """The digest of who is, or would be, on the roster."""
        return roster_digest(MaskSeat(seat, member, key, number) for seat, member, key, number, *_ in self.places)

    @property
    def places(self) -> list[Any]:
        return list(self.state()["places"])

    def keys(self, *indexes: int) -> Masked:
        for index in indexes or range(self.members):
            self.send(index, "setKey", 1, keccak256(b"key %d" % index))
        return self

    def join(self, *indexes: int) -> Masked:
        for index in indexes or range(self.members):
            self.send(index, "join", *self.joining(index))
        return self

    def joining(self, index: int) -> tuple[Any, ...]:
        """The arguments of a right joining."""
        number = self.state()["number"]
        commitment = sha256(b"self" + secret(number, index))
        return 1, number, self.roster(), digest("blob", index), commitment, digest("recovery", index)

    def confirm(self, *indexes: int, but: int = 0) -> Masked:
        for index in indexes or range(self.members):
            state = self.state()
            self.send(index, "confirm", 1, state["number"], state["joined"] & ~but)
        return self

    def submit(self, *indexes: int) -> Masked:
        self.rounds.submit(*(indexes or range(self.members)), weight=0)
        return self

    def reveal(self, *indexes: int) -> Masked:
        for index in indexes or range(self.members):
            self.send(index, "reveal", *self.revealing(index))
        return self

    def revealing(self, index: int) -> tuple[Any, ...]:
        """The arguments of a right reveal."""
        state = self.state()
        shown = self.rounds.state()
        submitted = sum(1 << self.seat(member) for member in shown.submitters)
        survivors = state["survivors"] or state["frozen"] & submitted
        edges = next((place[7] for place in self.places if place[1] == node(index)), 0)
        gone = edges & state["frozen"] & ~survivors
        return (
            1,
            state["number"],
            survivors,
            secret(state["number"], index),
            [digest(i) for i in range(gone.bit_count())],
        )

    def seat(self, member: Address) -> int:
        return int(self.chain.ask(RUNS, "seatOf", 1, member) >> 1) - 1


def test_a_calm_round_goes_from_keys_to_an_opened_sum() -> None:
    masked = Masked().keys()
    assert names(masked.send(0, "join", *masked.joining(0))) == ["AttemptOpened", "MasksJoined"]
    masked.join(1, 2, 3).confirm(0, 1, 2)
    assert names(masked.send(3, "confirm", 1, 1, 15)) == ["MasksConfirmed", "AttemptFrozen"]
    masked.submit()
    assert names(masked.send(0, "reveal", *masked.revealing(0))) == ["SurvivorsFixed", "Revealed"]
    assert names(masked.send(1, "reveal", *masked.revealing(1))) == ["Revealed", "RoundSpent"]
    masked.reveal(2, 3)
    state = masked.state()
    assert (state["stage"], state["frozen"], state["survivors"], state["revealed"]) == (FROZEN, 15, 15, 15)
    masked.rounds.close()
    state = masked.state()
    assert (state["stage"], state["number"], state["round"], state["spent"]) == (0, 2, 1, False)


def test_a_round_of_four_costs_a_member_less_than_a_kilobyte_on_the_ledger() -> None:
    masked = Masked().keys().join().confirm().submit()
    calls = [
        ("join", masked.joining(0)),
        ("confirm", (1, 1, 15)),
        ("reveal", masked.revealing(0)),
    ]
    assert sum(len(interface("Blind").call(function, *arguments)) for function, arguments in calls) < 700


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m: m.send(9, "setKey", 1, bytes([1] * 32)), "only a member may do this"),
        (lambda m: m.send(0, "setKey", 2, bytes([1] * 32)), "only a member that joined the run"),
        (lambda m: m.send(0, "setKey", 1, bytes(32)), "the key is zero"),
        (lambda m: m.send(0, "confirm", 1, 1, 0), "another attempt is open"),
        (lambda m: m.send(0, "freeze", 1, 1), "another attempt is open"),
        (lambda m: m.send(0, "reveal", 1, 1, 15, bytes(16), []), "another attempt is open"),
        (lambda m: m.join(0).send(0, "join", *m.joining(0)), "the member has already joined"),
        (lambda m: m.join(0).send(1, "join", 1, 2, *m.joining(1)[2:]), "another attempt is open"),
        (lambda m: m.join(0).send(1, "join", 1, 1, digest("x"), *m.joining(1)[3:]), "other members or keys"),
        (lambda m: m.join(0).send(1, "join", *m.joining(1)[:3], bytes(32), digest(1), digest(2)), "digest is zero"),
        (lambda m: m.join(0).send(1, "join", *m.joining(1)[:4], bytes(32), digest(2)), "a commitment is zero"),
        (lambda m: m.join(0).send(0, "confirm", 1, 1, 2), "has not joined"),
        (lambda m: m.join(0).send(1, "confirm", 1, 1, 0), "only a member that joined the attempt"),
        (lambda m: m.join(0, 1).confirm(0).send(0, "confirm", 1, 1, 0), "already confirmed"),
        (lambda m: m.join(0).send(0, "freeze", 1, 1), "the deadline has not passed"),
        (lambda m: m.join().confirm().send(0, "join", *m.joining(0)), "the attempt is frozen"),
        (lambda m: m.join().confirm().send(0, "confirm", 1, 1, 0), "not joining"),
        (lambda m: m.join().confirm().send(0, "reveal", *m.revealing(0)), "still takes submissions"),
        (lambda m: m.join().submit().send(0, "reveal", *m.revealing(0)), "not frozen"),
        (lambda m: m.join().submit().send(0, "confirm", 1, 1, 0), "no longer takes submissions"),
        (lambda m: revealing(m).send(0, "reveal", 1, 1, 7, secret(1, 0), []), "not the members of the sum"),
        (lambda m: revealing(m).send(0, "reveal", 1, 1, 15, secret(1, 1), []), "does not open the commitment"),
        (lambda m: revealing(m).send(0, "reveal", 1, 1, 15, secret(1, 0), [digest(1)]), "one seed belongs"),
        (lambda m: revealing(m).reveal(0).send(0, "reveal", *m.revealing(0)), "already revealed"),
        (lambda m: revealing(m).send(0, "revealShares", 1, 1, [(1, bytes(16))], []), "nobody has revealed"),
        (lambda m: sharing(m, 0).send(2, "revealShares", 1, 1, [], []), "no share is given"),
        (lambda m: sharing(m, 0).send(2, "revealShares", 1, 1, [(0, bytes(16))], []), "has not revealed"),
        (lambda m: sharing(m, 0).send(2, "revealShares", 1, 1, [(9, bytes(16))], []), "is of a member of the sum"),
        (lambda m: sharing(m, 0).send(2, "revealShares", 1, 1, [], [(1, bytes(16))]), "of a member that dropped out"),
        (lambda m: sharing(m, 0).send(2, "revealShares", 1, 1, [(3, bytes(16)), (1, bytes(16))], []), "in the order"),
        (lambda m: sharing(m, 0).send(2, "revealShares", 1, 1, [(999, bytes(16))], []), "in the order"),
    ],
)  # fmt: skip
def test_a_call_out_of_turn_is_refused_with_the_reason(call: Any, reason: str) -> None:
    with pytest.raises(RejectedError, match=reason):
        call(Masked().keys())


def revealing(masked: Masked) -> Masked:
    """Up to where masks are opened."""
    return masked.join().confirm().submit()


def sharing(masked: Masked, *revealed: int) -> Masked:
    """Up to where shares are given."""
    revealing(masked).reveal(*revealed)
    masked.chain.now_ms += MERGE_MS
    return masked


def test_shares_wait_until_the_others_had_time_to_reveal() -> None:
    masked = revealing(Masked().keys()).reveal(0)
    with pytest.raises(RejectedError, match="the others have time to reveal"):
        masked.send(1, "revealShares", 1, 1, [(2, bytes(16))], [])


def test_nobody_joins_in_the_second_half_of_the_time_and_the_deadline_goes_on_with_the_others() -> None:
    masked = Masked().keys().join(0, 1, 2)
    masked.chain.now_ms += SUBMIT_MS // 2
    with pytest.raises(RejectedError, match="the time to join is over"):
        masked.join(3)
    masked.confirm(0, 1, 2)
    assert masked.state()["stage"] == JOINING
    masked.chain.now_ms += SUBMIT_MS // 2
    assert names(masked.send(3, "freeze", 1, 1)) == ["AttemptFrozen"]
    assert masked.state()["frozen"] == 7


def test_an_attempt_without_enough_members_fails_and_the_next_one_has_another_number() -> None:
    masked = Masked().keys().join(0, 1).confirm(0, 1)
    masked.chain.now_ms += SUBMIT_MS
    assert names(masked.send(0, "freeze", 1, 1)) == ["AttemptFailed"]
    assert masked.state()["number"] == 2
    audit(masked)
    masked.join().confirm()
    assert (masked.state()["stage"], masked.state()["number"]) == (FROZEN, 2)


def test_a_member_that_others_do_not_hold_is_left_out() -> None:
    masked = Masked().keys().join()
    masked.confirm(0, 1, 2, but=8).confirm(3)
    assert masked.state()["frozen"] == 7


def test_a_key_that_is_set_while_an_attempt_is_under_way_counts_from_the_next_one_on() -> None:
    masked = revealing(Masked().keys())
    before = masked.places[1]
    masked.send(1, "setKey", 1, digest("fresh"))
    assert masked.places[1] == before
    assert masked.chain.ask(BLIND, "keyOf", 1, node(1)) == (2, digest("fresh"))
    masked.reveal()
    masked.rounds.close()
    assert masked.places[1][2:4] == (digest("fresh"), 2)
    masked.join().confirm()
    assert masked.places[1][2:4] == (digest("fresh"), 2)


def test_an_attempt_waits_for_the_keys_of_all_who_are_awaited_until_the_deadline() -> None:
    masked = Masked().keys(0, 1, 2)
    with pytest.raises(RejectedError, match="awaited have no key yet"):
        masked.join(0)
    masked.chain.now_ms += SUBMIT_MS
    masked.join(0, 1, 2)
    assert len(masked.places) == 3


def test_fewer_than_three_never_open_a_sum() -> None:
    masked = Masked(2, submissions_min=1).keys()
    with pytest.raises(RejectedError, match="too few members have keys"):
        masked.join(0)


def test_a_sum_without_enough_survivors_is_not_opened() -> None:
    masked = Masked(5, submissions_min=3).keys().join().confirm().submit(0, 1, 2)
    masked.rounds.pass_deadline()
    masked.rounds.advance()
    with pytest.raises(RejectedError, match="too few submitted for a sum"):
        masked.reveal(0)


def test_a_run_that_is_not_blind_has_no_masks() -> None:
    rounds = Rounds().open()
    with pytest.raises(RejectedError, match="the run is not blind"):
        rounds.chain.send(node(0), BLIND, "setKey", 1, digest(1))


def test_in_a_blind_run_weights_are_not_told_and_a_strike_starts_the_round_again() -> None:
    masked = revealing(Masked().keys())
    with pytest.raises(RejectedError, match="above the run's weight_max"):
        Masked().rounds.submit(0, weight=1)
    masked.chain.send(node(0), RUNS, "reportMissing", 1, 0, node(3))
    assert names(masked.chain.send(node(1), RUNS, "reportMissing", 1, 0, node(3))) == [
        "MissingReported", "Struck", "RoundRestarted",
    ]  # fmt: skip
    state = masked.state()
    assert (state["stage"], state["number"], state["spent"]) == (0, 2, False)


def test_nothing_is_opened_in_an_attempt_that_is_over() -> None:
    """After a strike the others submit again without new masks: those of the last attempt stay closed."""
    masked = revealing(Masked().keys())
    for reporter in (0, 1):
        masked.chain.send(node(reporter), RUNS, "reportMissing", 1, 0, node(3))
    masked.submit(0, 1, 2)
    assert masked.rounds.state().phase == Phase.MERGE
    with pytest.raises(RejectedError, match="another attempt is open"):
        masked.send(0, "reveal", 1, 1, 7, secret(1, 0), [digest(1)])
    with pytest.raises(RejectedError, match="another attempt is open"):
        masked.send(0, "revealShares", 1, 1, [(1, bytes(16))], [])


def test_after_more_revealed_than_may_lie_no_other_attempt_at_the_round_opens() -> None:
    masked = revealing(Masked().keys()).reveal(0, 1)
    for _ in range(8):
        masked.rounds.pass_deadline()
        masked.rounds.advance()
    assert masked.rounds.state().phase == Phase.SUBMIT
    assert masked.state()["spent"]
    with pytest.raises(RejectedError, match="a sum of this round was opened"):
        masked.join(0)


# ------------------------------------------------------------------ whoever does what

MEMBERS, STEPS = 4, 130


def play(seed: int, *, blind: Artifact | None = None) -> set[str]:
    """A run in which most do what they should and some do not; the names of what happened. Foul: a rule is broken."""
    chance = random.Random(seed)
    masked = Masked(MEMBERS, submissions_min=chance.choice([1, 3]), blind=blind, rounds=3).keys()
    members = {node(i) for i in range(MEMBERS)}
    referee = BlindReferee(members=members, submissions_min=masked.rounds.submissions_min)
    for place in masked.places:
        referee.keys[place[0]] = [(place[1], place[2])]
    player = _Player(chance, masked, referee)
    try:
        for _ in range(STEPS):
            player.step()
        audit(masked)
    except (Foul, Difference) as foul:
        raise Foul(f"{foul} (seed {seed})") from foul
    return referee.seen


def audit(masked: Masked) -> None:
    """The audit tells the run again by rules of its own; Difference: it would call an honest ledger wrong."""
    runs_of((name, values) for name, values in masked.chain.events if "run" in values)


class _Player:
    """Moves everybody: with care, what is next; else anything."""

    def __init__(self, chance: random.Random, masked: Masked, referee: BlindReferee) -> None:
        self.chance, self.masked, self.referee = chance, masked, referee
        self.care = chance.choice([0.7, 0.85, 0.95])
        self.lazy = chance.choice([0.0, 0.1, 0.25])

    def step(self) -> None:
        state, shown = self.masked.state(), self.masked.rounds.state()
        index, sloppy = self.chance.randrange(MEMBERS), self.chance.random() > self.care
        if self.chance.random() < self.lazy:
            self.masked.chain.now_ms += self.chance.choice([MERGE_MS // 2, SUBMIT_MS // 2, SUBMIT_MS])
        if sloppy and self.chance.random() < 0.6:
            self._mask(index, *self._anything(state, index))
        elif state["stage"] == 0 and shown.phase == Phase.SUBMIT and not state["spent"]:
            self._mask(index, "join", self._changed(self.masked.joining(index), sloppy))
        elif state["stage"] == JOINING:
            self._joining(state, index, sloppy)
        elif shown.phase == Phase.SUBMIT and self.lazy and index == state["number"] % MEMBERS:
            # It joined and does not come: the round goes on without it.
            if shown.deadline:
                self.masked.chain.now_ms = max(self.masked.chain.now_ms, shown.deadline)
                self._runs(node(index), "advance", 1, shown.round, shown.view)
        elif shown.phase == Phase.SUBMIT:
            self._runs(node(index), "submit", 1, shown.round, digest(shown.round, shown.view, index), 0, b"")
        elif shown.phase == Phase.MERGE and self.chance.random() < 0.8:
            self._opening(state, index, sloppy)
        elif shown.phase == Phase.MERGE and self.chance.random() < 0.5:
            self._runs(shown.leader, "publish", 1, shown.round, shown.view, digest("right", shown.round))
        elif shown.phase == Phase.ATTEST:
            self._runs(node(index), "attest", 1, shown.round, shown.view, shown.published)
        if sloppy and shown.phase == Phase.MERGE:
            self._runs(node(index), "reportMissing", 1, shown.round, node(self.chance.randrange(MEMBERS)))
        if shown.deadline and self.chance.random() < self.lazy:
            self.masked.chain.now_ms = max(self.masked.chain.now_ms, shown.deadline)
            self._runs(node(index), "advance", 1, shown.round, shown.view)

    def _joining(self, state: dict[str, Any], index: int, sloppy: bool) -> None:
        bit = 1 << self.masked.seat(node(index))
        if self.chance.random() < 0.1:
            self._mask(index, "freeze", (1, state["number"]))
        elif not state["joined"] & bit and self.chance.random() > self.lazy:
            self._mask(index, "join", self._changed(self.masked.joining(index), sloppy))
        elif not state["confirmed"] & bit and (state["joined"] == 2**MEMBERS - 1 or sloppy or self.lazy):
            held = state["joined"] & ~(self.chance.getrandbits(MEMBERS) if sloppy else 0)
            self._mask(index, "confirm", (1, state["number"], held))

    def _opening(self, state: dict[str, Any], index: int, sloppy: bool) -> None:
        if not state["survivors"] or self.chance.random() < 0.7:
            arguments = self.masked.revealing(index)
            # One thing at a time: a call with two faults is refused for the other one.
            wrong = self.chance.choice(("survivors", "secret", "seeds", "")) if sloppy else ""
            survivors = arguments[2] ^ (1 << self.chance.randrange(MEMBERS) if wrong == "survivors" else 0)
            told = bytes(16) if wrong == "secret" else arguments[3]
            seeds = [*arguments[4], digest("more")] if wrong == "seeds" else arguments[4]
            self._mask(index, "reveal", (*arguments[:2], survivors, told, seeds))
        else:
            self.masked.chain.now_ms += self.chance.choice([0, MERGE_MS // 2])
            self._mask(index, *self._shares(state, sloppy or self.chance.random() < 0.3))

    def _shares(self, state: dict[str, Any], sloppy: bool) -> tuple[str, tuple[Any, ...]]:
        silent, gone = state["survivors"] & ~state["revealed"], state["frozen"] & ~state["survivors"]
        if sloppy:
            noise = self.chance.getrandbits(MEMBERS), self.chance.getrandbits(MEMBERS)
            silent, gone = self.chance.choice([noise, (silent | gone, 0), (0, gone | silent), (gone, gone)])
        both = ([(seat, bytes([seat] * 16)) for seat in range(MEMBERS) if bits >> seat & 1] for bits in (silent, gone))
        return "revealShares", (1, state["number"], *both)

    def _anything(self, state: dict[str, Any], index: int) -> tuple[str, tuple[Any, ...]]:
        number = state["number"] - self.chance.randint(0, 1)
        return self.chance.choice(
            [
                ("setKey", (1, digest(self.chance.random()))),
                ("freeze", (1, number)),
                ("confirm", (1, number, self.chance.getrandbits(MEMBERS + 1))),
                ("join", self._changed(self.masked.joining(index), True)),
                ("reveal", (1, number, state["frozen"], secret(number, index), [])),
                ("reveal", (1, number, 2**MEMBERS - 1, secret(number, index), [digest(0)])),
                self._shares(state, True),
                self._shares(state, False),
            ]
        )

    def _changed(self, arguments: tuple[Any, ...], sloppy: bool) -> tuple[Any, ...]:
        changed = list(arguments)
        if sloppy:
            place = self.chance.randrange(2, 6)
            changed[place] = self.chance.choice([bytes(32), digest("other")])
        return tuple(changed)

    def _mask(self, index: int, function: str, arguments: tuple[Any, ...]) -> None:
        before = self.masked.rounds.state()
        try:
            events = self.masked.send(index, function, *arguments)
        except RejectedError as refusal:
            if "no reason" in str(refusal):
                raise Foul(f"{function}{arguments} is refused without a reason") from refusal
            return
        self.referee.watch(node(index), before, arguments, self.masked.chain.now_ms, events)

    def _runs(self, sender: Address, function: str, *arguments: object) -> None:
        try:
            events = self.masked.rounds.send(sender, function, *arguments)
        except RejectedError:
            return
        for name, args in events:
            if name == "RoundRestarted":
                self.referee.restarted(args["round"])


def test_the_rules_hold_whoever_does_what() -> None:
    seen = set[str]().union(*(play(seed) for seed in range(3)))
    assert {"Revealed", "AttemptFrozen", "SurvivorsFixed"} <= seen


@pytest.mark.slow
def test_the_rules_hold_in_many_runs_and_everything_happens_in_them() -> None:
    assert BOOKS.keys() - set[str]().union(*(play(seed) for seed in range(100, 220))) == set()


MISTAKES = {
    "secrets are opened for other survivors": ("assert survivors == opening >> 128,", "assert survivors != 2**200,"),
    "a stranger's secret is opened": ("assert (survivors >> seat) & 1 == 1,", "assert seat < 255,"),
    "anything opens a commitment": (
        "assert opened == self.seats[run][seat].commitment,",
        "assert opened != empty(bytes32),",
    ),
    "seeds of whoever": ("assert len(seeds) == self._size(gone),", "assert len(seeds) < 200,"),
    "shares of a survivor's seeds": (
        "assert ((joined & ~survivors) >> share.seat) & 1 == 1,",
        "assert share.seat < 200,",
    ),
    "shares of the secret of one who dropped out": (
        "assert (survivors >> share.seat) & 1 == 1,",
        "assert share.seat < 200,",
    ),
    "shares at once": ("assert block.timestamp >= here.fixed + now.merge_ticks // 2,", "assert here.fixed > 0,"),
    "shares twice": ("assert fresh & given == 0,", "assert fresh != 0,"),
    "a second sum of a round": ("if spent >> 32 != now.round + 1:", "if True:"),
    "a sum of few": ("assert self._size(opening >> 128) >= max(now.needed, here.threshold),", "assert opening != 0,"),
    "sums of those who did not submit": ("opening = (now.unstruck & joined) << 128", "opening = joined << 128"),
    "few are frozen": ("if self._size(members) >= max(now.needed, here.threshold):", "if members != 0:"),
    "one-sided edges": (
        "if (held >> other) & 1 == 1 and (self.seats[run][other].edges >> one) & 1 == 1:",
        "if (held >> other) & 1 == 1:",
    ),
    "the freeze does not wait": (
        "assert block.timestamp >= here.opened + now.submit_ticks,",
        "assert here.opened > 0,",
    ),
    "joining never ends": (
        "assert block.timestamp < here.opened + (now.submit_ticks + 1) // 2,",
        "assert here.opened > 0,",
    ),
    "any roster": ("assert self.kept[run].roster == roster,", "assert roster != empty(bytes32),"),
    "a threshold of half": ("threshold=2 * count // 3 + 1", "threshold=count // 2 + 1"),
    "held without having joined": ("assert held & ~(members & LOW) == 0,", "assert held < 2**128,"),
}
QUICK = ("a stranger's secret is opened",)


@cache
def mutant(right: str, wrong: str) -> Artifact:
    """The contract with a mistake in it."""
    source = (SOURCES / "Blind.vy").read_text()
    assert source.count(right) == 1, f"{right!r} stands {source.count(right)} times in Blind.vy"
    compiled = compile_source("Blind", source.replace(right, wrong))
    return Artifact("Blind", compiled["abi"], from_hex(compiled["bytecode"]), sha256(wrong.encode()))


@pytest.mark.parametrize(
    "mistake", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MISTAKES]
)
def test_the_referee_sees_the_planted_mistake(mistake: str) -> None:
    artifact = mutant(*MISTAKES[mistake])

    def play_all() -> None:
        for seed in range(60):
            play(seed, blind=artifact)

    with pytest.raises(Foul, match="seed"):
        play_all()
