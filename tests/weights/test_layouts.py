"""Names, shapes and layouts: against the modules themselves and against loops over indices."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from models.builders import layer_names, narrow

from alexnet_jax import create_model, get_spec, list_models
from alexnet_jax.weights import WeightsError
from alexnet_jax.weights.layouts import Caffe, Native, Torch, layers, layout_of, shapes

from .networks import maps_of


@pytest.mark.parametrize("name", list_models())
def test_shapes_are_those_of_the_module(name):
    spec = get_spec(name)
    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: create_model(spec, num_classes=11))))
    expected = {f"{layer}.{leaf}": value.shape for layer, leaves in state.items() for leaf, value in leaves.items()}
    assert shapes(spec, 11) == expected
    assert layers(spec) == layer_names(spec)


@pytest.mark.parametrize(
    ("name", "kind"), [("half", Torch), ("torchvision", Torch), ("paper", Torch), ("caffenet", Caffe)]
)
def test_pytorchs_layout_and_caffes(name, kind):
    """paper and caffenet have groups: kernels hold one group's channels, as ours."""
    spec = narrow(name, size=131)  # fc6 sees maps of 3 × 3
    layout = kind(spec)
    height, width, channels = maps_of(spec)
    height, width = (6, 6) if name == "torchvision" else (height, width)
    for ours, shape in shapes(spec, 7).items():
        theirs = np.arange(np.prod(shape)).reshape(layout.shape(shape))
        found = layout.ours(ours, theirs)
        assert found.shape == shape
        rng = np.random.default_rng(0)
        for _ in range(200):
            index = tuple(int(rng.integers(size)) for size in shape)
            if len(shape) == 4:
                y, x, i, o = index
                expected = theirs[o, i, y, x]
            elif ours == "fc6.kernel":
                (y, x, c), o = np.unravel_index(index[0], (height, width, channels)), index[1]
                expected = theirs[o, np.ravel_multi_index((c, y, x), (channels, height, width))]
            elif len(shape) == 2:
                expected = theirs[index[::-1]]
            else:
                expected = theirs[index]
            assert found[index] == expected


def test_pytorchs_names():
    layout = Torch(get_spec("half"))
    assert [layout.name(name) for name in ("conv1.kernel", "conv5.bias", "fc6.kernel", "fc8.bias")] == [
        *("features.0.weight", "features.10.bias", "classifier.1.weight", "classifier.6.bias")
    ]
    with pytest.raises(WeightsError, match="not for cifar"):
        Torch(get_spec("cifar"))


def test_caffes_names():
    layout = Caffe(get_spec("caffenet"))
    names = ("conv1.kernel", "conv5.bias", "fc6.kernel", "fc8.bias")
    assert [layout.name(name) for name in names] == ["conv1[0]", "conv5[1]", "fc6[0]", "fc8[1]"]


def test_caffes_layout_where_the_head_sees_maps():
    spec = get_spec("cifar")
    layout = Caffe(spec)
    theirs = np.arange(10 * 1024).reshape(10, 1024)
    found = layout.ours("fc4.kernel", theirs)
    for channel, y, x in ((0, 0, 1), (5, 3, 2), (63, 1, 0)):
        np.testing.assert_array_equal(found[(y * 4 + x) * 64 + channel], theirs[:, (channel * 4 + y) * 4 + x])


def test_whose_names():
    assert layout_of(["conv1[0]", "conv1[1]"]) is Caffe
    assert layout_of(["classifier.6.bias"]) is Torch
    assert layout_of(["conv1.kernel"]) is Native


def test_arrays_of_jax_are_not_needed():
    assert not isinstance(Torch(get_spec("half")).ours("fc8.kernel", np.ones((2, 3))), jax.Array)
