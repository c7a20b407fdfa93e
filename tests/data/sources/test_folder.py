"""Class folders: forms, guards, files that are none."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import unicodedata

import pytest

from alexnet_jax.data.sources import _files

from .folders import content, opened, refused, tree


@pytest.fixture
def both(tmp_path):
    """Two splits of two classes."""
    return tree(tmp_path, "train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "val/a/3.jpg", "val/b/3.jpg")


def test_two_splits(both):
    source = opened(both)
    assert source.classes == ("a", "b")
    assert source.name == f"folder:{both}"
    assert content(source.splits["train"]) == [(0, "train/a/1.jpg"), (0, "train/a/2.jpg"), (1, "train/b/1.jpg")]
    assert content(source.splits["val"]) == [(0, "val/a/3.jpg"), (1, "val/b/3.jpg")]
    assert not source.notes


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_val_and_a_test_split(both, name):
    shutil.rmtree(both / "val")
    tree(both, f"{name}/a/3.jpg", f"{name}/b/3.jpg", "test/b/9.jpg")
    source = opened(both)
    assert [content(source.splits[split]) for split in ("val", "test")] == [
        [(0, f"{name}/a/3.jpg"), (1, f"{name}/b/3.jpg")],
        [(1, "test/b/9.jpg")],
    ]
    assert any("no images of 1 of the 2 classes: 'a'" in note for note in source.notes)


def test_nested_folders_hidden_files_and_any_suffix(both):
    tree(both, "train/a/images/z.JPEG", "train/a/images/deep/y", "train/a/notes.txt", "train/b/.hidden.jpg")
    tree(both, "train/b/Thumbs.db", "train/b/sub/desktop.ini", "train/.cache/x.jpg", "__MACOSX/train/a/._1.jpg")
    names = [name for _, name in content(opened(both).splits["train"])]
    assert names == [
        "train/a/1.jpg",
        "train/a/2.jpg",
        "train/a/images/deep/y",
        "train/a/images/z.JPEG",
        "train/a/notes.txt",
        "train/b/1.jpg",
    ]


def test_classes_in_order_of_code_points(tmp_path):
    names = ["élan", "Zebra", "apple pie", "日本", "a,b", "10", "9"]
    tree(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val") for name in names))
    source = opened(tmp_path)
    assert source.classes == ("10", "9", "Zebra", "a,b", "apple pie", "élan", "日本") == tuple(sorted(names))
    assert [label for label, _ in content(source.splits["val"])] == list(range(7))


def test_spellings_of_one_accent_are_one_class(tmp_path):
    tree(tmp_path, "train/é/1.jpg", f"val/{unicodedata.normalize('NFD', 'é')}/2.jpg", "train/b/1.jpg", "val/b/1.jpg")
    source = opened(tmp_path)
    assert source.classes == ("b", "é")
    assert [label for label, _ in content(source.splits["val"])] == [0, 1]


def test_the_home_directory(both, monkeypatch):
    monkeypatch.setenv("HOME", str(both))
    assert len(opened("~").splits["train"]) == 3


def test_the_fingerprint_follows_names_and_sizes(both):
    first = opened(both).fingerprint
    assert first == opened(both).fingerprint
    lines = sorted((path.relative_to(both).as_posix(), path.stat().st_size) for path in both.rglob("*.jpg"))
    expected = hashlib.sha256("".join(f"{name}\0{size}\n" for name, size in lines).encode())
    assert first == expected.hexdigest()
    (both / "val/a/3.jpg").write_bytes(b"longer than before")
    second = opened(both).fingerprint
    (both / "val/a/3.jpg").rename(both / "val/a/4.jpg")
    assert len({first, second, opened(both).fingerprint}) == 3


# What is refused, and what the message says to do.


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["train/a/1", "train/b/1"], r"no validation split.*--val-fraction 0\.1 \(config key data\.val_fraction\)"),
        (["a/1", "b/1"], r"no validation split.*--val-fraction 0\.1"),
        (["train/a/1", "train/b/1", "val/1.jpg"], r"1 files directly in it, such as '1\.jpg'.*val/CLASS/"),
        (["train/a/1", "train/b/1", "val/1"], r"1 files directly in it"),
        (["train/a/1", "train/b/1", "val/1.jpg", "val/a/1.jpg"], "1 files directly in it"),
        (["train/a/1", "train/b/1", "val/a/1", "val/c/1"], "1 folders that are no classes.*'c'"),
        (["train/a/1", "train/b/.x", "val/a/1"], "1 class folders without images: 'b'"),
        (["train/a/1", "val/a/1"], "one class only, 'a'"),
        (["train/1.jpg", "val/a/1"], r"no class folders \(1 files\)"),
        (["train/a/1", "train/b/1", "val/a/.x"], "has no images"),
        (["val/a/1", "val/b/1"], "has val/ but no train/"),
        (["Train/a/1", "Test/b/1"], "'Test', which looks like a split"),
        (["train/a/1", "train/b/1", "val/a/1", "valid/a/1"], "has val and valid"),
        (["train/a/1", "train/b\nc/1", "val/a/1"], r"'b\\nc' is empty or has a line break"),
        (["train/a/1", "train/b\u2028c/1", "val/a/1"], "has a line break"),
        (["train/a/1", "train/b/1", "val/a/1", "test/a/1", "test/z/1"], "no classes of the training images: 'z'"),
        (["train/a/images/1", "train/b/1", "val/images/1", "val/val_annotations.txt"], "'images'.*val_annotations.txt"),
        (["1.jpg"], "no validation split"),
    ],
)
def test_guards(tmp_path, names, text):
    refused(tree(tmp_path, *names), text)


def test_a_class_name_that_is_not_utf8(tmp_path):
    tree(tmp_path, "train/a/1", "val/a/1")
    os.makedirs(os.fsencode(tmp_path) + b"/train/b\xff")
    refused(tmp_path, r"'b\\\\xff' is not valid UTF-8")


def test_a_file_name_that_is_not_utf8(both):
    with open(os.fsencode(both) + b"/train/b/\xff.jpg", "wb") as file:
        file.write(b"x")
    train = opened(both).splits["train"]
    assert train.name(3) == r"train/b/\xff.jpg"
    json.dumps(train.name(3)).encode()
    assert train.load(3) == (b"x", 1)


def test_no_such_folder(tmp_path):
    refused(tmp_path / "none", "none does not exist")
    refused(tree(tmp_path, "file") / "file", "file is not a folder")
    refused("", "write folder:DIR")


def test_val_fraction_beside_a_val_split(both):
    refused(both, r"has a validation split, val/: leave val_fraction \(0\.1\) out", val_fraction=0.1)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), 10])
def test_a_fraction_out_of_range(tmp_path, fraction):
    refused(tree(tmp_path, "a/1", "b/1"), "must be between 0 and 1", val_fraction=fraction)


def test_what_is_only_worth_a_note(both):
    tree(both, "train/labels.csv", "val/readme.txt", "test/1.jpg")
    shutil.rmtree(both / "val/b")
    notes = opened(both).notes
    assert len(notes) == 4
    for text in ("labels.csv", "readme.txt", "test is not used", "no images of 1 of the 2 classes: 'b'"):
        assert any(text in note for note in notes), text


# Files that are no files.


def test_a_directory_a_pipe_and_a_socket(both):
    (both / "train/a/3.jpg").mkdir()
    os.mkfifo(both / "train/a/4.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(both / "train/a")  # a socket's path has a short limit
        server.bind("5.jpg")
    os.symlink("nowhere", both / "train/a/6.jpg")
    os.symlink("7.jpg", both / "train/a/7.jpg")
    os.symlink("/dev/zero", both / "train/a/8.jpg")
    with open(both / "train/a/9.jpg", "wb") as file:
        file.truncate(2**31)
    (both / "train/a/91.jpg").write_bytes(b"")
    train = opened(both).splits["train"]
    reasons = {}
    for index in range(len(train)):
        try:
            train.load(index)
        except OSError as error:
            reasons[train.name(index).removeprefix("train/a/")] = str(error)
    assert list(reasons) == [f"{number}.jpg" for number in range(3, 10)]
    words = ["a directory", "a pipe", "a socket", "No such file", "symbolic links", "a device", "has 2048 MiB"]
    for number, text in enumerate(words, 3):
        assert text in reasons[f"{number}.jpg"]


@pytest.fixture(autouse=True)
def _back():
    here = os.getcwd()
    yield
    os.chdir(here)


def test_a_file_swapped_for_a_pipe_does_not_block(both, monkeypatch):
    """Between the look and the opening."""
    path = both / "train/a/1.jpg"
    before = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(_files.os, "stat", lambda *_, **__: before)
    with pytest.raises(OSError, match="is a pipe"):
        _files.read_file(str(path))


def test_a_file_that_grows(both, monkeypatch):
    monkeypatch.setattr(_files, "MAX_BYTES", 20)
    assert _files.read_file(str(both / "train/a/1.jpg")) == b"train/a/1.jpg"
    monkeypatch.setattr(_files, "MAX_BYTES", 5)
    monkeypatch.setattr(_files, "_check_regular", lambda status: None)
    with pytest.raises(OSError, match="is larger than"):
        _files.read_file(str(both / "train/a/1.jpg"))


def test_links_are_followed_once_and_never_out_of_the_class(both, tmp_path_factory):
    elsewhere = tree(tmp_path_factory.mktemp("elsewhere"), "more/x.jpg")
    os.symlink(elsewhere / "more/x.jpg", both / "train/a/linked.jpg")
    os.symlink(elsewhere, both / "train/a/linked")
    os.symlink(".", both / "train/a/self")
    os.symlink("..", both / "train/a/up")
    os.symlink(both, both / "train/a/top")
    os.symlink(elsewhere / "more", both / "train/a/again")
    os.symlink(both / "train/a", elsewhere / "back")
    os.symlink(both / "train/b", both / "train/c")
    tree(both, "val/c/1.jpg")
    source = opened(both)
    train = source.splits["train"]
    assert source.classes == ("a", "b", "c")
    assert [train.name(index) for index in range(len(train))] == [
        "train/a/1.jpg",
        "train/a/2.jpg",
        "train/a/again/x.jpg",
        "train/a/linked.jpg",
        "train/b/1.jpg",
        "train/c/1.jpg",
    ]
    assert [train.load(index)[0] for index in (2, 3)] == [b"more/x.jpg"] * 2
    # self, up, top; elsewhere/back; elsewhere/more, which `again` had.
    assert any(note.startswith("5 links") for note in source.notes)


CHILD = """
import os, sys
from alexnet_jax.data.sources import open_source
root, good = sys.argv[1:]
open_source("folder:" + good)  # what is imported late, while it can be
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    open(root + "/train/a/1.jpg").close()
    sys.exit("the set-up does not stop this user")
