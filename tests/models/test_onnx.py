"""The whole `bvlc_alexnet` as a graph of ONNX's own operators, run by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from alexnet_jax import get_spec

from .builders import build, distance, parameters, pictures, run, stages

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
SEEN = ("norm1", "pool1", "norm2", "pool2", "relu5", "pool5")  # also compared, besides the logits


def graph(params, num_classes):
    """Caffe's bvlc_alexnet: 227 pixels, groups of 2, ReLU → LRN → pool, sizes rounded up."""
    nodes, weights = [], []

    def add(kind, inputs, output, **attributes):
        nodes.append(onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def weigh(name, array):
        weights.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def conv(name, x, *, stride=1, pad=0, group=1):
        kernel = weigh(f"{name}.w", params[name]["kernel"].transpose(3, 2, 0, 1))
        bias = weigh(f"{name}.b", params[name]["bias"])
        x = add("Conv", [x, kernel, bias], name, strides=[stride] * 2, pads=[pad] * 4, group=group)
        return add("Relu", [x], name.replace("conv", "relu"))

    def norm(name, x):  # ONNX divides alpha by size, as Caffe does
        return add("LRN", [x], name, size=5, alpha=1e-4, beta=0.75, bias=1.0)

    def pool(name, x):
        return add("MaxPool", [x], name, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)

    def linear(name, x, kernel):
        return add("Gemm", [x, weigh(f"{name}.w", kernel.T), weigh(f"{name}.b", params[name]["bias"])], name, transB=1)

    x = pool("pool1", norm("norm1", conv("conv1", "images", stride=4)))
    x = pool("pool2", norm("norm2", conv("conv2", x, pad=2, group=2)))
    x = conv("conv3", x, pad=1)
    x = conv("conv4", x, pad=1, group=2)
    x = pool("pool5", conv("conv5", x, pad=1, group=2))
    # Our rows of fc6 are in the order of HWC, ONNX flattens CHW.
    side = round((params["fc6"]["kernel"].shape[0] / 256) ** 0.5)
    rows = params["fc6"]["kernel"].reshape(side, side, 256, -1).transpose(2, 0, 1, 3)
    x = add("Relu", [linear("fc6", add("Flatten", [x], "flat"), rows.reshape(side * side * 256, -1))], "relu6")
    x = add("Relu", [linear("fc7", x, params["fc7"]["kernel"])], "relu7")
    linear("fc8", x, params["fc8"]["kernel"])

    def value(name, shape):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    outputs = [value("fc8", ["n", num_classes]), *(value(name, ["n", None, None, None]) for name in SEEN)]
    made = onnx.helper.make_graph(nodes, "bvlc_alexnet", [value("images", ["n", 3, None, None])], outputs, weights)
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def theirs(params, images, num_classes):
    model = graph(params, num_classes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, *seen = session.run(None, {"images": images.transpose(0, 3, 1, 2).copy()})
    return logits, {name: x.transpose(0, 2, 3, 1) for name, x in zip(SEEN, seen, strict=True)}


@pytest.mark.slow
def test_bvlc_alexnet_is_the_graph_of_onnx_operators():
    spec = get_spec("bvlc_alexnet")
    params, images = parameters(spec), pictures(spec).astype(np.float32)
    wanted, seen = theirs(params, images, 1000)
    model = build(spec, params)
    del params
    assert distance(run(model, images), wanted) < 1e-4
    found = stages(model, images, [name.replace("relu", "conv") for name in SEEN])
    for name, value in seen.items():
        assert distance(found[name.replace("relu", "conv")], value) < 1e-4, name
    assert wanted.std() > 1e-2
