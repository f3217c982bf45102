"""Scripts that run in another environment than Penstock's: each needs its libraries alone, and prints one JSON line."""
