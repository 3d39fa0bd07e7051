"""The few calls of Triton's gRPC API that are needed, with its errors told apart."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc_client
from tritonclient.utils import InferenceServerException

from segstream.triton import contract
from segstream.triton.contract import Description

# A server that comes back is found at once, not after seconds of growing patience.
_CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
# A question without a frame still needs an input.
_NO_FRAME = np.zeros((1, 1, 1, 3), np.uint8)


class TroubleError(Exception):
    """Triton or its stub could not do what was asked; once it has recovered it may."""


class UnreachableError(TroubleError):
    """Nobody answers at the address, or the server is on its way down or up."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What Triton counted for a model since it was loaded: frames, batches, seconds by part."""

    num_frames: int = 0
    num_batches: int = 0
    seconds: tuple[tuple[str, float], ...] = ()


class TritonClient:
    """A connection to one server. Raises TroubleError, and what the backend raised."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = grpc_client.InferenceServerClient(address, channel_args=_CHANNEL_OPTIONS)

    async def close(self) -> None:
        await self._client.close()

    async def infer(
        self,
        model: str,
        inputs: Sequence[grpc_client.InferInput],
        outputs: Sequence[grpc_client.InferRequestedOutput],
        parameters: dict[str, Any],
        traceparent: str = "",
    ) -> grpc_client.InferResult:
        """One frame."""
        headers = {"traceparent": traceparent} if traceparent else None
        async with _told_apart():
            return await self._client.infer(
                model, inputs, outputs=outputs, parameters=parameters, headers=headers
            )

    async def describe(self, model: str, pool: str = "", *, timeout_seconds: float) -> Description:
        """What the model says of itself, and of a pool if one is named."""
        frame = array_input(contract.FRAME, _NO_FRAME)
        report = grpc_client.InferRequestedOutput(contract.REPORT)
        parameters = {contract.ASK: contract.DESCRIBE} | ({contract.POOL: pool} if pool else {})
        asking = asyncio.ensure_future(self.infer(model, [frame], [report], parameters))
        # Not cancelled when it takes too long: that can end a server whose stub has died.
        asking.add_done_callback(let_go)
        await asyncio.wait({asking}, timeout=timeout_seconds)
        if not asking.done():
            raise TroubleError(f"no word of {model!r} in {timeout_seconds:g} seconds")
        return Description.decode(asking.result().as_numpy(contract.REPORT)[0].tobytes())

    async def models(self) -> list[str]:
        """The names in the server's repository, loaded or not."""
        async with _told_apart():
            index = await self._client.get_model_repository_index()
        return sorted({model.name for model in index.models})

    async def revive(self, model: str) -> None:
        """Load a model that does not answer; one that is taken for ready is unloaded before.

        Only such a one: another service may be loading it already.
        """
        async with _told_apart():
            if await self._client.is_model_ready(model):
                await self._client.unload_model(model)
            await self._client.load_model(model)

    async def statistics(self, model: str) -> Statistics:
        async with _told_apart():
            answer = await self._client.get_inference_statistics(model)
        parts = ("queue", "compute_input", "compute_infer", "compute_output")
        counts = [stats.inference_stats for stats in answer.model_stats]
        return Statistics(
            sum(stats.inference_count for stats in answer.model_stats),
            sum(stats.execution_count for stats in answer.model_stats),
            tuple((part, sum(getattr(c, part).ns for c in counts) / 1e9) for part in parts),
        )

    async def registered_regions(self) -> dict[str, str]:
        """The shared regions that the server has mapped, by name: their keys."""
        async with _told_apart():
            status = await self._client.get_system_shared_memory_status()
        return {name: region.key for name, region in status.regions.items()}

    async def register_region(self, name: str, num_bytes: int) -> None:
        """Let the server map a region of this machine under its own name."""
        async with _told_apart():
            await self._client.register_system_shared_memory(name, f"/{name}", num_bytes)

    async def unregister_region(self, name: str) -> None:
        async with _told_apart():
            await self._client.unregister_system_shared_memory(name)


def let_go(asking: "asyncio.Future[Any]") -> None:
    """Nobody may be left to hear what became of it; else the event loop would complain."""
    if not asking.cancelled():
        asking.exception()


def array_input(name: str, array: np.ndarray) -> grpc_client.InferInput:
    """An input that travels within the request."""
    types = {np.dtype(np.uint8): "UINT8", np.dtype(np.float32): "FP32"}
    made = grpc_client.InferInput(name, list(array.shape), types[array.dtype])
    made.set_data_from_numpy(array)
    return made


@asynccontextmanager
async def _told_apart() -> AsyncIterator[None]:
    try:
        yield
    except InferenceServerException as error:
        text = error.message() or str(error)
        if (own := contract.error_from_text(text)) is not None:
            raise own from error
        kind = UnreachableError if error.status() == "StatusCode.UNAVAILABLE" else TroubleError
        raise kind(text) from error
