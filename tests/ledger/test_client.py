"""The typed client: what it reads, what it sends, and what becomes of errors, over every kind of connection."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.types import RPCEndpoint, RPCResponse

from swarm.config import Policy
from swarm.encoding import ZERO_DIGEST, keccak256, to_hex
from swarm.errors import ConfigError, RejectedError, UnavailableError
from swarm.ledger.client import (
    Contracts,
    ProposalKind,
    decode_metrics,
    encode_metrics,
)
from swarm.ledger.endpoint import POLL_MAX_S, Call
from swarm.ledger.genesis import RUNS
from swarm.ledger.provider import LedgerProvider
from swarm.ledger.rpc import Limits, Rpc
from swarm.ledger.rpc_json import receipt_json
from swarm.merkle import digest_of
from swarm.rounds import Phase, RunState, Submission
from tests.ledger.served import Served, transaction_hash
from tests.ledger.world import BY_ADDRESS, CREATED_MS, MEMBERS, OPERATORS, STRANGER

PATIENCE_S = 20.0
POLICY = Policy(name="hearts", rounds=2, sync_interval=8, submit_s=0.5, merge_s=0.25, attest_s=0.25)
GENESIS = keccak256(b"genesis")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "ledger")
    yield served
    served.close()


@asynccontextmanager
async def client(served: Served, kind: str, folder: Path) -> AsyncIterator[Contracts]:
    """A client over one kind of connection."""
    if kind == "http":
        async with served.over_http() as contracts:
            yield contracts
    elif kind == "socket":
        async with served.over_socket(folder / "s") as contracts:
            yield contracts
    else:
        yield served.contracts(hooked=kind == "hooked")


async def open_run(contracts: Contracts, policy: Policy = POLICY) -> int:
    receipt = await contracts.transact(OPERATORS[0], contracts.propose(policy, GENESIS), timeout_s=PATIENCE_S)
    run: int = receipt.first("RunProposed").args["run"]
    for operator in OPERATORS[1:4]:
        await contracts.transact(operator, contracts.approve(run), timeout_s=PATIENCE_S)
    for member in MEMBERS[:4]:
        await contracts.transact(member, contracts.join(run, True), timeout_s=PATIENCE_S)
    return run


async def submit_all(contracts: Contracts, run: int, round: int) -> None:
    for index, member in enumerate(MEMBERS[:4]):
        call = contracts.submit(run, round, keccak256(bytes([round, index])), 10 + index, {"auc": 0.5 + index / 10})
        await contracts.transact(member, call, timeout_s=PATIENCE_S)


@pytest.mark.parametrize("kind", ["hooked", "polling", "http", "socket"])
async def test_a_whole_round_over_every_kind_of_connection(served: Served, tmp_path: Path, kind: str) -> None:
    async with client(served, kind, tmp_path) as contracts:
        run = await open_run(contracts)
        await submit_all(contracts, run, 0)
        state = await contracts.round_state(run)
        assert (state.state, state.phase, state.base) == (RunState.OPEN, Phase.MERGE, GENESIS)
        assert state.submissions[1] == Submission(MEMBERS[1].address, keccak256(bytes([0, 1])), 11)
        checkpoint = keccak256(b"checkpoint")
        leader = BY_ADDRESS[state.leader]
        await contracts.transact(leader, contracts.publish(run, 0, 0, checkpoint), timeout_s=PATIENCE_S)
        assert (await contracts.round_state(run)).published == checkpoint
        others = [member for member in MEMBERS[:4] if member is not leader]
        for member in others[:2]:
            receipt = await contracts.transact(member, contracts.attest(run, 0, 0, checkpoint), timeout_s=PATIENCE_S)
        assert receipt.first("RoundClosed").args["attestations"] == 3
        closed = await contracts.closed_round(run, 0)
        assert closed is not None
        assert (closed.checkpoint, closed.leader, closed.submissions, closed.attestations) == (
            checkpoint, leader.address, 4, 3,
        )  # fmt: skip
        assert closed.closed_s == served.ledger.head.timestamp_ms / 1000
        assert await contracts.closed_round(run, 1) is None
        with pytest.raises(RejectedError, match="the run is at another round"):
            await contracts.transact(others[2], contracts.attest(run, 0, 0, checkpoint), timeout_s=PATIENCE_S)


# --- reading


async def test_members_and_validators_are_those_of_the_settings(served: Served) -> None:
    contracts = served.contracts()
    members = await contracts.members()
    assert [member.address for member in members] == [identity.address for identity in MEMBERS[:4]]
    first = members[0]
    assert (first.name, first.operator, first.validator, first.standing) == (
        "site 0", OPERATORS[0].address, True, True,
    )  # fmt: skip
    assert first.endpoint.endswith(MEMBERS[0].peer_id)
    assert await contracts.member(first.address) == first
    assert await contracts.member(STRANGER.address) is None
    assert await contracts.member_of(OPERATORS[2].address) == MEMBERS[2].address
    assert await contracts.member_of(STRANGER.address) is None
    assert set(await contracts.validators()) == {identity.address for identity in MEMBERS[:4]}
    assert await contracts.quorum() == 3


async def test_a_proposal_is_shown_until_and_after_it_is_decided(served: Served) -> None:
    contracts = served.contracts()
    new, person = MEMBERS[6], OPERATORS[6]
    call = contracts.nominate(new.address, person.address, "site 6", "/ip4/1.1.1.1", validator=False)
    number = (await contracts.transact(OPERATORS[0], call, timeout_s=PATIENCE_S)).first("Nominated").args["proposal"]
    (proposal,) = await contracts.proposals()
    assert (proposal.id, proposal.kind, proposal.proposer) == (number, ProposalKind.ADMIT, MEMBERS[0].address)
    assert (proposal.member.address, proposal.member.name, proposal.decided) == (new.address, "site 6", False)
    assert await contracts.approved(number, MEMBERS[0].address)
    for operator in OPERATORS[1:3]:
        await contracts.transact(operator, contracts.approve_proposal(number), timeout_s=PATIENCE_S)
    assert (await contracts.proposal(number)).decided
    assert (await contracts.members())[-1].operator == person.address
    with pytest.raises(RejectedError, match="there is no proposal 7"):
        await contracts.proposal(7)
    for call, kind in [
        (contracts.propose_removal(new.address), ProposalKind.REMOVE),
        (contracts.propose_validator(new.address, True), ProposalKind.VALIDATOR_ON),
        (contracts.propose_validator(MEMBERS[0].address, False), ProposalKind.VALIDATOR_OFF),
    ]:
        await contracts.transact(OPERATORS[0], call, timeout_s=PATIENCE_S)
        assert (await contracts.proposals())[-1].kind == kind


async def test_what_a_member_settles_alone_is_read_back(served: Served) -> None:
    contracts = served.contracts()
    fingerprint = keccak256(b"certificate")
    await contracts.transact(MEMBERS[1], contracts.set_endpoint("/ip4/2.2.2.2", fingerprint), timeout_s=PATIENCE_S)
    changed = await contracts.member(MEMBERS[1].address)
    assert changed is not None
    assert (changed.endpoint, changed.fingerprint) == ("/ip4/2.2.2.2", fingerprint)
    new = MEMBERS[7]
    await contracts.transact(OPERATORS[1], contracts.rotate_key(new.address, "/ip4/3.3.3.3"), timeout_s=PATIENCE_S)
    assert await contracts.member(MEMBERS[1].address) is None
    assert await contracts.member_of(OPERATORS[1].address) == new.address
    with pytest.raises(RejectedError, match="stand down: too few validators would stand"):
        await contracts.transact(MEMBERS[0], contracts.stand_down(), timeout_s=PATIENCE_S)
    with pytest.raises(RejectedError, match="resume: the validator has not stood down"):
        await contracts.transact(MEMBERS[0], contracts.resume(), timeout_s=PATIENCE_S)


async def test_a_run_is_shown_in_seconds_with_its_policys_digest(served: Served) -> None:
    contracts = served.contracts()
    assert await contracts.runs() == ()
    number = await open_run(contracts)
    run = await contracts.run(number)
    assert (run.name, run.proposer, run.policy, run.genesis) == (
        "hearts", MEMBERS[0].address, digest_of(POLICY.encode()), GENESIS,
    )  # fmt: skip
    assert (run.rounds, run.submissions_min, run.weight_max) == (2, 2, POLICY.weight_max)
    assert (run.submit_s, run.merge_s, run.attest_s) == (0.5, 0.25, 0.25)
    assert (run.state, run.round, run.checkpoint) == (RunState.OPEN, 0, GENESIS)
    assert await contracts.runs() == (run,)
    assert await contracts.runs(after=1) == ()
    everyone = {member.address for member in MEMBERS[:4]}
    assert set(await contracts.approvals(number)) == set(await contracts.participants(number)) == everyone
    assert not await contracts.suspended(number, MEMBERS[0].address)
    state = await contracts.round_state(number)
    assert CREATED_MS / 1000 < state.opened_s <= served.ledger.head.timestamp_ms / 1000
    assert state.deadline_s == 0
    assert state.published is None


async def test_the_newest_run_of_a_name_is_found(served: Served) -> None:
    contracts = served.contracts()
    with pytest.raises(RejectedError, match="there is no run called 'hearts'; there are: none yet"):
        await contracts.run_named("hearts")
    for _ in range(2):
        await open_run(contracts)
    assert (await contracts.run_named("hearts")).id == 2
    with pytest.raises(RejectedError, match="'lungs'; there are: hearts"):
        await contracts.run_named("lungs")
    with pytest.raises(RejectedError, match="there is no run 3"):
        await contracts.run(3)
    with pytest.raises(RejectedError, match="there is no run 3"):
        await contracts.round_state(3)


async def test_the_past_can_be_read(served: Served) -> None:
    contracts = served.contracts()
    await open_run(contracts)
    assert (await contracts.at(1).run(1)).state == RunState.PROPOSED
    assert (await contracts.run(1)).state == RunState.OPEN
    assert await contracts.at(0).runs() == ()


async def test_a_ledger_without_the_contracts_is_told_apart(served: Served) -> None:
    elsewhere = Contracts(served.contracts()._endpoint._web3, runs=b"\x07" * 20)
    with pytest.raises(ConfigError, match="this ledger has no Runs at 0x0707"):
        await elsewhere.run(1)


async def test_a_name_that_is_no_text_does_not_hide_the_other_members(served: Served) -> None:
    contracts = served.contracts()
    call = contracts.set_endpoint("/ip4/@@@@", ZERO_DIGEST)
    broken = Call(call.to, call.data.replace(b"@@@@", b"\xff\xfe@@"), call.what)
    await contracts.transact(MEMBERS[2], broken, timeout_s=PATIENCE_S)
    assert [member.endpoint.count("\ufffd") for member in await contracts.members()] == [0, 0, 2, 0]


# --- events


async def test_events_come_decoded_in_order_and_by_name(served: Served) -> None:
    contracts = served.contracts()
    run = await open_run(contracts)
    await submit_all(contracts, run, 0)
    events = await contracts.events(0)
    assert [event.name for event in events] == [
        "RunProposed", "RunApproved", "RunApproved", "RunApproved", "RunOpened", "RunApproved",
        *["Joined"] * 4, *["Submitted"] * 4, "MergeStarted",
    ]  # fmt: skip
    assert [(event.block, event.index) for event in events] == sorted((event.block, event.index) for event in events)
    submitted = await contracts.events(1, names=["Submitted"])
    assert [event.args["member"] for event in submitted] == [member.address for member in MEMBERS[:4]]
    assert decode_metrics(submitted[2].args["metrics"]) == {"auc": 0.7}
    last = events[-1]
    assert last.args["deadline"] == (await contracts.round_state(run)).deadline_s
    assert last.transaction == transaction_hash(served.sent[-1])
    assert await contracts.events(last.block + 1) == ()
    assert await contracts.events(2, 2) == tuple(event for event in events if event.block == 2)
    with pytest.raises(ValueError, match="no contract logs Sumbitted"):
        await contracts.events(0, names=["Sumbitted"])


async def test_where_a_node_refuses_so_many_events_at_once_it_is_asked_for_fewer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    contracts = served.contracts()
    await open_run(contracts)
    events = await contracts.events(0)
    served.rpc.limits = Limits(log_blocks_max=3)
    assert await contracts.events(0) == events
    monkeypatch.setattr("swarm.ledger.client.EVENT_BLOCKS_MAX", 2)
    assert await contracts.events(0) == events


# --- sending


async def test_many_calls_of_one_identity_at_once_all_arrive(served: Served) -> None:
    contracts = served.contracts()
    policies = [Policy(name=f"run {i}", rounds=1, sync_interval=1) for i in range(12)]
    receipts = await asyncio.gather(
        *(
            contracts.transact(OPERATORS[0], contracts.propose(policy, GENESIS), timeout_s=PATIENCE_S)
            for policy in policies
        )
    )
    assert sorted(receipt.first("RunProposed").args["run"] for receipt in receipts) == list(range(1, 13))
    assert {run.name for run in await contracts.runs()} == {policy.name for policy in policies}


async def test_a_refused_call_says_what_was_called_and_why_not(served: Served) -> None:
    contracts = served.contracts()
    await open_run(contracts)
    for sender, call, reason in [
        (MEMBERS[0], contracts.publish(1, 0, 0, GENESIS), "publish in round 0 of run 1: only a member that submitted"),
        (MEMBERS[0], contracts.submit(1, 0, ZERO_DIGEST, 1, {}), "the update's digest is zero"),
        (OPERATORS[0], contracts.approve(1), "approve run 1: this member has already approved"),
        (OPERATORS[0], contracts.stop(9), "stop run 9: only an operator that approved the run may stop it"),
        (MEMBERS[0], contracts.advance(1, 0, 0), "no deadline runs before enough have submitted"),
        (MEMBERS[0], contracts.report_missing(1, 0, MEMBERS[1].address), "only a member that submitted"),
        (MEMBERS[0], contracts.refuse(1, 0, 0, GENESIS, GENESIS), "refuse round 0 of run 1: only a member"),
        (OPERATORS[5], contracts.withdraw(1), "sender"),
    ]:
        with pytest.raises(RejectedError, match=reason):
            await contracts.transact(sender, call, timeout_s=PATIENCE_S)


async def test_the_reason_is_asked_for_where_the_receipt_has_none(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "swarm.ledger.rpc.receipt_json",
        lambda *place: {k: v for k, v in receipt_json(*place).items() if k != "revertReason"},
    )
    contracts = served.contracts()
    with pytest.raises(RejectedError, match="join run 1: the member's operator has not approved the run"):
        await contracts.transact(MEMBERS[0], contracts.join(1, True), timeout_s=PATIENCE_S)


async def test_a_sleeping_ledger_is_unavailable_and_takes_the_call_when_it_wakes(served: Served) -> None:
    contracts = served.contracts()
    call = contracts.propose(POLICY, GENESIS)
    served.asleep = True
    with pytest.raises(UnavailableError, match=r"propose the run hearts: not in a block after 0.05 s"):
        await contracts.transact(OPERATORS[0], call, timeout_s=0.05)
    served.wake()
    assert [run.name for run in await contracts.runs()] == ["hearts"]


async def test_a_call_that_is_tried_again_while_the_ledger_sleeps_is_sent_once(served: Served) -> None:
    contracts = served.contracts()
    call = contracts.propose(POLICY, GENESIS)
    served.asleep = True
    for _ in range(5):
        with pytest.raises(UnavailableError):
            await contracts.transact(OPERATORS[0], call, timeout_s=0.02)
    waiting = asyncio.ensure_future(contracts.transact(OPERATORS[0], call, timeout_s=PATIENCE_S))
    await asyncio.sleep(0.01)
    served.wake()
    receipt = await waiting
    assert receipt.first("RunProposed").args["run"] == 1
    assert len(set(served.sent)) == 1
    assert len(await contracts.runs()) == 1
    # Settled: the same call now is another one.
    await contracts.transact(OPERATORS[0], call, timeout_s=PATIENCE_S)
    assert len(await contracts.runs()) == 2


async def test_a_call_that_arrived_after_its_caller_gave_up_is_not_taken_for_the_next_one(served: Served) -> None:
    contracts = served.contracts()
    call = contracts.propose(POLICY, GENESIS)
    served.asleep = True
    with pytest.raises(UnavailableError):
        await contracts.transact(OPERATORS[0], call, timeout_s=0.02)
    served.wake()
    receipt = await contracts.transact(OPERATORS[0], call, timeout_s=PATIENCE_S)
    assert receipt.first("RunProposed").args["run"] == 2


async def test_a_nonce_that_another_process_took_meanwhile_is_no_error(served: Served) -> None:
    first, second = served.contracts(), served.contracts()
    calls = [first.propose(Policy(name=f"run {i}", rounds=1, sync_interval=1), GENESIS) for i in range(6)]
    clients = [first, second] * 3
    await asyncio.gather(
        *(c.transact(OPERATORS[0], call, timeout_s=PATIENCE_S) for c, call in zip(clients, calls, strict=True))
    )
    assert len(await first.runs()) == 6


async def test_a_cancelled_call_leaves_nothing_running(served: Served) -> None:
    contracts = served.contracts()
    served.asleep = True
    before = asyncio.all_tasks()
    task = asyncio.ensure_future(contracts.transact(MEMBERS[0], contracts.join(1, True), timeout_s=PATIENCE_S))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


class Distant(LedgerProvider):
    """Answers are 20 ms under way."""

    def __init__(self, rpc: Rpc) -> None:
        super().__init__(rpc)
        self.answered = asyncio.Event()
        """A question about a receipt was answered, although the answer has not arrived yet."""

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        answer = await super().make_request(method, params)
        if method == "eth_getTransactionReceipt":
            self.answered.set()
        await asyncio.sleep(0.02)
        return answer


async def test_a_block_between_the_answer_and_the_wait_is_not_missed(served: Served) -> None:
    """Blocks come only where transactions wait: the hook would not be heard again."""
    provider = Distant(served.rpc)
    contracts = Contracts(AsyncWeb3(provider), on_block=served.next_block)
    served.asleep = True
    task = asyncio.ensure_future(
        contracts.transact(OPERATORS[0], contracts.propose(POLICY, GENESIS), timeout_s=PATIENCE_S)
    )
    await provider.answered.wait()
    started_s = time.monotonic()
    served.wake()
    await task
    assert time.monotonic() - started_s < POLL_MAX_S / 2


async def test_no_node_at_the_address_is_unavailable(unused_tcp_port: int) -> None:
    contracts = Contracts(AsyncWeb3(AsyncHTTPProvider(f"http://127.0.0.1:{unused_tcp_port}")))
    with pytest.raises(UnavailableError, match="the ledger does not answer eth_call"):
        await contracts.members()


async def test_transactions_are_free_and_bounded(served: Served) -> None:
    contracts = served.contracts()
    receipt = await contracts.transact(OPERATORS[0], contracts.propose(POLICY, GENESIS), timeout_s=PATIENCE_S)
    sent = served.rpc.handle("eth_getTransactionByHash", [to_hex(receipt.transaction)])
    assert (sent["gasPrice"], int(sent["gas"], 16), sent["value"]) == ("0x0", 20_000_000, "0x0")
    assert 21_000 < receipt.gas_used < 1_000_000


def test_a_call_names_its_contract_and_what_it_is_for(served: Served) -> None:
    call = served.contracts().join(3, True)
    assert (call.to, call.what) == (RUNS, "join run 3")


def test_what_the_contract_cannot_take_is_the_callers_slip(served: Served) -> None:
    contracts = served.contracts()
    for digest in (b"x" * 33, "text"):
        with pytest.raises(ValueError, match=r"Runs\.submit does not take"):
            contracts.submit(1, 0, digest, 1, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="join does not take"):
        contracts.join(-1, True)


# --- metrics


def test_metrics_are_compact_sorted_numbers() -> None:
    assert encode_metrics({"loss": 0.25, "auc": 1}) == b'{"auc":1.0,"loss":0.25}'
    assert encode_metrics({}) == b"{}"


@pytest.mark.parametrize("value", [math.nan, math.inf, "high", None, [1]])
def test_metrics_that_are_no_finite_numbers_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="metrics are finite numbers by name"):
        encode_metrics({"auc": value})


def test_metrics_are_bounded_as_the_contract_bounds_them() -> None:
    longest = {"x" * 504: 1.0}
    assert len(encode_metrics(longest)) == 512
    with pytest.raises(ValueError, match="metrics of 513 bytes as JSON, the ledger takes 512"):
        encode_metrics({"x" * 505: 1.0})


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'{"auc":0.5,"n":3}', {"auc": 0.5, "n": 3.0}),
        (b'{"auc":NaN,"b":Infinity,"c":1e999,"d":true,"e":"x","f":[1],"g":null,"h":-2}', {"h": -2.0}),
        (b'{"a":' + b"9" * 500 + b"}", {}),
        (b"[" * 512, {}),
        (b"[1,2]", {}),
        (b"\xff\xfe", {}),
        (b"", {}),
    ],
)
def test_a_strangers_metrics_are_read_without_harm(data: bytes, found: dict[str, float]) -> None:
    assert decode_metrics(data) == found
