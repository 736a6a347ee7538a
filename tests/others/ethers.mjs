// A running node through ethers 6, unmodified: members, runs, rounds, events, a vote, blocks by WebSocket, proofs.

import { createRequire } from "node:module";
import { asked, checkProof, headerFields, tell, until } from "./proof.mjs";

const require = createRequire(import.meta.url);
const { Contract, JsonRpcProvider, WebSocketProvider, Wallet, decodeRlp, encodeRlp, isError, keccak256 } = require("ethers");

const { http, ws, operators, addresses, abi, newcomer } = await asked();
const provider = new JsonRpcProvider(http, undefined, { polling: true, pollingInterval: 100, cacheTimeout: -1 });
const [first, second] = operators.map((secret) => new Wallet(secret, provider));
const consortium = new Contract(addresses.Consortium, abi.Consortium, first);
const runs = new Contract(addresses.Runs, abi.Runs, provider);

const seen = { chain: (await provider.getNetwork()).chainId };
seen.members = (await consortium.roster()).map((entry) => [entry.member, entry.record.name]);
seen.validators = [...(await consortium.getValidators())];
const run = await runs.run(1);
seen.run = { name: run.name, rounds: run.rounds, round: run.round, checkpoint: run.checkpoint };
seen.rounds = [];
for (let round = 0n; round < run.round; round++) {
  const closed = await runs.closedRound(1, round);
  seen.rounds.push({ checkpoint: closed.checkpoint, leader: closed.leader });
}
const events = await runs.queryFilter("*", 0, "latest");
seen.events = events.map((event) => event.eventName);
seen.closed = (await runs.queryFilter(runs.filters.RoundClosed(1))).map((event) => event.args.checkpoint);

const raw = await provider.send("eth_getBlockByNumber", ["latest", false]);
seen.header = { computed: keccak256(encodeRlp(headerFields(raw))), told: raw.hash };
const slots = Array.from({ length: 8 }, (_, slot) => "0x" + slot.toString(16));
const proof = await provider.send("eth_getProof", [addresses.Consortium, slots, raw.number]);
seen.proven = checkProof(raw.stateRoot, proof, { keccak: keccak256, decode: decodeRlp });
seen.stored = await Promise.all(slots.map((slot) => provider.getStorage(addresses.Consortium, slot, raw.number)));
seen.code = { computed: keccak256(await provider.getCode(addresses.Consortium)), told: proof.codeHash };

try {
  await consortium.approve.staticCall(99);
} catch (error) {
  seen.revert = { code: isError(error, "CALL_EXCEPTION"), reason: error.reason };
}

const socket = new WebSocketProvider(ws);
const blocks = [];
const waiting = [];
const nominated = [];
await socket.on("block", (number) => blocks.push(number));
await socket.on("pending", (hash) => waiting.push(hash));
const watched = new Contract(addresses.Consortium, abi.Consortium, socket);
await watched.on("Nominated", (proposal, member) => nominated.push({ proposal, member }));
await socket.getBlockNumber(); // both subscriptions stand when this is answered

const { member, operator, name, endpoint, fingerprint } = newcomer;
const sent = await consortium.nominate(member, operator, name, endpoint, fingerprint, false);
const nomination = await sent.wait();
await until(() => nominated.length > 0, "the nomination by WebSocket");
const vote = await (await consortium.connect(second).approve(nominated[0].proposal)).wait();
seen.vote = vote.logs.map((log) => consortium.interface.parseLog(log).name);
seen.admitted = await consortium.isMember(member);
await until(() => blocks.includes(vote.blockNumber), "the vote's block by WebSocket");
seen.followed = { nominated: nominated[0].member, blocks, of: [nomination.blockNumber, vote.blockNumber] };
await until(() => waiting.includes(sent.hash), "the waiting transaction by WebSocket");

const refused = await consortium.nominate(member, operator, name, endpoint, fingerprint, false, { gasLimit: 500_000n });
try {
  await refused.wait();
} catch (error) {
  seen.failed = { status: error.receipt.status };
}

const removal = await (await consortium.proposeRemoval(member)).wait();
const { proposal } = consortium.interface.parseLog(removal.logs[0]).args;
await (await consortium.connect(second).approve(proposal)).wait();
seen.removed = !(await consortium.isMember(member));
tell(seen);
