"""A prepared folder: fixed-size uint8 images by split, classes, statistics, manifest.

manifest.json                 counts, sizes, source, what was skipped and why, checksums, format version
classes.txt                   a name a line, in the order of the labels
stats.npz                     over the training split, see `Statistics`
<split>_labels.npy            (N,), int32
<split>_names.txt             where each image came from, a JSON string a line
<split>_sizes.npy             (N,), int32: bytes of each image, if they are stored as JPEG
<split>-<part>.bin            the images one after another: S·S·3 bytes each in RGB, or JPEG files

A folder without `manifest.json` is not finished and can't be opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import xxhash

from alexnet_jax.data.images import DataError, JpegImages, PartImages, RawImages, cores

FORMAT = 2
MANIFEST = "manifest.json"
UNFINISHED = "unfinished"  # the folder inside that holds the state of a preparation
ENCODINGS = ("raw", "jpeg")
_ANEW = "delete the folder and prepare it anew"

__all__ = ["FORMAT", "DataError", "Prepared", "Split", "Statistics", "check", "file_checksum", "open_prepared"]


@dataclasses.dataclass(frozen=True)
class Split:
    """The images (N, S, S, 3) uint8 and labels (N,) int32 of one split.

    `images[rows]` reads rows from disk; an array in memory or on a device serves as well.
    """

    images: PartImages | np.ndarray | jax.Array
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of the training images, on 0 to 255 in RGB, float64.

    Attributes:
      mean_image: (S, S, 3).
      mean: (3,), over all pixels.
      covariance: (3, 3), of the RGB values over all pixels.
      eigenvalues: (3,), of the covariance, rising.
      eigenvectors: (3, 3), a column each (Krizhevsky et al. 2012, section 4.1).
    """

    mean_image: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An opened prepared folder.

    Attributes:
      directory: where it is.
      classes: the classes' names.
      splits: by name.
      statistics: of the training split.
      manifest: everything that `manifest.json` holds.
    """

    directory: pathlib.Path
    classes: tuple[str, ...]
    splits: dict[str, Split]
    statistics: Statistics
    manifest: dict[str, Any]

    @property
    def image_size(self) -> int:
        """Pixels of the images' sides."""
        return self.manifest["image_size"]

    @property
    def fingerprint(self) -> str:
        """The same for folders with the same content, wherever they are."""
        return hashlib.sha256(json.dumps(self.manifest["xxh3_128"], sort_keys=True).encode()).hexdigest()

    def names(self, split: str) -> list[str]:
        """Where each image of a split came from: its path within the source."""
        with _reading(self.directory / f"{split}_names.txt") as path:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def open_prepared(directory: pathlib.Path) -> Prepared:
    """Opens a prepared folder and checks that its files agree with its manifest.

    Labels, classes and statistics by their checksums, images by their files' sizes:
    they may be hundreds of gigabytes (`check` reads them all).

    Raises:
      DataError: it is none, not finished, of another format, or damaged.
    """
    manifest = read_manifest(directory)
    with _reading(directory / MANIFEST):
        size, about, encoding = manifest["image_size"], manifest["splits"], manifest["encoding"]
        if encoding not in ENCODINGS:
            raise DataError(f"{directory} has images in the encoding {encoding!r}; known: {', '.join(ENCODINGS)}")
        small = {name: digest for name, digest in manifest["xxh3_128"].items() if not name.endswith(".bin")}
    for name, digest in small.items():
        with _reading(directory / name) as path:
            if file_checksum(path) != digest:
                raise DataError(f"{path} has another checksum than {MANIFEST} says: {_ANEW}")
    with _reading(directory / "classes.txt") as path:
        classes = tuple(path.read_text(encoding="utf-8").split("\n")[:-1])
    splits = {name: _split(directory, name, about[name], size, encoding, len(classes)) for name in about}
    with _reading(directory / "stats.npz") as path, path.open("rb") as file, np.load(file) as stats:
        statistics = Statistics(**{field.name: stats[field.name] for field in dataclasses.fields(Statistics)})
    for name in ("train", "val"):
        if not len(splits.get(name, ())):
            raise DataError(f"{directory} has no images to use as {name!r}")
    return Prepared(directory, classes, splits, statistics, manifest)


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
    """The manifest of a finished folder of this format.

    Raises:
      DataError: there is none.
    """
    path = directory / MANIFEST
    with _reading(path):
        there, unfinished = path.exists(), (directory / UNFINISHED).is_dir()
    if not there:
        if unfinished:
            raise DataError(
                f"{directory} is not finished: run the alexnet-jax prepare that began it again "
                "(it continues), or prepare --merge if all its shards are done"
            )
        raise DataError(f"{directory} is not a prepared data set: it has no {MANIFEST}")
    with _reading(path):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise DataError(
                f"{directory} has format {manifest['format']}, this program reads {FORMAT}: "
                "delete it and prepare it anew"
            )
        if not isinstance(manifest["xxh3_128"], dict):
            raise TypeError("xxh3_128 is no object")
    return manifest


