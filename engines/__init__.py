"""Execution: token ids in, token ids out. No HTTP, no OpenAI words."""
