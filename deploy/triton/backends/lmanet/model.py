"""Triton's backend ``lmanet``: all of it is in the package."""

from segstream.triton.backend import TritonPythonModel as TritonPythonModel
