"""scikit-learn's digits: 1,797 grey images of 8 × 8 pixels, ten classes; comes with the package.

The splits are fixed: validation and test hold 30 images of each class, picked by a
hash of the image's index, the same on every machine and with every version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from alexnet_jax.data.sources import Example, Source

_HELD_OUT = 30


class _Digits(Sequence):
    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index):
        grey = np.round(self._images[index] * (255 / 16)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1), int(self._labels[index])


def open_digits() -> Source:
    """The digits in three splits: 1,197 images to train, 300 for validation, 300 for test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    labels = data.target
    order = sorted(range(len(labels)), key=lambda i: hashlib.sha256(str(i).encode()).digest())
    chosen: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    seen = dict.fromkeys(range(10), 0)
    for index in order:
        rank = seen[labels[index]]
        seen[labels[index]] += 1
        chosen["val" if rank < _HELD_OUT else "test" if rank < 2 * _HELD_OUT else "train"].append(index)
    splits: dict[str, Sequence[Example]] = {
        name: _Digits(data.images[sorted(indices)], labels[sorted(indices)]) for name, indices in chosen.items()
    }
    return Source("digits", tuple(str(digit) for digit in range(10)), splits)
