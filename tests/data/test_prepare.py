"""From a source to a prepared folder: files, statistics, all or nothing, the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading

import numpy as np
import pytest

from alexnet_jax.data import prepare as module
from alexnet_jax.data.prepare import prepare, prepared
from alexnet_jax.data.prepared import FORMAT, DataError, open_prepared
from alexnet_jax.data.sources import Source
from alexnet_jax.models import resize


class Watched(list):
    """Examples that call a function before one of them is given."""

    def __init__(self, examples, place: int, before):
        super().__init__(examples)
        self._place, self._before = place, before

    def __getitem__(self, index):
        if index == self._place:
            self._before()
        return super().__getitem__(index)


def watched(source, split, place, before):
    """The source with a split that calls a function before its example `place`."""
    splits = {**source.splits, split: Watched(source.splits[split], place, before)}
    return Source(source.name, source.classes, splits)


def test_files_and_arrays(source, folder):
    names = {f"{split}_{what}.npy" for split in source.splits for what in ("images", "labels")}
    assert {path.name for path in folder.iterdir()} == names | {"classes.txt", "stats.npz", "manifest.json"}
    assert folder.stat().st_mode & 0o777 == 0o755
    found = open_prepared(folder)
    assert found.classes == source.classes
    assert (found.directory, found.image_size) == (folder, 6)
    assert list(found.splits) == ["train", "val", "test"]
    for name, examples in source.splits.items():
        split = found.splits[name]
        assert len(split) == len(examples)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        for place, (image, label) in enumerate(examples):
            np.testing.assert_array_equal(split.images[place], image)
            assert split.labels[place] == label


def test_the_manifest_says_what_is_there(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == FORMAT
    assert (manifest["source"], manifest["image_size"], manifest["resize_rule"]) == ("toy", 6, "shorter_side")
    assert {name: about["count"] for name, about in manifest["splits"].items()} == {"train": 11, "val": 4, "test": 3}
    assert manifest["skipped"] == []
    others = [path for path in folder.iterdir() if path.name != "manifest.json"]
    assert manifest["sha256"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in others}


@pytest.mark.parametrize("rule", ["shorter_side", "warp"])
def test_images_of_any_size_are_scaled(tmp_path, rule):
    draw = np.random.default_rng(0)
    examples = [(draw.integers(0, 256, (height, width, 3), np.uint8), 0) for height, width in ((9, 5), (4, 12), (7, 7))]
    prepare(Source("toy", ("one",), {"train": examples, "val": examples}), tmp_path / "out", size=7, rule=rule)
    images = open_prepared(tmp_path / "out").splits["train"].images
    for found, (image, _) in zip(images, examples, strict=True):
        np.testing.assert_array_equal(found, resize(image, 7, rule))


def test_statistics_are_those_of_the_training_images(source, folder):
    images = np.stack([image for image, _ in source.splits["train"]]).astype(np.float64)
    found = open_prepared(folder).statistics
    pixels = images.reshape(-1, 3)
    assert all(value.dtype == np.float64 for value in vars(found).values())
    np.testing.assert_allclose(found.mean_image, images.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(pixels.T, bias=True), rtol=1e-10)
    assert (np.diff(found.eigenvalues) > 0).all()
    rebuilt = found.eigenvectors @ np.diag(found.eigenvalues) @ found.eigenvectors.T
    np.testing.assert_allclose(rebuilt, found.covariance, rtol=1e-10)
    np.testing.assert_allclose(found.eigenvectors.T @ found.eigenvectors, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_nothing(source, tmp_path, split, error):
    def fail():
        raise error("broken image")

    with pytest.raises(error, match="broken image"):
        prepare(watched(source, split, 2, fail), tmp_path / "a" / "out", size=6, rule="shorter_side")
    assert list((tmp_path / "a").iterdir()) == []


def test_nothing_is_at_its_place_before_everything_is(source, tmp_path):
    out, seen = tmp_path / "out", []
    prepare(watched(source, "test", 2, lambda: seen.append(out.exists())), out, size=6, rule="shorter_side")
    assert seen == [False]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_at_once_agree(source, tmp_path):
    meet = threading.Barrier(2, timeout=60)
    errors = []

    def work():
        try:
            prepare(watched(source, "test", 2, meet.wait), tmp_path / "out", size=6, rule="shorter_side")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(open_prepared(tmp_path / "out").splits["train"]) == 11


@pytest.fixture
def toy(source, monkeypatch):
    """The small source under the name of the digits; the list of openings."""
    opened = []

    def open_source(name):
        opened.append(name)
        return source

    monkeypatch.setattr(module, "open_source", open_source)
    return opened


def test_a_source_is_prepared_once(toy, tmp_path):
    options = {"size": 6, "rule": "shorter_side", "cache_dir": tmp_path / "cache"}
    first = prepared("digits", **options)
    stamps = {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}
    again = prepared("digits", **options)
    assert toy == ["digits"]
    assert again.directory == first.directory
    assert {path: path.stat().st_mtime_ns for path in first.directory.iterdir()} == stamps
    directories = {first.directory}
    for changed in ({"size": 5}, {"rule": "warp"}):
        found = prepared("digits", **{**options, **changed})
        assert found.directory not in directories
        directories.add(found.directory)
    assert len(toy) == 3


def test_the_cache_is_in_the_users_cache_folder(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found = prepared("digits", size=6, rule="shorter_side")
    assert found.directory.is_relative_to(tmp_path / "xdg" / "alexnet-jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = prepared("digits", size=6, rule="shorter_side")
    assert found.directory.is_relative_to(tmp_path / "home" / ".cache" / "alexnet-jax")


def test_a_folder_is_used_as_it_is(folder):
    found = prepared(str(folder), size=6, rule="shorter_side")
    assert found.directory == folder


@pytest.mark.parametrize(("size", "rule", "words"), [(7, "shorter_side", "image_size=6"), (6, "warp", "shorter_side")])
def test_a_folder_of_another_size_or_rule_is_refused(folder, size, rule, words):
    with pytest.raises(DataError, match=words) as caught:
        prepared(str(folder), size=size, rule=rule)
    assert repr(size if size != 6 else rule) in str(caught.value)


def test_a_name_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*digits"):
        prepared(str(tmp_path / "nowhere"), size=6, rule="shorter_side")
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        prepared(str(tmp_path), size=6, rule="shorter_side")


def test_a_cache_that_cannot_be_written_is_refused_in_words(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file") as caught:
        prepared("digits", size=6, rule="shorter_side", cache_dir=tmp_path / "file")
    assert "\n" not in str(caught.value)


def change_manifest(folder, **values):
    """Writes a manifest with values changed."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def no_val(folder):
    """Takes the validation split out of the manifest."""
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    change_manifest(folder, splits={name: about for name, about in splits.items() if name != "val"})


