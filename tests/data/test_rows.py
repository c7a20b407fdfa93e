"""Arrays that are written row by row, read by NumPy and safetensors themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors

from alexnet_jax.data.rows import names_of, writing

VALUES = np.random.default_rng(0).standard_normal((23, 2, 3)).astype(np.float32)
NAMES = [f"é日/{number}.png" for number in range(23)]
ABOUT = {"layer": "pool5"}


def write(path, counts=(10, 0, 12, 1), values=VALUES):
    start = 0
    with writing(path, values.shape[1:], "features", ABOUT) as rows:
        for count in counts:
            rows.add(NAMES[start : start + count], values[start : start + count])
            start += count


def test_npz(tmp_path):
    write(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert set(found.files) == {"features", "names", "layer"}
        np.testing.assert_array_equal(found["features"], VALUES, strict=True)
        assert found["names"].tolist() == NAMES
        assert str(found["layer"]) == "pool5"


def test_npy(tmp_path):
    write(tmp_path / "a.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), VALUES, strict=True)
    lines = names_of(tmp_path / "a.npy").read_text().splitlines()
    assert [json.loads(line) for line in lines] == NAMES


def test_safetensors(tmp_path):
    write(tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as found:
        np.testing.assert_array_equal(found.get_tensor("features"), VALUES, strict=True)
        assert json.loads(found.metadata()["names"]) == NAMES
        assert found.metadata()["layer"] == "pool5"


@pytest.mark.parametrize("suffix", ["npz", "npy", "safetensors"])
def test_an_error_leaves_what_was_there(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="rows are"):
        write(path, values=VALUES[:5])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must end in"):
        write(tmp_path / "a.csv")
