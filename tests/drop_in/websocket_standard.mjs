// The WebSocket of browsers, from undici: it can't set headers, so the key travels as a subprotocol.
import assert from "node:assert/strict";
import { WebSocket } from "undici";

const { MODEL, OPENAI_API_KEY, WEBSOCKET_URL } = process.env;
const socket = new WebSocket(WEBSOCKET_URL, ["penstock", `openai-insecure-api-key.${OPENAI_API_KEY}`]);
let text = "";
const reason = await new Promise((resolve, reject) => {
  socket.addEventListener("error", reject);
  socket.addEventListener("open", () => {
    assert.equal(socket.protocol, "penstock");
    socket.send(JSON.stringify({ model: MODEL, max_tokens: 8, messages: [{ role: "user", content: "What is a quota?" }] }));
  });
  socket.addEventListener("message", ({ data }) => {
    const choice = JSON.parse(data).choices[0];
    text += choice.delta.content ?? "";
    if (choice.finish_reason) resolve(choice.finish_reason);
  });
});
socket.close();
assert.ok(text);
assert.equal(reason, "length");
