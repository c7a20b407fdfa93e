"""What Caffe's files say of a network besides its weights, compared with a spec.

`bvlc_alexnet` and `caffenet` have the same names and shapes; which of them a file is, the order of
its pools and norms says. So a network is described in words, layer by layer: each layer with
parameters, and what follows it up to the next. A spec in words equals a file in words where both
compute the same. Caffe's defaults are those of caffe.proto; its LRN divides α by the window's size,
its pools round sizes up, its convolutions round them down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alexnet_jax.models import ModelSpec
from alexnet_jax.models.spec import ConvSpec, NormSpec
from alexnet_jax.nn.windows import as_pair
from alexnet_jax.weights.errors import WeightsError
from alexnet_jax.weights.protobuf import Message

Blocks = Mapping[str, tuple[str, ...]]  # by a layer's name: itself and what follows it

# V1LayerParameter.LayerType: its numbers and names, and the types' names of now.
_OLD_TYPES = (
    *((1, "ACCURACY", "Accuracy"), (4, "CONVOLUTION", "Convolution"), (5, "DATA", "Data"), (6, "DROPOUT", "Dropout")),
    *((8, "FLATTEN", "Flatten"), (9, "HDF5_DATA", "HDF5Data"), (10, "HDF5_OUTPUT", "HDF5Output")),
    *((12, "IMAGE_DATA", "ImageData"), (14, "INNER_PRODUCT", "InnerProduct"), (15, "LRN", "LRN")),
    *((17, "POOLING", "Pooling"), (18, "RELU", "ReLU"), (20, "SOFTMAX", "Softmax"), (22, "SPLIT", "Split")),
    *((21, "SOFTMAX_LOSS", "SoftmaxWithLoss"), (24, "WINDOW_DATA", "WindowData"), (29, "MEMORY_DATA", "MemoryData")),
    *((30, "ARGMAX", "ArgMax"), (32, "DUMMY_DATA", "DummyData"), (36, "SILENCE", "Silence")),
)
OLD_TYPES: Mapping[Any, str] = {key: new for number, name, new in _OLD_TYPES for key in (number, name)}

_BEFORE = ("Input", "Data", "ImageData", "MemoryData", "WindowData", "HDF5Data", "DummyData")
_BEHIND = ("Softmax", "SoftmaxWithLoss", "Accuracy", "ArgMax", "Silence", "HDF5Output")
_SAME = ("Split", "Dropout", "Flatten")  # at test, the same values, maybe under another name
_WITH_PARAMETERS = ("Convolution", "InnerProduct")
_INPUT = "the input"


def blocks(layers: list[Message]) -> Blocks:
    """A file's network in words; empty where the file gives blobs alone.

    Args:
      layers: its layers with their fields; of each, "type" is there.
    """
    found: dict[str, list[str]] = {_INPUT: []}
    current = _INPUT
    last: str | None = None
    alias: dict[str, str] = {}
    for layer in layers:
        kind = layer["type"][-1]
        bottoms: list[str] = [alias.get(name, str(name)) for name in layer.get("bottom", ())]
        tops = layer.get("top", [])
        if kind in _BEFORE:
            scale = _get(_get(layer, "transform_param", {}), "scale", _get(_get(layer, "data_param", {}), "scale", 1.0))
            if scale != 1 and (words := f"scaled by {scale:.6g}") not in found[_INPUT]:
                found[_INPUT].append(words)
        elif kind in _SAME:
            alias |= {top: bottom for top in tops for bottom in bottoms[:1] if top != bottom}
        elif kind and kind not in _BEHIND:
            if kind in _WITH_PARAMETERS:
                current = _get(layer, "name", "")
                found.setdefault(current, [])
            words = _words(kind, layer)
            if last is not None and bottoms != [last]:
                words += f" of {', '.join(bottoms)[:100]!r}"
            found[current].append(words)
            last = tops[0] if tops else last
    if not any(len(words) > 1 for words in found.values()):
        return {}
    return {name: tuple(words) for name, words in found.items()}


def joined(own: Blocks, prototxt: Blocks, path: str) -> Blocks:
    """What a .caffemodel and a prototxt say together.

    Raises:
      WeightsError: they are of different networks.
    """
    for name in own.keys() & prototxt.keys() - {_INPUT}:
        if own[name] != prototxt[name]:
            raise WeightsError(
                f"{path} is of another network: {name} is {_listed(prototxt[name])} there, "
                f"and {_listed(own[name])} in this file"
            )
    return {**own, **prototxt, _INPUT: own.get(_INPUT, ()) or prototxt[_INPUT]}


def differences(found: Blocks, spec: ModelSpec) -> list[str]:
    """Where a file's network computes anything else than a spec's, in words; shapes are not compared."""
    if not found:
        return []
    expected = _blocks_of(spec)
    return [
        f"{name} is {_listed(found[name])} in the file, and {_listed(words)} here"
        for name, words in expected.items()
        if name in found and found[name] != words
    ]


def _listed(words: tuple[str, ...]) -> str:
    return " → ".join(words)[:300] or "as it is"


def _get(message: Message, name: str, default: Any) -> Any:
    """A field that occurs once; where it is given again, the last counts."""
    return message[name][-1] if message.get(name) else default


def _words(kind: str, layer: Message) -> str:
    """A layer of Caffe's in words."""
    if kind == "Convolution":
        given = _get(layer, "convolution_param", {})
        words = _convolution(
            _sides(given, "kernel_size", "kernel", 0),
            _sides(given, "stride", "stride", 1),
            _sides(given, "pad", "pad", 0),
            _get(given, "group", 1),
        )
        dilation = _sides(given, "dilation", "", 1)
        return words if dilation == (1, 1) else f"{words}, dilation {_side(dilation)}"
    if kind == "InnerProduct":
        transposed = _get(_get(layer, "inner_product_param", {}), "transpose", False)
        return "matrix, transposed" if transposed else "matrix"
    if kind == "ReLU":
        slope = _get(_get(layer, "relu_param", {}), "negative_slope", 0.0)
        return f"relu, {slope:.6g} below 0" if slope else "relu"
    if kind == "LRN":
        given = _get(layer, "lrn_param", {})
        within = _get(given, "norm_region", 0) in (1, "WITHIN_CHANNEL")
        words = _norm(*(_get(given, name, default) for name, default in _NORM_DEFAULTS.items()))
        return f"{words}, within maps" if within else words
    if kind == "Pooling":
        given = _get(layer, "pooling_param", {})
        method = _get(given, "pool", 0)
        name = {0: "max", "MAX": "max", 1: "avg", "AVE": "avg"}.get(method, "stochastic")
        if _get(given, "global_pooling", False):
            return f"{name} pool of everything"
        words = _pool(name, _sides(given, "kernel_size", "kernel", 0), _sides(given, "stride", "stride", 1))
        padding = _sides(given, "pad", "pad", 0)
        return words if padding == (0, 0) else f"{words}, padding {_side(padding)}"
    return kind[:100]


