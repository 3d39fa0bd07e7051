"""The local memory attention operator."""

from segstream.attention.operator import local_memory_attention

__all__ = ["local_memory_attention"]
