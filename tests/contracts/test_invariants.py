"""Random calls on the contracts, watched by the referee; and contracts with planted mistakes, which it has to catch."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest

from contracts.compile import compile_source
from swarm.encoding import Address, from_hex, sha256
from swarm.errors import RejectedError
from swarm.ledger.artifact import Artifact
from swarm.ledger.genesis import CONSORTIUM, RUNS
from swarm.rounds import Phase, RunState
from tests.contracts.chain import node, operator
from tests.contracts.referee import BOOKS, Foul, Referee
from tests.contracts.rounds import Rounds, digest
from tests.contracts.test_consortium import play as vote

SOURCES = Path(__file__).parents[2] / "contracts"
MEMBERS, STEPS = 5, 160


def play(seed: int, *, runs: Artifact | None = None, consortium: Artifact | None = None) -> set[str]:
    """A run in which members do what comes to their mind; the names of what happened.

    Raises:
        Foul: a rule does not hold; the message ends with the seed.
    """
    chance = random.Random(seed)
    rounds = Rounds(
        MEMBERS, rounds=chance.randint(2, 6), submissions_min=chance.randint(1, 4), runs=runs, consortium=consortium
    ).open(joined=())
    members = {node(i) for i in range(MEMBERS)}
    referee = Referee(rounds.state(), members=members, rounds=rounds.rounds, submissions_min=rounds.submissions_min)
    # Who lies, and how patient everybody is, differs from run to run.
    liars = {node(i) for i in range(MEMBERS) if chance.random() < 0.3}
    haste = chance.choice([0.02, 0.3])
    unrest = chance.choice([0.01, 0.01, 0.2])
    piecemeal = chance.choice([0.0, 0.5, 0.9])
    try:
        for index in range(MEMBERS):
            act(rounds, referee, node(index), RUNS, "join", 1, chance.random() < 0.8)
        for _ in range(STEPS):
            step(chance, rounds, referee, liars, haste, unrest, piecemeal)
            if referee.state != RunState.OPEN and chance.random() < 0.2:
                break
    except Foul as foul:
        raise Foul(f"{foul} (seed {seed})") from foul
    return referee.seen


def step(
    chance: random.Random,
    rounds: Rounds,
    referee: Referee,
    liars: set[Address],
    haste: float,
    unrest: float,
    piecemeal: float,
) -> None:
    """One call, most of them sensible."""
    state = referee.shown
    member = node(chance.randrange(MEMBERS))
    if state.deadline and chance.random() < haste:
        rounds.chain.now_ms = max(rounds.chain.now_ms, state.deadline - chance.choice([0, 0, 2]))
        act(rounds, referee, member, RUNS, "advance", 1, state.round, state.view + chance.choice([0, 0, 0, 1]))
        return
    round, view = state.round, state.view
    if chance.random() < 0.05:
        round, view = max(round + chance.choice([-1, 0, 1]), 0), view + 1
    other = node(chance.randrange(MEMBERS))
    right, wrong = digest("right", round), digest("wrong", view)
    if chance.random() < unrest:
        sender = operator(chance.randrange(MEMBERS))
        proposals = rounds.chain.ask(CONSORTIUM, "proposals")
        act(rounds, referee, sender, *chance.choice([
            (RUNS, "withdraw", 1),
            (RUNS, "stop", 1),
            (CONSORTIUM, "proposeRemoval", other),
            *[(CONSORTIUM, "approve", proposals)] * 3,
        ]))  # fmt: skip
        return
    lot = chance.random()
    if lot < 0.04:
        act(rounds, referee, member, RUNS, "join", 1, chance.random() < 0.8)
    elif lot < 0.06:
        act(rounds, referee, operator(chance.randrange(MEMBERS)), RUNS, "approve", 1)
    elif lot < 0.12 or state.phase == Phase.SUBMIT:
        weight = chance.choice([1, 500, 1000, 1000, 1001, 0])
        act(rounds, referee, member, RUNS, "submit", 1, round, digest(round, member), weight, b"{}")
    elif lot < 0.2 or (state.phase == Phase.MERGE and lot < 0.5):
        act(rounds, referee, member, RUNS, "reportMissing", 1, round, other)
    elif lot < 0.25 or state.phase == Phase.MERGE:
        sender = state.leader if chance.random() < 0.8 else member
        act(rounds, referee, sender, RUNS, "publish", 1, round, view, wrong if sender in liars else right)
    else:
        found = wrong if member in liars and state.leader in liars else right
        if member in liars and chance.random() < 0.3:
            act(rounds, referee, member, RUNS, "refuse", 1, round, view, digest("slander"), digest("evidence"))
        elif found == state.published and chance.random() < piecemeal:
            parts = some_parts(chance)
            act(rounds, referee, member, RUNS, "attestParts", 1, round, view, found, parts)
        elif found == state.published or chance.random() < 0.1:
            act(rounds, referee, member, RUNS, "attest", 1, round, view, found)
        else:
            act(rounds, referee, member, RUNS, "refuse", 1, round, view, found, digest("evidence"))


def some_parts(chance: random.Random) -> int:
    """A few parts, a half, all, or none."""
    half = 2**128 - 1
    return chance.choice([0, half, half << 128, 2**256 - 1, chance.getrandbits(256) | half, chance.getrandbits(256)])


def act(rounds: Rounds, referee: Referee, sender: Address, to: Address, function: str, *arguments: object) -> None:
    try:
        events = rounds.chain.send(sender, to, function, *arguments)
    except RejectedError as refusal:
        if "no reason" in str(refusal):
            raise Foul(f"{function}{arguments} is refused without a reason") from refusal
        return
    referee.watch(sender, function, arguments, rounds.chain.now_ms, events, rounds.state())


def seen_in(seeds: range) -> set[str]:
    return set().union(*(play(seed) for seed in seeds))


def test_the_rules_hold_whoever_does_what() -> None:
    seen = seen_in(range(6))
    rare = {"RunStopped", "Removed", "RunApproved", "RunFinished", "RoundRestarted", "Struck"}
    assert BOOKS.keys() - seen - rare == set()


@pytest.mark.slow
def test_the_rules_hold_in_many_runs_and_everything_happens_in_them() -> None:
    assert BOOKS.keys() - seen_in(range(100, 260)) == set()


REPLACES = "if heard > max(k - (2 * k + 2) // 3, min(self._faults(id, k), unsafe_sub(k, 2))):"
RUNS_MISTAKES = {
    "a quorum of less than two thirds": ("if attestations < (2 * k + 2) // 3 or", "if attestations < (2 * k) // 3 or"),
    "a quorum of all submissions, the struck ones too": (
        "k: uint256 = self._size(waiting & LOW & ~(votes >> 128))\n    attestations",
        "k: uint256 = self._size(waiting & LOW)\n    attestations",
    ),
    "anybody publishes": (
        'assert head.phase == SUBMIT or seat == head.leader, "only',
        'assert seat < 255, "only',
    ),
    "any checkpoint is attested": (
        "assert checkpoint == self.runs[id].published",
        "assert checkpoint != empty(bytes32)",
    ),
    "a member attests twice": (
        'assert (marks >> seat) & 1 == 1, "this member has already attested"\n        before',
        "before",
    ),
    "one part is enough": ("return more | equal == EVERY_PART", "return more | equal != 0"),
    "a part counts again when parts are added": ("fresh: uint256 = parts & ~before", "fresh: uint256 = parts"),
    "parts outlive their view": (
        "self.runs[id].doubts &= LOW\n    self._forget_parts(id)",
        "self.runs[id].doubts &= LOW",
    ),
    "the leader verifies itself": ("self._size(votes & LOW & ~marked) - 1", "self._size(votes & LOW & ~marked)"),
    "nobody has to verify a part": ("if whole >= needed:", "if True:"),
    "false accusers are not named": ("if accusers == 0:", "if accusers != 2**200:"),
    "false accusers go on accusing": ("self.runs[id].marks |= accusers << 128", "pass"),
    "false accusers go on leading": ("self.runs[id].leaders |= accusers << 128", "pass"),
    "who attested all refuses": (
        'assert (self.runs[id].marks >> seat) & 1 == 1, "this member has already attested"\n        votes',
        "votes",
    ),
    "who refuses stays counted": ("votes ^= 1 << seat", "pass"),
    "who refused attests": (
        'assert (self.runs[id].doubts >> 128 >> seat) & 1 == 0, "this member has already refused"',
        "pass",
    ),
    "no deadline": ("assert block.timestamp >= head.deadline", "assert head.deadline > 0"),
    "any view advances": (
        "self._check_view(head, round, view)\n    waiting",
        "self._check_round(head, round)\n    waiting",
    ),
    "votes outlive their view": ("self.runs[id].votes = struck << 128\n    self.runs[id].doubts &= LOW", "pass"),
    "the leader stays": (
        "head.view += 1\n    head.phase = MERGE\n    head.leader = self._elect(id, head)",
        "head.view += 1\n    head.phase = MERGE",
    ),
    "the seed forgets the checkpoint": (
        "keccak256(concat(self.runs[id].seed, checkpoint))",
        "keccak256(abi_encode(self.runs[id].seed))",
    ),
    "suspended members lead": ("unstruck & leaders & ~(leaders >> 128)", "unstruck & leaders"),
    "a single report strikes": ("min(max(2, self._faults(id, k) + 1), k - 1)", "1"),
    "struck members judge": (
        'assert (self.runs[id].votes >> 128 >> seat) & 1 == 0, "this member\'s submission was struck"',
        "pass",
    ),
    "removed members act": (
        "self._check_member()\n    place: uint256 = self.seat_of[id][msg.sender]\n    assert place != 0",
        "place: uint256 = self.seat_of[id][msg.sender]\n    assert place != 0",
    ),
    "too few refusals replace a leader": (REPLACES, "if True:"),
    "no refusal replaces a leader": (REPLACES, "if False:"),
    "a round never restarts": ("if head.view + 1 - head.first_view >= TURNS", "if head.view > 1000 + TURNS"),
    "the merge starts without submissions_min": (
        "if self._size(waiting & LOW) < self._terms(id).submissions_min:",
        "if self._size(waiting & LOW) < 1:",
    ),
    "submissions are overwritten": (
        'assert (waiting >> seat) & 1 == 0, "this member has already submitted"',
        "pass",
    ),
    "weights have no bound": ("assert weight <= terms >> 184", "assert weight < 2**64"),
}  # fmt: skip
QUICK = ("a quorum of less than two thirds", "anybody publishes")


@cache
def mutant(contract: str, right: str, wrong: str) -> Artifact:
    """A contract with a mistake in it."""
    source = (SOURCES / f"{contract}.vy").read_text()
    assert source.count(right) == 1, f"{right!r} stands {source.count(right)} times in {contract}.vy"
    source = source.replace(right, wrong)
    compiled = compile_source(contract, source)
    return Artifact(contract, compiled["abi"], from_hex(compiled["bytecode"]), sha256(source.encode()))


def caught(runs: Artifact) -> str:
    """The referee's words about a contract, empty if it saw nothing in sixty runs."""
    for seed in range(60):
        try:
            play(seed, runs=runs)
        except Foul as foul:
            return str(foul)
    return ""


