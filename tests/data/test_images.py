"""Images read from part files: any rows, any thread, and damage in words."""

from __future__ import annotations

import errno
import os
import resource
import weakref
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from alexnet_jax.data import images as module
from alexnet_jax.data.images import DataError, JpegImages, Memory, RawImages
from alexnet_jax.parallel import ROWS, Layout

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


@pytest.mark.parametrize("cores", [1, 3, 16])
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_rows_in_any_order(tmp_path_factory, encoding, cores, monkeypatch):
    reader, images = stored(tmp_path_factory.mktemp("parts"), (30, 30, 7), encoding)
    monkeypatch.setattr(module, "cores", lambda: cores)
    monkeypatch.setattr(module, "_RAW_PIECE", 16)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 66), max_size=100))
    def check(rows):
        np.testing.assert_array_equal(reader[rows], images[np.array(rows, int)])

    check()


@pytest.mark.parametrize(
    ("encoding", "cores", "count", "pieces"),
    [
        ("raw", 16, 255, [255]),
        ("raw", 16, 400, [134, 133, 133]),
        ("raw", 16, 5000, [1250] * 4),
        ("raw", 7, 5000, [5000]),
        ("jpeg", 8, 1, [1]),
        ("jpeg", 8, 11, [2, 2, 2] + [1] * 5),
    ],
)
def test_what_is_worth_it_is_shared_out_among_the_cores(tmp_path, encoding, cores, count, pieces, monkeypatch):
    reader, _ = stored(tmp_path, (30,), encoding)
    monkeypatch.setattr(module, "cores", lambda: cores)
    fill, found = reader._fill, []
    monkeypatch.setattr(reader, "_fill", lambda images, places: (found.append(len(images)), fill(images, places)))
    reader[np.zeros(count, int)]
    assert sorted(found, reverse=True) == pieces


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


def test_splits_leave_open_files_to_others(tmp_path):
    """Two splits of many parts under a low limit, where 64 files are open already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]
    limit = max(others) + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        for encoding in ("raw", "jpeg"):
            reader, images = stored(tmp_path, (1,) * (limit + 10), encoding)
            np.testing.assert_array_equal(reader[:], images)
            others.append(reader)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in others[:64]:
            os.close(descriptor)


def test_too_many_open_files_are_no_damage(tmp_path, monkeypatch):
    reader, _ = stored(tmp_path, (2,), "raw")

    def dup(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", dup)
    with pytest.raises(DataError, match=r"Too many open files: raise the limit of open files \(ulimit -n\)"):
        reader[:]


def test_memory_is_used_again_once_no_array_is_on_it():
    memory = Memory()
    first = memory.array((2, 3, 4))
    address = first.ctypes.data
    view = first[1:][:, ::2].view(np.int8)
    bare = memoryview(memory.array((24,)))
    first[:] = 7
    del first
    taken = [memory.array((24,)) for _ in range(3)]
    for array in taken:
        array[:] = 0
    assert view.base is not None
    assert address not in {array.ctypes.data for array in taken}
    assert bare.obj.ctypes.data not in {array.ctypes.data for array in taken}
    del view
    assert memory.array((4, 6)).ctypes.data == address


def test_memory_of_another_size_is_let_go():
    memory = Memory()
    large = memory.array((1000,))
    gone = weakref.ref(large.base)
    del large
    assert memory.array((5,)).shape == (5,)
    assert gone() is None
    assert memory.array((0, 5)).shape == (0, 5)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_batches_that_are_held_keep_their_content(tmp_path, encoding):
    reader, images = stored(tmp_path, (30, 30, 7), encoding)
    memory = Memory()
    rows = np.random.default_rng(1).integers(0, 67, (40, 16))
    held = []
    for chosen in rows:
        batch = reader.read(chosen, memory)
        held = [*held[-2:], (chosen, batch[3:5])]
        del batch
        for of, found in held:
            np.testing.assert_array_equal(found, images[of][3:5])


@pytest.fixture
def shared():
    """A `Memory` with pieces that JAX's CPU device uses as they are: their addresses are multiples of 64."""
    memory = Memory()
    for _ in range(60):
        piece = np.empty(16 * SIZE * SIZE * 3 + 64, np.uint8)
        start = -piece.ctypes.data % 64
        memory._free.append(piece[start : start + piece.size - 64].data)
    return memory


def in_processes(batch):
    """As a run of several processes places its rows."""
    return jax.make_array_from_process_local_data(NamedSharding(Layout(data=2).mesh, ROWS), batch)


PLACES = {
    "device_put": (jax.device_put, lambda x: x),
    "slice": (lambda batch: jax.device_put(batch[4:]), lambda x: x[4:]),
    "transposed": (lambda batch: jax.device_put(batch.transpose(3, 1, 2, 0)), lambda x: x.transpose(3, 1, 2, 0)),
    "strided": (lambda batch: jax.device_put(batch[::2, ::-1]), lambda x: x[::2, ::-1]),
    "one device": (lambda batch: Layout().place_rows(batch), lambda x: x),
    "data": (lambda batch: Layout(data=2).place_rows(batch), lambda x: x),
    "towers": (lambda batch: Layout(towers=2).place_rows(batch), lambda x: x),
    "data and towers": (lambda batch: Layout(data=2, towers=2).place_rows(batch), lambda x: x),
    "processes": (in_processes, lambda x: x),
}


@pytest.mark.parametrize("name", PLACES)
def test_placed_batches_keep_their_content(tmp_path, shared, name):
    """Arrays on the device, and computations that are still to be done when theirs is let go."""
    place, part = PLACES[name]
    reader, images = stored(tmp_path, (30, 30, 7), "raw")
    rows = np.random.default_rng(1).integers(0, 67, (60, 16))
    # Slow, and nothing between devices: so many at once on virtual ones can leave XLA's collectives without threads.
    slow = jax.vmap(lambda x: jnp.sin(jnp.tile(x, (9, 1, 1)).astype(jnp.float32)).sum() * 0 + (x ^ 255))
    changed = jax.jit(slow)
    addresses = {np.frombuffer(piece, np.uint8).ctypes.data for piece in shared._free}
    kept, results, aliases = [], [], 0
    for number, chosen in enumerate(rows):
        batch = reader.read(chosen, shared)
        placed = place(batch)
        starts = [shard.data.unsafe_buffer_pointer() for shard in placed.addressable_shards]
        aliases += any(first <= start < first + batch.nbytes for first in addresses for start in starts)
        results.append(changed(placed))
        if number % 3 == 0:
            kept.append((chosen, placed))
        del batch, placed
    assert (aliases > 0) == (name not in ("transposed", "strided"))
    for chosen, placed in kept:
        np.testing.assert_array_equal(placed, part(images[chosen]))
    for chosen, result in zip(rows, results, strict=True):
        np.testing.assert_array_equal(result, part(images[chosen]) ^ 255)


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
