# pragma version 0.4.3
# pragma optimize gas
# pragma evm-version cancun
# @title Who takes part: the members, their operators, and the validators among them
# @license Apache-2.0
# @notice A member is a node's address. Its operator is a person's key, kept apart: operators vote, nodes work.
#         What a quorum of members (two thirds, rounded up) approves happens at once. States, callers and
#         events are described in Consortium.md. Every call checks who, then when, then what.

struct MemberRecord:
    operator: address
    name: String[64]
    endpoint: String[256]
    fingerprint: bytes32
    validator: bool
    standing: bool

struct Founder:
    member: address
    operator: address
    name: String[64]
    endpoint: String[256]
    fingerprint: bytes32
    validator: bool

struct Entry:
    member: address
    record: MemberRecord

struct Proposal:
    kind: uint256
    member: address
    record: MemberRecord
    proposer: address
    decided: bool
    approvals: uint256

event Nominated:
    proposal: indexed(uint256)
    member: indexed(address)
    proposer: indexed(address)
    operator: address
    name: String[64]
    validator: bool

event RemovalProposed:
    proposal: indexed(uint256)
    member: indexed(address)
    proposer: indexed(address)

event ValidatorProposed:
    proposal: indexed(uint256)
    member: indexed(address)
    proposer: indexed(address)
    on: bool

event Approved:
    proposal: indexed(uint256)
    member: indexed(address)
    approvals: uint256

event Admitted:
    member: indexed(address)
    operator: address
    name: String[64]
    validator: bool

event Removed:
    member: indexed(address)
    operator: address

event ValidatorChanged:
    member: indexed(address)
    on: bool

event KeyRotated:
    old: indexed(address)
    member: indexed(address)
    operator: address

event EndpointChanged:
    member: indexed(address)
    endpoint: String[256]
    fingerprint: bytes32

event StoodDown:
    member: indexed(address)

event Resumed:
    member: indexed(address)

event ReportedAbsent:
    member: indexed(address)
    reporter: indexed(address)
    reports: uint256

event PutOnStandby:
    member: indexed(address)
    reports: uint256

event Recovered:
    number: indexed(uint256)
    head: indexed(bytes32)
    validators: DynArray[address, MEMBERS_MAX]
    signatures: uint256
    reason: String[256]
    created: uint256

MEMBERS_MAX: constant(uint256) = 128

# Leave and standby never take the validators below this many (or below all, where there are fewer): four is the
# smallest number that tolerates a faulty one.
FLOOR: constant(uint256) = 4

# How long a validator is silent before others report it, and how long a report counts: in ticks of the network's clock.
ABSENCE: immutable(uint256)

# EIP-712: what the operators sign to replace validators that are gone for good.
DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
DOMAIN_NAME: constant(bytes32) = keccak256("Swarm Consortium")
DOMAIN_VERSION: constant(bytes32) = keccak256("1")
RECOVERY_TYPE: constant(bytes32) = keccak256(
    "Recovery(bytes32 genesis,uint256 height,bytes32 head,address[] validators,string reason,uint256 created)"
)
# EIP-2: the upper half of s is the same signature again, written another way.
HALF_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168

ADMIT: constant(uint256) = 1
REMOVE: constant(uint256) = 2
VALIDATOR_ON: constant(uint256) = 3
VALIDATOR_OFF: constant(uint256) = 4

roll: DynArray[address, MEMBERS_MAX]
records: HashMap[address, MemberRecord]
memberOf: public(HashMap[address, address])
# A node's key serves one operator, ever: what Runs keeps under the key stays that operator's.
served: HashMap[address, address]  # member -> operator
holder: HashMap[bytes32, address]  # keccak256(name) -> member
# Derived from roll and records at every change, because each node asks for it at each block.
voters: DynArray[address, MEMBERS_MAX]

# By operators, so that a new node's key changes nothing.
reports: HashMap[address, HashMap[address, uint256]]  # whose node is absent -> whose node says so -> since when
shown: HashMap[address, uint256]  # the last sign of life: older reports count no more
standby: HashMap[address, bool]  # it does not stand because others reported it, not because it said so

