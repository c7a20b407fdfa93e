"""The other frameworks that the blocks are compared with."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def run_onnx():
    """Runs one ONNX operator on an NHWC array in ONNX Runtime, float32; the other inputs go in as they are."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")

    def run(operator: str, x: np.ndarray, *others: np.ndarray, **attributes) -> np.ndarray:
        inputs = {f"input{i}": np.ascontiguousarray(a) for i, a in enumerate((x.transpose(0, 3, 1, 2), *others))}
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(operator, list(inputs), ["output"], **attributes)],
            operator,
            [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in inputs.items()],
            [onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [None] * 4)],
        )
        # An old IR and operator set: any ONNX Runtime that the project allows reads them.
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, inputs)[0].transpose(0, 2, 3, 1)

    return run
