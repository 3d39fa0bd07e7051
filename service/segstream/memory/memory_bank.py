"""The memory bank: the pages of one session, oldest first."""

from collections import deque

from segstream.memory.page_pool import PagePool


class MemoryBank:
    """The last ``memory_length`` frames of a session, as slots of a pool.

    A frame passes in two steps, so that a failed one changes nothing::

        slots      [a b c]      what the engine may read
        reserve()  [a b c] d    the engine writes page d
        commit()   [b c d]      a goes back to the pool     (or rollback(): d goes back)
    """

    def __init__(self, pool: PagePool, memory_length: int) -> None:
        self.pool = pool
        self.pages = pool.pages
        self.memory_length = memory_length
        self._slots: deque[int] = deque()
        self._reserved: deque[int] = deque()

    @property
    def slots(self) -> tuple[int, ...]:
        """The committed slots, oldest first; at most ``memory_length``."""
        return tuple(self._slots)

    def reserve(self) -> int:
        """A slot for the next frame. Raises ExhaustedError when the pool is full."""
        slot = self.pool.allocate()
        self._reserved.append(slot)
        return slot

    def commit(self, *, is_reset: bool = False) -> None:
        """The first page reserved joins the bank; beyond ``memory_length`` the oldest leaves.

        is_reset: all the older ones leave.
        """
        assert self._reserved, "nothing is reserved"
        self._slots.append(self._reserved.popleft())
        num_kept = min(1, self.memory_length) if is_reset else self.memory_length
        while len(self._slots) > num_kept:
            self.pool.free(self._slots.popleft())

    def rollback(self) -> None:
        """Whatever is reserved goes back to the pool; the bank is as it was."""
        assert self._reserved, "nothing is reserved"
        while self._reserved:
            self.pool.free(self._reserved.popleft())

    def release(self) -> None:
        """Give every page back to the pool; the bank is empty."""
        if self._reserved:
            self.rollback()
        while self._slots:
            self.pool.free(self._slots.popleft())
