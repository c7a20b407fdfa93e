"""The pictures: valid files, and the kernels where the paper has them."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.prepared import open_prepared
from alexnet_jax.data.sources import InMemory, Source
from alexnet_jax.data.views import Augmentation
from alexnet_jax.figures import confusion, data_preview, first_layer_kernels, learning_curves, runs, two_towers
from alexnet_jax.models import get_spec
from alexnet_jax.training.setup import _with_mean as set_mean


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


@pytest.mark.parametrize(("count", "groups"), [(2, 1), (48, 2), (96, 2), (32, 1)])
def test_the_kernels_reach_the_edges_and_are_not_blurred(tmp_path, count, groups):
    kernel = np.where(np.indices((11, 11)).sum(0) % 2, 1.0, -1.0)[:, :, None, None] * np.ones((1, 1, 3, count))
    first_layer_kernels(kernel, groups, tmp_path / "kernels.png")
    dark = (pixels(tmp_path / "kernels.png") == 0).all(-1)[30:]  # below the title
    assert set(np.flatnonzero(dark.any(1))[[0, -1]]) == {5, dark.shape[0] - 6}
    assert dark.sum() == 61 * 25 * count


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


@pytest.fixture
def prepared_colours(tmp_path):
    """A prepared folder of three classes, an image of one colour each, names that fonts or mathtext trip over."""
    colours = [(200, 30, 40), (20, 180, 60), (30, 40, 220)]
    pairs = [(np.full((16, 16, 3), colours[index % 3], np.uint8), index % 3) for index in range(24)]
    source = Source(
        "toy",
        ("crème $x^", "犬と猫", "a name that is longer than its place"),
        {"train": InMemory(pairs), "val": InMemory(pairs[:3])},
    )
    prepare(source, tmp_path / "data", size=16)
    return open_prepared(tmp_path / "data"), colours


CONTRACTS = ("paper", "source2012", "torchvision", "caffenet")  # every kind of input contract there is


@pytest.mark.parametrize(("name", "noise"), [*((name, None) for name in CONTRACTS), ("source2012", "source2012")])
def test_the_preview_shows_images_and_what_the_network_sees(name, noise, prepared_colours, tmp_path):
    """For every input contract the colours come back: no channel swapped, no mean left out."""
    data, colours = prepared_colours
    spec = set_mean(get_spec(name), data)
    contract = dataclasses.replace(spec.input, size=14, resize=16)
    data_preview(data, contract, Augmentation(flip=True, colour_noise=noise), tmp_path / "preview.png")
    shown = pixels(tmp_path / "preview.png")
    middle = shown.shape[1] * 43 // 100
    for half, within in ((shown[:, :middle], 3), (shown[:, middle : 2 * middle], 3 if noise is None else 120)):
        for colour in colours:
            near = (np.abs(half - np.array(colour)).max(-1) <= within).mean()
            assert near > 0.02, (name, colour)


def test_the_preview_shows_classes_from_all_over(tmp_path):
    pairs = [(np.full((8, 8, 3), 10 * label, np.uint8), label) for label in range(25) for _ in range(3)]
    source = Source("toy", tuple(f"class {n}" for n in range(25)), {"train": InMemory(pairs), "val": InMemory(pairs)})
    prepare(source, tmp_path / "data", size=8)
    images, labels = runs._spread(open_prepared(tmp_path / "data"), 16)
    assert len(set(labels.tolist())) == 16
    assert {0, 24} <= set(labels.tolist())
    assert (images[:, 0, 0, 0] == 10 * labels).all()


@pytest.mark.parametrize("count", [2, 10, 31, 450])
def test_a_confusion_table_of_any_size(tmp_path, count):
    draw = np.random.default_rng(count)
    table = np.diag(draw.integers(1, 50, count)) + (draw.random((count, count)) < 2 / count)
    names = ["$a_1^$ 雪", *(f"a rather long name of class {label}" for label in range(1, count))]
    confusion(table, names, tmp_path / "confusion.png")
    assert pixels(tmp_path / "confusion.png").shape == (900, 1500, 3)


def test_the_numbers_of_the_worst_classes_line_up(tmp_path):
    table = np.diag([0, 3, 90])
    table[0, 1], table[1, 0], table[2, 1] = 5, 2, 3  # 100 %, 40 %, 3.2 %
    confusion(table, ["one", "one", "one"], tmp_path / "confusion.png")
    lines = pixels(tmp_path / "confusion.png")[470:560, 1035:1200].min(-1) < 128
    percents = lines[:, : int(0.731 * 1500) - 1035]
    rows = np.flatnonzero(percents.any(1))
    each = np.split(percents[rows], np.flatnonzero(np.diff(rows) > 1) + 1)
    assert len(each) == 3
    ends = [np.flatnonzero(line.any(0)).max() for line in each]
    starts = [np.flatnonzero(line.any(0)).min() for line in each]
    assert max(ends) - min(ends) <= 1
    assert starts[0] < starts[1] - 3 < starts[2] - 6


def test_a_mistake_is_seen_among_a_thousand_classes(tmp_path):
    table = np.diag(np.full(1000, 50))
    confusion(table, [str(label) for label in range(1000)], tmp_path / "right.png")
    table[900, 100] += 1
    confusion(table, [str(label) for label in range(1000)], tmp_path / "wrong.png")
    matrix = (slice(60, 800), slice(170, 920))
    differ = (pixels(tmp_path / "right.png") != pixels(tmp_path / "wrong.png")).any(-1)[matrix]
    rows, columns = np.nonzero(differ)
    assert 4 <= len(rows) <= 60
    assert (rows.mean() / differ.shape[0] > 0.8, columns.mean() / differ.shape[1] < 0.2) == (True, True)


def said(path) -> list[str]:
    """The texts of an SVG in which matplotlib left them as comments."""
    return [
        line.strip() for text in re.findall(r"<!-- (.*?) -->", path.read_text(), re.DOTALL) for line in text.split("\n")
    ]


@pytest.mark.parametrize("name", ["paper", "source2012", "caffenet", "bvlc_alexnet"])
def test_two_towers_with_the_shapes_of_the_spec(tmp_path, name):
    spec = get_spec(name)
    two_towers(spec, 1000, tmp_path / "towers.svg")
    words = said(tmp_path / "towers.svg")
    for stage, shape in spec.stages(1000).items():
        if stage.startswith(("conv", "fc")) and stage.endswith(".pre"):
            half = "×".join(map(str, (*shape[:-1], shape[-1] // 2)))
            assert words.count(half) >= 2, stage  # in each tower
            assert words.count(stage.removesuffix(".pre")) >= 2
    assert words.count("192 of 3×3×256") == 2  # conv3 sees both towers
    assert words.count("128 of 5×5×48") == 2  # conv2 its own
    assert words.count("500") == 2
    assert "1000" in words
    assert words.count("each way") == 4  # before conv3, fc6, fc7, fc8
    seams = [line for line in words if line.startswith("seam of ")]
    assert seams == ([] if name in ("paper", "source2012") else ["seam of norm1", "seam of norm2"])
    if name == "bvlc_alexnet":
        assert {"55×55×2 ↓", "55×55×2 ↑", "27×27×2 ↓", "27×27×2 ↑"} <= set(words)


def test_two_towers_of_other_networks(tmp_path):
    small = get_spec("paper").with_convs(norm=None).at_image_size(64)
    two_towers(dataclasses.replace(small, dense=()), 5, tmp_path / "towers.svg")
    words = said(tmp_path / "towers.svg")
    assert words.count("fc6") == 2
    assert words.count("whole on both") == 1 + 2  # the image, and 5 classes in either tower
    two_towers(get_spec("paper"), 1000, tmp_path / "towers.png")
    assert min(pixels(tmp_path / "towers.png").shape[:2]) > 500


def test_one_column_is_not_drawn_as_two(tmp_path):
    with pytest.raises(ValueError, match=r"single has 1 group\(s\) of kernels and can't be split over 2 towers"):
        two_towers(get_spec("single"), 1000, tmp_path / "towers.png")
    assert list(tmp_path.iterdir()) == []
