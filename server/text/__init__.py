"""Tokens and text: chat templates, tokenizers, incremental detokenizing, stop strings, the content filter."""
