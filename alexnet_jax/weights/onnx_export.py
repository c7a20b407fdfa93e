"""A network as ONNX, built from its spec with ONNX's own operators, free in the batch.

Images are NCHW, as ONNX's convolutions are, in the network's input contract. Sizes are rounded up by
explicit padding, so no runtime's own rounding matters. Groups of a norm are folded into the batch.
ONNX's LRN divides α by the size, knows odd sizes only, and not k = 0; the others are a 1×1 convolution of the
squares with a matrix of ones in a band.
"""

from __future__ import annotations

import base64
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alexnet_jax.data.atomic import replacing
from alexnet_jax.models import ConvSpec, DenseSpec, MapNormSpec, ModelSpec, NormSpec, PoolSpec
from alexnet_jax.nn.pooling import bins
from alexnet_jax.nn.windows import full_padding
from alexnet_jax.weights.errors import WeightsError
from alexnet_jax.weights.loading import Weights
from alexnet_jax.weights.metadata import MEAN_IMAGE
from alexnet_jax.weights.saving import channels_first, described, parameters

OPSET, IR_VERSION = 17, 8  # of 2022; ONNX Runtime 1.13 and later
_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "identity": "Identity"}
_TINY = float(np.finfo(np.float32).tiny)


def check_onnx() -> Any:
    """The package onnx.

    Raises:
      WeightsError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise WeightsError('ONNX files are written with the package onnx: pip install "alexnet-jax[export]"') from None
    return onnx


def save_onnx(weights: Weights, path: str | os.PathLike[str], *, provenance: Mapping[str, Any] | None = None) -> None:
    """Writes a network as an ONNX file: `images` (N, 3, size, size) to `logits` (N, num_classes), float32.

    The model's metadata holds what `save_safetensors` writes there; a mean image that is known is
    `mean_image`, in base64 the float32 values (R, R, 3), little-endian, on 0 to 255 in RGB.

    Args:
      weights: as for `save_safetensors`.
      path: the file, which is replaced whole or not at all.
      provenance: as for `save_safetensors`.

    Raises:
      WeightsError: onnx is not installed.
    """
    onnx = check_onnx()
    model = build(weights)
    mean_image, texts = described(weights, "NCHW", provenance)
    if mean_image is not None:
        texts[MEAN_IMAGE] = base64.b64encode(mean_image.astype("<f4").tobytes()).decode()
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    with replacing(pathlib.Path(path)) as partial:
        partial.write_bytes(model.SerializeToString())


def build(weights: Weights) -> Any:
    """The network as an `onnx.ModelProto`, without metadata."""
    onnx = check_onnx()
    spec, size = weights.model.spec, weights.model.spec.input.size
    graph = _Graph(onnx, spec, parameters(weights))
    graph.run()

    def value(name: str, shape: Sequence[int | str]) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    made = onnx.helper.make_graph(
        graph.nodes,
        spec.name,
        [value("images", ["N", 3, size, size])],
        [value("logits", ["N", weights.model.num_classes])],
        graph.constants,
    )
    return onnx.helper.make_model(
        made,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="alexnet-jax",
    )


class _Graph:
    """Nodes and constants; every method takes the name of a value and gives the name of the next."""

    def __init__(self, onnx: Any, spec: ModelSpec, params: Mapping[str, np.ndarray]):
        self._onnx, self._spec, self._params = onnx, spec, params
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def run(self) -> None:
        """The whole network, from `images` to `logits`."""
        spec = self._spec
        shapes = {stage.name: stage for stage in spec.walk(1)}
        x = "images"
        for number, (name, conv) in enumerate(zip(spec.conv_names(), spec.convs, strict=True), 1):
            x = self._conv(name, x, conv, shapes[f"{name}.pre"].before[0])
            for stage in conv.following():
                if stage == "activation":
                    x = self._add(_ACTIVATIONS[spec.activation], [x], name)
                elif stage == "norm" and conv.norm is not None:
                    x = self._norm(f"norm{number}", x, conv.norm, shapes[f"norm{number}"].after)
                elif stage == "map_norm" and conv.map_norm is not None:
                    x = self._map_norm(f"norm{number}.map", x, conv.map_norm)
                elif stage == "pool" and conv.pool is not None:
                    x = self._pool(f"pool{number}", x, conv.pool, shapes[f"pool{number}"].before[0])
        if spec.adaptive_pool is not None:
            x = self._adaptive("avgpool", x, shapes["avgpool"].before[0], spec.adaptive_pool)
        x = self._add("Flatten", [x], "flat", axis=1)
        for name, dense in zip(spec.dense_names(), spec.dense, strict=True):
            if dense.dropout_at == "input":
                x = self._dropout(name, x, dense)
            x = self._add(_ACTIVATIONS[spec.activation], [self._linear(name, x, f"{name}.pre")], name)
            if dense.dropout_at == "output":
                x = self._dropout(name, x, dense)
        self._linear(spec.head_name(), x, "logits")

    def _add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self._onnx.helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def _constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        array = np.array(value, dtype, order="C")  # a copy in rows: transposed views are none
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def _conv(self, name: str, x: str, conv: ConvSpec, size: int) -> str:
        low, high = full_padding(size, conv.kernel, conv.stride, conv.padding, round_up=conv.round_up)
        kernel = self._constant(f"{name}.kernel", self._params[f"{name}.kernel"].transpose(3, 2, 0, 1))
        bias = self._constant(f"{name}.bias", self._params[f"{name}.bias"])
        return self._add(
            "Conv",
            [x, kernel, bias],
            f"{name}.pre",
            kernel_shape=[conv.kernel] * 2,
            strides=[conv.stride] * 2,
            pads=[low, low, high, high],
            group=conv.groups,
        )

    def _pool(self, name: str, x: str, pool: PoolSpec, size: int) -> str:
        low, high = full_padding(size, pool.window, pool.stride, 0, round_up=pool.round_up)
        where = {
            "kernel_shape": [pool.window] * 2,
            "strides": [pool.stride] * 2,
            "pads": [low, low, high, high],
        }
        if pool.kind == "max":
            return self._add("MaxPool", [x], name, **where)
        return self._add("AveragePool", [x], name, count_include_pad=0, **where)

    def _norm(self, name: str, x: str, norm: NormSpec, shape: tuple[int, ...]) -> str:
        height, width, features = shape
        channels = features // norm.groups
        if norm.groups > 1:
            folded = self._constant(f"{name}.folded", [-1, channels, height, width], np.int64)
            x = self._add("Reshape", [x, folded], f"{name}.groups")
        window = channels if norm.size is None else norm.size
        alpha = norm.alpha * (1 if norm.alpha_per == "term" else 1 / window)  # on the plain sum
        out = f"{name}.normed" if norm.groups > 1 else name
        if norm.size is not None and norm.size % 2 and norm.size <= channels and norm.k > 0:
            options = {"size": norm.size, "alpha": alpha * norm.size, "beta": norm.beta, "bias": norm.k}
            x = self._add("LRN", [x], out, **options)
        else:
            x = self._any_norm(out, x, norm, alpha, channels)
        if norm.groups > 1:
            whole = self._constant(f"{name}.whole", [-1, features, height, width], np.int64)
            x = self._add("Reshape", [x, whole], name)
        return x

    def _any_norm(self, name: str, x: str, norm: NormSpec, alpha: float, channels: int) -> str:
        """Any window: the sum of squares as a 1×1 convolution."""
        low, high = (channels, channels) if norm.size is None else norm.seam()
        apart = np.arange(channels)[None] - np.arange(channels)[:, None]  # of the neighbour from the channel
        band = ((-low <= apart) & (apart <= high)).astype(np.float32) * np.float32(alpha)
        ones = self._constant(f"{name}.band", band[:, :, None, None])
        squares = self._add("Mul", [x, x], f"{name}.squares")
        energy = self._add("Conv", [squares, ones], f"{name}.energy", kernel_shape=[1, 1])
        d = self._add("Add", [energy, self._constant(f"{name}.k", norm.k)], f"{name}.d")
        some = d
        if norm.k == 0:  # both 0 where the whole window is
            one, zero = self._constant(f"{name}.one", 1.0), self._constant(f"{name}.zero", 0.0)
            there = self._add("GreaterOrEqual", [d, self._constant(f"{name}.tiny", _TINY)], f"{name}.there")
            d = self._add("Where", [there, d, one], f"{name}.safe")
            x = self._add("Where", [there, x, zero], f"{name}.kept")
            some = d
        power = self._add("Pow", [some, self._constant(f"{name}.beta", -norm.beta)], f"{name}.power")
        return self._add("Mul", [x, power], name)

    def _map_norm(self, name: str, x: str, norm: MapNormSpec) -> str:
        low, high = norm.size // 2, (norm.size - 1) // 2
        squares = self._add("Mul", [x, x], f"{name}.squares")
        mean = self._add(
            "AveragePool",
            [squares],
            f"{name}.mean",
            kernel_shape=[norm.size] * 2,
            strides=[1, 1],
            pads=[low, low, high, high],
            count_include_pad=1,  # divides by size² also at the edges
        )
        scaled = self._add("Mul", [mean, self._constant(f"{name}.scale", norm.scale)], f"{name}.scaled")
        d = self._add("Add", [scaled, self._constant(f"{name}.one", 1.0)], f"{name}.d")
        power = self._add("Pow", [d, self._constant(f"{name}.beta", -norm.beta)], f"{name}.power")
        return self._add("Mul", [x, power], name)

    def _adaptive(self, name: str, x: str, pixels: int, size: int) -> str:
        if pixels == size:
            return x
        matrix = bins(pixels, size)  # (size, pixels)
        across = self._add("MatMul", [x, self._constant(f"{name}.columns", matrix.T)], f"{name}.across")
        return self._add("MatMul", [self._constant(f"{name}.rows", matrix), across], name)

    def _dropout(self, name: str, x: str, dense: DenseSpec) -> str:
        """What dropout leaves to do at test: the paper's form scales all units by the probability of keeping one."""
        if self._spec.dropout_form == "inverted" or dense.dropout == 0:
            return x
        return self._add("Mul", [x, self._constant(f"{name}.keep", 1 - dense.dropout)], f"{name}.kept")

    def _linear(self, name: str, x: str, output: str) -> str:
        kernel = channels_first(self._spec, f"{name}.kernel", self._params[f"{name}.kernel"])
        weight = self._constant(f"{name}.kernel", kernel)
        return self._add("Gemm", [x, weight, self._constant(f"{name}.bias", self._params[f"{name}.bias"])], output)
