// js-libp2p as a peer, driven by lines of JSON: one question a line in, one answer a line out.
// It runs with the folder of its packages as working directory: they are modules, which NODE_PATH does not find.

import { createHash } from "node:crypto";
import { createInterface } from "node:readline";

// js-libp2p 3 wants Node.js 22; this is what it misses in 20.
Promise.withResolvers ??= () => {
  const held = {};
  held.promise = new Promise((resolve, reject) => Object.assign(held, { resolve, reject }));
  return held;
};

const { createLibp2p } = await import("libp2p");
const { noise } = await import("@chainsafe/libp2p-noise");
const { yamux } = await import("@chainsafe/libp2p-yamux");
const { tls } = await import("@libp2p/tls");
const { circuitRelayTransport } = await import("@libp2p/circuit-relay-v2");
const { tcp } = await import("@libp2p/tcp");
const { identify } = await import("@libp2p/identify");
const { ping } = await import("@libp2p/ping");
const { privateKeyFromRaw } = await import("@libp2p/crypto/keys");
const { multiaddr } = await import("@multiformats/multiaddr");

const FRAMES = "/swarm/frames/1.0.0";
const [secret, security, relay] = process.argv.slice(-3);
const told = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);
const identified = [];

const node = await createLibp2p({
  privateKey: privateKeyFromRaw(Buffer.from(secret, "hex")),
  addresses: { listen: ["/ip4/127.0.0.1/tcp/0", ...(relay === "nowhere" ? [] : [`${relay}/p2p-circuit`])] },
  transports: [tcp(), circuitRelayTransport()],
  connectionEncrypters: [security === "tls" ? tls() : noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), ping: ping() },
});
node.addEventListener("peer:identify", ({ detail }) => {
  const { agentVersion, protocolVersion, protocols } = detail;
  identified.push({ peer: detail.peerId.toString(), agentVersion, protocolVersion, protocols });
});

// A message of ours: kind, length of the name, length of the payload, name, payload.
const frame = (kind, name, payload) => {
  const head = Buffer.alloc(6);
  head.writeUInt8(kind, 0);
  head.writeUInt8(name.length, 1);
  head.writeUInt32BE(payload.length, 2);
  return Buffer.concat([head, Buffer.from(name), payload]);
};

// The next frame of a stream's bytes, which arrive in pieces of any size.
const reader = (stream) => {
  const pieces = stream[Symbol.asyncIterator]();
  let held = Buffer.alloc(0);
  const atLeast = async (size) => {
    const parts = [held];
    let have = held.length;
    while (have < size) {
      const { value, done } = await pieces.next();
      if (done) throw new Error(`the stream ended ${size - have} bytes early`);
      const part = Buffer.from(value.subarray());
      parts.push(part);
      have += part.length;
    }
    held = Buffer.concat(parts);
  };
  return async () => {
    await atLeast(6);
    const names = held.readUInt8(1);
    const end = 6 + names + held.readUInt32BE(2);
    await atLeast(end);
    const found = { kind: held.readUInt8(0), payload: held.subarray(6 + names, end) };
    held = held.subarray(end);
    return found;
  };
};

const send = async (stream, bytes) => {
  for (let start = 0; start < bytes.length; start += 65536) {
    if (!stream.send(bytes.subarray(start, start + 65536))) await stream.onDrain();
  }
};

const digest = (bytes) => createHash("sha256").update(bytes).digest("hex");

// Every request is answered with the digest of its payload and the payload itself.
await node.handle(FRAMES, async (stream) => {
  const next = reader(stream);
  for (;;) {
    const { kind, payload } = await next();
    if (kind === 1) await send(stream, frame(2, "", Buffer.concat([Buffer.from(digest(payload), "hex"), payload])));
  }
}, { runOnLimitedConnection: true });

const questions = {
  connect: async ({ to }) => {
    await node.dial(multiaddr(to));
    return {};
  },
  ping: async ({ to }) => ({ ms: await node.services.ping.ping(multiaddr(to)) }),
  reached: async () => ({ at: node.getMultiaddrs().map(String) }),
  identified: async () => ({ identified }),
  request: async ({ to, name, size }) => {
    const stream = await node.dialProtocol(multiaddr(to), FRAMES, { runOnLimitedConnection: true });
    const payload = Buffer.alloc(size, "swarm of hospitals ");
    const answer = reader(stream)();
    await send(stream, frame(1, name, payload));
    const { kind, payload: answered } = await answer;
    await stream.close();
    return { kind, sent: digest(payload), answered: answered.toString("hex") };
  },
};

told({ endpoint: node.getMultiaddrs()[0].toString() });
for await (const line of createInterface({ input: process.stdin })) {
  const { ask, ...rest } = JSON.parse(line);
  try {
    told(await questions[ask](rest));
  } catch (error) {
    told({ error: `${error.name}: ${error.message}` });
  }
}
await node.stop();
