"""scikit-learn's digits: 1,797 grey images of 8 × 8 pixels, ten classes; comes with the package.

The splits are fixed: validation and test hold 30 images of each class, picked by a
hash of the image's index, the same on every machine and with every version.
"""

from __future__ import annotations

import hashlib

import numpy as np

from alexnet_jax.data.sources import Examples, Source

_HELD_OUT = 30


class _Digits:
    def __init__(self, images: np.ndarray, labels: np.ndarray, indices: list[int]):
        self._images, self._labels, self._indices = images, labels, sorted(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return str(self._indices[index])

    def load(self, index: int) -> tuple[np.ndarray, int]:
        place = self._indices[index]
        grey = np.round(self._images[place] * (255 / 16)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1), int(self._labels[place])


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
    splits: dict[str, Examples] = {name: _Digits(data.images, labels, indices) for name, indices in chosen.items()}
    digest = hashlib.sha256(data.images.tobytes() + labels.astype(np.int32).tobytes()).hexdigest()
    return Source("digits", tuple(str(digit) for digit in range(10)), splits, digest)
