"""Images with what a network makes of them, in the manner of Krizhevsky et al. 2012, figure 4."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.figures.runs import _short

MOST_SHOWN = 40  # images of a figure
_CORRECT, _OTHER = "#d1495b", "#8fa8c9"


class Predicted(NamedTuple):
    """An image and its likeliest classes.

    Attributes:
      image: (H, W, 3), uint8.
      name: of the image.
      truth: the true class's name; None where it is not known.
      top: (name, probability) of classes, the likeliest first.
    """

    image: np.ndarray
    name: str
    truth: str | None
    top: Sequence[tuple[str, float]]


def predictions(shown: Sequence[Predicted], path: pathlib.Path) -> None:
    """Images with their likeliest classes as bars (figure 4, left).

    Below each image stands its true class, or its own name where that is not known. A bar is as
    long as the probability, from nothing to the width of the image at 1; the true class's is red.

    Args:
      shown: at least one, at most `MOST_SHOWN`.
      path: the picture to write.
    """
    from matplotlib.figure import Figure

    columns = min(len(shown), 4 if len(shown) <= 12 else 6)
    rows = -(-len(shown) // columns)
    wide, tall, edge = 2.3, 3.95, 0.1  # inches of a cell, and around all
    figure = Figure(figsize=(columns * wide + 2 * edge, rows * tall + 2 * edge))
    width, height = figure.get_size_inches()
    for place, one in enumerate(shown):
        row, column = divmod(place, columns)
        left, top = edge + column * wide + 0.1, height - edge - row * tall
        side = wide - 0.2
        axis = figure.add_axes((left / width, (top - side) / height, side / width, side / height))
        axis.imshow(one.image, interpolation="lanczos")
        axis.set_axis_off()
        words = one.name if one.truth is None else one.truth
        where = ((left + side / 2) / width, (top - side - 0.17) / height)
        style: dict[str, Any] = {"fontsize": 8, "color": "0.35"} if one.truth is None else {"fontsize": 9}
        figure.text(*where, _short(words, 34), ha="center", va="center", parse_math=False, **style)
        bars = figure.add_axes((left / width, (top - side - 1.65) / height, side / width, 1.33 / height))
        for line, (name, probability) in enumerate(one.top):
            color = _CORRECT if name == one.truth else _OTHER
            bars.barh(line, probability, height=0.86, color=color, linewidth=0)
            bars.text(0.02, line, _short(name, 26), va="center", fontsize=7.5, parse_math=False)
            bars.text(0.985, line, _percent(probability), va="center", ha="right", fontsize=7, color="0.25")
        bars.set(xlim=(0, 1), ylim=(4.5, -0.5), xticks=[], yticks=[])
        bars.spines[:].set(color="0.8", linewidth=0.6)
    _save(figure, path)


class Similar(NamedTuple):
    """A query and what lies nearest to it.

    Attributes:
      query: (H, W, 3), uint8.
      name: of the query.
      nearest: (image, name, distance), the nearest first.
    """

    query: np.ndarray
    name: str
    nearest: Sequence[tuple[np.ndarray, str, float]]


def neighbours(shown: Sequence[Similar], layer: str, path: pathlib.Path) -> None:
    """A row a query: the query, a gap, and its nearest images with their distances (figure 4, right).

    Args:
      shown: at least one.
      layer: whose activations the distances are between.
      path: the picture to write.
    """
    from matplotlib.figure import Figure

    columns = max(len(one.nearest) for one in shown)
    side, gap, edge, head, below = 1.5, 0.35, 0.12, 0.42, 0.24  # inches
    width = 2 * edge + side + gap + columns * (side + 0.08)
    height = edge + head + len(shown) * (side + below)
    figure = Figure(figsize=(width, height))
    title = f"the nearest {columns} in Euclidean distance of {layer}" if columns > 2 else f"nearest in {layer}"
    top = (height - head / 2 - 0.02) / height
    figure.text((edge + side / 2) / width, top, "query", ha="center", va="center", fontsize=9)
    middle = edge + side + gap + columns * (side + 0.08) / 2
    figure.text(middle / width, top, title, ha="center", va="center", fontsize=9)
    for row, one in enumerate(shown):
        under = height - head - row * (side + below) - side
        cells = [(edge, one.query, _short(one.name, 24))]
        cells += [
            (edge + side + gap + place * (side + 0.08), image, f"{_short(name, 15)}  {f'{distance:#.3g}'.rstrip('.')}")
            for place, (image, name, distance) in enumerate(one.nearest)
        ]
        for left, image, words in cells:
            axis = figure.add_axes((left / width, under / height, side / width, side / height))
            axis.imshow(image, interpolation="lanczos")
            axis.set_axis_off()
            where = ((left + side / 2) / width, (under - 0.1) / height)
            figure.text(*where, words, ha="center", va="center", fontsize=7, color="0.3", parse_math=False)
    _save(figure, path)


def _save(figure: Any, path: pathlib.Path) -> None:
    with warnings.catch_warnings():
        # Names in scripts that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, dpi=110)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
