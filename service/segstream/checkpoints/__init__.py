"""Checkpoints that come with the package, each with its model card."""

DEFAULT = "lmanet-erfnet-camvid"
"""The checkpoint that is served where none is named."""
