"""Benchmarks that users can run: ``segstream bench``."""
