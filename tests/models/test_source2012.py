"""`source2012` and `cifar` against plain NumPy models written from the 2012 source's layers."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from alexnet_jax import create_model, get_spec

from .builders import build, distance, layer_names, parameters, pictures, run, small, stages
from .plain_layers import across_maps, conv, linear, pool, relu, within_map


def source2012(params, images):
    """Every stage of run 145's network, float64, at test: dropout multiplies by 0.5."""
    found = {}

    def see(name, value):
        found[name] = value
        return value

    def norm(x):  # each tower has its own layer; 1e-4 is divided by the 5 channels
        return across_maps(x, size=5, alpha=1e-4 / 5, beta=0.75, k=2, groups=2)

    hangs_over = -(images.shape[1] - 11) % 4  # 3 at 224: the last window counts
    x = see("conv1.pre", conv(images, **params["conv1"], stride=4, high=hangs_over))
    x = see("norm1", norm(x))
    x = see("pool1", pool(x, "max"))
    x = see("conv1", relu(x))
    x = see("conv2.pre", conv(x, **params["conv2"], low=2, high=2, groups=2))
    x = see("conv2", relu(x))
    x = see("norm2", norm(x))
    x = see("norm2.map", within_map(x, size=5, scale=0.001, beta=0.75))
    x = see("pool2", pool(x, "max"))
    x = see("conv3.pre", conv(x, **params["conv3"], low=1, high=1))
    x = see("conv3", relu(x))
    x = see("conv4.pre", conv(x, **params["conv4"], low=1, high=1, groups=2))
    x = see("conv4", relu(x))
    x = see("conv5.pre", conv(x, **params["conv5"], low=1, high=1, groups=2))
    x = see("pool5", pool(x, "max"))
    x = see("conv5", relu(x))
    x = see("fc6.pre", linear(x, params["fc6"]))
    x = see("fc6", relu(x))
    x = see("fc7.pre", linear(0.5 * x, params["fc7"]))
    x = see("fc7", relu(x))
    see("logits", linear(0.5 * x, params["fc8"]))
    return found


def cifar(params, images):
    """The source's three-layer CIFAR-10 net: ReLU, then pool, then the norm within a map."""
    x = pool(relu(conv(images, **params["conv1"], low=2, high=2)), "max")
    x = within_map(x, size=3, scale=5e-5, beta=0.75)
    x = pool(relu(conv(x, **params["conv2"], low=2, high=2)), "avg")
    x = within_map(x, size=3, scale=5e-5, beta=0.75)
    x = pool(relu(conv(x, **params["conv3"], low=2, high=2)), "avg")
    return linear(x, params["fc4"])


@pytest.mark.slow
def test_source2012_at_full_size(x64):
    spec = get_spec("source2012")
    params, images = parameters(spec), pictures(spec, 1)
    wanted = source2012(params, images)["logits"]
    assert distance(run(build(spec, params, dtype="float64"), images), wanted) < 1e-9
    assert wanted.std() > 1e-2


@pytest.mark.parametrize("size", [67, 93])  # at 93 pools round up
def test_every_stage_of_source2012(size, x64):
    spec = small("source2012", size=size)
    params, images = parameters(spec, 7), pictures(spec)
    wanted = source2012(params, images)
    found = stages(build(spec, params, dtype="float64"), images)
    assert set(found) == set(wanted)
    assert list(spec.stages(7)) == list(wanted)  # in this order
    for name, value in wanted.items():
        assert distance(found[name], value) < 1e-9, name


def test_every_norm_of_source2012_matters(x64):
    """Each of the changes that tell it from `paper` moves the logits by far more than rounding."""
    spec = small("source2012")
    params, images = parameters(spec, 7), pictures(spec)
    logits = run(build(spec, params, dtype="float64"), images)
    paper_norm = small("paper").convs[0].norm
    for changed in (
        spec.with_layer("conv1", norm=paper_norm),
        spec.with_layer("conv1", order=("activation", "norm", "pool")),
        spec.with_layer("conv2", map_norm=None),
    ):
        assert distance(run(build(changed, params, dtype="float64"), images), logits) > 1e-4


