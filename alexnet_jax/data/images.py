"""The images of a prepared split, read from its part files.

Part files are mapped into memory: a copy from there is half again as fast as `pread`. The
mapped pages are the system's cache and not the process's own memory.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import pathlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import numpy as np
import simplejpeg

_OPEN_FILES = 512  # part files kept open; beyond that each reading opens its file
# Bytes read before mapped pages are given up: half of the machine's memory. A page that is read again costs a fault.
_LET_GO = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class DataError(ValueError):
    """Data that can't be trained on; the message says why and what to do."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Parts:
    """Gives pieces of a split's part files; any number of threads at once."""

    def __init__(self, files: Sequence[pathlib.Path]):
        self._files = list(files)
        self._maps: dict[int, np.ndarray] = {}
        self._mapped: list[mmap.mmap] = []
        self._lock = threading.Lock()
        self._given = 0

    def piece(self, part: int, offset: int, length: int) -> np.ndarray:
        """So many bytes of a part, uint8 (length,), to be copied at once."""
        content = self._maps.get(part)
        if content is None:
            content, whole = self._open(part, offset, length)
            if not whole:
                return content
        if len(content) < offset + length:
            self.damaged(part, "it is shorter than manifest.json says")
        return content[offset : offset + length]

    def damaged(self, part: int, reason: str) -> NoReturn:
        """Raises a DataError that names the part."""
        raise DataError(f"{self._files[part]} is damaged ({reason}): see alexnet-jax prepare --check")

    def _open(self, part: int, offset: int, length: int) -> tuple[np.ndarray, bool]:
        """All of a part, mapped, and True; or the piece and False, where too many files are open already."""
        try:
            with self._files[part].open("rb", buffering=0) as file:
                with self._lock:
                    if part not in self._maps and len(self._maps) < _OPEN_FILES:
                        self._mapped.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                        self._maps[part] = np.frombuffer(self._mapped[-1], np.uint8)
                    if part in self._maps:
                        return self._maps[part], True
                found = os.pread(file.fileno(), length, offset)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            self.damaged(part, str(error))
        if len(found) < length:
            self.damaged(part, "it is shorter than manifest.json says")
        return np.frombuffer(found, np.uint8), False

    def count(self, given: int) -> None:
        """Counts bytes that were read; gives the mapped pages up now and then: they stay in the system's cache."""
        self._given += given
        if self._given < _LET_GO:
            return
        self._given = 0
        for mapped in list(self._mapped):
            mapped.madvise(mmap.MADV_DONTNEED)


class PartImages:
    """What both encodings share: `images[rows]` is an array (len(rows), S, S, 3), uint8, RGB.

    Args:
      files: the split's part files, in order.
      counts: images in each of them.
      size: S, pixels of the images' sides.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, files: Sequence[pathlib.Path], counts: Sequence[int], size: int):
        self._parts = _Parts(files)
        self._starts = np.cumsum([0, *counts])
        self.shape = (int(self._starts[-1]), size, size, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray | Sequence[int]) -> np.ndarray:
        if isinstance(rows, (int, np.integer)):
            if not -len(self) <= rows < len(self):
                raise IndexError(rows)
            return self[[int(rows) % len(self)]][0]
        chosen = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, np.int64)
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        if not len(chosen):
            return images
        if not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"rows reach from {chosen.min()} to {chosen.max()}, there are {len(self)} images")
        parts = np.searchsorted(self._starts, chosen, side="right") - 1
        places = list(zip(parts.tolist(), (chosen - self._starts[parts]).tolist(), chosen.tolist(), strict=True))
        workers = min(cores(), len(places)) if self._shared_out else 1
        if workers < 2:
            self._fill(images, places)
        else:
            work = [(images[k::workers], places[k::workers]) for k in range(workers)]
            for _ in _threads().map(lambda piece: self._fill(*piece), work):
                pass
        return images

    _shared_out = True  # whether the images of one reading are shared out among threads

    def _fill(self, images: np.ndarray, places: list[tuple[int, int, int]]) -> None:
        """Fills images from (part, row in the part, row in the split)."""
        raise NotImplementedError


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="images")


class RawImages(PartImages):
    """Images stored as they are: the fastest to read, S·S·3 bytes each."""

    _shared_out = False  # a copy takes microseconds

    def _fill(self, images: np.ndarray, places: list[tuple[int, int, int]]) -> None:
        each = self.shape[1] * self.shape[2] * 3
        flat = images.reshape(len(images), each)
        for index, (part, row, _) in enumerate(places):
            flat[index] = self._parts.piece(part, row * each, each)
        self._parts.count(flat.nbytes)


class JpegImages(PartImages):
    """Images stored as JPEG: about a tenth of the disk, decoded at each reading.

    Args:
      files: as in `PartImages`.
      counts: as in `PartImages`.
      size: as in `PartImages`.
      sizes: bytes of each image, (N,).
    """

    def __init__(self, files: Sequence[pathlib.Path], counts: Sequence[int], size: int, sizes: np.ndarray):
        super().__init__(files, counts, size)
        self._sizes = sizes
        ends = np.cumsum(sizes, dtype=np.int64)
        self._offsets = ends - sizes
        for start, stop in itertools.pairwise(self._starts):
            if stop > start:
                self._offsets[start:stop] -= self._offsets[start]

    def _fill(self, images: np.ndarray, places: list[tuple[int, int, int]]) -> None:
        side = self.shape[1]
        for image, (part, row, place) in zip(images, places, strict=True):
            content = self._parts.piece(part, int(self._offsets[place]), int(self._sizes[place]))
            try:
                found = simplejpeg.decode_jpeg(content, "RGB", buffer=image)
            except ValueError as error:
                self._parts.damaged(part, f"its image {row} is no JPEG: {error}")
            if found.shape != (side, side, 3):
                self._parts.damaged(part, f"its image {row} has {found.shape[1]} × {found.shape[0]} pixels")
        self._parts.count(int(self._sizes[[place for _, _, place in places]].sum()))