recoveries: public(uint256)
proposals: public(uint256)
proposed: HashMap[uint256, Proposal]
votes: HashMap[uint256, HashMap[address, bool]]  # proposal -> operator


@deploy
def __init__(founders: DynArray[Founder, MEMBERS_MAX], absence: uint256):
    assert absence > 0, "an absence lasts"
    ABSENCE = absence
    for founder: Founder in founders:
        record: MemberRecord = MemberRecord(
            operator=founder.operator, name=founder.name, endpoint=founder.endpoint,
            fingerprint=founder.fingerprint, validator=founder.validator, standing=True,
        )
        self._check_new(founder.member, record)
        self._admit(founder.member, record)
    self._count_voters()


# ------------------------------------------------------------------ reading


@external
@view
def members() -> DynArray[address, MEMBERS_MAX]:
    return self.roll


@external
@view
def member(who: address) -> MemberRecord:
    return self.records[who]


@external
@view
def roster() -> DynArray[Entry, MEMBERS_MAX]:
    """
    @notice All members with their records, in one call
    """
    entries: DynArray[Entry, MEMBERS_MAX] = []
    for one: address in self.roll:
        entries.append(Entry(member=one, record=self.records[one]))
    return entries


@external
@view
def isMember(who: address) -> bool:
    return self.records[who].operator != empty(address)


@external
@view
def operatorOf(who: address) -> address:
    """
    @notice The operator of a member, zero if `who` is none
    """
    return self.records[who].operator


@external
@view
def quorum() -> uint256:
    return self._quorum()


@external
@view
def getValidators() -> DynArray[address, MEMBERS_MAX]:
    """
    @notice The validators that stand. The signature is the one that Hyperledger Besu reads its QBFT validators with
    """
    return self.voters


@external
@view
def absence() -> uint256:
    """
    @notice How long a validator is silent before others report it, and a report counts: ticks of the network's clock
    """
    return ABSENCE


@external
@view
def floor() -> uint256:
    """
    @notice Neither leave nor standby takes the standing validators below this many
    """
    return self._floor()


@external
@view
def standbys() -> DynArray[address, MEMBERS_MAX]:
    """
    @notice The members that others put on standby and that have not resumed
    """
    found: DynArray[address, MEMBERS_MAX] = []
    for one: address in self.roll:
        if self.standby[self.records[one].operator]:
            found.append(one)
    return found


@external
@view
def reportersOf(who: address) -> DynArray[address, MEMBERS_MAX]:
    """
    @notice The standing validators whose report of this member's absence counts now
    """
    found: DynArray[address, MEMBERS_MAX] = []
    for one: address in self.voters:
        if self._counts(self.records[who].operator, self.records[one].operator):
            found.append(one)
    return found


@external
@view
def proposal(id: uint256) -> Proposal:
    found: Proposal = self.proposed[id]
    found.approvals = self._approvals(id)
    return found


@external
@view
def approved(id: uint256, who: address) -> bool:
    return self.votes[id][self.records[who].operator]


# ------------------------------------------------------------------ what operators decide together


@external
def nominate(
    member: address, operator: address, name: String[64], endpoint: String[256], fingerprint: bytes32, validator: bool
) -> uint256:
    proposer: address = self._voter()
    record: MemberRecord = MemberRecord(
        operator=operator, name=name, endpoint=endpoint, fingerprint=fingerprint, validator=validator, standing=True
    )
    self._check_new(member, record)
    id: uint256 = self._propose(ADMIT, member, record, proposer)
    log Nominated(
        proposal=id, member=member, proposer=proposer, operator=operator, name=name, validator=validator
    )
    self._approve(id, proposer)
    return id


@external
def proposeRemoval(member: address) -> uint256:
    proposer: address = self._voter()
    assert self.records[member].operator != empty(address), "only a member can be removed"
    id: uint256 = self._propose(REMOVE, member, self.records[member], proposer)
    log RemovalProposed(proposal=id, member=member, proposer=proposer)
    self._approve(id, proposer)
    return id