def test_relu_and_max_pool_commute(x64):
    spec = small("source2012")
    params, images = parameters(spec, 7), pictures(spec)
    other = spec.with_layer("conv5", order=("activation", "pool"))
    assert other != spec
    assert (
        distance(run(build(other, params, dtype="float64"), images), run(build(spec, params, dtype="float64"), images))
        < 1e-13
    )


def test_cifar(x64):
    spec = get_spec("cifar")
    params, images = parameters(spec, 10), pictures(spec)
    assert distance(run(build(spec, params, dtype="float64"), images), cifar(params, images)) < 1e-9


# Standard deviations of the kernels, and biases, as the sources give them.
RAISED = ("conv2", "conv4", "conv5", "fc6", "fc7")
STARTS = {
    "paper": (dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"), 0.01), 1.0),
    "source2012": (
        dict.fromkeys(("conv1", "conv2", "fc6", "fc7", "fc8"), 0.01) | dict.fromkeys(("conv3", "conv4", "conv5"), 0.03),
        1.0,
    ),
    "bvlc_alexnet": (
        dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5", "fc8"), 0.01)
        | dict.fromkeys(("fc6", "fc7"), 0.005),
        0.1,
    ),
    "caffenet": (
        dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5", "fc8"), 0.01)
        | dict.fromkeys(("fc6", "fc7"), 0.005),
        1.0,
    ),
}


@pytest.mark.parametrize("name", STARTS)
def test_how_parameters_start(name):
    spec = small(name, features=300)
    model = create_model(spec, num_classes=300)
    stds, raised = STARTS[name]
    for layer, std in stds.items():
        kernel = np.asarray(getattr(model, layer).kernel[...], np.float64)
        bias = np.asarray(getattr(model, layer).bias[...])
        # 4 standard errors of a standard deviation, and of a mean
        np.testing.assert_allclose(kernel.std(), std, rtol=4 / (2 * kernel.size) ** 0.5)
        assert abs(kernel.mean()) < 4 * std / kernel.size**0.5
        assert abs(kernel).max() > 3.5 * std  # a normal one, not a uniform
        np.testing.assert_array_equal(bias, np.float32(raised if layer in RAISED else 0))


def test_cifar_starts_small_in_conv1():
    model = create_model("cifar", num_classes=10)
    for layer, std in {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc4": 0.01}.items():
        kernel = np.asarray(getattr(model, layer).kernel[...], np.float64)
        np.testing.assert_allclose(kernel.std(), std, rtol=4 / (2 * kernel.size) ** 0.5)
        np.testing.assert_array_equal(getattr(model, layer).bias[...], 0)


@pytest.mark.parametrize("name", ["torchvision", "half"])
def test_torchvision_starts_as_pytorch_does(name):
    model = create_model(small(name, features=64), num_classes=64)
    for layer in layer_names(model.spec):
        kernel, bias = (np.asarray(getattr(getattr(model, layer), key)[...]) for key in ("kernel", "bias"))
        bound = np.prod(kernel.shape[:-1]) ** -0.5
        for values in (kernel, bias):
            assert abs(values).max() <= bound
            assert abs(values).max() > 0.9 * bound
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)


def test_gradients_reach_the_images_through_the_signed_norm(x64):
    """conv1's norm sees negative values here: their gradient is right, by finite differences."""
    spec = small("source2012", features=8)
    graph, state = nnx.split(build(spec, parameters(spec, 3), dtype="float64"))
    images, toward = pictures(spec, 1), pictures(spec, 1, seed=5)
    value = jax.jit(lambda x: nnx.merge(graph, state)(x)[0, 1])
    slope = (jax.jit(jax.grad(value))(images) * toward).sum()
    step = 1e-8  # a larger one meets kinks of ReLU and pooling
    numeric = (value(images + step * toward) - value(images - step * toward)) / (2 * step)
    np.testing.assert_allclose(slope, numeric, rtol=1e-4)
