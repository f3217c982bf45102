"""Models that an NVIDIA Triton Inference Server runs, by gRPC."""