@external
def proposeValidator(member: address, on: bool) -> uint256:
    proposer: address = self._voter()
    assert self.records[member].operator != empty(address), "only a member can be a validator"
    assert self.records[member].validator != on, "the member already is what is proposed"
    id: uint256 = self._propose(VALIDATOR_ON if on else VALIDATOR_OFF, member, self.records[member], proposer)
    log ValidatorProposed(proposal=id, member=member, proposer=proposer, on=on)
    self._approve(id, proposer)
    return id


@external
def approve(id: uint256):
    voter: address = self._voter()
    assert id != 0 and id <= self.proposals, "there is no such proposal"
    assert not self.proposed[id].decided, "the proposal is already decided"
    # A removal may have lowered the quorum meanwhile: whoever approved before may then close the vote.
    assert not self.votes[id][msg.sender] or self._approvals(id) >= self._quorum(), "this member has already approved"
    self._approve(id, voter)


@internal
@view
def _voter() -> address:
    voter: address = self.memberOf[msg.sender]
    assert voter != empty(address), "only the operator of a member may do this"
    return voter


@internal
@view
def _quorum() -> uint256:
    return (2 * len(self.roll) + 2) // 3


@internal
@view
def _approvals(id: uint256) -> uint256:
    # Over the members of today, so that the vote of a removed one no longer counts.
    count: uint256 = 0
    for one: address in self.roll:
        if self.votes[id][self.records[one].operator]:
            count += 1
    return count


@internal
def _propose(kind: uint256, member: address, record: MemberRecord, proposer: address) -> uint256:
    self.proposals += 1
    self.proposed[self.proposals] = Proposal(
        kind=kind, member=member, record=record, proposer=proposer, decided=False, approvals=0
    )
    return self.proposals


@internal
def _approve(id: uint256, voter: address):
    self.votes[id][msg.sender] = True
    approvals: uint256 = self._approvals(id)
    log Approved(proposal=id, member=voter, approvals=approvals)
    if approvals >= self._quorum():
        self.proposed[id].decided = True
        self._execute(id)


@internal
def _execute(id: uint256):
    kind: uint256 = self.proposed[id].kind
    member: address = self.proposed[id].member
    if kind == ADMIT:
        record: MemberRecord = self.proposed[id].record
        self._check_new(member, record)
        self._admit(member, record)
    else:
        # Found by its operator: nobody escapes a vote by taking a new key.
        member = self.memberOf[self.proposed[id].record.operator]
        assert member != empty(address), "the member was removed meanwhile"
        if kind == REMOVE:
            self._remove(member)
        else:
            assert self.records[member].validator != (kind == VALIDATOR_ON), "the member already is what was proposed"
            self.records[member].validator = kind == VALIDATOR_ON
            log ValidatorChanged(member=member, on=kind == VALIDATOR_ON)
    self._count_voters()


@internal
@view
def _check_new(member: address, record: MemberRecord):
    assert len(self.roll) < MEMBERS_MAX, "the consortium is full"
    assert record.operator != empty(address), "the operator's address is zero"
    assert record.operator != member, "a person's key votes, apart from the node's key"
    assert self.memberOf[record.operator] == empty(address), "the operator already has a member"
    assert self.records[record.operator].operator == empty(address), "the operator is a node's key"
    assert record.name != "", "a member has a name"
    assert self.holder[keccak256(record.name)] == empty(address), "another member has this name"
    self._check_key(member, record.operator)


@internal
@view
def _check_key(member: address, operator: address):
    assert member != empty(address), "the member's address is zero"
    assert self.records[member].operator == empty(address), "the address already is a member"
    assert self.memberOf[member] == empty(address), "the address is an operator"
    served: address = self.served[member]
    assert served == empty(address) or served == operator, "the address was the node of another operator"


@internal
def _admit(member: address, record: MemberRecord):
    self.roll.append(member)
    self.records[member] = record
    self.memberOf[record.operator] = member
    self.served[member] = record.operator
    self.holder[keccak256(record.name)] = member
    log Admitted(member=member, operator=record.operator, name=record.name, validator=record.validator)


