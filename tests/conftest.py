"""Fixtures for all tests."""

import os

import pytest
import torch

# Tests run side by side with others; threads that spin for each other would only slow them down.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """What the package keeps goes where pytest caches, not among the user's own files."""
    if config.cache is not None:
        os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("xdg"))
        os.environ["XDG_DATA_HOME"] = str(config.cache.mkdir("xdg-data"))
