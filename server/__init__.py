"""The gateway: the only room that knows HTTP, WebSocket and OpenAI's wire format."""
