"""A picture of the two towers and of what crosses between them (in the spirit of Krizhevsky et al. 2012, figure 2)."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import textwrap
from typing import Any

from alexnet_jax.models.spec import ConvSpec, ModelSpec
from alexnet_jax.models.summary import Row, layer_table
from alexnet_jax.models.traffic import crossings

TOWERS = 2
COLOURS = ("#4c78a8", "#59a14f")
CROSSES, SEAM, INSIDE = "#d62728", "#e08214", "0.35"
PITCH = 1.52  # inches from one layer to the next
APART = 3.0  # inches from one tower's axis to the other's
ABOVE, UNDER = 1.9, 0.85  # inches from a tower's axis to its words: those of the upper one stand above it


@dataclasses.dataclass(frozen=True)
class _Block:
    """A layer as drawn.

    Attributes:
      name: "image", "conv1", "fc6", "logits".
      shape: of one image's activations there; in a tower, its share.
      words: what is said of it below its name, line by line.
    """

    name: str
    shape: tuple[int, ...]
    words: list[str]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches; roots, so that 224 pixels and 13 fit one picture."""
        if len(self.shape) == 1:
            return 0.16, math.sqrt(self.shape[0]) * 0.032
        return math.sqrt(self.shape[2]) * 0.038, math.sqrt(self.shape[0]) * 0.145

    @property
    def back(self) -> float:
        """How far it reaches back, to the right and up, in inches."""
        return 0.08 if len(self.shape) == 1 else 0.3 * self.size[1]


def two_towers(spec: ModelSpec, num_classes: int, path: pathlib.Path) -> None:
    """The layers that each of two devices holds, with their shapes, and where activations cross.

    Args:
      spec: a network of two groups.
      num_classes: the width of the logits.
      path: the picture to write; its suffix says in which format (PNG, SVG, PDF).

    Raises:
      ValueError: the network can't be split over two towers, or an unknown format.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    found = crossings(spec, num_classes, TOWERS)
    blocks = _blocks(spec, num_classes)
    width, height = PITCH * (len(blocks) + 0.6), APART + ABOVE + UNDER + 2.1
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))  # in inches
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    rows = (UNDER + 1.5 + APART, UNDER + 1.5)
    middle = sum(rows) / 2
    places = {block.name: PITCH * (0.9 + number) for number, block in enumerate(blocks)}
    image, *layers, logits = blocks

    for tower, row in enumerate(rows):
        axis.text(0.12, row, f"tower {tower + 1}", color=COLOURS[tower], fontsize=11, weight="bold", va="center")
        for block in layers:
            _draw(axis, block, (places[block.name], row), COLOURS[tower])
            _tell(axis, block, (places[block.name], row + (ABOVE if tower == 0 else -UNDER)))
    for block in (image, logits):
        _draw(axis, block, (places[block.name], middle), "0.6")
        _tell(axis, block, (places[block.name], middle - block.size[1] / 2 - 0.1))

    gathered = {one.layer: one for one in found if one.kind == "gather"}
    for before, block in itertools.pairwise(blocks):
        start = places[before.name] + before.size[0] / 2 + before.back
        end = places[block.name] - block.size[0] / 2
        one = gathered.get(block.name)
        for number, row in enumerate(rows):
            ends = (middle if before is image else row), (middle if block is logits else row)
            _arrow(axis, (start, ends[0]), (end, ends[1]), CROSSES if one and block is logits else INSIDE)
            if one is not None and block is not logits:
                _arrow(axis, (start, row), (end, rows[1 - number]), CROSSES)
        if one is not None and block is not logits:
            share = (*one.shape[:-1], one.shape[-1] // TOWERS)
            _note(axis, ((start + end) / 2, middle), f"{one.stage}\n{_times(share)}\neach way", CROSSES)

    for name in dict.fromkeys(one.layer for one in found if one.kind != "gather"):
        seam = [one for one in found if one.layer == name and one.kind != "gather"]
        x = places[f"conv{name.removeprefix('norm')}"]
        _arrow(axis, (x, rows[0] - 0.6), (x, rows[1] + 0.9), SEAM, seam=True)
        words = [f"{_times(one.shape)} {'↓' if one.kind == 'before' else '↑'}" for one in seam]
        _note(axis, (x - 0.22, middle), "\n".join([f"seam of {name}", *words]), SEAM)

    title = f"{spec.name} in two towers: what each device holds, and what they exchange"
    axis.text(width / 2, height - 0.12, title, fontsize=14, ha="center", va="top")
    legend = {INSIDE: "inside a tower", CROSSES: "gathered from both towers (shapes of one image)"}
    if len(found) > len(gathered):
        legend[SEAM] = "neighbouring channels, for local response normalisation (LRN)"
    lines = [Line2D([], [], color=c, linestyle="--" if c == SEAM else "-", label=words) for c, words in legend.items()]
    axis.legend(handles=lines, loc="lower center", ncols=len(lines), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def _blocks(spec: ModelSpec, num_classes: int) -> list[_Block]:
    """The image, the layers with a tower's share of each, the logits."""
    convs = dict(zip(spec.conv_names(), spec.convs, strict=True))
    shapes = spec.stages(num_classes)
    size = spec.input.size
    found = [_Block("image", (size, size, 3), [f"{size}×{size}×3", "whole on both"])]
    for row in layer_table(spec, num_classes):
        share = _share(row.output)
        if row.layer in convs:
            found.append(_Block(row.layer, share, _conv_words(spec, convs[row.layer], row, shapes)))
        elif row.layer in (*spec.dense_names(), spec.head_name()):
            words = [_times(share), f"from {math.prod(row.input)}"]
            found.append(_Block(row.layer, share, words if share != row.output else [*words, "whole on both"]))
    return [*found, _Block("logits", (num_classes,), [str(num_classes), "and the loss,", "on both"])]


