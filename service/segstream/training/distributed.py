"""Training on several GPUs or processes, as ``torchrun`` starts them."""

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


class Group:
    """The processes that train one model. Started by hand there is one.

    ``torchrun`` tells each process who it is through the environment, which torch reads.
    """

    def __init__(self) -> None:
        self._is_ours = distributed.is_torchelastic_launched() and not distributed.is_initialized()
        if self._is_ours:
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        is_distributed = distributed.is_initialized()
        self.rank = distributed.get_rank() if is_distributed else 0
        self.size = distributed.get_world_size() if is_distributed else 1

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", distributed.get_node_local_rank(fallback_rank=0))

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the processes."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module)

    def mean(self, value: float) -> float:
        """The mean over the processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return float(total) / self.size

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            distributed.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self._is_ours:
            distributed.destroy_process_group()
