"""What the sources of image files share: listing folders, reading files, checks, the split by hash."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import stat
import unicodedata
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from alexnet_jax.data.prepared import DataError
from alexnet_jax.data.sources import Examples

MAX_BYTES = 2**30  # of one image file; the largest uncompressed image that prepare decodes is half of it
IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir"})  # lower case; and all that is hidden
# fmt: off
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)
# fmt: on


class Files:
    """`Examples` that are files below one folder."""

    def __init__(self, root: str, paths: Sequence[str], labels: np.ndarray):
        """Args:
        root: the folder.
        paths: relative to it, with "/" between their parts.
        labels: (N,) int32.
        """
        self._root, self._paths, self._labels = root, paths, labels

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """Its relative path."""
        return printable(self._paths[index])

    def newest(self) -> int:
        """When the newest of them was written, in nanoseconds; 0 for what is gone."""
        paths = (os.path.join(self._root, path) for path in self._paths)
        return max((os.stat(path).st_mtime_ns for path in paths if os.path.exists(path)), default=0)

    def load(self, index: int) -> tuple[bytes, int]:
        """The file's bytes. Raises OSError, see `read_file`."""
        return read_file(os.path.join(self._root, self._paths[index])), int(self._labels[index])


class Subset:
    """`Examples` that are some of others, by their indices (N,)."""

    def __init__(self, examples: Examples, indices: np.ndarray):
        self._examples, self._indices = examples, indices

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        """What the others call it."""
        return self._examples.name(int(self._indices[index]))

    def newest(self) -> int:
        """When the newest of the others was written; 0 where that can't be told."""
        return self._examples.newest() if isinstance(self._examples, (Files, Subset)) else 0

    def load(self, index: int) -> tuple[bytes | np.ndarray, int]:
        """As the others load it."""
        return self._examples.load(int(self._indices[index]))


def read_file(path: str) -> bytes:
    """The bytes of a regular file; never waits for anything but a disk.

    Raises:
      OSError: it can't be read, is larger than `MAX_BYTES`, or is a directory, pipe, socket or device.
    """
    _check_regular(os.stat(path))
    # The name may mean something else by now: opening a pipe without O_NONBLOCK waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        _check_regular(os.fstat(descriptor))
        data = file.readall()
    if len(data) > MAX_BYTES:  # grown since
        raise OSError(f"is larger than the {MAX_BYTES >> 20} MiB that an image may have")
    return data


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {
            stat.S_IFDIR: "a directory",
            stat.S_IFIFO: "a pipe",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
        }
        raise OSError(f"is {kinds.get(stat.S_IFMT(status.st_mode), 'no file')}, not an image file")
    if status.st_size > MAX_BYTES:
        raise OSError(f"has {status.st_size >> 20} MiB, more than the {MAX_BYTES >> 20} MiB that an image may have")


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
      folders, files: names directly in it, sorted; links count as what they lead to.
    """

    folders: list[str]
    files: list[str]


def list_folder(path: str) -> Listing:
    """The names in a folder, but for what is hidden or a system's own.

    Raises:
      DataError: it is none or can't be listed.
    """
    found = Listing([], [])
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not ignored(entry.name):
                    (found.folders if _is_folder(entry) else found.files).append(entry.name)
    except FileNotFoundError:
        raise DataError(f"{printable(path)} does not exist: check its spelling, and that its disk is mounted") from None
    except NotADirectoryError:
        raise DataError(f"{printable(path)} is not a folder: give the one that it lies in") from None
    except OSError as error:
        raise DataError(f"{printable(path)} can't be listed ({error.strerror}): check its permissions") from None
    found.folders.sort()
    found.files.sort()
    return found


def ignored(name: str) -> bool:
    """Whether a file or folder of this name is hidden or left behind by a system."""
    return name.startswith(".") or name.lower() in IGNORED


def looks_like_image(name: str) -> bool:
    """Whether a name ends as an image's does."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


@dataclasses.dataclass
class Found:
    """The files of one split.

    Attributes:
      paths: relative to the root that was asked for, class by class, sorted within each.
      sizes: in bytes, -1 where unknown.
      labels: of the files.
    """

    paths: list[str] = dataclasses.field(default_factory=list)
    sizes: array[int] = dataclasses.field(default_factory=lambda: array("q"))
    labels: array[int] = dataclasses.field(default_factory=lambda: array("i"))

    def add(self, root: str, path: str, label: int, size: int | None = None) -> None:
        """Adds a file; without its size, asks the disk."""
        if size is None:
            try:
                size = os.stat(os.path.join(root, path)).st_size
            except OSError:
                size = -1
        self.paths.append(path)
        self.sizes.append(size)
        self.labels.append(label)

    def examples(self, root: str) -> Files:
        """As `Examples`."""
        return Files(root, self.paths, np.array(self.labels, np.int32))


