"""Blocking context managers on the event loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TypeVar

_T = TypeVar("_T")


@asynccontextmanager
async def in_threads(manager: AbstractContextManager[_T]) -> AsyncIterator[_T]:
    """``manager``, entered and left in threads."""
    value = await asyncio.to_thread(manager.__enter__)
    try:
        yield value
    except BaseException as error:
        leaving = asyncio.to_thread(manager.__exit__, type(error), error, error.__traceback__)
        if not await asyncio.shield(leaving):
            raise
    else:
        await asyncio.to_thread(manager.__exit__, None, None, None)
