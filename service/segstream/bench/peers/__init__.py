"""The same network served as one would without segstream, to be compared with it."""
