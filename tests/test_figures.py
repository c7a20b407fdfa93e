"""The pictures: valid files, and the kernels where the paper has them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.figures import first_layer_kernels, learning_curves


def pixels(path) -> np.ndarray:
    """A PNG as integers (H, W, 3), read whole."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def train_line(step, rate=0.01, **values):
    """A line of training metrics."""
    line = {"step": step, "epoch": step / 10, "split": "train", "loss": 2 / step, "top1_error": 90 / step}
    return line | {"top5_error": None, "learning_rate": rate} | values


def val_line(step, **values):
    """A line of validation metrics."""
    line = {"step": step, "epoch": step / 10, "split": "val", "loss": 3 / step, "top1_error": 95 / step}
    return line | {"top5_error": None} | values


RUN = [line for step in range(5, 50, 5) for line in (train_line(step, 0.01 if step < 25 else 0.001), val_line(step))]


@pytest.mark.parametrize(
    "metrics",
    [
        RUN,
        [train_line(3)],
        [val_line(3)],
        [train_line(3), val_line(3)],
        [train_line(3, 0.1), train_line(6, 0.01)],
        [train_line(3, loss=0.0, top1_error=0.0)],
        [train_line(3, loss=float("nan")), val_line(3, loss=float("nan"))],
        [train_line(3), train_line(6, loss=float("nan")), val_line(6, loss=float("inf"))],
        [],
    ],
    ids=["run", "train", "val", "both", "drop", "loss of 0", "diverged at once", "diverged later", "nothing"],
)
def test_learning_curves_of_any_run(tmp_path, metrics):
    learning_curves(metrics, tmp_path / "curves.png")
    found = pixels(tmp_path / "curves.png")
    height, width, _ = found.shape
    assert width > 2 * height > 400
    assert len(np.unique(found)) > 20


def test_learning_curves_show_both_splits_and_the_drop(tmp_path):
    learning_curves(RUN, tmp_path / "all.png")
    for metrics in ([line for line in RUN if line["split"] == "train"], [line | {"learning_rate": 1} for line in RUN]):
        learning_curves(metrics, tmp_path / "less.png")
        assert not np.array_equal(pixels(tmp_path / "all.png"), pixels(tmp_path / "less.png"))
    learning_curves(RUN, tmp_path / "again.png")
    assert np.array_equal(pixels(tmp_path / "all.png"), pixels(tmp_path / "again.png"))


def kernels(count: int, size: int = 11) -> np.ndarray:
    """The first half red, the second half blue."""
    kernel = np.zeros((size, size, 3, count))
    kernel[..., : count // 2] = np.array([1.0, -1.0, -1.0])[:, None]
    kernel[..., count // 2 :] = np.array([-1.0, -1.0, 1.0])[:, None]
    return kernel


def areas(found):
    """Where a picture is red, and where it is blue."""
    red, green, blue = np.moveaxis(found, -1, 0)
    return (red > 200) & (green < 50) & (blue < 50), (blue > 200) & (green < 50) & (red < 50)


@pytest.mark.parametrize("count", [2, 12, 14, 48, 96])
def test_the_first_tower_is_above_the_second(tmp_path, count):
    first_layer_kernels(kernels(count), 2, tmp_path / "kernels.png")
    red, blue = areas(pixels(tmp_path / "kernels.png"))
    assert red.sum() > 100
    np.testing.assert_allclose(red.sum(), blue.sum(), rtol=0.1)
    assert np.flatnonzero(red.any(1)).max() < np.flatnonzero(blue.any(1)).min()
    columns = [np.flatnonzero(area.any(0)) for area in (red, blue)]
    assert abs(columns[0].min() - columns[1].min()) <= 2


def test_one_tower_is_one_grid_in_order(tmp_path):
    kernel = kernels(4)
    first_layer_kernels(kernel, 1, tmp_path / "kernels.png")
    red, blue = areas(pixels(tmp_path / "kernels.png"))
    assert np.flatnonzero(red.any(0)).max() < np.flatnonzero(blue.any(0)).min()
    assert abs(np.flatnonzero(red.any(1)).min() - np.flatnonzero(blue.any(1)).min()) <= 2


def test_a_kernel_is_shown_upright_and_in_its_own_range(tmp_path):
    kernel = np.zeros((11, 11, 3, 2))
    kernel[0, :, 0] = 1e-3  # a red line at the top
    kernel[:, 0, 2] = 1e-3  # a blue one on the left
    first_layer_kernels(kernel, 1, tmp_path / "kernels.png")
    found = pixels(tmp_path / "kernels.png")
    grey = (np.abs(found - 127).max(-1) <= 3).nonzero()
    strong_red = (found[..., 0] > 240) & (np.abs(found[..., 1] - 127) < 10) & (np.abs(found[..., 2] - 127) < 10)
    strong_blue = (found[..., 2] > 240) & (np.abs(found[..., 1] - 127) < 10) & (np.abs(found[..., 0] - 127) < 10)
    assert len(grey[0]) > 1000
    assert strong_red.nonzero()[0].max() < np.median(grey[0])
    assert strong_blue.nonzero()[1].min() < grey[1].min()


@pytest.mark.parametrize(("size", "count", "groups"), [(11, 96, 2), (5, 32, 1), (3, 6, 3), (11, 122, 2), (1, 1, 1)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_grids_of_every_shape(tmp_path, size, count, groups, value):
    first_layer_kernels(np.full((size, size, 3, count), value), groups, tmp_path / "kernels.png")
    assert pixels(tmp_path / "kernels.png").size > 1000
