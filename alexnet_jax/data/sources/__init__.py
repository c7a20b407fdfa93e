"""Where images come from: one source a file, each named by a string."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

Example = tuple[np.ndarray, int]


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set before it is prepared.

    Attributes:
      name: the string that opens it again.
      classes: the classes' names; a label is an index into them.
      splits: "train", "val" and maybe "test", each a sequence of (image, label) with
        images (H, W, 3) uint8 in RGB, made when they are asked for.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[Example]]


SOURCES = ("digits",)


def open_source(name: str) -> Source:
    """The source that a string names.

    Raises:
      ValueError: there is none of this name.
    """
    if name == "digits":
        from alexnet_jax.data.sources import digits

        return digits.open_digits()
    raise ValueError(f"there is no data source {name!r}; known: {', '.join(SOURCES)}")
