"""The images of a prepared split, read from its part files.

They are read and not mapped: mapped pages would count as memory of the process, and grow
with the set. Batches are put into memory of earlier ones (`Memory`); fresh memory costs
more time than the copying.
"""

from __future__ import annotations

import errno
import functools
import itertools
import math
import os
import pathlib
import resource
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import numpy as np
import simplejpeg

BATCHES_AT_ONCE = 4  # that a loader reads, each in a thread
_RAW_PIECE = 128  # raw images that are worth handing to another thread
_OPEN_FILES = 512  # part files that a split keeps open at most; beyond that each reading opens its file


class DataError(ValueError):
    """Data that can't be trained on; the message says why and what to do."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Memory:
    """Memory for arrays, used again once nothing refers to the array that it was given out as.

    Fresh memory is cleared by the system page by page, which is slow. Any number of threads
    at once; it holds as much as was in use at any one time, until it is let go itself.

    Arrays may be given to JAX, whole or as views: `device_put` holds a reference to what it was
    given for as long as the runtime reads it. On a CPU, which may use the memory as it is
    (`kImmutableZeroCopy`), that is until the device array is gone and the last computation with
    it has ended; on a GPU, to which it is copied after `device_put` has returned
    (`kImmutableUntilTransferCompletes`), until the copy is whole.
    """

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array uint8 of that shape, its content undefined."""
        size = math.prod(shape)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = memoryview(b"")
        if memory.nbytes != size:  # what was there is let go: the sizes of batches seldom change
            memory = np.empty(size, np.uint8).data
        # Views of a view refer to the first array that is on foreign memory, which is this one.
        array = np.frombuffer(memory, np.uint8)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(shape)


class _Parts:
    """Reads pieces of a split's part files; any number of threads at once."""

    def __init__(self, files: Sequence[pathlib.Path]):
        self._files = list(files)
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # Most is left to the other splits, to checkpoints and to the runtime.
        self._most = _OPEN_FILES if limit == resource.RLIM_INFINITY else min(_OPEN_FILES, limit // 8)

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def read(self, part: int, offset: int, into: memoryview | bytearray) -> None:
        """Fills `into` from a part."""
        descriptor = self._open.get(part)
        try:
            if descriptor is not None:
                found = os.preadv(descriptor, [into], offset)
            else:
                with self._files[part].open("rb", buffering=0) as file:
                    found = os.preadv(file.fileno(), [into], offset)
                    with self._lock:
                        if part not in self._open and len(self._open) < self._most:
                            self._open[part] = os.dup(file.fileno())
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise DataError(f"{error}: raise the limit of open files (ulimit -n)") from None
            self.damaged(part, str(error))
        if found < len(into):
            self.damaged(part, "it is shorter than manifest.json says")

    def damaged(self, part: int, reason: str) -> NoReturn:
        """Raises a DataError that names the part."""
        raise DataError(f"{self._files[part]} is damaged ({reason}): see alexnet-jax prepare --check")


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
        return self.read(chosen, Memory())

    def read(self, chosen: np.ndarray, memory: Memory) -> np.ndarray:
        """The images of the chosen rows, int (N,), as an array (N, S, S, 3) in memory of `memory`."""
        images = memory.array((len(chosen), *self.shape[1:]))
        if not len(chosen):
            return images
        if not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"rows reach from {chosen.min()} to {chosen.max()}, there are {len(self)} images")
        parts = np.searchsorted(self._starts, chosen, side="right") - 1
        places = list(zip(parts.tolist(), (chosen - self._starts[parts]).tolist(), chosen.tolist(), strict=True))
        workers = self._workers(len(places))
        if workers < 2:
            self._fill(images, places)
        else:
            work = [(images[k::workers], places[k::workers]) for k in range(workers)]
            for _ in _threads().map(lambda piece: self._fill(*piece), work):
                pass
        return images

    def _workers(self, count: int) -> int:
        """Among how many threads a reading of so many images is shared out."""
        return min(cores(), count)

    def _fill(self, images: np.ndarray, places: list[tuple[int, int, int]]) -> None:
        """Fills images from (part, row in the part, row in the split)."""
        raise NotImplementedError


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="images")


class RawImages(PartImages):
    """Images stored as they are: the fastest to read, S·S·3 bytes each."""

    def _workers(self, count: int) -> int:
        # A copy takes microseconds, and the loader's own threads copy batches beside each other.
        return min(cores() // BATCHES_AT_ONCE, count // _RAW_PIECE)

    def _fill(self, images: np.ndarray, places: list[tuple[int, int, int]]) -> None:
        each = self.shape[1] * self.shape[2] * 3
        flat = images.reshape(len(images), each)
        for index, (part, row, _) in enumerate(places):
            self._parts.read(part, row * each, flat[index].data)


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
            content = bytearray(self._sizes[place])
            self._parts.read(part, int(self._offsets[place]), content)
            try:
                found = simplejpeg.decode_jpeg(content, "RGB", buffer=image)
            except ValueError as error:
                self._parts.damaged(part, f"its image {row} is no JPEG: {error}")
            if found.shape != (side, side, 3):
                self._parts.damaged(part, f"its image {row} has {found.shape[1]} × {found.shape[0]} pixels")
