"""From a source to a prepared folder: files, statistics, broken images, guards."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pytest
import simplejpeg
import xxhash

from alexnet_jax.data import prepare as module
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.prepared import FORMAT, DataError, open_prepared
from alexnet_jax.data.sources import InMemory, Source
from alexnet_jax.models import resize

from .conftest import pictures, toy_source


class Loading(InMemory):
    """Examples that count how often each is loaded, and call a function before."""

    def __init__(self, pairs, before=lambda index: None):
        super().__init__(pairs)
        self.loaded, self._before = [], before

    def load(self, index):
        self.loaded.append(index)
        self._before(index)
        return super().load(index)


def content(folder):
    """Every file of a folder, as bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_files_and_arrays(source, pairs, tmp_path, encoding):
    folder = tmp_path / "deep" / "out"
    assert prepare(source, folder, size=6, encoding=encoding)
    columns = ("labels.npy", "names.txt", *(("sizes.npy",) if encoding == "jpeg" else ()))
    names = {f"{split}_{what}" for split in pairs for what in columns} | {f"{split}-00000.bin" for split in pairs}
    assert {path.name for path in folder.iterdir()} == names | {"classes.txt", "stats.npz", "manifest.json"}
    found = open_prepared(folder)
    assert found.classes == source.classes
    assert (found.directory, found.image_size) == (folder, 6)
    assert list(found.splits) == ["train", "val", "test"]
    for name, examples in pairs.items():
        split = found.splits[name]
        assert len(split) == len(split.images) == len(examples)
        assert split.images.shape == (len(examples), 6, 6, 3)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert found.names(name) == [str(index) for index in range(len(examples))]
        for place, (image, label) in enumerate(examples):
            stored = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(image, 90, "RGB", "420"), "RGB")
            np.testing.assert_array_equal(split.images[place], image if encoding == "raw" else stored)
            assert split.labels[place] == label


def test_the_manifest_says_what_is_there(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    wanted = {
        "format": FORMAT,
        "source": "toy",
        "fingerprint": "1",
        "image_size": 6,
        "resize_rule": "shorter_side",
        "encoding": "raw",
        "quality": None,
        "skipped": [],
        "duplicates": {"count": 0, "first": []},
        "notes": [],
    }
    assert {key: manifest[key] for key in wanted} == wanted
    assert {name: about["count"] for name, about in manifest["splits"].items()} == {"train": 11, "val": 4, "test": 3}
    others = [path for path in folder.iterdir() if path.name != "manifest.json"]
    assert manifest["xxh3_128"] == {path.name: xxhash.xxh3_128_hexdigest(path.read_bytes()) for path in others}


def test_the_quality_is_used_and_recorded(tmp_path):
    image = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[:, None], (64, 1, 3)) ^ pictures(1, 0, 64)[0][0] >> 4
    sizes = []
    for quality in (20, 95):
        source = toy_source(train=[(image, 0)], val=[(image, 1)])
        prepare(source, tmp_path / str(quality), size=64, encoding="jpeg", quality=quality)
        assert open_prepared(tmp_path / str(quality)).manifest["quality"] == quality
        sizes.append((tmp_path / str(quality) / "train-00000.bin").stat().st_size)
    assert sizes[0] < 0.5 * sizes[1]


@pytest.mark.parametrize("rule", ["shorter_side", "warp"])
def test_images_of_any_size_are_scaled(tmp_path, rule):
    draw = np.random.default_rng(0)
    examples = [(draw.integers(0, 256, (height, width, 3), np.uint8), 0) for height, width in ((9, 5), (4, 12), (7, 7))]
    prepare(toy_source(train=examples, val=examples), tmp_path / "out", size=7, rule=rule)
    images = open_prepared(tmp_path / "out").splits["train"].images
    for found, (image, _) in zip(images[:], examples, strict=True):
        np.testing.assert_array_equal(found, resize(image, 7, rule))


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_statistics_are_those_of_the_training_images(pairs, tmp_path, encoding):
    prepare(toy_source(**pairs), tmp_path / "out", size=6, encoding=encoding, per_part=4)
    images = np.stack([image for image, _ in pairs["train"]]).astype(np.float64)
    found = open_prepared(tmp_path / "out").statistics
    pixels = images.reshape(-1, 3)
    assert all(value.dtype == np.float64 for value in vars(found).values())
    np.testing.assert_allclose(found.mean_image, images.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(pixels.T, bias=True), rtol=1e-10)
    assert (np.diff(found.eigenvalues) > 0).all()
    rebuilt = found.eigenvectors @ np.diag(found.eigenvalues) @ found.eigenvectors.T
    np.testing.assert_allclose(rebuilt, found.covariance, rtol=1e-10)
    np.testing.assert_allclose(found.eigenvectors.T @ found.eigenvectors, np.eye(3), atol=1e-12)


