"""Serving through NVIDIA Triton: the engine, the backend, and a server of one's own."""
