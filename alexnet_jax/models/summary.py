"""The layer table of a spec: exact counts from its size arithmetic, nothing is run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from alexnet_jax.models.spec import ConvSpec, DenseSpec, ModelSpec, Stage
from alexnet_jax.nn.windows import full_padding


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      layer: a stage's name, or "dropout6".
      input, output: one image's shapes.
      structure: what the layer is, in words.
      parameters: weights and biases.
      macs: multiply-accumulates of one image's forward pass, biases not counted.
    """

    layer: str
    input: tuple[int, ...]
    structure: str
    output: tuple[int, ...]
    parameters: int = 0
    macs: int = 0


def layer_table(spec: ModelSpec, num_classes: int = 1000) -> list[Row]:
    """The rows of the network's layers, in the order of the computation.

    Raises:
      ValueError: the layers do not fit together; the message names the layer.
    """
    rows = [Row("input", (), _input(spec), (spec.input.size, spec.input.size, 3))]
    dense = dict(zip(spec.dense_names(), spec.dense, strict=True))
    convs = dict(zip(spec.conv_names(), spec.convs, strict=True))
    for stage in spec.walk(num_classes):
        name = stage.name.removesuffix(".pre")
        number = "".join(c for c in name if c.isdigit())
        if name in dense and stage.name != name:
            layer = dense[name]
            if layer.dropout and layer.dropout_at == "input":
                rows.append(_dropout(spec, number, layer, stage.before))
            rows.append(_linear(name, stage))
        elif name in dense:
            rows.append(Row(f"{spec.activation}{number}", stage.before, spec.activation, stage.after))
            layer = dense[name]
            if layer.dropout and layer.dropout_at == "output":
                rows.append(_dropout(spec, number, layer, stage.after))
        elif stage.name == "logits":
            rows.append(_linear(spec.head_name(), stage))
        elif stage.name == "avgpool":
            rows.append(Row(stage.name, stage.before, f"adaptive average to {_times(stage.after[:2])}", stage.after))
        else:
            rows.append(_conv_row(spec, convs[f"conv{number}"], number, stage))
    return rows


def totals(rows: Sequence[Row]) -> tuple[int, int]:
    """(parameters, multiply-accumulates) of all rows."""
    return sum(row.parameters for row in rows), sum(row.macs for row in rows)


def _input(spec: ModelSpec) -> str:
    contract = spec.input
    mean = "the mean image" if contract.mean_image else "the mean pixel"
    return f"{contract.channel_order.upper()} 0–{contract.scale:g} minus {mean}"


def _conv_row(spec: ModelSpec, conv: ConvSpec, number: str, stage: Stage) -> Row:
    kind = stage.name.rstrip("0123456789")
    if stage.name == f"conv{number}.pre":
        per_group = stage.before[-1] // conv.groups
        weights = conv.kernel**2 * per_group * conv.features
        low, high = full_padding(stage.before[0], conv.kernel, conv.stride, conv.padding, round_up=conv.round_up)
        pad = f"{low}" if low == high else f"({low}, {high})"
        words = f"{conv.features} of {conv.kernel}×{conv.kernel}×{per_group}, stride {conv.stride}, pad {pad}"
        if conv.groups > 1:
            words += f", {conv.groups} groups"
        positions = stage.after[0] * stage.after[1]
        return Row(f"conv{number}", stage.before, words, stage.after, weights + conv.features, weights * positions)
    if kind == "conv":
        return Row(f"{spec.activation}{number}", stage.before, spec.activation, stage.after)
    if kind == "pool" and conv.pool is not None:
        pool = conv.pool
        words = f"{pool.kind} {pool.window}×{pool.window}, stride {pool.stride}, {'up' if pool.round_up else 'down'}"
        return Row(stage.name, stage.before, words, stage.after)
    if kind == "norm" and conv.norm is not None:
        norm = conv.norm
        alpha = f"{norm.alpha:g}" + ("/n" if norm.alpha_per == "window" else "")
        size = "all" if norm.size is None else norm.size
        words = f"LRN n={size}, k={norm.k:g}, α={alpha}, β={norm.beta:g}"
        if norm.groups > 1:
            words += f", {norm.groups} groups"
        return Row(stage.name, stage.before, words, stage.after)
    assert conv.map_norm is not None
    norm_in_map = conv.map_norm
    words = f"within-map {norm_in_map.size}×{norm_in_map.size}, scale {norm_in_map.scale:g}, β={norm_in_map.beta:g}"
    return Row(stage.name, stage.before, words, stage.after)


