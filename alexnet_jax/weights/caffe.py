"""Caffe's files read without it: `.caffemodel`, `deploy.prototxt` and `mean.binaryproto`.

A `.caffemodel` is a `NetParameter` of Caffe's `caffe.proto`: layers, each with its name, type,
settings and blobs, in the field `layer`, or before 2015 in the field `layers`. A blob has
a shape, or the four numbers num, channels, height and width of before, and floats or doubles. A
prototxt is the same message as text, without blobs; the mean is one blob, (1, 3, R, R) in BGR.
"""

from __future__ import annotations

import functools
import math
import pathlib
from typing import Any

import numpy as np

from alexnet_jax.weights import caffe_network
from alexnet_jax.weights.errors import WeightsError
from alexnet_jax.weights.protobuf import (
    BOOL,
    DOUBLES,
    ENUM,
    FLOAT,
    FLOATS,
    INT,
    TEXT,
    Message,
    Run,
    decode,
    parse,
)
from alexnet_jax.weights.source import Entry, Source

# How a NetParameter may begin: with its name, an input's name or shape, or a layer of either kind.
STARTS = (b"\x0a", b"\x12", b"\x1a", b"\x42", b"\xa2\x06")
LONGEST_PROTOTXT = 1 << 20  # bytes; AlexNet's have 4 kB
LARGEST_MEAN = 64 << 20  # bytes; a mean of 256 × 256 pixels has 0.8 MB
_DEEPEST = 8  # dimensions
_LONGEST_SIDE = 1 << 31  # as in Caffe


def _table(kind: Any, fields: str) -> dict[int, tuple[str, Any]]:
    """Fields of one kind, written "name=number name=number"."""
    pairs = (field.split("=") for field in fields.split())
    return {int(number): (name, kind) for name, number in pairs}


# Numbers and names from Caffe's src/caffe/proto/caffe.proto.
_SHAPE = _table(INT, "dim=1")
_BLOB = {
    **_table(INT, "num=1 channels=2 height=3 width=4"),
    **_table(_SHAPE, "shape=7"),
    **_table(FLOATS, "data=5"),
    **_table(DOUBLES, "double_data=8"),
}
_CONVOLUTION = _table(
    INT,
    "pad=3 kernel_size=4 group=5 stride=6 dilation=18 pad_h=9 pad_w=10 kernel_h=11 kernel_w=12 stride_h=13 stride_w=14",
)
_POOLING = {
    **_table(ENUM, "pool=1"),
    **_table(BOOL, "global_pooling=12"),
    **_table(INT, "kernel_size=2 stride=3 pad=4 kernel_h=5 kernel_w=6 stride_h=7 stride_w=8 pad_h=9 pad_w=10"),
}
_LRN = {**_table(INT, "local_size=1"), **_table(FLOAT, "alpha=2 beta=3 k=5"), **_table(ENUM, "norm_region=4")}
_INNER_PRODUCT = _table(BOOL, "transpose=6")
_RELU = _table(FLOAT, "negative_slope=1")
_TRANSFORM = _table(FLOAT, "scale=1")
_DATA = _table(FLOAT, "scale=2")
_LAYER = {
    **_table(TEXT, "name=1 type=2 bottom=3 top=4"),
    **_table(_BLOB, "blobs=7"),
    **_table(_TRANSFORM, "transform_param=100"),
    **_table(_CONVOLUTION, "convolution_param=106"),
    **_table(_DATA, "data_param=107"),
    **_table(_INNER_PRODUCT, "inner_product_param=117"),
    **_table(_LRN, "lrn_param=118"),
    **_table(_POOLING, "pooling_param=121"),
    **_table(_RELU, "relu_param=123"),
}
# V1LayerParameter, and in its `layer` the form before that, which is refused.
_OLD_LAYER = {
    **_table(TEXT, "bottom=2 top=3 name=4"),
    **_table(ENUM, "type=5"),
    **_table(_BLOB, "blobs=6"),
    **_table(_CONVOLUTION, "convolution_param=10"),
    **_table(_DATA, "data_param=11"),
    **_table(_INNER_PRODUCT, "inner_product_param=17"),
    **_table(_LRN, "lrn_param=18"),
    **_table(_POOLING, "pooling_param=19"),
    **_table(_RELU, "relu_param=30"),
    **_table(_TRANSFORM, "transform_param=36"),
    **_table({}, "layer=1"),
}
_NET = {**_table(_OLD_LAYER, "layers=2"), **_table(_LAYER, "layer=100")}


