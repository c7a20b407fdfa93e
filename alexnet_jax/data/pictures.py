"""Image files as a person names them: listed, and decoded in threads ahead of who takes them."""

from __future__ import annotations

import collections
import dataclasses
import errno
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from alexnet_jax.data.decode import DecodeError, decode, quiet_pillow
from alexnet_jax.data.images import DataError, Memory, cores
from alexnet_jax.data.prepared import MANIFEST
from alexnet_jax.data.sources._files import Found, add_class, looks_like_image, printable, read_file

_AHEAD = 2  # batches that are decoded while one is computed
_GROUP = 4  # images a thread takes at a time
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|data:")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Image files to go through.

    Attributes:
      paths: as named, or found below a named folder; sorted in each folder.
      notes: what a person should know of the choice, a line each.
    """

    paths: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """An image's path as text."""
        return printable(self.paths[index])


def find(named: Sequence[str]) -> Pictures:
    """The images that files and folders mean; nothing is read yet.

    A named file counts whatever it is called; of a folder, also below it, the files whose names end
    as an image's. Each path counts once. Hidden files and links in circles do not.

    Raises:
      DataError: a URL, nothing there, a folder without images or one that can't be listed.
    """
    paths: list[str] = []
    notes = []
    for name in named:
        if _URL.match(name):
            raise DataError(f"{printable(name)} is a URL, and nothing is fetched: download it and give the file")
        if not os.path.isdir(name):
            if not os.path.lexists(name):
                raise DataError(f"{printable(name)}: there is no such file or folder")
            paths.append(name)
            continue
        if (pathlib.Path(name) / MANIFEST).is_file():
            raise DataError(f"{printable(name)} is a prepared folder, whose images are no files: give image files")
        found, folder = Found(), os.path.abspath(name)
        add_class(found, os.path.dirname(folder), os.path.basename(folder), 0)
        below = [path.partition("/")[2] for path in found.paths]
        images = [os.path.join(name, path) for path in below if looks_like_image(path)]
        if not images:
            other = f"; its {len(below):,} files have other names: give them one by one" if below else ""
            raise DataError(f"{printable(name)} holds no files that are named like images{other}")
        if len(images) < len(below):
            notes.append(f"{len(below) - len(images):,} files in {printable(name)} are not named like images: left out")
        paths += images
    return Pictures(tuple(dict.fromkeys(paths)), tuple(notes))


def load_one(path: str, *, size: int, rule: str) -> np.ndarray:
    """One image as a square (size, size, 3), uint8.

    Raises:
      DecodeError, OSError: it can't be used.
    """
    return decode(read_file(path), size=size, rule=rule)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some images in a row.

    Attributes:
      first: the index of the first of them in `Pictures.paths`.
      images: (B, S, S, 3), uint8; the rows that are no image hold anything.
      good: (B,), bool: which rows hold an image.
      broken: (index, reason) of those that could not be used.
    """

    first: int
    images: np.ndarray
    good: np.ndarray
    broken: tuple[tuple[int, str], ...]

    @property
    def indices(self) -> np.ndarray:
        """Which images the good rows hold, int (n,)."""
        return self.first + np.flatnonzero(self.good)


def batches(
    pictures: Pictures, *, size: int, rule: str, batch_size: int, threads: int | None = None
) -> Iterator[Batch]:
    """The images as squares, in order, in batches of one size.

    Of the sizes that need as few batches it is the smallest, so that the last is filled up by
    less than a row a batch. Threads decode two batches ahead. No more than four batches are in memory.

    Args:
      pictures: from `find`.
      size: pixels of the squares' sides.
      rule: see `alexnet_jax.models.resize`.
      batch_size: images in a batch at most.
      threads: how many; default: the cores.

    Raises:
      DataError: no more files may be opened, or memory or a server is gone: not the image's fault.
    """
    steps = max(1, -(-len(pictures) // batch_size))
    batch_size = max(1, -(-len(pictures) // steps))
    memory = Memory()

    def fill(into: np.ndarray, start: int) -> list[tuple[int, str]]:
        broken = []
        for row, path in enumerate(pictures.paths[start : start + len(into)]):
            try:
                into[row] = load_one(path, size=size, rule=rule)
            except DecodeError as error:
                broken.append((start + row, str(error)))
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN):
                    raise DataError(f"{printable(path)} can't be read now ({error}): run the command again") from None
                broken.append((start + row, f"can't be read: {error.strerror or error}"))
        return broken

    def submit(pool: ThreadPoolExecutor, start: int) -> tuple[int, np.ndarray, list[Future]]:
        images = memory.array((batch_size, size, size, 3))
        stop = min(batch_size, len(pictures) - start)
        groups = [
            pool.submit(fill, images[row : min(row + _GROUP, stop)], start + row) for row in range(0, stop, _GROUP)
        ]
        return start, images, groups

    with quiet_pillow(), ThreadPoolExecutor(threads or cores(), thread_name_prefix="pictures") as pool:
        ahead: collections.deque[tuple[int, np.ndarray, list[Future]]] = collections.deque()
        try:
            for start in range(0, len(pictures), batch_size):
                ahead.append(submit(pool, start))
                if len(ahead) > _AHEAD:
                    yield _gathered(*ahead.popleft(), len(pictures))
            while ahead:
                yield _gathered(*ahead.popleft(), len(pictures))
        finally:
            pool.shutdown(cancel_futures=True)


def _gathered(start: int, images: np.ndarray, groups: list[Future], total: int) -> Batch:
    """A batch whose images are there."""
    broken = tuple(one for group in groups for one in group.result())
    good = np.arange(start, start + len(images)) < total
    good[[index - start for index, _ in broken]] = False
    return Batch(start, images, good, broken)
