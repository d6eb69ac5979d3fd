// OpenAI's own client from npm, against a running kvpsi.
import assert from "node:assert";
import OpenAI from "openai";

// By OPENAI_BASE_URL and OPENAI_API_KEY.
const client = new OpenAI({ maxRetries: 0 });
const ask = { model: "smol", temperature: 0, max_tokens: 12 };
const messages = [{ role: "user", content: "Name a river." }];

assert.deepEqual((await client.models.list()).data.map((m) => m.id), ["smol"]);
const whole = await client.chat.completions.create({ ...ask, messages });
const said = whole.choices[0].message.content;
assert(said && whole.usage.completion_tokens > 0, JSON.stringify(whole));
let text = "";
let usage;
const stream = await client.chat.completions.create({
  ...ask, messages, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, said);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

const parameters = {
  type: "object",
  properties: { city: { enum: ["Oslo", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters } }];
const tooled = { ...ask, max_tokens: 200, messages, tools, tool_choice: "required", parallel_tool_calls: false };
const called = await client.chat.completions.create(tooled);
assert.equal(called.choices[0].finish_reason, "tool_calls");
const [call] = called.choices[0].message.tool_calls;
assert(["Oslo", "Rome"].includes(JSON.parse(call.function.arguments).city), JSON.stringify(call));
// The client puts the deltas together itself.
const gathered = await client.chat.completions.stream({ ...tooled, stream: true }).finalMessage();
assert.equal(gathered.tool_calls[0].function.arguments, call.function.arguments);
const after = await client.chat.completions.create({
  ...ask, tools,
  messages: [...messages, called.choices[0].message, { role: "tool", tool_call_id: call.id, content: "rain" }],
});
assert(after.choices[0].message.content || after.choices[0].message.tool_calls, JSON.stringify(after));

const formed = await client.chat.completions.create({
  ...ask, messages, max_tokens: 100,
  response_format: { type: "json_schema", json_schema: { name: "weather", schema: parameters, strict: true } },
});
assert(["Oslo", "Rome"].includes(JSON.parse(formed.choices[0].message.content).city));

const response = await client.responses.create({ model: "smol", input: "Name a river.", temperature: 0, max_output_tokens: 12 });
assert.equal(response.output_text, said);
let heard = "";
for await (const event of await client.responses.create({
  model: "smol", input: "Name a river.", temperature: 0, max_output_tokens: 12, stream: true,
})) {
  if (event.type === "response.output_text.delta") heard += event.delta;
}
assert.equal(heard, said);

const embedded = await client.embeddings.create({ model: "smol", input: ["a river", "a stream"] });
assert(Math.abs(Math.hypot(...embedded.data[1].embedding) - 1) < 1e-3);

await assert.rejects(
  client.chat.completions.create({ ...ask, messages, tools: [{ type: "custom", custom: { name: "x" } }] }),
  (e) => e instanceof OpenAI.BadRequestError && e.param === "tools",
);
await assert.rejects(
  new OpenAI({ maxRetries: 0, apiKey: "wrong" }).models.list(),
  (e) => e instanceof OpenAI.AuthenticationError,
);
const left = await client.chat.completions.create({ ...ask, messages, max_tokens: 500, stream: true });
for await (const _ of left) {
  left.controller.abort();
  break;
}
console.log("works: chat, streamed, tools, schemas, responses, embeddings, errors");
console.log("all is well");
