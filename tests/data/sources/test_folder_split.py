"""Class folders without a validation split: the one by the hash of the path."""

from __future__ import annotations

import hashlib
import itertools
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_jax.data.prepared import DataError
from alexnet_jax.data.sources import _files

from .folders import content, opened, refused, tree


def test_the_split_is_by_the_hash_of_the_path(tmp_path):
    names = [f"{name}/{number}.jpg" for name in ("a", "b") for number in range(200)]
    tree(tmp_path / "one", *names)
    tree(tmp_path / "two", *(f"train/{name}" for name in names))
    one, two = opened(tmp_path / "one", val_fraction=0.2), opened(tmp_path / "two", val_fraction=0.2)
    val = {name for _, name in content(one.splits["val"])}
    # SHA-256's first digits as a number in [0, 1), written another way than the code's.
    assert val == {name for name in names if int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12 < 0.2}
    assert {name for _, name in content(two.splits["val"])} == {f"train/{name}" for name in val}
    assert {name for _, name in content(one.splits["train"])} == set(names) - val
    assert 50 < len(val) < 110
    assert one.fingerprint != two.fingerprint


def test_a_class_without_a_validation_image_is_a_note(tmp_path):
    tree(tmp_path, "b/1.jpg", *(f"a/{number}.jpg" for number in range(100)))
    in_val = _files.held_out("b/1.jpg", 0.5)
    (note,) = opened(tmp_path, val_fraction=0.5).notes
    assert note == f"val_fraction 0.5 leaves no {'training' if in_val else 'validation'} image of 'b'."


def test_a_fraction_that_leaves_a_split_empty(tmp_path):
    tree(tmp_path, "a/1", "b/1")
    refused(tmp_path, "of 2 images leaves none for validation", val_fraction=1e-9)
    refused(tmp_path, "of 2 images leaves none for training", val_fraction=1 - 1e-12)


def test_a_test_split_stays_with_val_fraction(tmp_path):
    names = [f"train/{name}/{number}" for name in ("a", "b") for number in range(30)]
    source = opened(tree(tmp_path, *names, "test/a/1", "test/b/1"), val_fraction=0.3)
    assert content(source.splits["test"]) == [(0, "test/a/1"), (1, "test/b/1")]


class _Named:
    """Examples of names alone."""

    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]

    def load(self, index):
        return self.names[index].encode("utf-8", "surrogateescape"), 0


@settings(max_examples=60, deadline=None)
@given(
    names=st.sets(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=8),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32),
)
def test_the_split_is_a_partition_whatever_the_order(names, fraction, seed):
    listed = sorted(names)
    shuffled = random.Random(seed).sample(listed, len(listed))
    found = []
    for order in (listed, shuffled):
        try:
            train, val, _ = _files.split_by_hash("it", _Named(order), order, np.zeros(len(order)), ["c"], fraction)
        except DataError as error:
            found.append(str(error))
            continue
        parts = [[part.name(index) for index in range(len(part))] for part in (train, val)]
        assert sorted(parts[0] + parts[1]) == listed
        assert [part.load(0)[0].decode() for part in (train, val)] == [parts[0][0], parts[1][0]]
        assert all(order.index(a) < order.index(b) for part in parts for a, b in itertools.pairwise(part))
        # A larger share keeps what a smaller one took.
        assert all(_files.held_out(name, min(0.99, fraction * 1.5)) for name in parts[1])
        found.append([set(part) for part in parts])
    assert found[0] == found[1]
