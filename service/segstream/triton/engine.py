"""The engine that computes in a Triton server."""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import structlog
import torch

from segstream.engine import ModelInfo, Step, StepResult
from segstream.errors import EngineError, ModelChangedError, NotFoundError, UnavailableError
from segstream.memory.cuda_memory import DeviceMemory
from segstream.memory.cuda_storage import CudaStorage
from segstream.memory.page_storage import DeviceStorage, PageStorage
from segstream.memory.shared_storage import SharedStorage
from segstream.pages import PageGeometry
from segstream.triton.client import (
    Statistics,
    TritonClient,
    TroubleError,
    UnreachableError,
    let_go,
)
from segstream.triton.served_model import ServedModel
from segstream.triton.transport import SharedMemoryTransport, TensorTransport, Transport

_log = structlog.get_logger(__name__)

PagePassing = Literal["auto", "shared", "tensors"]
"""How a server gets at the memory: it maps the pages, or they travel with each request."""

_MAX_FAULTS = 3
_POLL_SECONDS = 0.2


class TritonEngine:
    """Steps in a Triton server, which batches those of many sessions and services.

    A frame waits out the death of server or stub, for at most ``timeout_seconds`` in all: its page
    is written anew, and nobody else reads it before the session has committed it.
    """

    def __init__(
        self,
        address: str,
        model_names: Sequence[str],
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        timeout_seconds: float = 30.0,
        page_passing: PagePassing = "auto",
    ) -> None:
        self._client = TritonClient(address)
        self._names = model_names
        self._dtype = dtype
        self._device = device
        self._timeout_seconds = timeout_seconds
        self._page_passing = page_passing
        self._served: dict[str, ServedModel] = {}
        self._transport: Transport = TensorTransport(self._client)
        self._storage: PageStorage = DeviceStorage(dtype, device)
        self._is_stopping = False

    @property
    def page_storage(self) -> PageStorage:
        """Where the pages must lie for this server; settled by ``start``."""
        return self._storage

    async def start(self, timeout_seconds: float) -> None:
        """Wait for the server and its models.

        Raises NotFoundError for a model that is not in its repository, UnavailableError when it
        does not answer in time or cannot map this machine's memory though it has to.
        """
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        await self._check_models(deadline)
        for name in self._names:
            self._served[name] = ServedModel(name, self._client, self._server_started)
        for served in self._served.values():
            await served.wait_until_serving(deadline)
        await self._choose_transport()

    @property
    def models(self) -> dict[str, ModelInfo]:
        return {name: served.description.info for name, served in self._served.items()}

    @property
    def is_ready(self) -> bool:
        return not self._is_stopping and all(s.is_serving for s in self._served.values())

    def page_geometry(self, model: str, height: int, width: int) -> PageGeometry:
        return self._served[model].description.page_geometry(height, width)

    def served(self, model: str) -> ServedModel:
        """One of its models, as it is looked after."""
        return self._served[model]

    async def step(self, step: Step) -> StepResult:
        """See ``Engine``."""
        served = self._served.get(step.model)
        if served is None:
            raise EngineError(f"no model {step.model!r}; there are {sorted(self._served)}")
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        num_faults = 0
        while True:
            if self._is_stopping:
                raise UnavailableError("the engine is stopping")
            await served.wait_until_serving(deadline)
            try:
                return await self._ask(served, step, deadline)
            except ModelChangedError:
                await served.refresh()
                if step.model_digest != served.description.digest:
                    raise
            except UnreachableError as error:
                served.suspect(str(error))
            except TroubleError as error:
                served.suspect(str(error))
                num_faults += 1
                if num_faults == _MAX_FAULTS:
                    raise EngineError(f"Triton failed {num_faults} times: {error}") from error

    async def stop(self) -> None:
        """See ``Engine``."""
        if self._is_stopping:
            return
        self._is_stopping = True
        for served in self._served.values():
            await served.close()
        await self._transport.close()
        await self._client.close()

    async def statistics(self) -> dict[str, Statistics]:
        """What Triton counted, by model; those that cannot be asked now are left out."""
        found = {}
        for name in self._served:
            try:
                found[name] = await self._client.statistics(name)
            except TroubleError as error:
                _log.debug("no statistics", model=name, error=str(error))
        return found

    async def _ask(self, served: ServedModel, step: Step, deadline: float) -> StepResult:
        """The answer, unless the process that computes it ends before, or takes too long."""
        asking = asyncio.ensure_future(self._transport.step(step))
        lost = served.lost
        served.num_in_flight += 1
        try:
            left = deadline - asyncio.get_running_loop().time()
            first: set[asyncio.Future[Any]] = {asking, lost}
            await asyncio.wait(first, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return asking.result()
            if not lost.done():
                return await self._overdue(served, asking)
        finally:
            served.num_in_flight -= 1
            asking.add_done_callback(let_go)
        raise UnreachableError("the process that computed has ended")

    async def _overdue(
        self, served: ServedModel, asking: "asyncio.Future[StepResult]"
    ) -> StepResult:
        """End what hangs. Where that cannot be done from here, the page stays taken until it ends:
        given to another session it might be written to after all."""
        fault = f"no answer in {self._timeout_seconds:g} seconds"
        served.suspect(fault)
        if not served.end_process():
            _log.error("a step hangs and cannot be ended from here", model=served.name)
            return await asking
        raise UnavailableError(f"Triton: {fault}; the process that computed was ended")

    async def _check_models(self, deadline: float) -> None:
        told = ""
        while True:
            try:
                found = await self._client.models()
                break
            except TroubleError as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise UnavailableError(
                        f"no Triton server at {self._client.address}: {error}; start one with "
                        "'segstream triton'"
                    ) from error
                if not told:
                    told = str(error)
                    _log.warning("waiting for Triton", address=self._client.address, fault=told)
                await asyncio.sleep(_POLL_SECONDS)
        if missing := sorted(set(self._names) - set(found)):
            raise NotFoundError(
                f"models: {missing} are not in the repository of Triton at "
                f"{self._client.address}, which has {found}",
                field="models",
            )

    async def _server_started(self) -> None:
        await self._transport.server_started()

    def _shared_storage(self) -> SharedStorage | CudaStorage:
        if torch.device(self._device).type == "cuda":
            return CudaStorage(DeviceMemory(self._device), self._dtype)
        return SharedStorage(self._dtype)

    async def _choose_transport(self) -> None:
        if self._page_passing == "tensors":
            return
        storage = self._shared_storage()
        transport = SharedMemoryTransport(self._client, storage)
        fault = await transport.fault(self._names[0])
        if not fault:
            self._transport, self._storage = transport, storage
            return
        await transport.close()
        told = f"Triton at {self._client.address} cannot use this machine's shared memory: {fault}"
        if self._page_passing == "shared":
            raise UnavailableError(
                f"{told}. Run both on one machine with one /dev/shm, or let the pages travel: "
                "--triton-pages tensors"
            )
        _log.warning(
            "pages travel with every frame, which takes longer; run Triton on this machine, with "
            "the same /dev/shm, to share them",
            fault=told,
        )