def check(directory: pathlib.Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """What is wrong with a prepared folder: reads every file and compares it with its checksum.

    Args:
      directory: the folder.
      progress: called with the bytes that were read and the bytes there are.

    Returns:
      A line for each file that is missing or damaged; an empty list is a good folder.

    Raises:
      DataError: it is no finished prepared folder.
    """
    digests = read_manifest(directory)["xxh3_128"]
    wrong = [f"{name} is missing" for name in digests if not (directory / name).is_file()]
    there = [name for name in digests if (directory / name).is_file()]
    sizes = {name: (directory / name).stat().st_size for name in there}
    done, total = 0, sum(sizes.values())

    def verdict(name: str) -> str | None:
        try:
            same = file_checksum(directory / name) == digests[name]
        except OSError as error:
            return f"{name} can't be read ({error})"
        return None if same else f"{name} is damaged: its checksum is not that of {MANIFEST}"

    with ThreadPoolExecutor(cores()) as pool:
        for name, found in zip(there, pool.map(verdict, there), strict=True):
            done += sizes[name]
            progress(done, total)
            wrong += [found] if found else []
    return wrong


def file_checksum(path: pathlib.Path) -> str:
    """The XXH3 checksum (128 bits, in hex) of a file of any size: against accidents, at the speed of memory."""
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def _split(directory: pathlib.Path, name: str, about: Any, size: int, encoding: str, classes: int) -> Split:
    with _reading(directory / MANIFEST):
        count = about["count"]
        files = [directory / part["file"] for part in about["parts"]]
        counts = [part["count"] for part in about["parts"]]
        if sum(counts) != count or not all(pathlib.Path(part["file"]).name == part["file"] for part in about["parts"]):
            raise ValueError(f"the parts of {name!r} do not make up its images")
    labels = _column(directory, f"{name}_labels.npy", count)
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"{directory}: the labels of {name!r} reach from {labels.min()} to {labels.max()}, "
            f"but classes.txt has {classes} names: delete it and prepare it anew"
        )
    images: PartImages
    if encoding == "jpeg":
        sizes = _column(directory, f"{name}_sizes.npy", count)
        if count and sizes.min() < 1:
            raise DataError(f"{directory}: {name}_sizes.npy holds a size of {sizes.min()}: {_ANEW}")
        images = JpegImages(files, counts, size, sizes)
        starts = np.cumsum([0, *counts])
        wanted = [int(sizes[a:b].sum(dtype=np.int64)) for a, b in itertools.pairwise(starts)]
    else:
        images = RawImages(files, counts, size)
        wanted = [number * size * size * 3 for number in counts]
    for path, length in zip(files, wanted, strict=True):
        with _reading(path):
            if path.stat().st_size != length:
                raise DataError(
                    f"{path} has {path.stat().st_size:,} bytes, not the {length:,} that {MANIFEST} implies: "
                    "copy it again, or delete the folder and prepare it anew"
                )
    return Split(images, labels)


def _column(directory: pathlib.Path, name: str, count: int) -> np.ndarray:
    """A column of an integer an image."""
    with _reading(directory / name) as path:
        values = np.load(path)
    if values.shape != (count,) or values.dtype != np.int32:
        raise DataError(f"{directory / name} is not what {MANIFEST} says: {_ANEW}")
    return values


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Turns what goes wrong with a file into a DataError that names it."""
    try:
        yield path
    except DataError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}): {_ANEW}") from None
