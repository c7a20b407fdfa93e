"""A prepared folder: fixed-size uint8 images by split, classes, statistics, manifest.

manifest.json                 counts, size, resize rule, source, checksums, format version
classes.txt                   a name a line, in the order of the labels
stats.npz                     over the training split, see `Statistics`
<split>_images.npy            (N, S, S, 3), uint8, RGB
<split>_labels.npy            (N,), int32
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import zipfile
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

    Raises:
      DataError: it is none, not complete, or of another format.
    """
    path = directory / "manifest.json"
    if not path.is_file():
        raise DataError(f"{directory} is not a prepared data set: it has no manifest.json")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise DataError(
                f"{directory} has format {manifest['format']}, this program reads {FORMAT}: "
                "delete it and prepare it anew"
            )
        found = _open(directory, manifest)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{directory} is damaged ({type(error).__name__}: {error}): prepare it anew") from None
    for name in ("train", "val"):
        if not len(found.splits.get(name, ())):
            raise DataError(f"{directory} has no images to use as {name!r}")
    return found


def _open(directory: pathlib.Path, manifest: dict[str, Any]) -> Prepared:
    size = manifest["image_size"]
    classes = tuple((directory / "classes.txt").read_text(encoding="utf-8").splitlines())
    splits = {}
    for name, about in manifest["splits"].items():
        images, labels = (np.load(directory / f"{name}_{what}.npy", mmap_mode="r") for what in ("images", "labels"))
        expected = ((about["count"], size, size, 3), (about["count"],))
        if (images.shape, labels.shape) != expected or (images.dtype, labels.dtype) != (np.uint8, np.int32):
            raise DataError(f"{directory}: the arrays of {name!r} are not what manifest.json says: prepare it anew")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise DataError(
                f"{directory}: labels of {name!r} reach from {labels.min()} to {labels.max()}, "
                f"but classes.txt has {len(classes)} names: prepare it anew"
            )
        splits[name] = Split(images, labels)
    with (directory / "stats.npz").open("rb") as file, np.load(file) as stats:
        statistics = Statistics(**{field.name: stats[field.name] for field in dataclasses.fields(Statistics)})
    return Prepared(directory, classes, splits, statistics, manifest)