@pytest.mark.parametrize(
    "mistake", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNS_MISTAKES]
)
def test_the_referee_sees_the_planted_mistake(mistake: str) -> None:
    assert caught(mutant("Runs", *RUNS_MISTAKES[mistake])) != ""


CONSORTIUM_MISTAKES = {
    "a quorum of half": ("return (2 * len(self.roll) + 2) // 3", "return (len(self.roll) + 1) // 2"),
    "votes are counted twice": ("            count += 1", "            count += 2"),
    "no validator is left": ('assert len(self.voters) > 0, "at least one validator has to stand"', "pass"),
    "strangers vote": ('assert voter != empty(address), "only', 'assert len(self.roll) > 0, "only'),
    "a removed operator keeps its vote": ("self.memberOf[operator] = empty(address)", "pass"),
    "a rotated key stays a member": ("self.roll[self._place(old)] = newMember", "self.roll.append(newMember)"),
    "validators are counted late": ("log KeyRotated(old", "self.voters = [old]\n    log KeyRotated(old"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", CONSORTIUM_MISTAKES)
def test_random_votes_show_the_planted_mistake(mistake: str) -> None:
    artifact = mutant("Consortium", *CONSORTIUM_MISTAKES[mistake])

    def play_all() -> None:
        for seed in range(12):
            vote(seed, artifact=artifact)

    with pytest.raises(AssertionError, match="seed"):
        play_all()