@internal
def _remove(member: address):
    operator: address = self.records[member].operator
    self.holder[keccak256(self.records[member].name)] = empty(address)
    self.memberOf[operator] = empty(address)
    self.records[member] = empty(MemberRecord)
    self._show(operator)
    last: address = self.roll.pop()
    if last != member:
        self.roll[self._place(member)] = last
    log Removed(member=member, operator=operator)


@internal
@view
def _place(member: address) -> uint256:
    place: uint256 = 0
    for one: address in self.roll:
        if one == member:
            break
        place += 1
    return place


@internal
def _count_voters():
    self.voters = []
    for one: address in self.roll:
        if self.records[one].validator and self.records[one].standing:
            self.voters.append(one)
    assert len(self.voters) > 0, "at least one validator has to stand"


# ------------------------------------------------------------------ what a member settles alone


@external
def rotateKey(newMember: address, endpoint: String[256], fingerprint: bytes32):
    """
    @notice The operator gives its member another node key: the old one is worth nothing from this block on
    """
    old: address = self._voter()
    self._check_key(newMember, msg.sender)
    record: MemberRecord = self.records[old]
    record.endpoint = endpoint
    record.fingerprint = fingerprint
    self.records[old] = empty(MemberRecord)
    self.records[newMember] = record
    self.memberOf[msg.sender] = newMember
    self.served[newMember] = msg.sender
    self.holder[keccak256(record.name)] = newMember
    self.roll[self._place(old)] = newMember
    self._count_voters()
    log KeyRotated(old=old, member=newMember, operator=msg.sender)
    log EndpointChanged(member=newMember, endpoint=endpoint, fingerprint=fingerprint)


@external
def setEndpoint(endpoint: String[256], fingerprint: bytes32):
    member: address = self._own()
    self.records[member].endpoint = endpoint
    self.records[member].fingerprint = fingerprint
    log EndpointChanged(member=member, endpoint=endpoint, fingerprint=fingerprint)


@external
def standDown():
    """
    @notice Planned leave of a validator: blocks are decided without it until it resumes
    """
    member: address = self._own()
    assert self.records[member].validator, "only a validator can stand down"
    assert self.records[member].standing, "the validator has already stood down"
    self._check_floor()
    self.records[member].standing = False
    self._show(self.records[member].operator)
    self._count_voters()
    log StoodDown(member=member)


@external
def resume():
    """
    @notice The end of leave or standby. For a validator that stands: a sign of life, which ends all reports of it
    """
    member: address = self._own()
    operator: address = self.records[member].operator
    assert not self.records[member].standing or self._reports(operator) > 0, "the validator has not stood down"
    self.records[member].standing = True
    self._show(operator)
    self._count_voters()
    log Resumed(member=member)


@external
def reportAbsent(member: address):
    """
    @notice A validator has not heard of another one for longer than `absence()`. Two thirds of the others that say so
            put it on standby: blocks are decided without it until it resumes. Each report counts for `absence()`
    """
    reporter: address = self._own()
    assert self._stands(reporter), "only a validator that stands may report another"
    assert self._stands(member), "only a validator that stands can be absent"
    assert member != reporter, "a validator does not report itself"
    self._check_floor()
    absent: address = self.records[member].operator
    mine: address = self.records[reporter].operator
    assert not self._counts(absent, mine), "the report already counts"
    self.reports[absent][mine] = block.timestamp
    count: uint256 = self._reports(absent)
    log ReportedAbsent(member=member, reporter=reporter, reports=count)
    if 3 * count >= 2 * (len(self.voters) - 1):
        self.records[member].standing = False
        self._show(absent)
        self.standby[absent] = True
        self._count_voters()
        log PutOnStandby(member=member, reports=count)


@internal
@view
def _stands(member: address) -> bool:
    return self.records[member].validator and self.records[member].standing


@internal
@view
def _floor() -> uint256:
    validators: uint256 = 0
    for one: address in self.roll:
        if self.records[one].validator:
            validators += 1
    return min(FLOOR, validators)


