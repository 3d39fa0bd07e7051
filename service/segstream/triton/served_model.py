"""One model in Triton as the service sees it: what it is, whether it answers, and its recovery."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from segstream.errors import EngineError, UnavailableError
from segstream.triton.client import TritonClient, TroubleError, UnreachableError
from segstream.triton.contract import Description
from segstream.triton.process import OtherProcess

_log = structlog.get_logger(__name__)

_CANARY_PERIOD_SECONDS = 2.0
_CANARY_TIMEOUT_SECONDS = 5.0
# Triton takes a second to notice that a stub has died. One that took its place answers at once,
# unless it is busy; and frames were under way, so that this one did not end in order.
_DEAD_CANARY_TIMEOUT_SECONDS = 0.2
_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 1.0


class ServedModel:
    """Keeps a model answering.

    Triton takes a model whose stub has died for ready and never starts another. So the model itself
    is asked whether it answers, its process is watched where it can be seen from here, and it is
    loaded anew when it is gone. ``fault`` says why it does not serve, empty where it does.
    """

    def __init__(
        self, name: str, client: TritonClient, on_server_started: Callable[[], Awaitable[None]]
    ) -> None:
        self.name = name
        self.num_in_flight = 0
        self.fault = "it was not asked yet"
        self._client = client
        self._on_server_started = on_server_started
        self._description: Description | None = None
        self._process: OtherProcess | None = None
        self._was_at_work = False
        self._is_serving = asyncio.Event()
        self._has_trouble = asyncio.Event()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep())

    @property
    def description(self) -> Description:
        assert self._description is not None, "wait_until_serving() comes first"
        return self._description

    @property
    def is_serving(self) -> bool:
        return self._is_serving.is_set()

    @property
    def lost(self) -> "asyncio.Future[None]":
        """Done when the process that computes now has ended, where that can be seen."""
        return self._lost

    async def wait_until_serving(self, deadline: float) -> None:
        """Raises UnavailableError when it does not by ``deadline`` on the loop's clock."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._is_serving.wait()
        except TimeoutError as error:
            raise UnavailableError(
                f"model {self.name!r} in Triton at {self._client.address} does not answer: "
                f"{self.fault}"
            ) from error

    def suspect(self, fault: str) -> None:
        """Something went wrong: take no more steps until the model has answered."""
        self.fault = fault
        self._is_serving.clear()
        self._has_trouble.set()

    async def refresh(self) -> None:
        """Ask anew what the model is; trouble, if there is any, is seen to."""
        try:
            self._take(await self._ask(_CANARY_TIMEOUT_SECONDS))
        except (TroubleError, EngineError) as error:
            self.suspect(str(error))

    def end_process(self) -> bool:
        """Kill the process that computes; False where it cannot be reached from here."""
        return self._process is not None and self._process.kill()

    async def close(self) -> None:
        """Stop looking after it."""
        self._keeper.cancel()
        with suppress(asyncio.CancelledError):
            await self._keeper
        self._let_process_go()

    async def _keep(self) -> None:
        while True:
            await self._recover()
            await self._watch()

    async def _recover(self) -> None:
        delay, told = _RETRY_SECONDS, ""
        while True:
            try:
                await self._revive()
                break
            except (TroubleError, EngineError) as error:
                self.fault = str(error)
            if self.fault != told:
                _log.warning("model does not answer", model=self.name, fault=self.fault)
                told = self.fault
            await asyncio.sleep(delay)
            delay = min(2 * delay, _MAX_RETRY_SECONDS)
        _log.info("model answers", model=self.name, digest=self.description.digest)
        self.fault = ""
        self._was_at_work = False
        self._has_trouble.clear()
        self._is_serving.set()

    async def _revive(self) -> None:
        is_dead = self._lost.done() and self._was_at_work
        try:
            found = await self._ask(
                _DEAD_CANARY_TIMEOUT_SECONDS if is_dead else _CANARY_TIMEOUT_SECONDS
            )
        except UnreachableError:
            raise
        except TroubleError as error:
            _log.warning("loading the model anew", model=self.name, because=str(error))
            self.end_process()  # one that hangs would keep Triton from unloading it
            await self._client.revive(self.name)
            found = await self._ask(_CANARY_TIMEOUT_SECONDS)
        await self._on_server_started()
        self._take(found)

    async def _watch(self) -> None:
        """Until there is trouble."""
        while not self._has_trouble.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_CANARY_PERIOD_SECONDS):
                    await self._has_trouble.wait()
            # Frames under way tell by themselves, and may keep the answer waiting for long.
            if not self.num_in_flight and not self._has_trouble.is_set():
                await self.refresh()

    async def _ask(self, timeout_seconds: float) -> Description:
        return await self._client.describe(self.name, timeout_seconds=timeout_seconds)

    def _take(self, found: Description) -> None:
        old, self._description = self._description, found
        is_same = old is not None and (old.pid, old.started) == (found.pid, found.started)
        if is_same and not self._lost.done():
            return
        self._let_process_go()
        self._lost = asyncio.get_running_loop().create_future()
        self._process = OtherProcess.find(found.pid, found.started)
        if self._process is not None:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._process.fileno(), self._process_ended)

    def _process_ended(self) -> None:
        self._was_at_work = self.num_in_flight > 0
        self._let_process_go()
        self._lost.set_result(None)
        self.suspect("its process has ended")

    def _let_process_go(self) -> None:
        if self._process is not None:
            asyncio.get_running_loop().remove_reader(self._process.fileno())
            self._process.close()
            self._process = None
