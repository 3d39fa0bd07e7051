"""The pools of services that a backend has mapped."""

from segstream.errors import InvalidInputError
from segstream.memory.cuda_memory import CudaMemory
from segstream.memory.cuda_storage import map_cuda_pool
from segstream.memory.pool_handle import PoolHandle
from segstream.memory.shared_storage import exists, map_pool
from segstream.pages import Pages


class MappedPools:
    """Maps a pool at its first use and keeps it for as long as its service has it.

    So nothing has to be announced: a backend that was started anew finds every pool by itself.
    ``gpu`` is the memory of the device that computes, None for the CPU.
    """

    def __init__(self, gpu: CudaMemory | None = None) -> None:
        self._gpu = gpu
        self._pools: dict[str, tuple[PoolHandle, Pages]] = {}

    def __len__(self) -> int:
        return len(self._pools)

    def find(self, text: str) -> tuple[PoolHandle, Pages]:
        """The pool of an encoded handle. Raises InvalidInputError for one that cannot be used."""
        self.forget_the_gone()
        if text not in self._pools:
            handle = PoolHandle.decode(text)
            self._pools[text] = handle, self._map(handle)
        return self._pools[text]

    def forget_the_gone(self) -> None:
        """A mapping keeps the memory, though its service gave it back."""
        gone = [text for text, (handle, _) in self._pools.items() if not exists(handle.region)]
        for text in gone:
            del self._pools[text]

    def _map(self, handle: PoolHandle) -> Pages:
        if handle.is_on_gpu is not (self._gpu is not None):
            places = {True: "a GPU", False: "the host's memory"}
            raise InvalidInputError(
                f"pool {handle.region!r} is in {places[handle.is_on_gpu]}, the model computes with "
                f"{places[self._gpu is not None]}: start the service with the same --device",
                field="pool",
            )
        if self._gpu is None:
            return map_pool(handle)
        return map_cuda_pool(handle, self._gpu)