def test_variances_of_grey_images_are_not_negative(tmp_path):
    grey = [(np.full((6, 6, 3), value, np.uint8), 0) for value in (3, 50, 171)]
    prepare(toy_source(train=grey, val=grey), tmp_path / "out", size=6)
    assert (open_prepared(tmp_path / "out").statistics.eigenvalues >= 0).all()


def test_neither_threads_nor_parts_change_an_image(pairs, tmp_path):
    prepare(toy_source(**pairs), tmp_path / "one", size=6, threads=1)
    prepare(toy_source(**pairs), tmp_path / "many", size=6, threads=5)
    prepare(toy_source(**pairs), tmp_path / "parts", size=6, per_part=3)
    assert content(tmp_path / "one") == content(tmp_path / "many")
    whole, parts = open_prepared(tmp_path / "one"), open_prepared(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("train-*.bin"))) == 4
    for name in pairs:
        np.testing.assert_array_equal(whole.splits[name].images[:], parts.splits[name].images[:])
    assert (tmp_path / "one" / "stats.npz").read_bytes() == (tmp_path / "parts" / "stats.npz").read_bytes()


def with_bad(count, bad):
    """Training pairs of which those in `bad` are no images."""
    return [(b"no image" if index in bad else image, label) for index, (image, label) in enumerate(pictures(count, 1))]


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_broken_images_are_left_out_and_listed(tmp_path, encoding):
    bad = (0, 3, 4, 5, 13, 19)
    good = [pair for index, pair in enumerate(pictures(20, 1)) if index not in bad]
    options = {"size": 6, "encoding": encoding, "per_part": 3}
    val = pictures(4, 2)
    prepare(toy_source(train=with_bad(20, bad), val=val), tmp_path / "out", max_broken=0.5, **options)
    found = open_prepared(tmp_path / "out")
    skipped = found.manifest["skipped"]
    assert [(entry["split"], entry["name"]) for entry in skipped] == [("train", str(index)) for index in bad]
    assert all("image" in entry["reason"] for entry in skipped)
    assert found.names("train") == [str(index) for index in range(20) if index not in bad]
    prepare(toy_source(train=good, val=val), tmp_path / "good", **options)
    clean = open_prepared(tmp_path / "good")
    np.testing.assert_array_equal(found.splits["train"].images[:], clean.splits["train"].images[:])
    np.testing.assert_array_equal(found.splits["train"].labels, clean.splits["train"].labels)
    assert (tmp_path / "out" / "stats.npz").read_bytes() == (tmp_path / "good" / "stats.npz").read_bytes()


def test_too_many_broken_images_stop_it(tmp_path):
    source = toy_source(train=with_bad(30, (10, 20)), val=pictures(10, 2))
    with pytest.raises(DataError, match=r"1 of 40 images are broken.*--max-broken 0\.01.*continues"):
        prepare(source, tmp_path / "out", size=6)
    with pytest.raises(DataError, match="is not finished"):
        open_prepared(tmp_path / "out")
    assert prepare(source, tmp_path / "out", size=6, max_broken=0.05)
    assert len(open_prepared(tmp_path / "out").splits["train"]) == 28


def test_broken_images_of_an_earlier_start_count(tmp_path):
    source = toy_source(train=with_bad(30, (1, 29)), val=pictures(10, 2))
    with pytest.raises(DataError, match="2 of 40"):
        prepare(source, tmp_path / "out", size=6, max_broken=0.04, per_part=8, threads=1)
    with pytest.raises(DataError, match="2 of 40"):
        prepare(source, tmp_path / "out", size=6, max_broken=0.04, per_part=8, threads=1)


def test_a_split_that_is_all_broken_is_refused(tmp_path):
    source = toy_source(train=pictures(6, 1), val=[(b"", 0)])
    with pytest.raises(DataError, match="not one image of 'val'"):
        prepare(source, tmp_path / "out", size=6, max_broken=1)


