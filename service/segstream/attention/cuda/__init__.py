"""The local memory attention on CUDA: kernels, their build, and the code that launches them.

Computes the forward result only; gradients are the torch implementation's, which runs on a GPU too.
"""

from segstream.attention.cuda.errors import KernelUnavailableError
from segstream.attention.cuda.launch import local_memory_attention_cuda, supports
from segstream.cuda_driver import CudaError

__all__ = ["CudaError", "KernelUnavailableError", "local_memory_attention_cuda", "supports"]
