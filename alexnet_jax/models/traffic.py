"""What each device holds under a layout, and what crosses between devices in a training step.

Nothing is run: it follows from a spec's size arithmetic. With T towers a device holds 1/T of
the output channels of every layer, and all T see the same rows; with D data groups there are D
such sets of T, each with 1/D of the batch.

Two figures are given for a collective, both of one device:

- `result_bytes`: its result there, as the shape of the instruction in compiled HLO has it: the
  whole array of an all-gather, the device's share of a reduce-scatter, the whole array of an
  all-reduce, the message of a permutation.
- `link_bytes`: what the device receives from others, and as much sends, if nothing crosses that
  need not: (n-1)/n of the whole array for an all-gather or a reduce-scatter among n devices,
  twice that for an all-reduce, the message of a permutation.
"""

from __future__ import annotations

import dataclasses
import math

from alexnet_jax.models.spec import ModelSpec, Stage
from alexnet_jax.models.summary import layer_table


@dataclasses.dataclass(frozen=True)
class Crossing:
    """A place in the forward pass where the towers exchange activations.

    Attributes:
      layer: the layer that needs them: "conv3", "norm1", "fc7"; "logits" at the end.
      stage: the stage that crosses, "pool2"; the last layer's name for the logits.
      kind: "gather", every tower gets everything; or where a norm crosses the seam, "before"
        and "after": channels of the neighbouring tower.
      shape: of one image: the whole array, or the channels that cross.
    """

    layer: str
    stage: str
    kind: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One collective of a training step.

    Attributes:
      layer: where it happens: "images", "labels", "mask", else as in `Crossing`; for gradients the
        layer that they are of.
      what: what crosses, in words.
      direction: "forward", "backward", or "update" for the sum of gradients.
      collective: "all-gather", "reduce-scatter", "collective-permute" or "all-reduce".
      among: how many devices take part in each.
      result_bytes, link_bytes: of one device, see the module.
    """

    layer: str
    what: str
    direction: str
    collective: str
    among: int
    result_bytes: int
    link_bytes: int


@dataclasses.dataclass(frozen=True)
class Holding:
    """What one device holds of a layer in training, in bytes.

    Attributes:
      layer: "input", or a layer's name.
      parameters: weights and biases.
      momentum: the update rule's buffers, as large.
      activations: an estimate of what waits for the backward pass: the outputs of the layer's
        stages, and its input where that is gathered for it. What a layer puts out before its
        non-linearity is left out where that follows at once: its gradient needs the output
        only. A compiler may keep less (and compute it again), and adds scratch memory.
    """

    layer: str
    parameters: int
    momentum: int
    activations: int


def crossings(spec: ModelSpec, num_classes: int = 1000, towers: int = 2) -> list[Crossing]:
    """Where the towers exchange activations, in the order of the computation.

    Raises:
      ValueError: the network can't be split over so many towers.
    """
    spec.check_towers(towers)
    convs = dict(zip(spec.conv_names(), spec.convs, strict=True))
    norms = {f"norm{number}": conv.norm for number, conv in enumerate(spec.convs, 1)}
    found: list[Crossing] = []
    sharded: Stage | None = None  # the stage that the next layer sees; the image is whole
    for stage in spec.walk(num_classes):
        layer = spec.head_name() if stage.name == "logits" else stage.name.removesuffix(".pre")
        begins = layer != stage.name
        if sharded is not None and begins and (layer not in convs or convs[layer].groups == 1):
            found.append(Crossing(layer, sharded.name, "gather", sharded.after))
        norm = norms.get(layer)
        if sharded is not None and norm is not None and norm.groups == 1:
            *image, channels = stage.after
            for kind, count in zip(("before", "after"), norm.seam(), strict=True):
                if count > channels // towers:
                    raise ValueError(f"{layer}: a tower of {channels // towers} channels can't give {count}")
                if count:
                    found.append(Crossing(layer, sharded.name, kind, (*image, count)))
        if stage.name != "avgpool":  # it pools what was gathered
            sharded = stage
    if num_classes % towers == 0:  # else every tower has the whole last layer
        found.append(Crossing("logits", spec.head_name(), "gather", (num_classes,)))
    return found


def exchanges(
    spec: ModelSpec,
    num_classes: int = 1000,
    batch_size: int = 128,
    *,
    towers: int = 1,
    data: int = 1,
    itemsize: int = 4,
    param_itemsize: int = 4,
    image_size: int | None = None,
) -> list[Exchange]:
    """The collectives of a training step, in the order of the computation; none on one device.

    A tower is fed its share of the rows and gathers the others: images as prepared (uint8, RGB),
    labels (int32), and the mask of the rows that count (bool). The backward pass of an all-gather
    is a reduce-scatter, that of a permutation the permutation back. With several data groups the
    gradients of what a device holds are summed, which a compiler may join into fewer all-reduces;
    those of a last layer that is whole on every tower are summed over the towers too. Counts and
    sums of the metrics, a few bytes, are left out.

    Args:
      spec: the network.
      num_classes: the width of the logits; the last layer is whole on every tower where they do not divide it.
      batch_size: images of the whole batch.
      towers, data: the layout.
      itemsize: bytes of an activation.
      param_itemsize: bytes of a parameter, and of its gradient.
      image_size: pixels of the prepared images' sides; None: `spec.input.resize`.

    Raises:
      ValueError: the network or the batch can't be split so.
    """
    rows = _rows(batch_size, towers, data)
    found: list[Exchange] = []
    backward: list[Exchange] = []
    if towers > 1:
        side = spec.input.resize if image_size is None else image_size
        fed = (("images", f"images of {side} pixels", side * side * 3), ("labels", "labels", 4), ("mask", "mask", 1))
        for name, what, each in fed:
            found.append(_gathered(name, what, "forward", "all-gather", towers, rows * each))
        for one in crossings(spec, num_classes, towers):
            size = rows * math.prod(one.shape) * itemsize
            if one.kind == "gather":
                found.append(_gathered(one.layer, one.stage, "forward", "all-gather", towers, size))
                backward.append(_gathered(one.layer, one.stage, "backward", "reduce-scatter", towers, size))
            else:
                what = f"{one.shape[-1]} of {one.stage} from the tower {one.kind}"
                seam = Exchange(one.layer, what, "forward", "collective-permute", towers, size, size)
                found.append(seam)
                backward.append(dataclasses.replace(seam, direction="backward"))
    found += reversed(backward)
    for layer, count in _parameters(spec, num_classes, towers).items():
        among = data * (towers if layer == spec.head_name() and num_classes % towers else 1)
        if among > 1:
            size = count * param_itemsize
            crossing = 2 * (size - size // among)
            found.append(Exchange(layer, "gradients", "update", "all-reduce", among, size, crossing))
    return found


def holdings(
    spec: ModelSpec,
    num_classes: int = 1000,
    batch_size: int = 128,
    *,
    towers: int = 1,
    data: int = 1,
    itemsize: int = 4,
    param_itemsize: int = 4,
) -> list[Holding]:
    """What one device holds, layer by layer; arguments and refusals are those of `exchanges`."""
    rows = _rows(batch_size, towers, data)
    parameters = _parameters(spec, num_classes, towers)
    values = {"input": spec.input.size**2 * 3} | dict.fromkeys(parameters, 0)
    walked = spec.walk(num_classes)
    layer = "input"
    for stage, after in zip(walked, [*walked[1:], walked[-1]], strict=True):
        name = stage.name.removesuffix(".pre")
        layer = name if name in parameters else layer
        if name != "logits" and after.name != name:  # not what a non-linearity follows at once
            values[layer] += math.prod(stage.after) // (1 if name == "avgpool" else towers)
    if towers > 1:
        for one in crossings(spec, num_classes, towers):
            if one.kind == "gather" and one.layer != "logits":
                values[one.layer] += math.prod(one.shape)
    values[spec.head_name()] += num_classes
    size = {name: parameters.get(name, 0) * param_itemsize for name in values}
    return [Holding(name, size[name], size[name], rows * count * itemsize) for name, count in values.items()]


HEADINGS_HELD = ("layer", "parameters", "momentum", "activations")
HEADINGS_EXCHANGED = ("layer", "what", "direction", "collective", "devices", "result", "over a link")


def held_cells(held: list[Holding]) -> list[list[str]]:
    """The holdings as a table of text, in bytes: `HEADINGS_HELD`, a line each, the totals."""
    lines = [[one.layer, f"{one.parameters:,}", f"{one.momentum:,}", f"{one.activations:,}"] for one in held]
    sums = (sum(getattr(one, name) for one in held) for name in HEADINGS_HELD[1:])
    return [list(HEADINGS_HELD), *lines, ["total", *(f"{value:,}" for value in sums)]]


def exchanged_cells(exchanged: list[Exchange]) -> list[list[str]]:
    """The exchanges as a table of text, in bytes: `HEADINGS_EXCHANGED`, a line each, the total."""
    lines = [
        [
            *(one.layer, one.what, one.direction, one.collective),
            *(f"{value:,}" for value in (one.among, one.result_bytes, one.link_bytes)),
        ]
        for one in exchanged
    ]
    total = sum(one.link_bytes for one in exchanged)
    return [list(HEADINGS_EXCHANGED), *lines, ["total", "", "", "", "", "", f"{total:,}"]]


def _gathered(layer: str, what: str, direction: str, collective: str, among: int, whole: int) -> Exchange:
    """An all-gather that makes an array of so many bytes whole, or the reduce-scatter of one."""
    share = whole // among
    return Exchange(
        layer, what, direction, collective, among, whole if collective == "all-gather" else share, whole - share
    )


def _rows(batch_size: int, towers: int, data: int) -> int:
    """The rows that a device sees."""
    if towers < 1 or data < 1:
        raise ValueError(f"a layout needs at least one tower and one data group, got towers={towers}, data={data}")
    if batch_size < 1 or batch_size % (data * towers):
        raise ValueError(
            f"a batch of {batch_size} images can't be fed to {data * towers} devices (data={data}, towers={towers}): "
            f"take a multiple of {data * towers}"
        )
    return batch_size // data


def _parameters(spec: ModelSpec, num_classes: int, towers: int) -> dict[str, int]:
    """By layer, the parameters that one device holds."""
    spec.check_towers(towers)
    found = {row.layer: row.parameters for row in layer_table(spec, num_classes) if row.parameters}
    whole = spec.head_name() if num_classes % towers else None
    return {layer: count if layer == whole else count // towers for layer, count in found.items()}
