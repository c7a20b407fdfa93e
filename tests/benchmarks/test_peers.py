"""The peers of the benchmarks run the same networks as we do, so that their times compare."""

from __future__ import annotations

import importlib
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from alexnet_jax import create_model
from alexnet_jax.models import ModelSpec

BENCHMARKS = pathlib.Path(__file__).parent.parent.parent / "benchmarks"
CLASSES = 10
SLOW = ("paper", "torchvision")


@pytest.fixture
def program(monkeypatch):
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def ours(spec: ModelSpec, count: int = 2):
    """Random parameters, images large enough that norms matter, and our reference's logits of them."""
    draw = np.random.default_rng(0)
    model = nnx.eval_shape(lambda: create_model(spec, num_classes=CLASSES, forms="reference"))
    graph, state = nnx.split(model)
    params = jax.tree.map(
        lambda x: np.float32(draw.standard_normal(x.shape) * np.prod(x.shape[:-1]) ** -0.5), nnx.to_pure_dict(state)
    )
    images = np.float32(100 * draw.standard_normal((count, spec.input.size, spec.input.size, 3)))
    return params, images, np.asarray(jax.jit(lambda params, x: nnx.merge(graph, params)(x))(params, images))


def close(found, wanted):
    return np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def layers(params):
    return [params[name] for name in sorted(params, key=lambda name: int(name[-1]))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["caffenet", *SLOW])
def test_plain_flax(program, name):
    spec = program("our_networks").variant(name, size=67, narrow=8)
    params, images, wanted = ours(spec)
    model = program("flax_networks").PlainAlexNet(spec, classes=CLASSES, rngs=nnx.Rngs(0, dropout=1))
    model.eval()
    for layer, values in zip([*model.convs, *model.dense, model.head], layers(params), strict=True):
        layer.kernel[...], layer.bias[...] = values["kernel"], values["bias"]
    if spec.dropout_form == "paper":  # nnx.Dropout is inverted
        for layer in model.dense:
            layer.kernel[...], layer.bias[...] = layer.kernel[...] / 2, layer.bias[...] / 2
    assert close(np.asarray(nnx.jit(lambda model, x: model(x))(model, images)), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "caffenet"])
def test_onnx(program, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    spec = program("our_networks").variant(name, size=67, narrow=8)
    params, images, wanted = ours(spec)
    graph = program("onnx_networks").graph(spec, params, classes=CLASSES)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.transpose(0, 3, 1, 2).copy()})
    assert close(logits, wanted)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "own_norm", "last"),
    [("paper", False, False), ("paper", False, True), ("paper", True, True), ("torchvision", False, False)],
)
def test_pytorch(program, name, own_norm, last):
    torch = pytest.importorskip("torch")
    networks = program("torch_networks")
    spec = program("our_networks").variant(name, size=68, narrow=8)
    params, images, wanted = ours(spec)
    make = {"paper": networks.paper, "torchvision": networks.torchvision}[name]
    model = make(classes=CLASSES, size=68, narrow=8, own_norm=own_norm).eval()
    side = 6 if name == "torchvision" else 2
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    with torch.no_grad():
        for module, values in zip(linear, layers(params), strict=True):
            kernel, bias = values["kernel"], values["bias"]
            if kernel.ndim == 4:
                kernel = kernel.transpose(3, 2, 0, 1)
            else:
                if module is linear[5]:  # PyTorch flattens CHW
                    kernel = kernel.reshape(side, side, 32, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
                kernel = kernel.T
                if spec.dropout_form == "paper" and module is not linear[-1]:
                    kernel, bias = kernel / 2, bias / 2  # PyTorch's dropout is inverted
            module.weight.copy_(torch.tensor(kernel))
            module.bias.copy_(torch.tensor(bias))
        high = networks.padded(68) - 68 if name == "paper" else 0
        x = torch.tensor(np.pad(images, [(0, 0), (0, high), (0, high), (0, 0)]).transpose(0, 3, 1, 2).copy())
        layout = torch.channels_last if last else torch.contiguous_format
        logits = model.to(memory_format=layout)(x.contiguous(memory_format=layout))
    assert close(logits.numpy(), wanted)


def test_operations_of_a_step(program):
    networks = program("our_networks")
    spec = networks.variant("paper")
    forward, conv1 = 2 * 724_406_816, 2 * 55 * 55 * 96 * 11 * 11 * 3
    assert networks.operations(spec, training=False) == forward
    assert networks.operations(spec) == 3 * forward - conv1


def test_a_line_through_figures_of_batch_sizes(program):
    fit = program("memory").line
    assert fit({1: 7.0, 4: 13.0, 256: 517.0}) == pytest.approx((5, 2, 0))
    # Relative errors: a large figure that is off by a little must not move the small ones.
    fixed, _, error = fit({1: 7.0, 2: 9.0, 4: 13.0, 256: 522.0})
    assert fixed == pytest.approx(5, rel=0.02)
    assert 0.001 < error < 0.01


@pytest.mark.parity
def test_views_of_the_pytorch_loop(program):
    pytest.importorskip("torch").manual_seed(0)
    image = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
    crops = [image[top : top + 4, left : left + 4] for top in (0, 1) for left in (0, 1)]
    wanted = {view.transpose(2, 0, 1).tobytes() for crop in crops for view in (crop, crop[:, ::-1])}
    views = program("torch_training").Views([(image, 7)], 4, flip=True)
    found = [views[0] for _ in range(200)]
    assert {view.tobytes() for view, _ in found} == wanted
    assert {(view.shape, label) for view, label in found} == {((3, 4, 4), 7)}


@pytest.mark.parity
@pytest.mark.parametrize("last", [False, True])
def test_pytorch_with_a_hand_written_norm(program, last):
    torch = pytest.importorskip("torch")
    draw = torch.Generator().manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    x, dy = (30 * torch.randn(2, 12, 5, 4, dtype=torch.float64, generator=draw) for _ in range(2))
    x = x.contiguous(memory_format=layout).requires_grad_()
    stock = torch.nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    wanted = torch.cat([stock(half) for half in x.chunk(2, 1)], 1)
    found = program("torch_networks").lrn_function(groups=2)(x)
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, dy)[0] for y in (found, wanted)))


def test_each_candidate_of_the_step_replaces_what_is_there(program):
    for patches in program("gpu_forms").changes().values():
        for patch in patches:
            with patch:
                pass
