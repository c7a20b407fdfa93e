"""What the tests of checkpoints do to files, and how they bear what Orbax leaves behind."""

from __future__ import annotations

import pytest

# Orbax leaves an event loop behind when it fails in the middle, which complains at an end of its own:
# the fixture collects it.
FAILURES = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collected"),
]


def files(checkpoint):
    """The files of a checkpoint that have something in them."""
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)


def truncate(path, _draw=None):
    """The first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path, _draw=None):
    """Nothing left in it."""
    path.write_bytes(b"")


def remove(path, _draw=None):
    """No file."""
    path.unlink()


def flip(path, draw):
    """Another value for one byte, and mostly of only one of its bits."""
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data))
    data[place] ^= draw.choice([1 << draw.randrange(8), draw.randrange(1, 256)])
    path.write_bytes(data)
