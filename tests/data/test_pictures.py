"""Image files that a person names: which they are, and what becomes of them, good and broken."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import pictures
from alexnet_jax.data.prepared import DataError

SIDE = 9


def pixels(number):
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Seven good images; two broken ones among them; a text, and what is hidden."""
    (tmp_path / "sub").mkdir()
    for number in range(7):
        Image.fromarray(pixels(number)).save(tmp_path / ("sub" if number > 3 else "") / f"{number}.png")
    (tmp_path / "1b.png").write_bytes(b"no image")
    (tmp_path / "sub" / "4b.JPG").write_bytes(b"")
    (tmp_path / "list.txt").write_text("a list")
    (tmp_path / ".hidden.png").write_bytes(b"")
    return tmp_path


def read(found, **options):
    return list(pictures.batches(found, size=SIDE, rule="warp", **options))


def test_a_folder_gives_its_images_in_order_and_says_what_it_leaves_out(folder):
    found = pictures.find([str(folder)])
    names = [os.path.relpath(path, folder) for path in found.paths]
    assert names == ["0.png", "1.png", "1b.png", "2.png", "3.png", "sub/4.png", "sub/4b.JPG", "sub/5.png", "sub/6.png"]
    assert found.notes == (f"1 files in {folder} are not named like images: left out",)


def test_a_named_file_counts_whatever_it_is_called_and_each_once(folder):
    (folder / "0.png").rename(folder / "picture")
    found = pictures.find([str(folder / "picture"), str(folder / "1.png"), str(folder / "1.png"), str(folder / "sub")])
    assert found.paths[:2] == (str(folder / "picture"), str(folder / "1.png"))
    assert len(found) == 6


def test_links_are_followed_but_not_in_circles(folder):
    (folder / "sub" / "up").symlink_to(folder)
    assert len(pictures.find([str(folder)])) == 9
    (folder / "link").symlink_to(folder / "sub")
    assert len(pictures.find([str(folder / "link")])) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://example.org/a.png", "is a URL, and nothing is fetched: download it"),
        ("s3://bucket/a.png", "is a URL"),
        ("data:image/png;base64,AAAA", "is a URL"),
        ("gone.png", "there is no such file or folder"),
        ("texts", "holds no files that are named like images; its 1 files have other names"),
        ("prepared", "is a prepared folder"),
    ],
)
def test_what_can_not_be_meant_is_refused(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for made, file in (("texts", "a.txt"), ("prepared", "manifest.json")):
        (tmp_path / made).mkdir()
        (tmp_path / made / file).touch()
    with pytest.raises(DataError, match=words):
        pictures.find([name])


@pytest.mark.parametrize(("batch_size", "even"), [(1, 1), (2, 2), (4, 3), (8, 5), (100, 9)])
def test_every_good_image_comes_once_in_its_row_and_every_broken_one_is_named(batch_size, even, folder):
    found = pictures.find([str(folder)])
    batches = read(found, batch_size=batch_size, threads=3)
    assert [len(batch.images) for batch in batches] == [even] * -(-9 // batch_size)
    indices = np.concatenate([batch.indices for batch in batches])
    assert indices.tolist() == [0, 1, 3, 4, 5, 7, 8]
    images = np.concatenate([batch.images[batch.good] for batch in batches])
    np.testing.assert_array_equal(images, np.stack([pixels(number) for number in range(7)]))
    broken = [one for batch in batches for one in batch.broken]
    assert broken == [(2, "not an image that Pillow reads"), (6, "empty file")]


def test_of_no_images_there_are_no_batches():
    assert not read(pictures.Pictures(()), batch_size=4)


def test_no_more_is_decoded_than_a_few_batches_ahead(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        pictures, "load_one", lambda path, **_: asked.append(path) or np.zeros((SIDE, SIDE, 3), np.uint8)
    )
    many = pictures.Pictures(tuple(map(str, range(1000))))
    stream = pictures.batches(many, size=SIDE, rule="warp", batch_size=10, threads=2)
    next(stream)
    next(stream)
    assert len(asked) <= 10 * (2 + pictures._AHEAD)
    stream.close()
    assert len(asked) <= 10 * (2 + pictures._AHEAD)


def test_a_system_without_files_left_is_not_the_image_s_fault(folder, monkeypatch):
    def fail(path, **_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(pictures, "load_one", fail)
    with pytest.raises(DataError, match="can't be read now"):
        read(pictures.find([str(folder)]), batch_size=4)


def test_a_file_that_is_gone_by_then_is_a_broken_one(folder):
    found = pictures.find([str(folder / "0.png"), str(folder / "1.png")])
    (folder / "0.png").unlink()
    (batch,) = read(found, batch_size=4)
    assert batch.broken == ((0, "can't be read: No such file or directory"),)
