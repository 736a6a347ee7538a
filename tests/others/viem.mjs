// A running node through viem 2, unmodified: members, runs, rounds, events, a vote, blocks by WebSocket, proofs.

import { createRequire } from "node:module";
import { asked, checkProof, headerFields, tell, until } from "./proof.mjs";

const require = createRequire(import.meta.url);
const viem = require("viem");
const { privateKeyToAccount } = require("viem/accounts");

const { http, ws, chain: id, operators, addresses, abi, newcomer } = await asked();
const chain = viem.defineChain({
  id,
  name: "swarm",
  nativeCurrency: { name: "none", symbol: "NONE", decimals: 18 },
  rpcUrls: { default: { http: [http], webSocket: [ws] } },
});
const client = viem.createPublicClient({ chain, transport: viem.http(http, { batch: true }), pollingInterval: 100 });
const follower = viem.createPublicClient({ chain, transport: viem.webSocket(ws) });
const accounts = operators.map((secret) => privateKeyToAccount(secret));
const wallets = accounts.map((account) => viem.createWalletClient({ account, chain, transport: viem.http(http) }));
const consortium = { address: addresses.Consortium, abi: abi.Consortium };
const runs = { address: addresses.Runs, abi: abi.Runs };
const read = (contract, functionName, args = []) => client.readContract({ ...contract, functionName, args });

const seen = { chain: await client.getChainId() };
seen.members = (await read(consortium, "roster")).map((entry) => [entry.member, entry.record.name]);
seen.validators = await read(consortium, "getValidators");
const run = await read(runs, "run", [1n]);
seen.run = { name: run.name, rounds: run.rounds, round: run.round, checkpoint: run.checkpoint };
seen.rounds = [];
for (let round = 0n; round < run.round; round++) {
  const closed = await read(runs, "closedRound", [1n, round]);
  seen.rounds.push({ checkpoint: closed.checkpoint, leader: closed.leader });
}
const events = await client.getContractEvents({ ...runs, fromBlock: 0n });
seen.events = events.map((event) => event.eventName);
const closed = await client.getContractEvents({ ...runs, eventName: "RoundClosed", args: { run: 1n }, fromBlock: 0n });
seen.closed = closed.map((event) => event.args.checkpoint);

const raw = await client.request({ method: "eth_getBlockByNumber", params: ["latest", false] });
seen.header = { computed: viem.keccak256(viem.toRlp(headerFields(raw))), told: raw.hash };
const slots = Array.from({ length: 8 }, (_, slot) => viem.toHex(slot, { size: 32 }));
const proof = await client.request({ method: "eth_getProof", params: [addresses.Consortium, slots, raw.number] });
seen.proven = checkProof(raw.stateRoot, proof, { keccak: viem.keccak256, decode: viem.fromRlp });
const blockNumber = BigInt(raw.number);
seen.stored = await Promise.all(
  slots.map((slot) => client.getStorageAt({ address: addresses.Consortium, slot, blockNumber })),
);
seen.code = { computed: viem.keccak256(await client.getCode({ address: addresses.Consortium })), told: proof.codeHash };

try {
  await client.simulateContract({ ...consortium, functionName: "approve", args: [99n], account: accounts[0] });
} catch (error) {
  const revert = error.walk((one) => one instanceof viem.ContractFunctionRevertedError);
  seen.revert = { code: revert !== null, reason: revert.reason };
}

const blocks = [];
const waiting = [];
const nominated = [];
const onError = (error) => {
  throw error;
};
follower.watchBlockNumber({ onBlockNumber: (number) => blocks.push(Number(number)), onError });
follower.watchPendingTransactions({ onTransactions: (hashes) => waiting.push(...hashes), onError });
follower.watchContractEvent({
  ...consortium,
  eventName: "Nominated",
  onLogs: (logs) => nominated.push(...logs.map((log) => log.args)),
  onError,
});
const polled = [];
client.watchContractEvent({ ...consortium, onLogs: (logs) => polled.push(...logs.map((log) => log.eventName)), onError });
await new Promise((resolve) => setTimeout(resolve, 500)); // viem does not tell when its subscriptions stand

const send = async (wallet, functionName, args, more = {}) => {
  const hash = await wallet.writeContract({ ...consortium, functionName, args, ...more });
  return client.waitForTransactionReceipt({ hash });
};
const named = (receipt) =>
  viem.parseEventLogs({ abi: abi.Consortium, logs: receipt.logs }).map((log) => log.eventName);
const { member, operator, name, endpoint, fingerprint } = newcomer;
const nomination = await send(wallets[0], "nominate", [member, operator, name, endpoint, fingerprint, false]);
await until(() => nominated.length > 0, "the nomination by WebSocket");
const vote = await send(wallets[1], "approve", [nominated[0].proposal]);
seen.vote = named(vote);
seen.admitted = await read(consortium, "isMember", [member]);
await until(() => blocks.includes(Number(vote.blockNumber)), "the vote's block by WebSocket");
seen.followed = { nominated: nominated[0].member, blocks, of: [nomination.blockNumber, vote.blockNumber].map(Number) };
await until(() => waiting.includes(nomination.transactionHash), "the waiting transaction by WebSocket");
await until(() => polled.includes("Admitted"), "the admission by a polled filter");

const refused = await send(wallets[0], "nominate", [member, operator, name, endpoint, fingerprint, false], { gas: 500_000n });
seen.failed = { status: refused.status === "reverted" ? 0 : 1 };

const removal = await send(wallets[0], "proposeRemoval", [member]);
const [{ args }] = viem.parseEventLogs({ abi: abi.Consortium, logs: removal.logs, eventName: "RemovalProposed" });
await send(wallets[1], "approve", [args.proposal]);
seen.removed = !(await read(consortium, "isMember", [member]));
tell(seen);
