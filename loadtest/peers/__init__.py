"""Penstock beside other servers: the same weights, the same requests, in turns, on one machine.

What runs in a peer's own environment lies in `inside/`, imports nothing of ours, and prints JSON.
"""
