"""One height after the other: a machine for the current one, a little room for the next, help for the last.

A validator whose neighbours are a height further on keeps what they say until it gets there; one that is still
behind is told so by `height_seen`; one that others have left behind gets `Help`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from swarm.consensus.contradiction import Contradiction
from swarm.consensus.effects import Accuse, Authenticator, Effect, Help
from swarm.consensus.messages import PAYLOAD_BYTES_MAX, Message, Proposal, RoundChange, decode_message, signed_digest
from swarm.consensus.qbft import Qbft
from swarm.encoding import Address, Digest
from swarm.errors import PeerError
from swarm.quorum import faults_max

# Payloads of a height to come: one proposal, and what liars add; a sender repeats what found no room.
_WAITING_BYTES_MAX = 4 * PAYLOAD_BYTES_MAX
# What a person looks at when a member misbehaves; older ones are in the log.
_FAULTS_MAX = 64


class Consensus:
    """What a validator's node holds: tell it of messages, transactions and the time, and perform its effects in order.

    After a `Decide` append the payload and call `advance`; the same after blocks that came by another way. The
    arguments are those of `Qbft`; `build` and `judge` are about the block after the node's head.
    """

    machine: type[Qbft] = Qbft

    def __init__(
        self,
        *,
        chain_id: int,
        height: int,
        proposers: tuple[Address, ...],
        authenticator: Authenticator,
        build: Callable[[], bytes | None],
        judge: Callable[[bytes, Address], bool],
        digest_of: Callable[[bytes], Digest],
        timeout_s: float,
        saved: bytes | None = None,
        now_s: float = 0.0,
    ) -> None:
        self._chain_id = chain_id
        self._authenticator = authenticator
        self._build, self._judge, self._digest_of = build, judge, digest_of
        self._timeout_s = timeout_s
        self._proposers = proposers
        self._machine = self._new_machine(height, saved, now_s)
        self._known = frozenset(proposers)
        """This height's validators and the one's before: who may be helped."""
        self._waiting: dict[tuple[type[Message], Address], Message] = {}
        """Messages of the next height: one of each kind and sender, the newest view wins."""
        self._claims: dict[Address, int] = {}
        """The greatest height that each validator has spoken of."""
        self._helped_s: dict[Address, float] = {}
        self.faults: deque[PeerError] = deque(maxlen=_FAULTS_MAX)
        """The rules that members broke lately, with evidence."""

    @property
    def height(self) -> int:
        """The height that is being decided."""
        return self._machine.height

    @property
    def view(self) -> int:
        """Which try at this height it is."""
        return self._machine.view

    @property
    def height_seen(self) -> int:
        """The greatest height that at least one honest validator is at: f + 1 of them claim it or a later one."""
        claims = sorted((self._claims.get(member, 0) for member in self._proposers), reverse=True)
        return max(self.height, claims[faults_max(len(self._proposers))])

    @property
    def deadline_s(self) -> float | None:
        """When `tick` is due; None while there is nothing to decide."""
        return self._machine.deadline_s

    def resume(self, now_s: float) -> list[Effect]:
        """Call once after the start: a machine that was restored sends its votes again."""
        return self._machine.tick(now_s)

    def wake(self, now_s: float) -> list[Effect]:
        """A transaction waits."""
        return self._machine.wake(now_s)

    def tick(self, now_s: float) -> list[Effect]:
        """The time is `deadline_s` or later."""
        return self._machine.tick(now_s)

    def receive(self, data: bytes, now_s: float) -> list[Effect]:
        """What follows from a stranger's bytes; from a contradiction follows `Accuse`.

        Raises:
            PeerError: another rule is broken. It is also kept in `faults`; nothing has to be done about it here.
        """
        try:
            return self.accept(decode_message(data), now_s)
        except PeerError as error:
            self.faults.append(error)
            raise

    def accept(self, message: Message, now_s: float) -> list[Effect]:
        """`receive`, once the bytes are decoded; keeps no faults but contradictions."""
        if message.height == self.height:
            return self._told(message, now_s)
        if message.height < self.height:
            return self._upon_laggard(message, now_s)
        return self._upon_later_height(message)

    def _told(self, message: Message, now_s: float) -> list[Effect]:
        """What follows from a message of this height."""
        try:
            return self._machine.accept(message, now_s)
        except PeerError as error:
            found, member = error.evidence, error.member
            if not isinstance(found, Contradiction) or member is None:
                raise
            self.faults.append(error)
            return [Accuse(member, found)]

    def advance(
        self, height: int, proposers: tuple[Address, ...], now_s: float, *, saved: bytes | None = None
    ) -> list[Effect]:
        """UponNewBlock: everything below `height` is decided and appended; go on there, with these validators.

        Args:
            saved: the last `Save` of the new height, if there was one: the ledger's last block may have been lost in a
                power failure while the votes after it were not.
        """
        if height <= self.height:
            raise ValueError(f"from height {self.height} there is no way to height {height}")
        follows = height == self.height + 1
        waiting, self._waiting = list(self._waiting.values()) if follows else [], {}
        self._known = frozenset(self._proposers) | frozenset(proposers)
        self._proposers = proposers
        self._claims = {member: seen for member, seen in self._claims.items() if member in proposers}
        self._helped_s = {member: at_s for member, at_s in self._helped_s.items() if member in self._known}
        self._machine = self._new_machine(height, saved, now_s)
        effects = self._machine.tick(now_s)
        for message in waiting:
            try:
                effects += self._told(message, now_s)
            except PeerError as error:
                self.faults.append(error)
        return effects

    def _new_machine(self, height: int, saved: bytes | None, now_s: float) -> Qbft:
        return self.machine(
            chain_id=self._chain_id,
            height=height,
            proposers=self._proposers,
            authenticator=self._authenticator,
            build=self._build,
            judge=self._judge,
            digest_of=self._digest_of,
            timeout_s=self._timeout_s,
            saved=saved,
            now_s=now_s,
        )

    def _upon_laggard(self, message: Message, now_s: float) -> list[Effect]:
        """A round change for a decided height: its sender waits for what the others know.

        Other late votes are no sign of that: each block leaves some behind. At most one answer a time-out and member,
        so that nobody can make this node send blocks all day.
        """
        if not isinstance(message, RoundChange):
            return []
        member = self._signer(message)
        if member is None or member not in self._known or member == self._authenticator.me:
            return []
        if now_s < self._helped_s.get(member, now_s):
            return []
        self._helped_s[member] = now_s + self._timeout_s
        return [Help(member, message.height)]

    def _upon_later_height(self, message: Message) -> list[Effect]:
        """A validator is further on: remember its claim, and what it says if it is one height ahead."""
        member = self._signer(message)
        if member is None or member not in self._proposers or member == self._authenticator.me:
            return []
        self._claims[member] = max(self._claims.get(member, 0), message.height)
        if message.height != self.height + 1:
            return []
        slot = (type(message), member)
        held = self._waiting.get(slot)
        if held is not None and held.view == message.view:
            if signed_digest(held, self._chain_id) == signed_digest(message, self._chain_id):
                return []
            return [Accuse(member, Contradiction.of(held, message, self._chain_id))]
        if held is None or held.view < message.view:
            others = sum(_payload_bytes(one) for key, one in self._waiting.items() if key != slot)
            if others + _payload_bytes(message) <= _WAITING_BYTES_MAX:
                self._waiting[slot] = message
        return []

    def _signer(self, message: Message) -> Address | None:
        try:
            return self._authenticator.recover(signed_digest(message, self._chain_id), message.signature)
        except ValueError:
            return None


def _payload_bytes(message: Message) -> int:
    return len(message.payload) if isinstance(message, Proposal | RoundChange) else 0
