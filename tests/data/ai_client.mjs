// Vercel's AI SDK, against a running kvpsi.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";

const provider = createOpenAICompatible({
  name: "kvpsi",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const ask = { model: provider("smol"), temperature: 0, maxRetries: 0 };
const prompt = "Name a river.";

const whole = await generateText({ ...ask, prompt, maxOutputTokens: 12 });
assert(whole.text && whole.usage.outputTokens > 0, whole.text);
const streamed = streamText({ ...ask, prompt, maxOutputTokens: 12 });
let text = "";
for await (const piece of streamed.textStream) text += piece;
assert.equal(text, whole.text);
assert.equal((await streamed.usage).outputTokens, whole.usage.outputTokens);

const schema = jsonSchema({
  type: "object",
  properties: { city: { type: "string", enum: ["Oslo", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
});
const asked = [];
const weather = tool({
  description: "Says the weather.",
  inputSchema: schema,
  execute: async ({ city }) => {
    asked.push(city);
    return `rain in ${city}`;
  },
});
// The second step has the result.
const called = await generateText({
  ...ask, prompt, maxOutputTokens: 200, tools: { weather }, toolChoice: "required", stopWhen: stepCountIs(2),
});
assert(asked.length > 0 && asked.every((city) => ["Oslo", "Rome"].includes(city)), asked);
assert.equal(called.steps.length, 2);
const calls = streamText({ ...ask, prompt, maxOutputTokens: 200, tools: { weather }, toolChoice: "required" });
assert.equal((await calls.toolCalls)[0].toolName, "weather");

const formed = await generateText({ ...ask, prompt, maxOutputTokens: 100, output: Output.object({ schema }) });
assert(["Oslo", "Rome"].includes(formed.output.city), formed.output);

const { embeddings } = await embedMany({
  model: (provider.embeddingModel ?? provider.textEmbeddingModel)("smol"), values: ["a river", "a stream"], maxRetries: 0,
});
assert(Math.abs(Math.hypot(...embeddings[1]) - 1) < 1e-3);
await assert.rejects(generateText({ ...ask, model: provider("other"), prompt }), (e) => e.statusCode === 404);
console.log("works: chat, streamed, tools, schemas, embeddings, errors");
console.log("all is well");
