"""The embedded digits: the same splits on every machine and with every version."""

from __future__ import annotations

import collections
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from alexnet_jax.data.sources import digits, open_source

# Of the labels and images of train, val and test in order. A change here changes every published figure.
FINGERPRINT = "3c91a5fc5a593f90a834fc99e9d7bfb60710cfc412473f696cf578c5adaf5403"
PROGRAM = """
import hashlib
import numpy as np
from alexnet_jax.data.sources import open_source
found = hashlib.sha256()
for name, split in open_source("digits").splits.items():
    for image, label in (split.load(index) for index in range(len(split))):
        found.update(name.encode() + bytes([label]) + np.ascontiguousarray(image).tobytes())
print(found.hexdigest())
"""


@pytest.fixture(scope="module")
def source():
    """The digits."""
    return digits.open_digits()


def everything(split):
    """The images and labels of a split."""
    images, labels = zip(*(split.load(index) for index in range(len(split))), strict=True)
    return np.stack(images), np.array(labels)


def test_sizes_and_classes(source):
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 1197, "val": 300, "test": 300}
    assert source.classes == tuple("0123456789")
    for name in ("val", "test"):
        _, labels = everything(source.splits[name])
        assert np.bincount(labels).tolist() == [30] * 10
    assert open_source("digits").name == source.name == "digits"


def test_values(source):
    images, labels = everything(source.splits["train"])
    assert images.shape == (1197, 8, 8, 3)
    assert images.dtype == np.uint8
    assert all(type(source.splits["train"].load(index)[1]) is int for index in range(3))
    assert (images[..., 0] == images[..., 1]).all()
    assert (images[..., 0] == images[..., 2]).all()
    assert set(np.unique(images)) == {round(grey * 255 / 16) for grey in range(17)}
    assert set(labels) == set(range(10))


def test_every_digit_is_in_one_split(source):
    from sklearn.datasets import load_digits

    data = load_digits()
    expected = collections.Counter(
        (np.round(image * (255 / 16)).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(data.images, data.target, strict=True)
    )
    found = collections.Counter()
    for split in source.splits.values():
        images, labels = everything(split)
        found.update((image[..., 0].tobytes(), int(label)) for image, label in zip(images, labels, strict=True))
    assert found == expected


def test_the_splits_are_pinned(source):
    found = hashlib.sha256()
    for name, split in source.splits.items():
        for image, label in zip(*everything(split), strict=True):
            found.update(name.encode() + bytes([label]) + image.tobytes())
    assert found.hexdigest() == FINGERPRINT


def test_another_process_finds_the_same_splits():
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == FINGERPRINT


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match=r"'digit'.*digits"):
        open_source("digit")