def shorten(path):
    """Cuts a file to the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_mark_of_the_format_is_checked(folder):
    change_manifest(folder, format=FORMAT + 1)
    with pytest.raises(DataError, match=f"has format {FORMAT + 1}, this program reads {FORMAT}"):
        open_prepared(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json"),
        (lambda f: shutil.rmtree(f), "toy"),
        (no_val, "'val'"),
        (lambda f: change_manifest(f, splits={"train": {"count": 11}, "val": {"count": 5}}), "'val'"),
        (lambda f: change_manifest(f, splits={"train": {"count": 10}, "val": {"count": 4}}), "'train'"),
        (lambda f: change_manifest(f, image_size=5), "'train'"),
        (lambda f: shorten(f / "train_images.npy"), "train_images.npy"),
        (lambda f: shorten(f / "val_labels.npy"), "val_labels.npy"),
        (lambda f: (f / "val_images.npy").unlink(), "val_images.npy"),
        (lambda f: (f / "val_images.npy").write_bytes(b""), "val_images.npy"),
        (lambda f: np.save(f / "train_images.npy", np.zeros((11, 6, 6, 3), np.float32)), "'train'"),
        (lambda f: np.save(f / "train_labels.npy", np.full(11, 3, np.int32)), "label"),
        (lambda f: np.save(f / "train_labels.npy", np.zeros(11, np.float32)), "label"),
        (lambda f: (f / "classes.txt").unlink(), "classes.txt"),
        (lambda f: (f / "stats.npz").unlink(), "stats.npz"),
        (lambda f: shorten(f / "stats.npz"), "stats.npz"),
        (lambda f: shorten(f / "manifest.json"), "manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json"),
    ],
    ids=[
        *("no manifest", "no folder", "no val", "other count of val", "other count of train", "other size"),
        *("cut images", "cut labels", "no images", "empty images", "float images", "label beyond the classes"),
        *("float labels", "no classes", "no statistics", "cut statistics", "cut manifest", "empty manifest"),
    ],
)
def test_a_spoilt_folder_is_refused_in_words(folder, spoil, words):
    spoil(folder)
    with pytest.raises(DataError, match=words) as caught:
        open_prepared(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
