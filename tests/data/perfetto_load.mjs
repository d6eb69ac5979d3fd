// Loads a trace as ui.perfetto.dev does, by the same engine, and asks it.
//
// node perfetto_load.mjs ENGINE TRACE SQL...
//
// ENGINE is a folder with Perfetto's engine_bundle.js and trace_processor.wasm.
// Prints a line of JSON for each question: an array of rows. Fails if the trace
// cannot be taken or a question cannot be answered.

import { readFileSync } from "node:fs";
import { basename, join } from "node:path";

const [engine, trace, ...questions] = process.argv.slice(2);

// The worker of the page, in a world where it sees no node: it would refuse to
// run in one. What it fetches lies beside it.
const self = { location: { href: "file:///" } };
class XMLHttpRequest {
  open(_, url) {
    this.file = join(engine, basename(url));
  }
  send() {
    this.response = readFileSync(this.file);
  }
}
// Standard output is for answers.
const console = { ...globalThis.console, log: globalThis.console.error };
const world = { self, console, XMLHttpRequest, WorkerGlobalScope: Object, process: undefined };
const code = readFileSync(join(engine, "engine_bundle.js"), "utf8");
new Function(...Object.keys(world), code)(...Object.values(world));

// protos/perfetto/trace_processor/trace_processor.proto: both ways a stream of
// TraceProcessorRpc, each as field 1.
const RPC = { request: 2, invalid: 4, fatal: 5, appendData: 101, queryArgs: 103 };
const RESULT = { append: 201, query: 203, finalize: 212 };
const [APPEND, FINALIZE, QUERY] = [1, 2, 3];
const VARINT = 0, BYTES = 2;
const SLICE = 16 << 20;

const varint = (n) => {
  const bytes = [];
  for (; n > 127; n = Math.floor(n / 128)) bytes.push((n % 128) | 128);
  return Buffer.from([...bytes, n]);
};
const number = (field, n) => Buffer.concat([varint(field * 8 + VARINT), varint(n)]);
const bytes = (field, b) => Buffer.concat([varint(field * 8 + BYTES), varint(b.length), b]);

function readVarint(at) {
  let n = 0n;
  for (let shift = 0n; ; shift += 7n) {
    const byte = at.buf[at.pos++];
    n |= BigInt(byte & 127) << shift;
    if (byte < 128) return BigInt.asIntN(64, n);
  }
}

/** Fields of a message: number to values. */
function fields(buf) {
  const at = { buf, pos: 0 }, found = {};
  while (at.pos < buf.length) {
    const key = Number(readVarint(at));
    let value;
    if (key % 8 === VARINT) {
      value = Number(readVarint(at));
    } else if (key % 8 === BYTES) {
      const length = Number(readVarint(at));
      value = buf.subarray(at.pos, (at.pos += length));
    } else {
      throw new Error(`wire type ${key % 8}`);
    }
    (found[key >> 3] ??= []).push(value);
  }
  return found;
}

function varints(packed) {
  const at = { buf: packed, pos: 0 }, all = [];
  while (at.pos < packed.length) all.push(Number(readVarint(at)));
  return all;
}

/** A QueryResult's cells, batch after batch, as rows by column. */
function rows(results) {
  const names = [], cells = [];
  for (const result of results) {
    for (const name of result[1] ?? []) names.push(name.toString());
    if (result[2]?.[0].length) throw new Error(result[2][0].toString());
    for (const batch of (result[3] ?? []).map(fields)) {
      const whole = (batch[2] ?? []).flatMap(varints);
      const real = Buffer.concat(batch[3] ?? []);
      const text = (batch[5]?.[0] ?? "").toString().split("\0");
      let reals = 0;
      for (const kind of (batch[1] ?? []).flatMap(varints)) {
        if (kind === 1) cells.push(null);
        else if (kind === 2) cells.push(whole.shift());
        else if (kind === 3) cells.push(real.readDoubleLE(8 * reals++));
        else if (kind === 4) cells.push(text.shift());
        else throw new Error(`a cell of kind ${kind}`);
      }
    }
  }
  const all = [];
  for (let i = 0; i < cells.length; i += names.length) {
    all.push(Object.fromEntries(names.map((name, j) => [name, cells[i + j]])));
  }
  return all;
}

const answers = [];
const port = {
  postMessage(data) {
    for (const message of fields(Buffer.from(data))[1]) answers.push(fields(message));
  },
};
self.onmessage({ data: port });
let seq = 0;

/** The engine is compiled in the background, and then takes requests. */
async function until(ready) {
  for (const end = Date.now() + 60_000; !ready(); ) {
    if (Date.now() > end) throw new Error("the engine does not answer");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Sends a request; the answers to it. */
async function ask(method, args = Buffer.alloc(0)) {
  const message = Buffer.concat([number(1, seq++), number(RPC.request, method), args]);
  port.onmessage({ data: new Uint8Array(bytes(1, message)) });
  await until(() => answers.length > 0);
  const got = answers.splice(0);
  for (const answer of got) {
    const wrong = answer[RPC.fatal]?.[0] ?? answer[RPC.invalid]?.[0];
    if (wrong !== undefined) throw new Error(`request ${method}: ${wrong}`);
  }
  return got;
}

/** What answers of a kind say. */
const results = (got, field) => got.flatMap((a) => a[field] ?? []).map(fields);

await until(() => port.onmessage !== undefined);
const data = readFileSync(trace);
for (let at = 0; at < data.length; at += SLICE) {
  const got = await ask(APPEND, bytes(RPC.appendData, data.subarray(at, at + SLICE)));
  const wrong = results(got, RESULT.append).flatMap((r) => r[2] ?? []);
  if (wrong.length > 0) throw new Error(`${trace}: ${wrong[0]}`);
}
for (const end of results(await ask(FINALIZE), RESULT.finalize)) {
  // All that it has is a text, where something is wrong.
  const wrong = Object.values(end).flat().find((v) => v.length > 0);
  if (wrong !== undefined) throw new Error(`${trace}: ${wrong}`);
}
for (const sql of questions) {
  const args = bytes(RPC.queryArgs, bytes(1, Buffer.from(sql)));
  const got = await ask(QUERY, args);
  globalThis.console.log(JSON.stringify(rows(results(got, RESULT.query))));
}
