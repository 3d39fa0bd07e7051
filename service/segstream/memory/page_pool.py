"""The page pool: one preallocated block of pages of one geometry, handed out by slot."""

from segstream.errors import ExhaustedError
from segstream.memory.page_storage import PageStorage
from segstream.pages import PageGeometry


class PagePool:
    """``num_pages`` pages and the list of those that are free.

    Slots are plain numbers; who holds one owns its page until giving it back. The page given back
    last is handed out first: it is still warm, and memory never needed is never touched. Not
    thread-safe: one thread allocates and frees, engines only read and write the tensors.
    """

    def __init__(self, geometry: PageGeometry, num_pages: int, storage: PageStorage) -> None:
        self.geometry = geometry
        self.num_pages = num_pages
        self.pages = storage.allocate(geometry, num_pages)
        self._free = list(reversed(range(num_pages)))
        self._used: set[int] = set()

    @property
    def num_used(self) -> int:
        return len(self._used)

    @property
    def page_bytes(self) -> int:
        return self.geometry.num_elements * self.pages.keys.element_size()

    def allocate(self) -> int:
        """A free slot, now the caller's. Raises ExhaustedError when none is left."""
        if not self._free:
            raise ExhaustedError(f"page pool is full: all {self.num_pages} pages are in use")
        slot = self._free.pop()
        self._used.add(slot)
        return slot

    def free(self, slot: int) -> None:
        """Give back a slot. Raises ValueError for one that is not in use."""
        if slot not in self._used:
            raise ValueError(f"slot {slot} is not in use")
        self._used.remove(slot)
        self._free.append(slot)

    def check_integrity(self) -> None:
        """Assert that every page is either free or in use, and none is both or twice."""
        free = set(self._free)
        assert len(free) == len(self._free), "a slot is free twice"
        assert not free & self._used, "a slot is both free and in use"
        assert free | self._used == set(range(self.num_pages)), "a slot is lost"
