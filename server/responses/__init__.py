"""The Responses API: conversations of items over the chat pipeline, kept with their events."""