_NORM_DEFAULTS = {"local_size": 5, "alpha": 1.0, "beta": 0.75, "k": 1.0}


def _sides(given: Message, name: str, short: str, default: int) -> tuple[int, int]:
    """Height and width of a setting that is one number, two, or two fields."""
    both = given.get(name) or [default]
    return _get(given, f"{short}_h", both[0]), _get(given, f"{short}_w", both[-1])


def _convolution(kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], groups: int) -> str:
    return f"conv {_side(kernel)}, stride {_side(stride)}, padding {_side(padding)}, groups {groups}"


def _norm(size: int, alpha: float, beta: float, k: float) -> str:
    """`alpha` is Caffe's, for the whole window."""
    return f"norm of {size} (α {alpha:.6g}, β {beta:.6g}, k {k:.6g})"


def _pool(kind: str, window: tuple[int, int], stride: tuple[int, int]) -> str:
    return f"{kind} pool {_side(window)}, stride {_side(stride)}"


def _side(sides: tuple[int, int]) -> str:
    return str(sides[0]) if sides[0] == sides[1] else f"{sides[0]}×{sides[1]}"


def _blocks_of(spec: ModelSpec) -> Blocks:
    """A spec in words."""
    scale = spec.input.scale / 255
    plain = scale == 1 and set(spec.input.std) == {1.0}
    found: dict[str, tuple[str, ...]] = {_INPUT: () if plain else (f"scaled by {scale:.6g}",)}
    for name, conv in zip(spec.conv_names(), spec.convs, strict=True):
        found[name] = tuple(_conv_words(spec, conv))
    if spec.adaptive_pool is not None:
        found[spec.conv_names()[-1]] += (f"avg pool to {spec.adaptive_pool}",)
    found |= dict.fromkeys(spec.dense_names(), ("matrix", spec.activation))
    return {**found, spec.head_name(): ("matrix",)}


def _conv_words(spec: ModelSpec, conv: ConvSpec) -> list[str]:
    low, high = as_pair(conv.padding)
    words = _convolution((conv.kernel,) * 2, (conv.stride,) * 2, (low, low), conv.groups)
    if low != high:
        words += f", {high} at the far edges"
    found = [f"{words}, rounded up" if conv.round_up else words]
    for name in conv.following():
        if name == "activation":
            found.append(spec.activation)
        elif name == "norm" and conv.norm is not None:
            found.append(_norm_words(conv.norm))
        elif name == "pool" and conv.pool is not None:
            words = _pool(conv.pool.kind, (conv.pool.window,) * 2, (conv.pool.stride,) * 2)
            found.append(words if conv.pool.round_up else f"{words}, rounded down")
        else:
            found.append("norm within maps")
    return found


def _norm_words(norm: NormSpec) -> str:
    if norm.size is None:
        return "norm over the whole width"
    alpha = norm.alpha if norm.alpha_per == "window" else norm.alpha * norm.size
    words = _norm(norm.size, alpha, norm.beta, norm.k)
    return words if norm.groups == 1 else f"{words}, in {norm.groups} groups"
