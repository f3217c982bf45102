// The package `ws`, whose clients can set headers.
import assert from "node:assert/strict";
import WebSocket from "ws";

const { MODEL, OPENAI_API_KEY, WEBSOCKET_URL } = process.env;
const socket = new WebSocket(WEBSOCKET_URL, { headers: { Authorization: `Bearer ${OPENAI_API_KEY}` } });
let text = "";
const reason = await new Promise((resolve, reject) => {
  socket.on("error", reject);
  socket.on("open", () => {
    socket.send(JSON.stringify({ model: MODEL, max_tokens: 8, messages: [{ role: "user", content: "What is a quota?" }] }));
  });
  socket.on("message", (data, isBinary) => {
    assert.equal(isBinary, false);
    const choice = JSON.parse(data).choices[0];
    text += choice.delta.content ?? "";
    if (choice.finish_reason) resolve(choice.finish_reason);
  });
});
socket.close();
assert.ok(text);
assert.equal(reason, "length");
