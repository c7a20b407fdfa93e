"""Tar archives read in place: indexed once by offset, nothing unpacked to disk."""

from __future__ import annotations

import io
import os
import pathlib
import tarfile
import weakref
from collections.abc import Iterator, Sequence

import numpy as np

from alexnet_jax.data.prepared import DataError
from alexnet_jax.data.sources._files import MAX_BYTES, ignored, printable


class Archive:
    """An uncompressed tar file, maybe with tar files in it. Several threads may read at once.

    Attributes:
      path: where it is.
    """

    def __init__(self, path: pathlib.Path):
        """Raises DataError: it can't be opened."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{path} can't be opened ({error.strerror}): check its permissions") from None
        self._size = os.fstat(self._descriptor).st_size
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file. Raises OSError where it ends before them."""
        data = os.pread(self._descriptor, size, offset)
        if len(data) < size:  # one call reads 2 GiB at most, images are smaller
            raise OSError(f"{self.path} ends before byte {offset + size}: has it changed?")
        return data

    def members(self, offset: int = 0, size: int | None = None) -> Iterator[tuple[str, int, int]]:
        """Names (without folders), offsets and sizes of the files in it, or in a tar file inside.

        Args:
          offset: where the inner tar file begins.
          size: its bytes; None: all.

        Raises:
          DataError: it is cut off or no tar file.
        """
        window = _Window(self._descriptor, offset, self._size if size is None else size)
        try:
            with tarfile.TarFile(fileobj=window, mode="r") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # they would stay in memory
                    if member.size < 0 or offset + member.offset_data + member.size > offset + window.size:
                        raise tarfile.ReadError(f"{member.name} reaches beyond the end")
                    name = member.name.rpartition("/")[2]
                    if member.isreg() and not member.issparse() and not ignored(name):
                        yield name, offset + member.offset_data, member.size
                # An archive ends with blocks of zeros; one that was cut between two members lacks them.
                window.seek(tar.offset)
                if window.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("its end mark is missing")
        except (tarfile.TarError, OSError, ValueError) as error:
            raise DataError(
                f"{self.path} is cut off or damaged at byte {offset + window.tell()} ({printable(str(error))}): "
                "compare its size with the publisher's and copy or download it again"
            ) from None


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, descriptor: int, offset: int, size: int):
        self._descriptor, self._offset, self.size, self._at = descriptor, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        data = os.pread(self._descriptor, max(0, min(len(buffer), self.size - self._at)), self._offset + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class Members:
    """`Examples` that are members of an archive."""

    def __init__(
        self, archive: Archive, names: Sequence[str], offsets: np.ndarray, sizes: np.ndarray, labels: np.ndarray
    ):
        """Args:
        archive: where they are.
        names: what messages call them.
        offsets, sizes: (N,) int64, in bytes.
        labels: (N,) int32.
        """
        self._archive, self._names, self._labels = archive, names, labels
        self._offsets, self._sizes = offsets, sizes

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The name."""
        return printable(self._names[index])

    def load(self, index: int) -> tuple[bytes, int]:
        """The member's bytes. Raises OSError: too large, or the archive has changed."""
        size = int(self._sizes[index])
        if size > MAX_BYTES:
            raise OSError(f"has {size >> 20} MiB, more than the {MAX_BYTES >> 20} MiB that an image may have")
        return self._archive.read(int(self._offsets[index]), size), int(self._labels[index])
