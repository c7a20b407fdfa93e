"""Small sources and prepared folders."""

from __future__ import annotations

import numpy as np
import pytest

from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.sources import InMemory, Source


def pictures(count: int, seed: int, size: int = 6):
    """Examples of noise, their labels 0, 1, 2 in turn."""
    draw = np.random.default_rng(seed)
    return [(draw.integers(0, 256, (size, size, 3), np.uint8), index % 3) for index in range(count)]


def toy_source(**splits):
    """A source of pairs (image, label) by split, with three classes."""
    return Source("toy", ("red", "green", "blue"), {name: InMemory(pairs) for name, pairs in splits.items()}, "1")


@pytest.fixture
def pairs():
    """Pairs (image, label) by split."""
    return {"train": pictures(11, 1), "val": pictures(4, 2), "test": pictures(3, 3)}


@pytest.fixture
def source(pairs):
    """A source with three splits of three classes."""
    return toy_source(**pairs)


@pytest.fixture
def folder(source, tmp_path):
    """The source, prepared."""
    prepare(source, tmp_path / "toy", size=6)
    return tmp_path / "toy"
