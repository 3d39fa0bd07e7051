"""segstream: stateful streaming of video semantic segmentation."""

from importlib.metadata import version

__version__ = version("segstream")
