"""The response cache: an answer is computed once and replayed, recorded or while it is under way. See docs/cache.md."""