def test_what_is_not_the_images_fault_is_not_counted_as_broken(pairs, tmp_path):
    def fail(index):
        if index == 5:
            raise OSError(errno.EMFILE, "Too many open files")

    source = toy_source(**pairs)
    failing = Source("toy", source.classes, {**source.splits, "train": Loading(pairs["train"], fail)}, "1")
    with pytest.raises(DataError, match=r"train image 5 .*Too many open files"):
        prepare(failing, tmp_path / "out", size=6, max_broken=1)
    assert prepare(source, tmp_path / "out", size=6)
    prepare(source, tmp_path / "good", size=6)
    assert content(tmp_path / "out") == content(tmp_path / "good")


def test_an_unreadable_image_is_listed(pairs, tmp_path):
    def fail(index):
        if index == 5:
            raise OSError(errno.EIO, "Input/output error")

    source = Source("toy", ("a", "b", "c"), {**toy_source(**pairs).splits, "train": Loading(pairs["train"], fail)})
    prepare(source, tmp_path / "out", size=6, max_broken=0.1)
    entry = {"split": "train", "name": "5", "reason": "can't be read: Input/output error"}
    assert open_prepared(tmp_path / "out").manifest["skipped"] == [entry]


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_stops_it(tmp_path, label):
    image = pictures(1, 0)[0][0]
    with pytest.raises(DataError, match=rf"val image 0 of toy has the label {label}.*3 classes \(0 to 2\)"):
        prepare(toy_source(train=pictures(3, 1), val=[(image, label)]), tmp_path / "out", size=6)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("one",), "at least two"),
        (("a", "b\nc"), "of one line"),
        (("a", ""), "rename"),
        (("a", "\udcff"), "rename"),
        (("a", "b", "a"), "two classes named 'a'"),
    ],
)
def test_classes_that_can_not_be_are_refused(pairs, tmp_path, classes, words):
    with pytest.raises(DataError, match=words):
        prepare(Source("toy", classes, toy_source(**pairs).splits), tmp_path / "out", size=6)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_source_without_a_split_is_refused(pairs, tmp_path, split):
    with pytest.raises(DataError, match=f"no images to use as '{split}'"):
        prepare(toy_source(**(pairs | {split: []})), tmp_path / "out", size=6)


def test_class_names_of_any_language(pairs, tmp_path):
    classes = ("crème brûlée", "犬と 猫", "a  b $x^2$")
    prepare(Source("toy", classes, toy_source(**pairs).splits), tmp_path / "out", size=6)
    assert open_prepared(tmp_path / "out").classes == classes


def test_names_that_are_no_unicode_survive(tmp_path):
    class Named(InMemory):
        def name(self, index):
            return f"bad\udcff\n\u2028{index}é"

    source = Source("toy", ("a", "b"), {"train": Named(pictures(3, 1)[:2]), "val": Named(pictures(3, 2)[:2])})
    prepare(source, tmp_path / "out", size=6)
    assert open_prepared(tmp_path / "out").names("train") == [f"bad\udcff\n\u2028{index}é" for index in range(2)]


def test_files_in_both_train_and_val_are_reported(pairs, tmp_path):
    train, val = pairs["train"], pairs["val"]
    shared = [*val, train[7], train[2], train[7]]
    prepare(toy_source(train=train, val=shared, test=[train[0]]), tmp_path / "out", size=6)
    found = open_prepared(tmp_path / "out").manifest["duplicates"]
    assert found["count"] == 4
    assert found["first"][:3] == [{"train": "7", "val": "4"}, {"train": "2", "val": "5"}, {"train": "7", "val": "6"}]
    assert found["first"][3] == {"train": "0", "test": "0"}


def test_classes_without_images_are_noted(pairs, tmp_path):
    two = [(image, label % 2) for image, label in pairs["val"]]
    prepare(toy_source(train=pairs["train"], val=two), tmp_path / "out", size=6)
    assert open_prepared(tmp_path / "out").manifest["notes"] == ["val has no image of 1 of 3 classes: blue"]


def test_free_disk_is_checked_before(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 500, 500))
    with pytest.raises(DataError, match=r"needs about .* more, its disk has 0\.0 MB free.*--encoding jpeg"):
        prepare(source, tmp_path / "out", size=6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"encoding": "png"},
        {"rule": "fit"},
        {"quality": 0},
        {"quality": 101},
        {"shard": (0, 2)},
        {"shard": (3, 2)},
        {"max_broken": 1.5},
    ],
)
def test_arguments_are_checked(source, tmp_path, wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values()))).strip("()").split(",")[0]):
        prepare(source, tmp_path / "out", size=6, **wrong)
    assert not (tmp_path / "out").exists()