def add_class(found: Found, root: str, folder: str, label: int) -> tuple[int, int]:
    """Adds the files in and below a class folder, each a candidate whatever it is called.

    A directory that is named like an image is a candidate too, so that it gets listed as broken.
    A directory that links reach more than once is listed once, so loops end.

    Args:
      found: where they go.
      root: the folder to which paths are relative.
      folder: the class folder, relative to it.
      label: the label of its files.

    Returns:
      The numbers of files, and of links that were not followed.

    Raises:
      DataError: a folder can't be listed.
    """
    files: list[tuple[str, int]] = []
    again = 0
    waiting, links = [folder], list[str]()
    try:
        # What is above the class counts as seen: a link that leads there would bring in the other classes.
        seen = {_identity(parent) for parent in pathlib.Path(os.path.realpath(os.path.join(root, folder))).parents}
        seen.add(_identity(root))
        while waiting or links:
            if not waiting:  # links last, so that a directory keeps its own name; in order, whatever the disk's
                links.sort(reverse=True)
                waiting.append(links.pop())
            here = waiting.pop()
            full = os.path.join(root, here)
            identity = _identity(full)
            if identity in seen:
                again += 1
                continue
            seen.add(identity)
            with os.scandir(full) as entries:
                for entry in entries:
                    path = f"{here}/{entry.name}"
                    if ignored(entry.name):
                        pass
                    elif not _is_folder(entry) or looks_like_image(entry.name):
                        files.append((path, _size(entry)))
                    elif entry.is_symlink():
                        links.append(path)
                    else:
                        waiting.append(path)
    except OSError as error:
        name = printable(error.filename or os.path.join(root, folder))
        raise DataError(f"{name} can't be listed ({error.strerror}): check its permissions") from None
    files.sort()
    for path, size in files:
        found.add(root, path, label, size)
    return len(files), again


def _identity(path: str | pathlib.Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def fingerprint(files: Iterable[tuple[str, int]]) -> str:
    """SHA-256 of names and sizes, in hex, whatever their order."""
    digest = hashlib.sha256()
    for name, size in sorted(files):
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def check_classes(source: str, classes: Sequence[str]) -> None:
    """Refuses names that a list of a name a line can't hold, and fewer than two.

    Raises:
      DataError: says which.
    """
    for name in classes:
        if name != printable(name):
            raise DataError(f"{source}: the class name {printable(name)!r} is not valid UTF-8: rename it")
        if len(name.splitlines()) != 1:
            raise DataError(f"{source}: the class name {name!r} is empty or has a line break: rename it")
    if len(classes) == 1:
        raise DataError(f"{source} has one class only, {classes[0]!r}: telling classes apart takes at least two")
    if not classes:
        raise DataError(f"{source} has no classes")


def check_fraction(source: str, fraction: float) -> None:
    """Raises DataError unless a fraction is between 0 and 1, both excluded."""
    if not 0 < fraction < 1:
        raise DataError(f"{source}: val_fraction is {fraction}, must be between 0 and 1, such as 0.1")


def held_out(name: str, fraction: float) -> bool:
    """Whether an image belongs to validation: by the SHA-256 of its name, so the same on every machine."""
    # macOS may spell é as two code points where others use one.
    normal = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(normal).digest()[:8], "big") < fraction * 2.0**64


def split_by_hash(
    source: str,
    examples: Examples,
    names: Iterable[str],
    labels: np.ndarray | None,
    classes: Sequence[str],
    fraction: float,
) -> tuple[Subset, Subset, list[str]]:
    """Parts training images into training and validation.

    Args:
      source: what messages call it.
      examples: the images.
      names: of each, to be hashed.
      labels: (N,) int; None where they can't be told without reading all, so no notes.
      classes: their names.
      fraction: the share that becomes validation, about: each image is drawn on its own.

    Returns:
      Training, validation, and notes on classes that one of them lacks.

    Raises:
      DataError: the fraction is not between 0 and 1, or leaves a split empty.
    """
    check_fraction(source, fraction)
    chosen = np.fromiter((held_out(name, fraction) for name in names), bool, len(examples))
    for what, part in (("validation", chosen), ("training", ~chosen)):
        if not part.any():
            raise DataError(f"{source}: val_fraction {fraction} of {len(examples)} images leaves none for {what}")
    notes = []
    for what, part in (("validation", chosen), ("training", ~chosen)):
        lacking = [] if labels is None else sorted(set(range(len(classes))) - set(np.unique(labels[part]).tolist()))
        if lacking:
            notes.append(f"val_fraction {fraction} leaves no {what} image of {some([classes[i] for i in lacking])}.")
    train, val = (Subset(examples, np.flatnonzero(part).astype(np.int32)) for part in (~chosen, chosen))
    return train, val, notes


def some(names: Iterable[str], shown: int = 3) -> str:
    """A few of many names, for a message: "'a', 'b', 'c' and 7 more"."""
    names = list(names)
    text = ", ".join(repr(printable(name)) for name in names[:shown])
    return text + (f" and {len(names) - shown} more" if len(names) > shown else "")


def printable(name: str) -> str:
    """A name without what can't be written as UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def existing_folder(source: str, directory: str) -> pathlib.Path:
    """The folder that a source names, `~` expanded.

    Raises:
      DataError: no folder is named, or it can't be listed.
    """
    if not directory:
        raise DataError(f"{source!r} names no folder: write {source.rstrip(':')}:DIR")
    path = pathlib.Path(directory).expanduser()
    list_folder(str(path))
    return path
