"""Pictures of a run: its curves, kernels, data and mistakes."""

from __future__ import annotations

import itertools
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.data.prepared import Prepared
from alexnet_jax.data.views import Augmentation, colour_directions, training_view, view_keys
from alexnet_jax.models.spec import InputSpec


def learning_curves(metrics: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Loss and top-1 error against the epoch, training (dropout on) and validation.

    Args:
      metrics: the lines of `metrics.jsonl`.
      path: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    positive = True
    kinds = (("train", "training (dropout on)", "C0"), ("val", "validation", "C1"))
    for axis, key, title in zip(axes, ("loss", "top1_error"), ("Loss", "Top-1 error (%)"), strict=True):
        for split, label, color in kinds:
            lines = [line for line in metrics if line["split"] == split]
            values = np.array([line[key] for line in lines], float)  # None, from a loss that was none, becomes NaN
            axis.plot([line["epoch"] for line in lines], values, color=color, label=label)
            positive &= key != "loss" or bool(np.all(values > 0))
        axis.set(xlabel="Epoch", title=title, xlim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    trained = [line for line in metrics if line["split"] == "train"]
    drops = [a["epoch"] for a, b in itertools.pairwise(trained) if b["learning_rate"] != a["learning_rate"]]
    for axis in axes:
        for epoch in drops:
            axis.axvline(epoch, color="0.6", linestyle=":", linewidth=1)
    if metrics and positive:
        axes[0].set_yscale("log")
    axes[1].set_ylim(0, None)
    if drops:
        figure.supxlabel("dotted: the learning rate drops", fontsize=8, color="0.4")
    figure.savefig(path, dpi=120)


def first_layer_kernels(kernel: np.ndarray, groups: int, path: pathlib.Path) -> None:
    """The first layer's kernels as pictures, a tower above the other (Krizhevsky et al. 2012, figure 3).

    Args:
      kernel: (k, k, 3, K) in RGB; each kernel is scaled to its own range around grey.
      groups: towers; each takes K/groups kernels, in order.
      path: the PNG to write.
    """
    from matplotlib.figure import Figure

    size, _, _, count = kernel.shape
    per_tower = count // groups
    columns = next(c for c in range(min(16, per_tower), 0, -1) if per_tower % c == 0 or c <= 8)
    rows = -(-per_tower // columns)
    gap, between = 1, size // 2
    height = groups * rows * (size + gap) + (groups - 1) * between + gap
    grid = np.ones((height, columns * (size + gap) + gap, 3))
    for index in range(count):
        tower, place = divmod(index, per_tower)
        row, column = divmod(place, columns)
        top = gap + tower * (rows * (size + gap) + between) + row * (size + gap)
        left = gap + column * (size + gap)
        one = np.asarray(kernel[..., index], np.float64)
        grid[top : top + size, left : left + size] = 0.5 + one / (2 * np.abs(one).max() or 1)
    height, width = 5 * grid.shape[0], 5 * grid.shape[1]
    full_height, full_width = height + 30, max(width, 400)  # with room for the title
    figure = Figure(figsize=(full_width / 100, full_height / 100), dpi=100)
    side = (full_width - width) // 2
    axis = figure.add_axes((side / full_width, 0, width / full_width, height / full_height))
    axis.imshow(grid, interpolation="nearest", aspect="auto")
    axis.set_axis_off()
    above = ", one tower above the other" if groups > 1 else ""
    title = f"{count} kernels of conv1, {size}×{size}×3{above}"
    figure.text(0.5, 1 - 15 / full_height, title, ha="center", va="center", fontsize=9)
    figure.savefig(path)


def data_preview(data: Prepared, contract: InputSpec, augmentation: Augmentation, path: pathlib.Path) -> None:
    """Images with their class names, what the network sees of them, the mean image, the colours.

    The images are of classes spread over all of them. What the network sees is shown
    with the mean colour put back. The colours are the mean colour, and what lies two
    standard deviations to either side of it along the principal directions of the
    training pixels' colours (Krizhevsky et al. 2012, section 4.1).

    Args:
      data: the prepared data.
      contract: the network's input contract.
      augmentation: what training does to the images.
      path: the PNG to write.
    """
    from matplotlib.figure import Figure

    rows = columns = 4
    images, labels = _spread(data, rows * columns)
    views = _seen(images, data, contract, augmentation)
    # Placed by hand: a layout engine takes seconds for this many axes.
    figure = Figure(figsize=(15, 7.4))
    for start, pictures, title in (
        (0.005, images, f"Training images, {data.image_size} × {data.image_size}"),
        (0.44, views, f"What the network sees: {_in_words(contract, augmentation)}"),
    ):
        figure.text(start + 0.21, 0.965, title, ha="center", fontsize=11)
        for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            row, column = divmod(place, columns)
            axis = figure.add_axes((start + 0.105 * column, 0.715 - 0.237 * row, 0.1, 0.203))
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            name = data.classes[label]
            short = name if len(name) <= 18 else name[:17] + "…"
            axis.set_title(f"{label}: {short}", fontsize=8, pad=3, parse_math=False)
    axis = figure.add_axes((0.885, 0.66, 0.105, 0.26))
    axis.imshow(_displayable(data.statistics.mean_image), interpolation="nearest")
    axis.set_title("Mean image", fontsize=9)
    axis.set_axis_off()
    _draw_colours(figure.add_axes((0.9, 0.06, 0.085, 0.5)), data)
    with warnings.catch_warnings():
        # Names in scripts that the font lacks are drawn as boxes; the number beside them is right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, dpi=90)


def confusion(table: np.ndarray, classes: Sequence[str], path: pathlib.Path) -> None:
    """What each class was taken for: the table, and the commonest mistakes beside it.

    Up to 30 classes are shown with their names and the share of each cell. Of more, neighbouring
    classes share a cell, up to 200 a side, and a logarithm makes single mistakes visible.

    Args:
      table: (C, C), counts, a row a true class, a column a predicted one.
      classes: the classes' names.
      path: the PNG to write.
    """
    from matplotlib.colors import PowerNorm, SymLogNorm
    from matplotlib.figure import Figure

    count = len(classes)
    figure = Figure(figsize=(15, 9))
    axis = figure.add_axes((0.11, 0.12, 0.5, 0.81))
    if count <= 30:
        share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
        drawn = axis.imshow(share, cmap="Blues", norm=PowerNorm(0.4, 0, 100), interpolation="nearest")
        size = 11 if count <= 12 else 7
        for row, column in zip(*np.nonzero(table), strict=True):
            value = share[row, column]
            words = f"{value:.0f}" if value >= 10 else f"{value:.1f}"
            axis.text(column, row, words, ha="center", va="center", fontsize=size, color="w" if value > 40 else "k")
        names = [_short(name, 14) for name in classes]
        axis.set_xticks(range(count), names, rotation=60, ha="right", fontsize=8, parse_math=False)
        axis.set_yticks(range(count), names, fontsize=8, parse_math=False)
        title = "share of each class's images, %"
    else:
        each = -(-count // 200)
        edges = np.arange(0, count, each)
        blocks = np.add.reduceat(np.add.reduceat(table, edges, 0), edges, 1)
        drawn = axis.imshow(
            blocks,
            cmap="magma",
            norm=SymLogNorm(1, vmin=0, vmax=max(2, blocks.max())),
            interpolation="nearest",
            extent=(-0.5, each * len(edges) - 0.5, each * len(edges) - 0.5, -0.5),
        )
        title = f"images, {each} × {each} classes a cell" if each > 1 else "images"
    axis.set(xlabel="Predicted", ylabel="True")
    wrong = 100 * (1 - np.trace(table) / max(table.sum(), 1))
    axis.set_title(f"{table.sum():,} images of {count:,} classes, {wrong:.2f} % wrong", fontsize=11)
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.625, 0.12, 0.012, 0.81)))
    bar.ax.set_title(title, fontsize=8, loc="left")
    _list_mistakes(figure, table, classes)
    with warnings.catch_warnings():
        # Names in scripts that the font lacks are drawn as boxes; the numbers beside them are right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, dpi=100)


def _list_mistakes(figure: Any, table: np.ndarray, classes: Sequence[str]) -> None:
    """The commonest confusions and the worst classes, in words."""
    mistakes = table.copy()
    np.fill_diagonal(mistakes, 0)
    commonest = [place for place in np.argsort(-mistakes, axis=None, kind="stable")[:18] if mistakes.flat[place]]
    lines = []
    for place in commonest:
        row, column = divmod(int(place), len(classes))
        lines.append((f"{mistakes[row, column]:,}", f"{_named(row, classes)}  →  {_named(column, classes)}"))
    images = table.sum(1)
    error = 100 * mistakes.sum(1) / np.maximum(images, 1)
    worst = [label for label in np.argsort(-error, kind="stable")[:18] if error[label]]
    rest = [(f"{error[label]:.1f} %", f"{_named(label, classes)}  ({images[label]:,} images)") for label in worst]
    for top, head, body in ((0.93, "Commonest mistakes (true → predicted)", lines), (0.5, "Worst classes", rest)):
        figure.text(0.69, top, head, fontsize=11, va="top")
        for place, (number, words) in enumerate(body or [("", "none")]):
            line = top - 0.045 - 0.0195 * place
            figure.text(0.731, line, number, fontsize=8, ha="right")
            figure.text(0.738, line, words, fontsize=8, parse_math=False)


def _named(label: int, classes: Sequence[str]) -> str:
    return str(label) if classes[label] == str(label) else f"{label}: {_short(classes[label])}"


def _short(name: str, longest: int = 22) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _spread(data: Prepared, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to `count` training images, the first of classes evenly spread, then others."""
    labels = data.splits["train"].labels
    there, first = np.unique(labels, return_index=True)
    chosen = first[np.linspace(0, len(there) - 1, min(count, len(there))).round().astype(int)].tolist()
    more = [place for place in np.linspace(0, len(labels) - 1, 4 * count).astype(int).tolist() if place not in chosen]
    chosen = list(dict.fromkeys([*chosen, *more]))[:count]
    chosen.sort(key=lambda place: (labels[place], place))
    return np.asarray(data.splits["train"].images[np.array(chosen)]), labels[chosen]


def _seen(images: np.ndarray, data: Prepared, contract: InputSpec, augmentation: Augmentation) -> np.ndarray:
    """Training views of images, as pictures."""
    directions = None
    if augmentation.colour_noise is not None:
        statistics = data.statistics
        directions = colour_directions(augmentation.colour_noise, statistics.eigenvalues, statistics.eigenvectors)
    keys = view_keys(0, jnp.int32(0), jnp.arange(len(images)), augmentation)
    mean_image = jnp.asarray(data.statistics.mean_image, jnp.float32)
    view = jax.jit(lambda images: training_view(images, keys, contract, mean_image, augmentation, directions))
    views = np.asarray(view(images))
    views = views * augmentation.divisor * np.array(contract.std, np.float32)
    # Where a mean image was subtracted the data's mean colour is put back, otherwise what was subtracted.
    views = views if contract.mean_image else views + np.array(contract.mean, np.float32)
    views = views[..., ::-1] if contract.channel_order == "bgr" else views
    views = views * (255 / contract.scale)
    return _displayable(views + data.statistics.mean if contract.mean_image else views)


def _displayable(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _in_words(contract: InputSpec, augmentation: Augmentation) -> str:
    words = [f"{contract.size} × {contract.size} crops"]
    words += ["mirrored or not"] if augmentation.flip else []
    words += [f"colour noise of {augmentation.colour_noise!r}"] if augmentation.colour_noise else []
    return ", ".join(words)


def _draw_colours(axis: Any, data: Prepared) -> None:
    """A row a principal direction: the mean colour and what lies along the direction."""
    statistics = data.statistics
    steps = np.linspace(-2, 2, 9)
    deviations = np.sqrt(np.maximum(statistics.eigenvalues, 0))[::-1]
    directions = statistics.eigenvectors[:, ::-1].T  # the largest first
    colours = statistics.mean + steps[None, :, None] * deviations[:, None, None] * directions[:, None, :]
    axis.imshow(_displayable(colours), interpolation="nearest", aspect="auto", extent=(-2.25, 2.25, 3.5, 0.5))
    axis.set_yticks([1, 2, 3], [f"{value:.1f}" for value in deviations], fontsize=7)
    axis.set_xticks([-2, 0, 2], ["−2σ", "mean", "+2σ"], fontsize=7)
    axis.set_title("Colour directions,\nσ along them", fontsize=9)
