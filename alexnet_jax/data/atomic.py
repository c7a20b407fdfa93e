"""Files that are there whole or not at all, and are never written over unasked."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator


def check_new(path: pathlib.Path, *, force: bool = False, what: str = "--out") -> None:
    """Whether a file can be written at the end, asked before the work.

    Raises:
      ValueError: it is there already and `force` is false, it is a folder, or its folder is not
        there or can't be written.
    """
    if path.is_dir():
        raise ValueError(f"{what} {path} is a folder: give the name of a file")
    if path.exists() and not force:
        raise ValueError(f"{what} {path} is there already: give another name, or --force to replace it")
    try:
        with _partial(path).open("xb"):
            pass
        _partial(path).unlink()
    except OSError as error:
        raise ValueError(f"{what} {path} can't be written: {error.strerror or error}") from None


@contextlib.contextmanager
def replacing(path: pathlib.Path, suffix: str = "") -> Iterator[pathlib.Path]:
    """A path to write to; the file takes its place at the end, and on an error it is removed.

    Args:
      path: the file's place.
      suffix: what the name to write to must end in, for libraries that go by it.
    """
    partial = _partial(path, suffix)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: pathlib.Path, suffix: str = "") -> pathlib.Path:
    """Beside the file, of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial{suffix}")
