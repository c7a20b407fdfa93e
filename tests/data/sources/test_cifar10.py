"""CIFAR-10's binary version, written by the test as its page describes it."""

from __future__ import annotations

import collections
import pickle
import shutil

import numpy as np
import pytest

from alexnet_jax.data.prepared import DataError
from alexnet_jax.data.sources import open_source

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COUNT = 20


def batch(seed, labels=None):
    """The bytes of a batch, its images (N, 32, 32, 3) and labels."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 10, COUNT) if labels is None else labels
    images = draw.integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    data = b"".join(
        bytes([label]) + b"".join(image[..., band].tobytes() for band in range(3))
        for label, image in zip(labels.tolist(), images, strict=True)
    )
    return data, images, labels


@pytest.fixture
def root(tmp_path):
    """The unpacked archive."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(batch(number)[0])
    (folder / "test_batch.bin").write_bytes(batch(6)[0])
    (folder / "batches.meta.txt").write_text("".join(f"{name}\n" for name in NAMES) + "\n")
    return tmp_path


def refused(root, text, **options):
    with pytest.raises(DataError, match=text) as caught:
        open_source(f"cifar10:{root}", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_every_image_and_label(root, below):
    source = open_source(f"cifar10:{root / below}")
    assert source.classes == NAMES
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 5 * COUNT, "val": COUNT}
    assert "Validation is the test batch" in source.notes[0]
    for split, seeds in (("train", range(1, 6)), ("val", [6])):
        examples = source.splits[split]
        for place, seed in enumerate(seeds):
            _, images, labels = batch(seed)
            for row in range(COUNT):
                image, label = examples.load(COUNT * place + row)
                np.testing.assert_array_equal(image, images[row], strict=True)
                assert image.flags.c_contiguous
                assert (label, type(label)) == (labels[row], int)
    assert source.splits["train"].name(COUNT + 3) == "data_batch_2.bin/3"


def test_val_fraction(root):
    source = open_source(f"cifar10:{root}", val_fraction=0.3)
    names = {name: [part.name(i) for i in range(len(part))] for name, part in source.splits.items()}
    assert collections.Counter(names["train"] + names["val"]) == collections.Counter(
        f"data_batch_{number}.bin/{row}" for number in range(1, 6) for row in range(COUNT)
    )
    assert 15 < len(names["val"]) < 45
    assert names["test"] == [f"test_batch.bin/{row}" for row in range(COUNT)]
    whole = open_source(f"cifar10:{root}")
    np.testing.assert_array_equal(source.splits["test"].load(3)[0], whole.splits["val"].load(3)[0])
    refused(root, "must be between 0 and 1", val_fraction=2.0)


def test_the_python_version_is_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path, r"pickle.*cifar-10-binary\.tar\.gz")
    (tmp_path / "above" / "cifar-10-batches-py").mkdir(parents=True)
    refused(tmp_path / "above", r"pickle.*cifar-10-binary\.tar\.gz")


@pytest.mark.parametrize("name", ["data_batch_1.bin", "data_batch_4.bin", "test_batch.bin", "batches.meta.txt"])
def test_a_missing_file(root, name):
    (root / "cifar-10-batches-bin" / name).unlink()
    refused(root, rf"lacks {name}: cifar-10-binary\.tar\.gz")


def test_damaged_files(root):
    path = root / "cifar-10-batches-bin" / "data_batch_3.bin"
    whole = path.read_bytes()
    for data in (whole[:-1], whole + b"x", b""):
        path.write_bytes(data)
        refused(root, r"data_batch_3\.bin has \d+ bytes, not a multiple of 3073")
    path.write_bytes(b"\x0a" + whole[1:])
    refused(root, r"data_batch_3\.bin has the label 10, but batches\.meta\.txt has 10 names")
    path.write_bytes(whole)
    (root / "cifar-10-batches-bin" / "batches.meta.txt").write_bytes(b"\xff\xfe")
    refused(root, "meta.txt can't be read")


def test_the_fingerprint_follows_the_labels(root):
    before = open_source(f"cifar10:{root}").fingerprint
    copy = shutil.copytree(root, root.parent / f"{root.name}-copy")
    assert open_source(f"cifar10:{copy}").fingerprint == before
    (copy / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(batch(6, np.zeros(COUNT, int))[0])
    assert open_source(f"cifar10:{copy}").fingerprint != before