def _linear(name: str, stage: Stage) -> Row:
    width, units = math.prod(stage.before), stage.after[0]
    return Row(name, stage.before, f"linear {width} → {units}", stage.after, width * units + units, width * units)


def _dropout(spec: ModelSpec, number: str, layer: DenseSpec, shape: tuple[int, ...]) -> Row:
    where = f"before fc{number}" if layer.dropout_at == "input" else f"after {spec.activation}{number}"
    return Row(f"dropout{number}", shape, f"dropout {layer.dropout:g} {where}, {spec.dropout_form} form", shape)


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


HEADINGS = ("id", "layer", "input", "structure", "output", "parameters", "multiply-accumulates")


def cells(spec: ModelSpec, num_classes: int = 1000) -> list[list[str]]:
    """The table as text: `HEADINGS`, a line for each row, and the totals."""
    rows = layer_table(spec, num_classes)
    lines = [list(HEADINGS)]
    for index, row in enumerate(rows):
        counts = [f"{row.parameters:,}" if row.parameters else "", f"{row.macs:,}" if row.macs else ""]
        lines.append([str(index), row.layer, _times(row.input), row.structure, _times(row.output), *counts])
    parameters, macs = totals(rows)
    lines.append(["", "total", "", "", "", f"{parameters:,}", f"{macs:,}"])
    return lines


def comparison(specs: Sequence[ModelSpec], num_classes: int = 1000) -> list[list[str]]:
    """The specs side by side as text: a column each, a line for each layer and count."""
    names: list[str] = []
    columns: list[dict[str, str]] = []
    for spec in specs:
        rows = layer_table(spec, num_classes)
        parameters, macs = totals(rows)
        column = {row.layer: row.structure for row in rows}
        for number, conv in enumerate(spec.convs, 1):
            column[f"order{number}"] = " → ".join(["conv", *conv.following()]).replace("activation", spec.activation)
        names += [name for name in column if name not in names]
        columns.append(column | {"parameters": f"{parameters:,}", "multiply-accumulates": f"{macs:,}"})
    last = max(len(spec.convs) for spec in specs)
    order = sorted(names, key=lambda name: _place(name, last))
    lines = [["layer", *(spec.name for spec in specs)]]
    return lines + [
        [name, *(column.get(name, "–") for column in columns)]
        for name in [*order, "parameters", "multiply-accumulates"]
    ]


def _place(name: str, last_conv: int) -> tuple[int, int, str]:
    """Sorts layers by number, then conv, fc, activation, norm, pool."""
    digits = "".join(c for c in name if c.isdigit())
    kinds = ("input", "conv", "fc", *("relu", "tanh", "sigmoid", "identity"), "norm", "pool", "order", "dropout")
    kind = next((i for i, kind in enumerate(kinds) if name.startswith(kind)), len(kinds))
    if name == "avgpool":
        digits = str(last_conv)
    return (int(digits) if digits else -1, kind, name)


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of text in Markdown; the first line holds the headings."""
    head, *body = lines
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *body])


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """A table of text in aligned columns, for a terminal; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [all(not c or c.replace(",", "").isdigit() for c in column[1:]) for column in zip(*lines, strict=True)]

    def draw(line: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([draw(lines[0]), "  ".join("─" * w for w in widths), *map(draw, lines[1:])])
