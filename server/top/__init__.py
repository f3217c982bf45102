"""`penstock top`: what running servers do, on a terminal."""
