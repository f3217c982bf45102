// openai-node as its README uses it: https://github.com/openai/openai-node
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const { MODEL, OPENAI_BASE_URL: baseURL } = process.env;
const client = new OpenAI(); // reads OPENAI_API_KEY and OPENAI_BASE_URL
const messages = [{ role: "user", content: "What is the weather in Rome?" }];

const completion = await client.chat.completions.create({ model: MODEL, messages, max_completion_tokens: 16 });
assert.equal(completion.object, "chat.completion");
assert.ok(completion.choices[0].message.content);

let text = "";
const stream = await client.chat.completions.create({ model: MODEL, messages, max_completion_tokens: 16, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.equal(text, completion.choices[0].message.content);

const Weather = z.object({ city: z.enum(["Rome", "Oslo"]), sunny: z.boolean() });
const parsed = await client.chat.completions.parse({
  model: MODEL,
  messages,
  response_format: zodResponseFormat(Weather, "weather"),
});
assert.ok(["Rome", "Oslo"].includes(parsed.choices[0].message.parsed.city));

const called = [];
const runner = client.chat.completions.runTools({
  model: MODEL,
  messages,
  max_tokens: 200,
  tool_choice: { type: "function", function: { name: "get_weather" } },
  tools: [
    {
      type: "function",
      function: {
        name: "get_weather",
        parse: JSON.parse,
        function: async (fields) => (called.push(fields), "sunny"),
        parameters: {
          type: "object",
          properties: { city: { enum: ["Rome", "Oslo"] } },
          required: ["city"],
          additionalProperties: false,
        },
      },
    },
  ],
});
await runner.done();
assert.ok(["Rome", "Oslo"].includes(called[0].city));

const listed = [];
for await (const model of client.models.list()) listed.push(model.id);
assert.ok(listed.includes(MODEL));

const vectors = await client.embeddings.create({ model: "vectors", input: ["one", "two"] });
assert.equal(vectors.data.length, 2);
assert.equal(typeof vectors.data[0].embedding[0], "number"); // it asked for base64

const response = await client.responses.create({ model: MODEL, input: "What is a quota?", max_output_tokens: 16 });
assert.equal(response.object, "response");
assert.ok(response.output_text);
const types = [];
for await (const event of await client.responses.create({ model: MODEL, input: "Hi", max_output_tokens: 16, stream: true })) {
  types.push(event.type);
}
assert.equal(types[0], "response.created");
assert.ok(["response.completed", "response.incomplete"].includes(types.at(-1)));

await assert.rejects(
  client.chat.completions.create({ model: "nobody", messages }),
  (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
);
await assert.rejects(
  new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list(),
  OpenAI.AuthenticationError,
);
