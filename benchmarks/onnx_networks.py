"""A variant as a graph of ONNX's operators, run by ONNX Runtime: a peer of `forward.py`.

The packages `onnx` and `onnxruntime` are imported where they are used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from alexnet_jax.models import ModelSpec
from alexnet_jax.models.spec import NormSpec, PoolSpec
from alexnet_jax.nn.windows import full_padding


def graph(spec: ModelSpec, params: Mapping[str, Mapping[str, np.ndarray]], *, classes: int = 1000) -> Any:
    """The network of a spec as an ONNX model: "images" (N, 3, size, size) to "logits" (N, classes).

    A norm inside groups is a Split, an LRN for each group, and a Concat, as ONNX's LRN knows no
    groups. The factor that the paper's dropout has at test is a Mul.

    Args:
      spec: any variant without a norm within a map, whose adaptive pool has nothing to do.
      params: by layer, `kernel` and `bias` as our networks have them.
      classes: width of the logits.

    Raises:
      ValueError: another variant.
    """
    import onnx

    nodes: list[Any] = []
    weights: list[Any] = []

    def add(kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        nodes.append(onnx.helper.make_node(kind, inputs, list(outputs), name=outputs[0], **attributes))
        return outputs[0]

    def weigh(name: str, array: Any) -> str:
        weights.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def normed(name: str, x: str, norm: NormSpec, channels: int) -> str:
        size = norm.size or channels // norm.groups
        # ONNX divides α by the window.
        options = {"size": size, "alpha": norm.alpha * (size if norm.alpha_per == "term" else 1)}
        options |= {"beta": norm.beta, "bias": norm.k}
        if norm.groups == 1:
            return add("LRN", [x], name, **options)
        parts = [f"{name}.in{group}" for group in range(norm.groups)]
        add("Split", [x], *parts, axis=1, num_outputs=norm.groups)
        done = [add("LRN", [part], part.replace("in", "out"), **options) for part in parts]
        return add("Concat", done, name, axis=1)

    def pooled(name: str, x: str, pool: PoolSpec) -> str:
        kind = "MaxPool" if pool.kind == "max" else "AveragePool"
        options = {"kernel_shape": [pool.window] * 2, "strides": [pool.stride] * 2, "ceil_mode": int(pool.round_up)}
        return add(kind, [x], name, **options)

    if spec.activation != "relu" or any(conv.map_norm is not None for conv in spec.convs):
        raise ValueError(f"{spec.name}: only networks of ReLU without norms within a map have an ONNX graph here")
    x, side, channels = "images", spec.input.size, 3
    for number, (name, conv) in enumerate(zip(spec.conv_names(), spec.convs, strict=True), 1):
        low, high = full_padding(side, conv.kernel, conv.stride, conv.padding, round_up=conv.round_up)
        weights_oihw = weigh(f"{name}.kernel", np.transpose(params[name]["kernel"], (3, 2, 0, 1)))
        inputs = [x, weights_oihw, weigh(f"{name}.bias", params[name]["bias"])]
        x = add("Conv", inputs, name, strides=[conv.stride] * 2, pads=[low, low, high, high], group=conv.groups)
        side, channels = (side + low + high - conv.kernel) // conv.stride + 1, conv.features
        for stage in conv.following():
            if stage == "activation":
                x = add("Relu", [x], f"relu{number}")
            elif stage == "norm" and conv.norm is not None:
                x = normed(f"norm{number}", x, conv.norm, channels)
            elif stage == "pool" and conv.pool is not None:
                pool = conv.pool
                more = sum(full_padding(side, pool.window, pool.stride, 0, round_up=pool.round_up))
                x, side = pooled(f"pool{number}", x, pool), (side + more - pool.window) // pool.stride + 1
    if spec.adaptive_pool not in (None, side):
        raise ValueError(f"{spec.name} at {spec.input.size} pixels needs adaptive pooling, which ONNX has not")
    x = add("Flatten", [x], "flat")
    linear = [(name, layer.dropout) for name, layer in zip(spec.dense_names(), spec.dense, strict=True)]
    for index, (name, rate) in enumerate([*linear, (spec.head_name(), None)]):
        kernel = np.asarray(params[name]["kernel"])
        if index == 0:  # our rows are in the order of HWC, ONNX flattens CHW
            kernel = kernel.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        output = "logits" if rate is None else name
        inputs = [x, weigh(f"{name}.kernel", kernel.T), weigh(f"{name}.bias", params[name]["bias"])]
        x = add("Gemm", inputs, output, transB=1)
        if rate is not None:
            x = add("Relu", [x], f"{name}.relu")
            if rate and spec.dropout_form == "paper":
                x = add("Mul", [x, weigh(f"{name}.keep", np.float32(1 - rate))], f"{name}.kept")

    def value(name: str, shape: list[Any]) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    images, logits = value("images", ["n", 3, *[spec.input.size] * 2]), value("logits", ["n", classes])
    made = onnx.helper.make_graph(nodes, spec.name, [images], [logits], weights)
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


class Case:
    """A network with random weights and images, and forward passes of it.

    Args:
      spec: as for `graph`.
      batch_size: images.
      classes: width of the logits.
    """

    def __init__(self, spec: ModelSpec, batch_size: int, *, classes: int = 1000):
        import onnxruntime

        draw = np.random.default_rng(0)
        model = graph(spec, _random_params(spec, classes, draw), classes=classes)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.batch_size, size = batch_size, spec.input.size
        images = draw.standard_normal((batch_size, 3, size, size), np.float32)
        self._forward: Callable[[], Any] = lambda: session.run(["logits"], {"images": images})

    def run(self, count: int) -> float:
        """Images a second over so many forward passes."""
        start = time.perf_counter()
        for _ in range(count):
            self._forward()
        return count * self.batch_size / (time.perf_counter() - start)


def _random_params(spec: ModelSpec, classes: int, draw: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """Weights of the spec's shapes, small enough that nothing overflows."""
    found: dict[str, dict[str, np.ndarray]] = {}

    def layer(name: str, *shape: int) -> None:
        scale = np.float32(np.prod(shape[:-1]) ** -0.5)
        kernel = draw.standard_normal(shape, np.float32) * scale
        found[name] = {"kernel": kernel, "bias": np.zeros(shape[-1], np.float32)}

    channels = 3
    for name, conv in zip(spec.conv_names(), spec.convs, strict=True):
        layer(name, conv.kernel, conv.kernel, channels // conv.groups, conv.features)
        channels = conv.features
    width = int(np.prod([stage.after for stage in spec.walk(classes) if len(stage.after) == 3][-1]))
    widths = [*(dense.features for dense in spec.dense), classes]
    for name, features in zip([*spec.dense_names(), spec.head_name()], widths, strict=True):
        layer(name, width, features)
        width = features
    return found
