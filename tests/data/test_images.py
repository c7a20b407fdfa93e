"""Images read from part files: any rows, any thread, and damage in words."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_jax.data import images as module
from alexnet_jax.data.images import DataError, JpegImages, RawImages

SIZE = 16


def stored(folder, counts, encoding, seed=0):
    """Part files of random images; returns what reads them and what they hold."""
    rng = np.random.default_rng(seed)
    # Smooth, so that JPEG keeps them apart.
    small = rng.integers(0, 256, (sum(counts), 2, 2, 3), np.uint8)
    images = small.repeat(SIZE // 2, 1).repeat(SIZE // 2, 2)
    contents = [image.tobytes() for image in images]
    if encoding == "jpeg":
        contents = [simplejpeg.encode_jpeg(image, 90, "RGB", "444") for image in images]
        images = np.stack([simplejpeg.decode_jpeg(content, "RGB") for content in contents])
    files, start = [], 0
    for number, count in enumerate(counts):
        files.append(folder / f"{encoding}-{number:05d}.bin")
        files[-1].write_bytes(b"".join(contents[start : start + count]))
        start += count
    if encoding == "raw":
        return RawImages(files, counts, SIZE), images
    return JpegImages(files, counts, SIZE, np.array([len(content) for content in contents], np.int32)), images


@pytest.fixture(params=["raw", "jpeg"])
def both(request, tmp_path):
    """A reader over three parts, one of them empty, and the images in it."""
    return stored(tmp_path, (5, 0, 40, 2), request.param)


def test_shape_and_every_row(both):
    reader, images = both
    assert (len(reader), reader.shape, reader.dtype) == (47, (47, SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(reader[:], images)
    np.testing.assert_array_equal(reader[3:30:4], images[3:30:4])
    np.testing.assert_array_equal(reader[-1], images[-1])
    np.testing.assert_array_equal(reader[np.int64(7)], images[7])
    assert reader[[]].shape == (0, SIZE, SIZE, 3)
    assert reader[:].flags.c_contiguous


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_rows_in_any_order(tmp_path_factory, encoding, cores, monkeypatch):
    reader, images = stored(tmp_path_factory.mktemp("parts"), (30, 30, 7), encoding)
    monkeypatch.setattr(module, "cores", lambda: cores)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 66), max_size=100))
    def check(rows):
        np.testing.assert_array_equal(reader[rows], images[np.array(rows, int)])

    check()


def test_many_threads_at_once(both):
    reader, images = both
    rows = np.random.default_rng(1).integers(0, 47, (40, 64))
    with ThreadPoolExecutor(8) as pool:
        for chosen, found in zip(rows, pool.map(lambda chosen: reader[chosen], rows), strict=True):
            np.testing.assert_array_equal(found, images[chosen])


@pytest.mark.parametrize("wrong", [47, -48, [0, 47], [-1]])
def test_rows_out_of_range(both, wrong):
    with pytest.raises(IndexError):
        both[0][wrong]


def test_more_parts_than_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_OPEN_FILES", 3)
    reader, images = stored(tmp_path, (2,) * 12, "raw")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        np.testing.assert_array_equal(reader[:], images)
    assert len(os.listdir("/proc/self/fd")) - before == 3
    del reader
    assert len(os.listdir("/proc/self/fd")) == before


def test_pages_that_are_given_up_are_read_again(both, monkeypatch):
    reader, images = both
    monkeypatch.setattr(module, "_LET_GO", 5 * SIZE * SIZE * 3)
    for _ in range(3):
        np.testing.assert_array_equal(reader[:], images)


def test_a_part_that_is_cut_off_before_it_is_read(both, tmp_path):
    reader, _ = both
    path = next(tmp_path.glob("*-00002.bin"))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=rf"{path.name} is damaged \(it is shorter.*prepare --check"):
        reader[:]
    assert reader[:5].shape[0] == 5


def test_a_part_that_is_gone(both, tmp_path):
    reader, _ = both
    path = next(tmp_path.glob("*-00003.bin"))
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name} is damaged .*No such file"):
        reader[45]


def test_jpegs_that_are_damaged_or_of_another_size(tmp_path):
    reader, _ = stored(tmp_path, (3,), "jpeg")
    path = tmp_path / "jpeg-00000.bin"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(DataError, match=r"image 1 is no JPEG"):
        reader[1]
    other = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8), 90, "RGB", "444")
    path.write_bytes(other)
    small = JpegImages([path], [1], SIZE, np.array([len(other)], np.int32))
    with pytest.raises(DataError, match=r"image 0 has 8 × 8 pixels"):
        small[0]
