"""Where images come from: one source a file, each named by a string.

digits                    scikit-learn's digits, which come with the program
folder:DIR                class folders of image files
imagenet:DIR              ImageNet as people have it: archives, Kaggle's layout, class folders
cifar10:DIR               CIFAR-10, binary version
tfds:NAME[:VERSION]       a data set that TensorFlow Datasets has prepared
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np


class Examples(Protocol):
    """The labelled images of one split, read one at a time; several threads may read at once."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What the manifest and messages call an image: its path within the source."""

    def load(self, index: int) -> tuple[bytes | np.ndarray, int]:
        """An image and its label: the bytes of an image file, or an array (H, W, 3) uint8 in RGB.

        Raises:
          OSError: the image can't be read; the others may be.
        """


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set before it is prepared.

    Attributes:
      name: the string that opens it again.
      classes: the classes' names; a label is an index into them.
      splits: "train", "val" and maybe "test".
      fingerprint: changes when the images do, as far as that can be told without reading
        them (names and sizes of files).
      notes: what a person should know before it is prepared, a sentence each.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Examples]
    fingerprint: str = ""
    notes: tuple[str, ...] = ()


class InMemory:
    """`Examples` of pairs (image, label) that are there already."""

    def __init__(self, pairs: Sequence[tuple[bytes | np.ndarray, int]]):
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, index: int) -> str:
        """Its number."""
        return str(index)

    def load(self, index: int) -> tuple[bytes | np.ndarray, int]:
        """The pair."""
        image, label = self._pairs[index]
        return image, int(label)


SOURCES = ("digits", "folder:DIR", "imagenet:DIR", "cifar10:DIR", "tfds:NAME[:VERSION]")
"""The forms of sources' names; one without a colon is a name as it stands."""


def open_source(name: str, *, val_fraction: float | None = None) -> Source:
    """The source that a string names.

    Args:
      name: such as "digits" or "folder:/data/flowers".
      val_fraction: share of the training images that becomes the validation split, picked
        by a hash of each image's name, the same on every machine. For sources that have
        no validation split of their own.

    Raises:
      DataError: there is no such source, or it can't be used; the message says what to do.
    """
    from alexnet_jax.data.prepared import DataError

    # Each kind is imported when it is asked for: TFDS and SciPy take seconds.
    kind, colon, rest = name.partition(":")
    if name == "digits":
        if val_fraction is not None:
            raise DataError(f"'digits' has a validation split: leave val_fraction ({val_fraction}) out")
        from alexnet_jax.data.sources import digits

        return digits.open_digits()
    forms = {form.partition(":")[0]: form for form in SOURCES}
    if kind in forms and (kind == "digits" or not rest):
        raise DataError(f"there is no data source {name!r}: write {forms[kind]}")
    if kind == "folder":
        from alexnet_jax.data.sources import folder

        return folder.open_folder(rest, val_fraction=val_fraction)
    if kind == "imagenet":
        from alexnet_jax.data.sources import imagenet

        return imagenet.open_imagenet(rest, val_fraction=val_fraction)
    if kind == "cifar10":
        from alexnet_jax.data.sources import cifar10

        return cifar10.open_cifar10(rest, val_fraction=val_fraction)
    if kind == "tfds":
        from alexnet_jax.data.sources import tfds

        return tfds.open_tfds(rest, val_fraction=val_fraction)
    near = difflib.get_close_matches(kind.lower(), forms, n=1)
    meant = f"folder:{name}" if not colon and os.path.isdir(name) else forms[near[0]] if near else ""
    hint = f": did you mean {meant!r}? Known" if meant else "; known"
    raise DataError(f"there is no data source {name!r}{hint}: {', '.join(SOURCES)}")
