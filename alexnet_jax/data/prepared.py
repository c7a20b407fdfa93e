"""A prepared folder: fixed-size uint8 images by split, classes, statistics, manifest.

manifest.json                 counts, size, resize rule, source, checksums, format version
classes.txt                   a name a line, in the order of the labels
stats.npz                     over the training split, see `Statistics`
<split>_images.npy            (N, S, S, 3), uint8, RGB
<split>_labels.npy            (N,), int32
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

FORMAT = 1


class DataError(ValueError):
    """Data that can't be trained on; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The images (N, S, S, 3) uint8 and labels (N,) int32 of one split, mapped from disk."""

    images: np.ndarray
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
        return hashlib.sha256(json.dumps(self.manifest["sha256"], sort_keys=True).encode()).hexdigest()


def open_prepared(directory: pathlib.Path) -> Prepared:
    """Opens a prepared folder and checks that its files agree with its manifest.

    Labels, classes and statistics by their checksums, images by their shape alone:
    they may be hundreds of gigabytes.

    Raises:
      DataError: it is none, not complete, or of another format.
    """
    path = directory / "manifest.json"
    if not path.is_file():
        raise DataError(f"{directory} is not a prepared data set: it has no manifest.json")
    with _reading(path):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise DataError(
                f"{directory} has format {manifest['format']}, this program reads {FORMAT}: "
                "delete it and prepare it anew"
            )
        size, about = manifest["image_size"], manifest["splits"]
        small = {name: digest for name, digest in manifest["sha256"].items() if not name.endswith("_images.npy")}
    for name, digest in small.items():
        with _reading(directory / name) as path:
            if file_sha256(path) != digest:
                raise DataError(f"{path} has another checksum than manifest.json says: prepare the folder anew")
    with _reading(directory / "classes.txt") as path:
        classes = tuple(path.read_text(encoding="utf-8").splitlines())
    splits = {name: _split(directory, name, about[name]["count"], size, len(classes)) for name in about}
    with _reading(directory / "stats.npz") as path, path.open("rb") as file, np.load(file) as stats:
        statistics = Statistics(**{field.name: stats[field.name] for field in dataclasses.fields(Statistics)})
    for name in ("train", "val"):
        if not len(splits.get(name, ())):
            raise DataError(f"{directory} has no images to use as {name!r}")
    return Prepared(directory, classes, splits, statistics, manifest)


def file_sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file of any size, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _split(directory: pathlib.Path, name: str, count: int, size: int, classes: int) -> Split:
    with _reading(directory / f"{name}_images.npy") as path:
        images = np.load(path, mmap_mode="r")
    with _reading(directory / f"{name}_labels.npy") as path:
        labels = np.load(path, mmap_mode="r")
    if images.shape != (count, size, size, 3) or images.dtype != np.uint8:
        raise DataError(f"{directory}: the images of {name!r} are not what manifest.json says: prepare it anew")
    if labels.shape != (count,) or labels.dtype != np.int32:
        raise DataError(f"{directory}: the labels of {name!r} are not what manifest.json says: prepare it anew")
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"{directory}: the labels of {name!r} reach from {labels.min()} to {labels.max()}, "
            f"but classes.txt has {classes} names: prepare it anew"
        )
    return Split(images, labels)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Turns what goes wrong with a file into a DataError that names it."""
    try:
        yield path
    except DataError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}): prepare the folder anew") from None