@internal
@view
def _check_floor():
    assert len(self.voters) > self._floor(), "too few validators would stand"


@internal
def _show(operator: address):
    self.shown[operator] = block.timestamp
    self.standby[operator] = False


@internal
@view
def _counts(absent: address, reporter: address) -> bool:
    at: uint256 = self.reports[absent][reporter]
    return at > self.shown[absent] and at + ABSENCE >= block.timestamp


@internal
@view
def _reports(absent: address) -> uint256:
    count: uint256 = 0
    for one: address in self.voters:
        if self._counts(absent, self.records[one].operator):
            count += 1
    return count


@internal
@view
def _own() -> address:
    if self.records[msg.sender].operator != empty(address):
        return msg.sender
    member: address = self.memberOf[msg.sender]
    assert member != empty(address), "only a member or its operator may do this"
    return member


# ------------------------------------------------------------------ when validators are gone for good


@external
def recover(
    genesis: bytes32,
    height: uint256,
    head: bytes32,
    validators: DynArray[address, MEMBERS_MAX],
    reason: String[256],
    created: uint256,
    signatures: DynArray[Bytes[65], MEMBERS_MAX],
):
    """
    @notice Two thirds of the operators replace the validators, in the block right after `head`. Anybody may send it:
            what counts are the signatures (EIP-712, r ‖ s ‖ v), sorted by their operators' addresses
    """
    assert height + 1 == block.number, "the recovery is for another height"
    assert blockhash(height) == head, "the recovery is for another block"
    assert len(validators) > 0, "at least one validator has to stand"
    assert len(signatures) >= self._quorum(), "two thirds of the operators have to sign"
    self._check_signers(self._recovery_digest(genesis, height, head, validators, reason, created), signatures)
    for one: address in self.roll:
        self.records[one].validator = False
        self.records[one].standing = True
        self._show(self.records[one].operator)
    last: uint256 = 0
    for one: address in validators:
        assert convert(one, uint256) > last, "the validators are sorted, and none is named twice"
        last = convert(one, uint256)
        assert self.records[one].operator != empty(address), "only a member can be a validator"
        self.records[one].validator = True
    self._count_voters()
    self.recoveries += 1
    log Recovered(
        number=self.recoveries, head=head, validators=validators, signatures=len(signatures), reason=reason,
        created=created,
    )


@internal
@view
def _recovery_digest(
    genesis: bytes32,
    height: uint256,
    head: bytes32,
    validators: DynArray[address, MEMBERS_MAX],
    reason: String[256],
    created: uint256,
) -> bytes32:
    domain: bytes32 = keccak256(abi_encode(DOMAIN_TYPE, DOMAIN_NAME, DOMAIN_VERSION, chain.id, self))
    # An array is hashed as its elements, without the length that the ABI puts before them.
    listed: Bytes[32 * MEMBERS_MAX + 32] = abi_encode(validators, ensure_tuple=False)
    elements: bytes32 = keccak256(slice(listed, 32, 32 * len(validators)))
    content: bytes32 = keccak256(
        abi_encode(RECOVERY_TYPE, genesis, height, head, elements, keccak256(reason), created)
    )
    return keccak256(concat(0x1901, domain, content))


@internal
@view
def _check_signers(digest: bytes32, signatures: DynArray[Bytes[65], MEMBERS_MAX]):
    last: uint256 = 0
    for signature: Bytes[65] in signatures:
        assert len(signature) == 65, "a signature has 65 bytes"
        s: uint256 = convert(slice(signature, 32, 32), uint256)
        assert s <= HALF_ORDER, "a signature's s is in the lower half"
        v: uint256 = convert(slice(signature, 64, 1), uint256)
        signer: address = ecrecover(digest, v + 27 if v < 27 else v, convert(slice(signature, 0, 32), uint256), s)
        assert self.memberOf[signer] != empty(address), "only operators of members sign a recovery"
        assert convert(signer, uint256) > last, "the signatures are sorted by operator, and nobody signs twice"
        last = convert(signer, uint256)
