"""What can go wrong between this process and a kernel."""

from segstream.cuda_driver import CudaError


class KernelUnavailableError(CudaError):
    """No kernel for this call: none takes its shape, or none is prebuilt or can be compiled."""
