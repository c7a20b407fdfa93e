"""Opening a prepared folder: what is spoilt is refused in words; `check` reads every byte."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.prepared import FORMAT, DataError, check, open_prepared

from .conftest import toy_source


@pytest.fixture(params=["raw", "jpeg"])
def folder(request, pairs, tmp_path):
    """A prepared folder of either encoding."""
    prepare(toy_source(**pairs), tmp_path / "toy", size=6, encoding=request.param, per_part=4)
    return tmp_path / "toy"


def change_manifest(folder, **values):
    """Writes a manifest with values changed."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_split(folder, split, **values):
    """Changes a split's entry; None takes it out."""
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    splits[split] |= values
    change_manifest(folder, splits=splits)


def no_val(folder):
    """Takes the validation split out of the manifest."""
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    change_manifest(folder, splits={name: about for name, about in splits.items() if name != "val"})


def shorten(path):
    """Cuts a file to the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, place=None):
    """Flips a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def test_a_mark_of_the_format_is_checked(folder):
    change_manifest(folder, format=1)
    with pytest.raises(DataError, match=f"has format 1, this program reads {FORMAT}: delete it and prepare it anew"):
        open_prepared(folder)


OUTSIDE = [{"file": "../train-00000.bin", "count": 4}, {"file": "train-00001.bin", "count": 7}]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json"),
        (lambda f: shutil.rmtree(f), "toy"),
        (no_val, "'val'"),
        (lambda f: change_split(f, "val", count=5), "'val'"),
        (lambda f: change_split(f, "train", parts=[]), "'train'"),
        (lambda f: change_split(f, "train", parts=OUTSIDE), "'train'"),
        (lambda f: change_split(f, "val", count=0, parts=[]), "val"),
        (lambda f: change_manifest(f, encoding="png"), "png"),
        (lambda f: shorten(f / "train-00001.bin"), "train-00001.bin"),
        (lambda f: (f / "val-00000.bin").unlink(), "val-00000.bin"),
        (lambda f: (f / "val-00000.bin").write_bytes(b""), "val-00000.bin"),
        (lambda f: np.save(f / "train_labels.npy", np.full(11, 3, np.int32)), "train_labels.npy"),
        (lambda f: flip(f / "train_labels.npy"), "train_labels.npy"),
        (lambda f: shorten(f / "val_labels.npy"), "val_labels.npy"),
        (lambda f: flip(f / "val_names.txt"), "val_names.txt"),
        (lambda f: (f / "classes.txt").unlink(), "classes.txt"),
        (lambda f: flip(f / "classes.txt"), "classes.txt"),
        (lambda f: (f / "stats.npz").unlink(), "stats.npz"),
        (lambda f: shorten(f / "stats.npz"), "stats.npz"),
        (lambda f: shorten(f / "manifest.json"), "manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json"),
        (lambda f: change_manifest(f, xxh3_128=[]), "manifest.json"),
    ],
    ids=[
        *("no manifest", "no folder", "no val", "other count", "no parts", "parts outside", "empty val", "encoding"),
        *("cut part", "no part", "empty part", "other labels", "flipped labels", "cut labels", "flipped names"),
        *("no classes", "flipped classes", "no statistics", "cut statistics", "cut manifest", "empty manifest"),
        "no checksums",
    ],
)
def test_a_spoilt_folder_is_refused_in_words(folder, spoil, words):
    spoil(folder)
    with pytest.raises(DataError, match=words) as caught:
        open_prepared(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def without_checksum(folder, name):
    """Takes a file's checksum out of the manifest, so that its content is looked at."""
    sums = json.loads((folder / "manifest.json").read_text())["xxh3_128"]
    change_manifest(folder, xxh3_128={key: value for key, value in sums.items() if key != name})


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.full(11, 3, np.int32), "labels of 'train' reach from 3 to 3, but classes.txt has 3 names"),
        (np.full(11, -1, np.int32), "reach from -1 to -1"),
        (np.zeros(11, np.float32), "train_labels.npy is not what manifest.json says"),
        (np.zeros(10, np.int32), "train_labels.npy is not what manifest.json says"),
    ],
)
def test_labels_are_checked(folder, labels, words):
    without_checksum(folder, "train_labels.npy")
    np.save(folder / "train_labels.npy", labels)
    with pytest.raises(DataError, match=words):
        open_prepared(folder)


def test_a_good_folder_checks_well(folder):
    seen = []
    assert check(folder, progress=lambda done, total: seen.append((done, total))) == []
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json")
    assert seen[-1] == (size, size)


def test_check_finds_every_flipped_bit_and_missing_file(folder):
    names = sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    for name in names:
        flip(folder / name)
        assert check(folder) == [f"{name} is damaged: its checksum is not that of manifest.json"]
        flip(folder / name)
    (folder / names[0]).unlink()
    os.remove(folder / names[-1])
    assert check(folder) == [f"{names[0]} is missing", f"{names[-1]} is missing"]


def test_check_refuses_what_is_no_prepared_folder(tmp_path):
    with pytest.raises(DataError, match="not a prepared data set"):
        check(tmp_path)