except PermissionError:
    pass
train = open_source("folder:" + root).splits["train"]
for index in range(len(train)):
    try:
        print(train.name(index), train.load(index)[0].decode())
    except OSError as error:
        print(train.name(index), type(error).__name__)
os.rename(root + "/writable/shut", root + "/train/shut")
try:
    open_source("folder:" + root)
except ValueError as error:
    print(error)
"""


def test_what_may_not_be_read(both):
    """As a user who may not, since root may."""
    root = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        tree(root, "train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "val/a/1.jpg", "writable/shut/1.jpg")
        for path in (root, root / "train", root / "writable", root / "writable/shut"):
            path.chmod(0o755)
            if os.getuid() == 0:
                os.chown(path, 65534, 65534)
        (root / "train/a/1.jpg").chmod(0)
        (root / "writable/shut").chmod(0o300)
        command = [sys.executable, "-W", "error", "-c", CHILD, str(root), str(both)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert not done.stderr
        assert done.stdout.splitlines() == [
            "train/a/1.jpg PermissionError",
            "train/a/2.jpg train/a/2.jpg",
            "train/b/1.jpg train/b/1.jpg",
            f"{root}/train/shut can't be listed (Permission denied): check its permissions",
        ]
    finally:
        if (root / "train/shut").exists():
            (root / "train/shut").chmod(0o700)
        shutil.rmtree(root)


def test_listing_order_does_not_matter(both, monkeypatch):
    os.symlink(tree(both.parent / f"{both.name}x", "p/1.jpg") / "p", both / "train/a/l1")
    os.symlink(both.parent / f"{both.name}x", both / "train/a/l0")
    tree(both, "train/a/d/1.jpg", "train/a/e/f/1.jpg")
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=self.reverse)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    found = []
    for Reversed.reverse in (False, True):
        monkeypatch.setattr(_files.os, "scandir", Reversed)
        source = opened(both)
        train = source.splits["train"]
        found.append([source.fingerprint, *(train.name(index) for index in range(len(train)))])
    assert found[0] == found[1]
    assert len(found[0]) == 1 + 6
