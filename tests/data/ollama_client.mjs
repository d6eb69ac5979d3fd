// Ollama's own client from npm, against a running kvpsi.
import assert from "node:assert";
import { Ollama } from "ollama";

const client = new Ollama({ host: process.env.OLLAMA_HOST });
const options = { temperature: 0, num_predict: 12, num_ctx: 4096 };
const messages = [{ role: "user", content: "Name a river." }];

const { models } = await client.list();
assert.deepEqual(models.map((m) => m.name), ["smol"]);
assert.equal((await client.ps()).models[0].model, "smol");
const shown = await client.show({ model: "smol" });
assert(shown.capabilities.includes("tools") && shown.model_info["llama.context_length"] > 0);
assert((await client.version()).version);

const whole = await client.chat({ model: "smol", messages, options });
assert(whole.message.content && whole.done && whole.eval_count > 0, JSON.stringify(whole));
assert(["stop", "length"].includes(whole.done_reason));
let text = "";
let last;
for await (const part of await client.chat({ model: "smol:latest", messages, options, stream: true })) {
  text += part.message.content;
  last = part;
}
assert.equal(text, whole.message.content);
assert.equal(last.eval_count, whole.eval_count);

const made = await client.generate({ model: "smol", prompt: "Name a river.", options });
assert.equal(made.response, whole.message.content);
const raw = await client.generate({ model: "smol", prompt: "One, two,", raw: true, options });
assert(raw.response && raw.eval_count > 0);
assert.equal((await client.generate({ model: "smol", prompt: "" })).done_reason, "load");

const format = {
  type: "object",
  properties: { name: { type: "string", maxLength: 10 }, wet: { type: "boolean" } },
  required: ["name", "wet"],
  additionalProperties: false,
};
const formed = await client.chat({ model: "smol", messages, format, options: { temperature: 0, num_predict: 100 } });
assert.equal(typeof JSON.parse(formed.message.content).wet, "boolean");
const free = await client.chat({ model: "smol", messages, format: "json", options: { temperature: 0, num_predict: 60 } });
assert(free.message.content.startsWith("{"));

const tool = {
  type: "function",
  function: { name: "look", description: "Looks.", parameters: { type: "object", properties: { at: { type: "string" } } } },
};
const after = [
  ...messages,
  { role: "assistant", content: "", tool_calls: [{ function: { name: "look", arguments: { at: "map" } } }] },
  { role: "tool", tool_name: "look", content: "The Nile." },
];
const looked = await client.chat({ model: "smol", messages: after, tools: [tool], options });
assert(looked.message.content || looked.message.tool_calls, JSON.stringify(looked));

for (const [wrong, status, says] of [
  [{ model: "other", messages }, 404, "other"],
  [{ model: "smol", messages, options: { mirostat: 2 } }, 400, "mirostat"],
  [{ model: "smol", messages: [{ role: "user", content: "x", images: ["eA=="] }] }, 400, "images"],
  [{ model: "smol", messages, format: { type: "array", uniqueItems: true } }, 400, "uniqueItems"],
]) {
  await assert.rejects(client.chat(wrong), (e) => e.status_code === status && e.message.includes(says));
}
const { embeddings } = await client.embed({ model: "smol", input: ["a river", "a stream"] });
assert.equal(embeddings.length, 2);
assert(Math.abs(Math.hypot(...embeddings[0]) - 1) < 1e-3 && embeddings[0].length === embeddings[1].length);
await assert.rejects(client.embed({ model: "smol", input: "x", dimensions: 5 }), (e) => e.status_code === 400);

const left = await client.chat({ model: "smol", messages, stream: true, options: { num_predict: 500 } });
for await (const _ of left) {
  left.abort();
  break;
}
console.log("works: chat, streamed, tools, schemas, embeddings, errors");
console.log("all is well");
