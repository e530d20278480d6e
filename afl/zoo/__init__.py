"""Trained detectors as files: safetensors with everything that their use needs, read without pickle."""

from afl.zoo.files import FORMAT, ZOO, Entry, names, read_entry, write_entry, zoo_file

__all__ = ["FORMAT", "ZOO", "Entry", "names", "read_entry", "write_entry", "zoo_file"]
