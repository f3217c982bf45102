"""What a gateway costs by itself: its processor time and the latency that it adds, against the floor and LiteLLM."""
