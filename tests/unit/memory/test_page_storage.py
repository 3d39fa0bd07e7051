"""Pages in a device's own memory."""

import pytest

from segstream.errors import ExhaustedError
from segstream.memory.page_storage import DeviceStorage
from segstream.pages import PageGeometry


def test_a_device_without_room_says_so() -> None:
    huge = PageGeometry(height=1 << 20, width=1 << 20, key_channels=4, value_channels=5)
    with pytest.raises(ExhaustedError, match="cpu is out of memory"):
        DeviceStorage().allocate(huge, 1)
