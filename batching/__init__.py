"""Decisions: who runs next, in which batch. Plain values in, plain values out."""
