"""What every reader of a file makes of it: named arrays whose shapes are known before their values are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from alexnet_jax.models import ModelSpec

# Ours is 244 MB in float32; with an optimizer's state, in float64, it is 1.5 GB.
LARGEST_FILE = 2 << 30


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of a file.

    Attributes:
      shape: as stored.
      dtype: NumPy's name of its type, such as "float16" or "bfloat16".
      read: gives its values, in that shape and type; the file is read only now.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def _none(spec: ModelSpec) -> list[str]:
    return []


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of weights that has been opened.

    Attributes:
      kind: what it is, in words.
      entries: its arrays by their names in the file, levels joined by dots.
      variant: the variant's name that it gives, or None.
      spec: the network that it gives in full, or None.
      classes: the classes' names in the order of the logits, or None.
      mean_image: (R, R, 3), float32, on 0 to 255 in RGB, or None.
      differences: where the network that the file describes computes anything else than a spec's.
    """

    kind: str
    entries: Mapping[str, Entry]
    variant: str | None = None
    spec: ModelSpec | None = None
    classes: tuple[str, ...] | None = None
    mean_image: Any = None
    differences: Callable[[ModelSpec], list[str]] = _none
