"""How a step crosses to Triton and its result comes back."""

import asyncio
import json
import time
from typing import Any, Protocol

import numpy as np
import torch
import tritonclient.grpc.aio as grpc_client

from segstream.engine import Step, StepResult
from segstream.memory.cuda_storage import CudaStorage
from segstream.memory.shared_storage import SharedStorage
from segstream.pages import PageGeometry
from segstream.triton import contract
from segstream.triton.client import TritonClient, TroubleError, array_input
from segstream.triton.frame_regions import FrameRegions

_DESCRIBE_SECONDS = 5.0


class Transport(Protocol):
    """Carries steps to a server. Raises TroubleError, and what the backend raised."""

    async def step(self, step: Step) -> StepResult:
        """One step from request to answer; the frame's page is written when it returns."""

    async def server_started(self) -> None:
        """The server may have been started anew, and have forgotten what it was told."""

    async def close(self) -> None:
        """Give back what is shared."""


class SharedMemoryTransport:
    """Frame and label map lie in shared regions; of the memory only slot numbers travel."""

    def __init__(self, client: TritonClient, storage: SharedStorage | CudaStorage) -> None:
        self._client = client
        self._storage = storage
        self._regions = FrameRegions(client)

    async def fault(self, model: str) -> str:
        """Why server or backend cannot use this machine's memory; empty if they can."""
        pages = self._storage.allocate(PageGeometry(1, 1, 1, 1), 1)
        handle = self._storage.handle(pages).encode()
        try:
            described = await self._client.describe(
                model, handle, timeout_seconds=_DESCRIBE_SECONDS
            )
            await self._regions.register_all()
            async with self._regions.slot(1, 1):
                return described.pool_fault
        except TroubleError as error:
            return str(error)

    async def step(self, step: Step) -> StepResult:
        """See ``Transport``."""
        height, width = step.image.shape[:2]
        started = time.perf_counter()
        async with self._regions.slot(height, width) as slot:
            await asyncio.to_thread(np.copyto, slot.frame, step.image)
            frame = grpc_client.InferInput(contract.FRAME, [1, height, width, 3], "UINT8")
            frame.set_shared_memory(slot.region, step.image.nbytes, slot.frame_offset)
            outputs = [grpc_client.InferRequestedOutput(contract.REPORT)]
            if step.wants_label_map:
                label_map = grpc_client.InferRequestedOutput(contract.LABEL_MAP)
                label_map.set_shared_memory(slot.region, height * width, slot.label_map_offset)
                outputs.append(label_map)
            if step.wants_confidence:
                confidence = grpc_client.InferRequestedOutput(contract.CONFIDENCE)
                confidence.set_shared_memory(slot.region, height * width, slot.confidence_offset)
                outputs.append(confidence)
            parameters = {
                contract.DIGEST: step.model_digest,
                contract.POOL: self._storage.handle(step.pages).encode(),
                contract.READ_SLOTS: " ".join(map(str, step.read_slots)),
                contract.WRITE_SLOT: step.write_slot,
            }
            answer = await self._client.infer(
                step.model, [frame], outputs, parameters, step.traceparent
            )
            found = slot.label_map.copy() if step.wants_label_map else None
            sure = slot.confidence.copy() if step.wants_confidence else None
        return _result(found, sure, answer, started)

    async def server_started(self) -> None:
        """See ``Transport``."""
        await self._regions.register_all()

    async def close(self) -> None:
        """See ``Transport``."""
        await self._regions.close()


class TensorTransport:
    """Frame, label map and the pages that are read and written travel within the messages.

    For a server that cannot map this machine's memory; slower by what the pages weigh.
    """

    def __init__(self, client: TritonClient) -> None:
        self._client = client

    async def step(self, step: Step) -> StepResult:
        """See ``Transport``."""
        started = time.perf_counter()
        inputs = [array_input(contract.FRAME, step.image[None])]
        if step.read_slots and step.wants_label_map:
            slots = list(step.read_slots)
            inputs += [
                array_input(name, pool[slots].float().cpu().numpy()[None])
                for name, pool in (
                    (contract.KEYS, step.pages.keys),
                    (contract.VALUES, step.pages.values),
                )
            ]
        names = [contract.REPORT, contract.KEY, contract.VALUE]
        names += [contract.LABEL_MAP] if step.wants_label_map else []
        names += [contract.CONFIDENCE] if step.wants_confidence else []
        outputs = [grpc_client.InferRequestedOutput(name) for name in names]
        parameters = {contract.DIGEST: step.model_digest}
        answer = await self._client.infer(step.model, inputs, outputs, parameters, step.traceparent)
        for name, pool in ((contract.KEY, step.pages.keys), (contract.VALUE, step.pages.values)):
            pool[step.write_slot] = torch.from_numpy(np.array(answer.as_numpy(name)[0]))
        found = answer.as_numpy(contract.LABEL_MAP)[0] if step.wants_label_map else None
        sure = answer.as_numpy(contract.CONFIDENCE)[0] if step.wants_confidence else None
        return _result(found, sure, answer, started)

    async def server_started(self) -> None:
        """See ``Transport``: there is nothing to tell."""

    async def close(self) -> None:
        """See ``Transport``: nothing is shared."""


def _result(label_map: Any, confidence: Any, answer: Any, started: float) -> StepResult:
    """What is not the backend's own time counts as time in the queue."""
    report = json.loads(answer.as_numpy(contract.REPORT)[0].tobytes())
    seconds: dict[str, float] = report["stage_seconds"]
    seconds["queue"] = time.perf_counter() - started - sum(seconds.values())
    return StepResult(label_map, report["batch_size"], seconds, confidence)
