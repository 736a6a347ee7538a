"""A few machines on a bench: messages lie in `sent` until a test hands them over, time is what a test says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from sim.cheap import CHAIN_ID, GENESIS, KeyedHash, builder_of, digest_of, make_payload, recover, validator_addresses
from swarm.consensus import Broadcast, Decide, Effect, Qbft, Save, check_certificate
from swarm.consensus.messages import (
    Commit,
    Message,
    Prepare,
    Prepared,
    Promise,
    Proposal,
    RoundChange,
    commit_digest,
    decode_message,
    prepare_digest,
    proposal_digest,
    round_change_digest,
)
from swarm.encoding import Address, Digest

TIMEOUT_S = 1.0
M = TypeVar("M", Proposal, Prepare, Commit, RoundChange)


def payload_of(builder: int, counter: int = 1, *, valid: bool = True, height: int = 1) -> bytes:
    """A payload that a validator may build."""
    address = bytes([builder + 1]) * 20
    return make_payload(height=height, parent=GENESIS, builder=address, counter=counter, valid=valid)


class Counting(KeyedHash):
    """Counts how often each signature is recovered."""

    def __init__(self, me: Address) -> None:
        super().__init__(me)
        self.recovered: Counter[tuple[Digest, bytes]] = Counter()

    def recover(self, digest: Digest, signature: bytes) -> Address:
        """Who signed."""
        self.recovered[digest, signature] += 1
        return recover(digest, signature)


class Bench:
    """Validators 0 to n - 1, proposing in this order, at height 1."""

    def __init__(self, validators: int = 4, *, machine: type[Qbft] = Qbft) -> None:
        self.addresses = validator_addresses(validators)
        self.keys = [Counting(address) for address in self.addresses]
        self.now_s = 0.0
        self.sent: list[tuple[int, Message]] = []
        self.saved: dict[int, bytes] = {}
        self.decided: dict[int, Decide] = {}
        self.judged: list[tuple[int, bytes]] = []
        self.built: dict[int, Callable[[], bytes | None]] = {}
        self._machine = machine
        self.machines = [self._make(index) for index in range(validators)]

    def _make(self, index: int) -> Qbft:
        def build() -> bytes | None:
            return self.built.get(index, lambda: payload_of(index))()

        def judge(payload: bytes, proposer: Address) -> bool:
            self.judged.append((index, payload))
            return payload[65] == 1 and builder_of(payload) == proposer

        return self._machine(
            chain_id=CHAIN_ID,
            height=1,
            proposers=self.addresses,
            authenticator=self.keys[index],
            build=build,
            judge=judge,
            digest_of=digest_of,
            timeout_s=TIMEOUT_S,
            saved=self.saved.get(index),
            now_s=self.now_s,
        )

    # --- acts

    def wake(self, *indices: int) -> list[Message]:
        """A transaction waits at these; what they send."""
        return [message for index in indices for message in self.perform(index, self.machines[index].wake(self.now_s))]

    def give(self, message: Message, *receivers: int) -> list[Message]:
        """Hand a message to these; what they send."""
        sent = []
        for index in receivers:
            sent += self.perform(index, self.machines[index].accept(message, self.now_s))
        return sent

    def give_all(self, messages: Iterable[Message], *receivers: int) -> list[Message]:
        """Hand over several messages, one after the other."""
        return [sent for message in messages for sent in self.give(message, *receivers)]

    def tick(self, *indices: int) -> list[Message]:
        """Let the next deadline of each pass; what they send."""
        sent = []
        for index in indices:
            deadline_s = self.machines[index].deadline_s
            assert deadline_s is not None
            self.now_s = max(self.now_s, deadline_s)
            sent += self.perform(index, self.machines[index].tick(self.now_s))
        return sent

    def give_up(self, *indices: int) -> list[Message]:
        """Let time pass until each is in its next view; what they send."""
        sent = []
        for index in indices:
            view = self.machines[index].view
            while self.machines[index].view == view:
                sent += self.tick(index)
        return sent

    def restart(self, index: int) -> list[Message]:
        """Forget all but the disk; what it sends when it comes back."""
        self.machines[index] = self._make(index)
        return self.perform(index, self.machines[index].tick(self.now_s))

    def perform(self, index: int, effects: list[Effect]) -> list[Message]:
        """Do what a machine wants; nothing is sent before its record is saved, nothing follows a decision."""
        sent: list[Message] = []
        for position, effect in enumerate(effects):
            match effect:
                case Save(record=record):
                    assert position == 0, "the record comes before everything that it protects"
                    self.saved[index] = record
                case Broadcast(message=data):
                    sent.append(decode_message(data))
                case Decide(payload=payload, certificate=certificate):
                    assert effect is effects[-1]
                    check_certificate(
                        certificate,
                        chain_id=CHAIN_ID,
                        height=1,
                        digest=digest_of(payload),
                        validators=self.addresses,
                        recover=recover,
                    )
                    self.decided[index] = effect
        self.sent += [(index, message) for message in sent]
        return sent

    def settle(self, *, alive: Iterable[int] | None = None) -> None:
        """Deliver everything that is sent, to all that are alive, until nobody says anything new."""
        alive = list(range(len(self.machines)) if alive is None else alive)
        while self.sent:
            sender, message = self.sent.pop(0)
            if sender in alive:
                for index in alive:
                    if index != sender:
                        self.give(message, index)

    def play(self, until_s: float, *, alive: Iterable[int]) -> None:
        """Deliver everything at once to those that are alive, and let their deadlines pass, until all have decided."""
        alive = list(alive)
        while True:
            self.settle(alive=alive)
            due = [
                (deadline_s, index)
                for index in alive
                if (deadline_s := self.machines[index].deadline_s) is not None and deadline_s <= until_s
            ]
            if not due:
                return
            self.tick(min(due)[1])

    # --- messages of anybody

    def proposal(
        self,
        sender: int,
        view: int = 0,
        payload: bytes | None = None,
        changes: Iterable[RoundChange] = (),
        prepares: Iterable[bytes] = (),
    ) -> Proposal:
        """A signed proposal, whatever stands in it."""
        payload = payload_of(sender) if payload is None else payload
        signature = self.keys[sender].sign(proposal_digest(CHAIN_ID, 1, view, digest_of(payload)))
        promises = tuple(Promise(change.prepared, change.signature) for change in changes)
        return Proposal(1, view, digest_of(payload), signature, payload, promises, tuple(prepares))

    def prepare(self, sender: int, view: int = 0, payload: bytes | None = None) -> Prepare:
        """A signed prepare."""
        digest = digest_of(payload_of(0) if payload is None else payload)
        return Prepare(1, view, digest, self.keys[sender].sign(prepare_digest(CHAIN_ID, 1, view, digest)))

    def commit(self, sender: int, view: int = 0, payload: bytes | None = None) -> Commit:
        """A signed commit."""
        digest = digest_of(payload_of(0) if payload is None else payload)
        return Commit(1, view, digest, self.keys[sender].sign(commit_digest(CHAIN_ID, 1, view, digest)))

    def prepares(self, senders: Iterable[int], view: int, payload: bytes) -> tuple[bytes, ...]:
        """The signatures of these validators' prepares."""
        return tuple(self.prepare(sender, view, payload).signature for sender in senders)

    def change(
        self,
        sender: int,
        view: int,
        locked: tuple[int, bytes] | None = None,
        prepares: Iterable[bytes] = (),
    ) -> RoundChange:
        """A signed round change, locked on (view, payload)."""
        prepared = None if locked is None else Prepared(locked[0], digest_of(locked[1]))
        signature = self.keys[sender].sign(round_change_digest(CHAIN_ID, 1, view, prepared))
        payload = b"" if locked is None else locked[1]
        return RoundChange(1, view, prepared, signature, payload, tuple(prepares))


def only(kind: type[M], messages: Iterable[Any]) -> M:
    """The one message of this kind."""
    (found,) = [message for message in messages if isinstance(message, kind)]
    return found


def kinds(messages: Iterable[Message]) -> list[str]:
    """What kinds of messages these are, in order."""
    return [type(message).__name__ for message in messages]
