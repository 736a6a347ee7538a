// What a Merkle-Patricia proof proves (yellow paper, appendix D), with whichever library's Keccak and RLP.

/** The value at `key` below `root`, null if the proof shows that there is none; throws if it shows neither. */
export function proven(root, key, nodes, { keccak, decode }) {
  const path = keccak(key).slice(2);
  let wanted = root;
  let rest = path;
  for (const [depth, raw] of nodes.entries()) {
    const embedded = raw.length < 2 + 64;
    if (!(embedded && depth > 0) && keccak(raw) !== wanted) throw new Error(`node ${depth} is not ${wanted}`);
    const node = decode(raw);
    if (node.length === 17) {
      if (rest === "") return node[16] === "0x" ? null : node[16];
      wanted = node[parseInt(rest[0], 16)];
      rest = rest.slice(1);
    } else {
      const odd = "13".includes(node[0][2]);
      const stretch = node[0].slice(odd ? 3 : 4);
      if (!rest.startsWith(stretch)) return null;
      rest = rest.slice(stretch.length);
      if ("23".includes(node[0][2])) return rest === "" ? node[1] : null;
      wanted = node[1];
    }
    if (wanted === "0x") return null;
  }
  throw new Error("the proof ends before the value");
}

/** Checks an answer of eth_getProof against a state root; the storage values by slot. */
export function checkProof(stateRoot, answer, tools) {
  const { decode } = tools;
  const account = decode(proven(stateRoot, answer.address.toLowerCase(), answer.accountProof, tools));
  const [nonce, balance, storageHash, codeHash] = account;
  const number = (hex) => (hex === "0x" ? 0n : BigInt(hex));
  if (number(nonce) !== BigInt(answer.nonce) || number(balance) !== BigInt(answer.balance)) throw new Error("account");
  if (storageHash !== answer.storageHash || codeHash !== answer.codeHash) throw new Error("hashes of the account");
  return answer.storageProof.map(({ key, value, proof }) => {
    const slot = "0x" + BigInt(key).toString(16).padStart(64, "0");
    const found = proven(storageHash, slot, proof, tools);
    const shown = found === null ? 0n : BigInt(decode(found));
    if (shown !== BigInt(value)) throw new Error(`slot ${key} is ${shown}, not ${value}`);
    return "0x" + shown.toString(16);
  });
}

/** The 20 fields of a Cancun header, as RLP takes them, out of an answer of eth_getBlockByNumber. */
export function headerFields(block) {
  const quantity = (hex) => {
    const digits = BigInt(hex).toString(16);
    return digits === "0" ? "0x" : "0x" + (digits.length % 2 ? "0" : "") + digits;
  };
  return [
    block.parentHash, block.sha3Uncles, block.miner, block.stateRoot, block.transactionsRoot, block.receiptsRoot,
    block.logsBloom, quantity(block.difficulty), quantity(block.number), quantity(block.gasLimit),
    quantity(block.gasUsed), quantity(block.timestamp), block.extraData, block.mixHash, block.nonce,
    quantity(block.baseFeePerGas), block.withdrawalsRoot, quantity(block.blobGasUsed), quantity(block.excessBlobGas),
    block.parentBeaconBlockRoot,
  ];
}

/** What the test asks for, from stdin. */
export async function asked() {
  let text = "";
  for await (const part of process.stdin) text += part;
  return JSON.parse(text);
}

/** Waits until `holds()`, and says what did not come. */
export async function until(holds, what, seconds = 30) {
  const end = Date.now() + seconds * 1000;
  while (!holds()) {
    if (Date.now() > end) throw new Error(`${what}: not within ${seconds} s`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Prints what was seen, numbers as text, and ends: open sockets do not hold the process. */
export function tell(seen) {
  const text = JSON.stringify(seen, (_, value) => (typeof value === "bigint" ? value.toString() : value));
  process.stdout.write(text, () => process.exit(0));
}