def _conv_words(spec: ModelSpec, conv: ConvSpec, row: Row, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """A tower's output, its kernels, and what follows them."""
    kernels = f"{conv.features // TOWERS} of {conv.kernel}×{conv.kernel}×{row.input[-1] // conv.groups}"
    names = {
        "activation": {"relu": "ReLU"}.get(spec.activation, spec.activation),
        "norm": "LRN",
        "map_norm": "norm in maps",
        "pool": "pool",
    }
    words = [_times(_share(row.output)), kernels, *textwrap.wrap(", ".join(names[x] for x in conv.following()), 20)]
    pooled = shapes.get(row.layer.replace("conv", "pool"))
    return words if pooled is None else [*words, f"→ {_times(_share(pooled))}"]


def _share(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A tower's part of a shape; what the towers do not divide stays whole."""
    return (*shape[:-1], shape[-1] // TOWERS) if shape[-1] % TOWERS == 0 else shape


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _draw(axis: Any, block: _Block, centre: tuple[float, float], colour: str) -> None:
    """A block seen from the front, with its top and its right side."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Polygon

    width, height = block.size
    back = block.back
    left, low = centre[0] - width / 2, centre[1] - height / 2
    right, high = left + width, low + height
    faces = (
        (0.45, [(left, low), (right, low), (right, high), (left, high)]),
        (0.25, [(left, high), (right, high), (right + back, high + back), (left + back, high + back)]),
        (0.65, [(right, low), (right + back, low + back), (right + back, high + back), (right, high)]),
    )
    for share, corners in faces:
        mixed = [1 - share * (1 - value) for value in to_rgb(colour)]
        axis.add_patch(Polygon(corners, closed=True, facecolor=mixed, edgecolor="0.25", linewidth=0.7, zorder=2))


def _tell(axis: Any, block: _Block, top: tuple[float, float]) -> None:
    """A block's name and words, downwards from a place."""
    axis.text(*top, block.name, fontsize=9.5, weight="bold", ha="center", va="top")
    axis.text(top[0], top[1] - 0.19, "\n".join(block.words), fontsize=8.5, ha="center", va="top", linespacing=1.25)


def _arrow(axis: Any, start: tuple[float, float], end: tuple[float, float], colour: str, *, seam: bool = False) -> None:
    """An arrow from a place to another; a seam's points both ways."""
    style = {"arrowstyle": "<|-|>" if seam else "-|>", "linestyle": "--" if seam else "-", "shrinkA": 0, "shrinkB": 0}
    width = 1.0 if colour == INSIDE else 1.5
    axis.annotate("", end, start, arrowprops={**style, "color": colour, "linewidth": width}, zorder=3)


def _note(axis: Any, centre: tuple[float, float], words: str, colour: str) -> None:
    """Words on white in the middle between the towers."""
    box = {"facecolor": "white", "edgecolor": colour, "linewidth": 0.8, "boxstyle": "round,pad=0.25"}
    axis.text(*centre, words, fontsize=8, color="0.1", ha="center", va="center", bbox=box, zorder=4)