def read(path: pathlib.Path, prototxt: pathlib.Path | None = None) -> Source:
    """Opens a `.caffemodel`; its arrays are named as in Caffe's `net.params`: conv1[0], conv1[1].

    Raises:
      WeightsError: it is damaged, of the form before 2014, without weights, or not of the
        network that the prototxt describes.
    """
    data = np.memmap(path, np.uint8, "r")
    layers = _layers(decode(data, _NET))
    entries: dict[str, Entry] = {}
    for layer in layers:
        name = layer.get("name", [""])[-1]
        for number, blob in enumerate(layer.get("blobs", ())):
            label = f"{name}[{number}]"
            if label in entries:
                raise WeightsError(f"two of its layers are named {name[:100]!r}: it is damaged or made to mislead")
            shape, dtype, runs = _blob(blob, f"its blob {label[:100]}")
            # Of the old four numbers, a matrix has two before its own and a bias three, all 1.
            rank = 1 if number else len(shape) if layer["type"] == ["Convolution"] else 2
            while len(shape) > rank and shape[0] == 1:
                shape = shape[1:]
            entries[label] = Entry(shape, dtype, functools.partial(_values, data, dtype, runs, shape))
    if not entries:
        raise WeightsError("it has no layers with weights: it is no .caffemodel, or damaged")
    blocks = caffe_network.blocks(layers)
    if prototxt is not None:
        blocks = caffe_network.joined(blocks, read_prototxt(prototxt), str(prototxt))
    return Source("Caffe's .caffemodel", entries, differences=functools.partial(caffe_network.differences, blocks))


def read_prototxt(path: pathlib.Path) -> caffe_network.Blocks:
    """What a prototxt says of each layer.

    Raises:
      WeightsError: there is none, or it describes no layers.
    """
    try:
        text = _bytes(path, LONGEST_PROTOTXT, "prototxt").decode("utf-8", "replace")
        blocks = caffe_network.blocks(_layers(parse(text, _NET)))
        if not blocks:
            raise WeightsError("it describes no network: give Caffe's deploy.prototxt or train_val.prototxt")
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return blocks


def read_mean(path: pathlib.Path) -> np.ndarray:
    """The mean image of a `mean.binaryproto`.

    Returns:
      (R, R, 3), float32, on 0 to 255 in RGB: this package's convention for mean images, of which
      a network that takes BGR subtracts the channels in its own order.

    Raises:
      WeightsError: there is no such file, or it holds no square image of three channels.
    """
    try:
        data = np.frombuffer(_bytes(path, LARGEST_MEAN, "binaryproto"), np.uint8)
        shape, dtype, runs = _blob(decode(data, _BLOB), "it")
        if len(shape) not in (3, 4) or shape[:-3] not in ((), (1,)) or shape[-3] != 3 or shape[-2] != shape[-1]:
            raise WeightsError(f"its shape is {shape}, not that of a mean image, (1, 3, R, R)")
        bgr = _values(data, dtype, runs, shape[-3:])
        if not np.isfinite(bgr).all():
            raise WeightsError("it has values that are not finite")
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return np.ascontiguousarray(bgr[::-1].transpose(1, 2, 0), np.float32)


def _bytes(path: pathlib.Path, largest: int, name: str) -> bytes:
    if not path.is_file():
        raise WeightsError("there is no such file")
    if path.stat().st_size > largest:
        raise WeightsError(f"{path.stat().st_size:,} bytes are more than any {name} has ({largest:,} at most)")
    return path.read_bytes()


def _layers(net: Message) -> list[Message]:
    """The layers of a network with their types as they are called now."""
    new, old = net.get("layer", []), net.get("layers", [])
    if new and old:
        raise WeightsError("it has layers of both kinds, `layer` and `layers`, as no version of Caffe writes them")
    if any("layer" in layer for layer in old):
        raise WeightsError(
            "its layers are of the form before 2014, which is not read: upgrade it with Caffe's "
            "upgrade_net_proto_binary (upgrade_net_proto_text for a prototxt)"
        )
    for layer in old:
        kind = layer.get("type", [""])[-1]
        layer["type"] = [caffe_network.OLD_TYPES.get(kind, str(kind))]
    return [{**layer, "type": layer.get("type", [""])[-1:]} for layer in (*new, *old)]


def _blob(blob: Message, what: str) -> tuple[tuple[int, ...], str, list[Run]]:
    """The shape of a blob, NumPy's name of its type and where its values are."""
    if "shape" in blob:
        shape = tuple(side for part in blob["shape"] for side in part.get("dim", ()))
    else:
        shape = tuple(blob.get(name, [0])[-1] for name in ("num", "channels", "height", "width"))
    runs, doubles = blob.get("data", []), blob.get("double_data", [])
    count = sum(run.size for run in (*runs, *doubles))
    if len(shape) > _DEEPEST or any(not 0 <= side < _LONGEST_SIDE for side in shape):
        raise WeightsError(f"{what} has a shape that makes no sense: the file is damaged")
    if math.prod(shape) != count or (runs and doubles):
        raise WeightsError(f"{what} has shape {shape} and {count:,} values: the file is cut off or damaged")
    return shape, "float64" if doubles else "float32", doubles or runs


def _values(data: np.ndarray, dtype: str, runs: list[Run], shape: tuple[int, ...]) -> np.ndarray:
    """The values of a blob, read now."""
    kind = np.dtype(dtype).newbyteorder("<")
    parts: list[np.ndarray] = [np.ndarray(run.size, kind, data, run.offset, (run.stride,)) for run in runs]
    return (parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, kind)])).reshape(shape)
