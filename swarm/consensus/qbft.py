"""How validators agree on the payload of one height: QBFT (Moniz, arXiv 2002.03613) as a pure machine.

Each rule `_upon_…` is the predicate of the same name in the machine-checked Dafny specification
(Consensys/qbft-formal-spec-and-verification, dafny/spec/L1/node.dfy); its *round* is our *view*. What differs, and why:

- Nobody starts a block by the clock: the machine sleeps until a transaction waits (`wake`) or a valid message comes.
- Votes are saved before they are sent, and a machine made from its record sends them again.
- The timer of a view runs only once a quorum is known to have reached it (Castro and Liskov, PBFT §4.5.2). Otherwise
  a validator that was alone for an hour would stay ahead of the others for ever.
- A commit quorum decides in whatever view it is, as soon as its payload is known: it is final there already.
- A sender has one slot for each kind of message, the newest view wins: a stranger cannot fill the memory.

Several heights are `heights.Consensus`; bytes are `messages`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from swarm.consensus.certificate import Certificate
from swarm.consensus.contradiction import Contradiction
from swarm.consensus.effects import Authenticator, Broadcast, Decide, Effect, Save
from swarm.consensus.messages import (
    PAYLOAD_BYTES_MAX,
    Commit,
    Message,
    Prepare,
    Prepared,
    Promise,
    Proposal,
    RoundChange,
    commit_digest,
    decode_message,
    encode_message,
    prepare_digest,
    proposal_digest,
    round_change_digest,
    signed_digest,
)
from swarm.consensus.record import Lock, Record
from swarm.consensus.voters import Voters, name_of
from swarm.encoding import Address, Digest, short
from swarm.errors import PeerError

TIMEOUT_MAX_S = 60.0
"""A view's time grows with every try, so that a slow network is met some day; beyond a minute only patience is lost."""
RESEND_MAX_S = 10.0
"""Lost votes are sent again at growing intervals up to this: it is how long a healed network may stay unnoticed."""

# A height with several failed views judges one payload each; a proposer that lies can make more of them.
_JUDGED_MAX = 64

M = TypeVar("M", Proposal, Prepare, Commit, RoundChange)


