"""Every picture that the program draws."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np


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
    scale = 4
    picture = grid.repeat(scale, 0).repeat(scale, 1)
    figure = Figure(figsize=(picture.shape[1] / 100, picture.shape[0] / 100 + 0.5), layout="constrained")
    axis = figure.subplots()
    axis.imshow(picture, interpolation="nearest")
    axis.set_axis_off()
    above = ", one tower above the other" if groups > 1 else ""
    axis.set_title(f"{count} kernels of conv1, {size}×{size}×3{above}", fontsize=9)
    figure.savefig(path, dpi=120)