class Qbft:
    """One validator at one height. It has no clock and no network: it is told, and answers what to do.

    Args:
        proposers: the validators of this height; the proposer of view v is `proposers[v % n]`.
        build: a payload to propose now, at most `PAYLOAD_BYTES_MAX`; None if no transaction can be executed.
        judge: whether a payload may be decided that this validator proposes anew. Asked once for a digest and
            proposer, when everything else about the proposal holds.
        digest_of: the digest of a payload; ValueError if the bytes are none. Two payloads never share a digest: every
            byte must follow from it.
        saved: the last `Save` of this height, if there was one; the machine is then due at once.
    """

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
        self.height = height
        self.view = 0
        self.decided = False
        self._chain_id = chain_id
        self._voters = Voters(chain_id=chain_id, height=height, proposers=proposers, recover=authenticator.recover)
        self._authenticator = authenticator
        self._me = authenticator.me
        if self._me not in proposers or len(set(proposers)) != len(proposers):
            raise ValueError("a machine belongs to one of the height's validators, each of whom stands there once")
        self._build = build
        self._judge = judge
        self._digest_of = digest_of
        self._timeout_s = timeout_s

        self._proposals: dict[Address, Proposal] = {}
        self._prepares: dict[Address, Prepare] = {}
        self._commits: dict[Address, Commit] = {}
        self._round_changes: dict[Address, RoundChange] = {}
        self._accepted: Proposal | None = None
        self._lock: Lock | None = None

        self._wanted = False
        self._first_view = 0
        self._view_deadline_s: float | None = None
        self._resend_s: float | None = None
        self._resend_interval_s = timeout_s
        self._restored = saved is not None

        self._judged: dict[tuple[Digest, Address], bool] = {}
        self._unsaved = False
        self._sending: list[Effect] = []
        if saved is not None:
            self._restore(Record.decode(saved))
            self._resend_s = now_s

    # --- what the shell calls

    @property
    def deadline_s(self) -> float | None:
        """When `tick` is due; None while the machine sleeps."""
        if self.decided or self._resend_s is None:
            return None
        return self._resend_s if self._view_deadline_s is None else min(self._resend_s, self._view_deadline_s)

    def wake(self, now_s: float) -> list[Effect]:
        """A transaction waits: start the timer, and propose if it is our turn."""
        if self.decided:
            return []
        restored = self._restored
        self._start(now_s)
        if not self._wanted:
            self._wanted = True
            if not restored:
                # Others may have woken this machine with nothing to propose, and the views have grown long meanwhile.
                self._first_view = self.view
                if self._view_deadline_s is not None:
                    self._view_deadline_s = min(self._view_deadline_s, now_s + self._timeout_s)
        self._upon_transaction(now_s)
        self._follow_rules(now_s)
        return self._effects()

    def receive(self, data: bytes, now_s: float) -> list[Effect]:
        """What follows from a stranger's bytes.

        Raises:
            PeerError: a rule is broken; `member` is who signed, where the signature covers the fault.
        """
        return self.accept(decode_message(data), now_s)

    def accept(self, message: Message, now_s: float) -> list[Effect]:
        """`receive`, once the bytes are decoded."""
        if self.decided or message.height != self.height:
            return []
        match message:
            case Proposal():
                news = self._take_proposal(message)
            case Prepare():
                news = self._take_prepare(message)
            case Commit():
                news = self._keep(self._commits, self._voters.sender(message), message)
            case RoundChange():
                news = self._take_round_change(message)
        if news:
            self._start(now_s)
            if isinstance(message, Proposal):
                self._upon_proposal(message, now_s)
            self._follow_rules(now_s)
        return self._effects()

    def tick(self, now_s: float) -> list[Effect]:
        """What follows from the time; call it at or after `deadline_s`."""
        if self.deadline_s is None or now_s < self.deadline_s:
            return []
        if self._restored:
            self._start(now_s)
        elif self._view_deadline_s is not None and now_s >= self._view_deadline_s:
            self._upon_round_timeout(now_s)
        else:
            self._resend(now_s)
        self._follow_rules(now_s)
        return self._effects()

    # --- the rules

    def _follow_rules(self, now_s: float) -> None:
        """Every rule whose guard may hold now; in this order one pass reaches the end."""
        self._upon_f_plus_1_round_change(now_s)
        self._upon_quorum_reached_view(now_s)
        self._upon_round_change(now_s)
        self._upon_prepare()
        self._upon_commit()

    def _upon_transaction(self, now_s: float) -> None:
        """UponBlockTimeout: the proposer of view 0 proposes; here when a transaction waits."""
        if self._wanted and self.view == 0 and self._voters.proposer(0) == self._me and self._me not in self._proposals:
            payload = self._built()
            if payload is not None:
                self._propose(payload, (), (), now_s)

    def _upon_proposal(self, proposal: Proposal, now_s: float) -> None:
        """UponProposal: a valid proposal of this view or a later one is accepted and prepared."""
        if not self._votable(proposal):
            return
        if proposal.view > self.view:
            self._enter(proposal.view, now_s)
        if self._view_deadline_s is None:
            self._run_timer(now_s)  # its justification is a quorum in this view
        self._accepted = proposal
        mine = self._prepares.get(self._me)
        if mine is None or mine.view < proposal.view:
            signed = prepare_digest(self._chain_id, self.height, proposal.view, proposal.digest)
            vote = Prepare(self.height, proposal.view, proposal.digest, self._authenticator.sign(signed))
            self._vote(self._prepares, vote)

    def _upon_prepare(self) -> None:
        """UponPrepare: a quorum prepared the accepted proposal: lock on it and commit."""
        proposal, mine = self._accepted, self._commits.get(self._me)
        if proposal is None or (mine is not None and mine.view >= self.view):
            return
        prepares = {
            sender: vote.signature
            for sender, vote in self._prepares.items()
            if vote.view == self.view and vote.digest == proposal.digest
        }
        if len(prepares) < self._voters.quorum:
            return
        self._lock = Lock(Prepared(self.view, proposal.digest), proposal.payload, self._first_quorum(prepares))
        signed = commit_digest(self._chain_id, self.height, self.view, proposal.digest)
        vote = Commit(self.height, self.view, proposal.digest, self._authenticator.sign(signed))
        self._vote(self._commits, vote)

    def _upon_commit(self) -> None:
        """UponCommit: a quorum committed one digest in one view: it is decided."""
        if len(self._commits) < self._voters.quorum or self.decided:
            return
        for (view, digest), count in Counter((c.view, c.digest) for c in self._commits.values()).items():
            payload = self._payload_of(digest) if count >= self._voters.quorum else None
            if payload is not None:
                seals = {s: c.signature for s, c in self._commits.items() if (c.view, c.digest) == (view, digest)}
                certificate = Certificate(view, self._first_quorum(seals))
                self.decided = True
                self._sending.append(Decide(payload, certificate, self.height))
                return

    def _upon_round_timeout(self, now_s: float) -> None:
        """UponRoundTimeout: send again what may have been lost, then give the view up."""
        self._send_votes()
        self._change_to(self.view + 1, now_s)

    def _upon_f_plus_1_round_change(self, now_s: float) -> None:
        """UponRoundChange, second case: f + 1 members are in later views, so an honest one is: follow.

        The specification goes to the least view of some f + 1 such members; this is the greatest it allows.
        """
        later = sorted((m.view for m in self._round_changes.values() if m.view > self.view), reverse=True)
        if len(later) > self._voters.faults_max:
            self._change_to(later[self._voters.faults_max], now_s)

    def _upon_quorum_reached_view(self, now_s: float) -> None:
        """PBFT §4.5.2: the view's time begins to run when a quorum has come as far as this view."""
        if self._resend_s is None or self._view_deadline_s is not None:
            return
        if sum(message.view >= self.view for message in self._round_changes.values()) >= self._voters.quorum:
            self._run_timer(now_s)

    def _upon_round_change(self, now_s: float) -> None:
        """UponRoundChange, first case: the proposer of this view has a quorum of round changes and proposes.

        If one of them is prepared, it proposes what was prepared in the highest view; else what it builds now.
        """
        mine = self._proposals.get(self._me)
        if (
            self.view == 0
            or self._voters.proposer(self.view) != self._me
            or (mine is not None and mine.view >= self.view)
        ):
            return
        changes = {sender: m for sender, m in self._round_changes.items() if m.view == self.view}
        if len(changes) < self._voters.quorum:
            return
        chosen = sorted(changes.items(), key=lambda pair: (-_prepared_view(pair[1]), pair[0]))[: self._voters.quorum]
        highest = chosen[0][1]
        payload = self._built() if highest.prepared is None else highest.payload
        if payload is not None:
            promises = tuple(Promise(message.prepared, message.signature) for _, message in chosen)
            self._propose(payload, promises, highest.prepares, now_s)

    # --- what a message must be to count

    def _take_proposal(self, message: Proposal) -> bool:
        sender = self._voters.sender(message)
        proposer = self._voters.proposer(message.view)
        if sender != proposer:
            raise PeerError(
                f"{name_of(message)} is from {short(sender)}, its proposer is {short(proposer)}",
                member=sender,
                evidence=message,
            )
        self._check_payload(message.payload, message.digest, message)
        held = self._proposals.get(sender)  # `_keep` would notice too, but only after this one was judged
        if held is not None and held.view == message.view and held.digest != message.digest:
            raise self._equivocation(sender, held, message)
        if self._votable(message):
            mine = self._prepares.get(self._me)
            if mine is not None and mine.view == message.view and mine.digest != message.digest:
                raise PeerError(
                    f"{name_of(message)} is {short(message.digest)}, where this node prepared {short(mine.digest)} "
                    "before it restarted",
                    member=sender,
                    evidence=(mine, message),
                )
            self._voters.check_justification(message)
            if mine is None or mine.view < message.view:
                self._check_judgement(message, sender)
        # One that comes too late to vote for may still be what a quorum committed.
        return self._keep(self._proposals, sender, message)

    def _take_prepare(self, message: Prepare) -> bool:
        mine = self._commits.get(self._me)
        if message.view < self.view or (mine is not None and mine.view >= message.view):
            return False  # it changes nothing any more: not worth a recovery
        return self._keep(self._prepares, self._voters.sender(message), message)

    def _take_round_change(self, message: RoundChange) -> bool:
        if message.view < self.view:
            return False
        sender = self._voters.sender(message)
        if message.prepared is not None:
            self._check_payload(message.payload, message.prepared.digest, message)
            if self._voters.proposer(message.view) == self._me:  # nobody else will use it
                self._voters.check_prepares(message.prepared, message.prepares, message)
        return self._keep(self._round_changes, sender, message)

    def _keep(self, slots: dict[Address, M], sender: Address, message: M) -> bool:
        """Put a message into its sender's slot; False if a newer one or the same is there."""
        held = slots.get(sender)
        if held is not None and held.view == message.view:
            if signed_digest(held, self._chain_id) != signed_digest(message, self._chain_id):
                raise self._equivocation(sender, held, message)
            return False
        if held is not None and held.view > message.view:
            return False
        if sender == self._me:
            raise PeerError(
                f"{name_of(message)} has this node's signature and is not in its record: another node uses its key, "
                "or the record was lost",
                member=sender,
                evidence=message,
            )
        slots[sender] = message
        return True

    def _equivocation(self, sender: Address, first: Message, second: Message) -> PeerError:
        return PeerError(
            f"{short(sender)} contradicts itself: it signed two different ones of {name_of(second)}",
            member=sender,
            evidence=Contradiction.of(first, second, self._chain_id),
        )

    def _votable(self, proposal: Proposal) -> bool:
        return proposal.view > self.view or (proposal.view == self.view and self._accepted is None)

    def _check_payload(self, payload: bytes, digest: Digest, message: Message) -> None:
        try:
            found = self._digest_of(payload)
        except ValueError as error:
            raise PeerError(f"the payload of {name_of(message)} is none: {error}", evidence=message) from error
        if found != digest:
            raise PeerError(
                f"the payload of {name_of(message)} has digest {short(found)}, signed is {short(digest)}",
                evidence=message,
            )

    def _check_judgement(self, proposal: Proposal, sender: Address) -> None:
        """validateNonPreparedBlock: what a quorum prepared before is not judged again, f + 1 honest members did."""
        if proposal.prepares:
            return
        key = proposal.digest, sender
        if key not in self._judged:
            if len(self._judged) >= _JUDGED_MAX:
                del self._judged[next(iter(self._judged))]
            self._judged[key] = self._judge(proposal.payload, sender)
        if not self._judged[key]:
            self._keep(self._proposals, sender, proposal)  # a quorum may know better, and commit it
            raise PeerError(
                f"{name_of(proposal)} is {short(proposal.digest)} by {short(sender)}, which is not valid",
                member=sender,
                evidence=proposal,
            )

    # --- what the machine does

    def _start(self, now_s: float) -> None:
        """From sleep to life; a machine that has voted before sends its votes again."""
        if self._restored:
            self._restored = False
            self._resend(now_s)
            prepared = self._prepares.get(self._me)
            if self.view == 0 or (prepared is not None and prepared.view == self.view):
                self._run_timer(now_s)  # the proposal that it prepared had shown it a quorum in this view
        elif self._resend_s is None:
            self._resend_s = now_s + self._timeout_s
            self._run_timer(now_s)

    def _enter(self, view: int, now_s: float) -> None:
        self.view = view
        self._accepted = None
        self._view_deadline_s = None
        self._resend_interval_s = self._timeout_s
        self._resend_s = now_s + self._timeout_s

    def _run_timer(self, now_s: float) -> None:
        """Views grow longer from the first one on in which there was something to decide."""
        tries = min(self.view - self._first_view, 64)
        self._view_deadline_s = now_s + min(self._timeout_s * 2.0**tries, max(TIMEOUT_MAX_S, self._timeout_s))

    def _change_to(self, view: int, now_s: float) -> None:
        """createRoundChange: promise to vote in no lower view, and show the lock."""
        self._enter(view, now_s)
        lock = self._shown_lock()
        prepared = None if lock is None else lock.prepared
        signature = self._authenticator.sign(round_change_digest(self._chain_id, self.height, view, prepared))
        if lock is None:
            vote = RoundChange(self.height, view, None, signature)
        else:
            vote = RoundChange(self.height, view, prepared, signature, lock.payload, lock.prepares)
        self._vote(self._round_changes, vote)

    def _shown_lock(self) -> Lock | None:
        return self._lock

    def _propose(
        self, payload: bytes, promises: tuple[Promise, ...], prepares: tuple[bytes, ...], now_s: float
    ) -> None:
        digest = self._digest_of(payload)
        signature = self._authenticator.sign(proposal_digest(self._chain_id, self.height, self.view, digest))
        proposal = Proposal(self.height, self.view, digest, signature, payload, promises, prepares)
        self._vote(self._proposals, proposal)
        self._upon_proposal(proposal, now_s)

    def _built(self) -> bytes | None:
        payload = self._build()
        assert payload is None or len(payload) <= PAYLOAD_BYTES_MAX, "the ledger built a payload larger than a message"
        return payload

    def _vote(self, slots: dict[Address, M], message: M) -> None:
        slots[self._me] = message
        self._unsaved = True
        self._sending.append(Broadcast(encode_message(message)))

    def _resend(self, now_s: float) -> None:
        self._send_votes()
        self._resend_s = now_s + self._resend_interval_s
        self._resend_interval_s = min(2 * self._resend_interval_s, max(RESEND_MAX_S, self._timeout_s))

    def _send_votes(self) -> None:
        """The votes of this view, and the last commit whatever its view: it may be the one that others lack."""
        for vote in self._votes():
            if vote.view == self.view or isinstance(vote, Commit):
                self._sending.append(Broadcast(encode_message(vote)))

    def _votes(self) -> list[Message]:
        slots: list[Message | None] = [
            self._proposals.get(self._me),
            self._prepares.get(self._me),
            self._commits.get(self._me),
            self._round_changes.get(self._me),
        ]
        return [vote for vote in slots if vote is not None]

    def _effects(self) -> list[Effect]:
        """What is to be done, the record first: one record covers all the votes that follow it."""
        effects, self._sending = self._sending, []
        if self._unsaved:
            self._unsaved = False
            record = Record(self.height, self.view, tuple(self._votes()), self._lock)
            effects.insert(0, Save(record.encode(), self.height))
        return effects

    def _restore(self, record: Record) -> None:
        if record.height != self.height:
            raise ValueError(f"votes of height {record.height} at height {self.height}")
        self.view, self._lock = record.view, record.lock
        for vote in record.votes:
            match vote:
                case Proposal():
                    self._proposals[self._me] = vote
                    if vote.view == self.view:
                        self._accepted = vote
                case Prepare():
                    self._prepares[self._me] = vote
                case Commit():
                    self._commits[self._me] = vote
                case RoundChange():
                    self._round_changes[self._me] = vote

    def _first_quorum(self, signatures: dict[Address, bytes]) -> tuple[bytes, ...]:
        """A quorum of signatures, sorted by their signers' addresses."""
        return tuple(signature for _, signature in sorted(signatures.items())[: self._voters.quorum])

    def _payload_of(self, digest: Digest) -> bytes | None:
        if self._lock is not None and self._lock.prepared.digest == digest:
            return self._lock.payload
        for proposal in self._proposals.values():
            if proposal.digest == digest:
                return proposal.payload
        for change in self._round_changes.values():
            if change.prepared is not None and change.prepared.digest == digest:
                return change.payload
        return None


def _prepared_view(message: RoundChange) -> int:
    return -1 if message.prepared is None else message.prepared.view
