"""A user's own network: made from a spec by changed fields alone, it builds, runs and has the asked structure."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from flax import nnx

from alexnet_jax import ModelSpec, create_model, get_spec, with_init
from alexnet_jax.models import INIT_SCHEMES, ConvSpec, DenseSpec, InputSpec, PoolSpec
from alexnet_jax.models.spec import HeadSpec, MapNormSpec, NormSpec
from alexnet_jax.models.summary import layer_table, totals
from alexnet_jax.nn import Init

from .builders import build, distance, made, narrow, parameters, pictures, shapes, stages

CLASSES = 5
PAPER = get_spec("paper")


def works(spec, classes=CLASSES):
    """Runs it forward and backward; every stage has the spec's shape, every parameter a gradient. The stages."""
    model, images = made(spec, classes), pictures(spec).astype(np.float32)
    graph, state = nnx.split(model)

    def loss(state):
        logits, found = nnx.merge(graph, state).activations(images, spec.stages(classes))
        return jax.numpy.sin(logits).sum(), found

    grads, found = jax.jit(jax.grad(loss, has_aux=True))(state)
    assert {name: value.shape[1:] for name, value in found.items()} == spec.stages(classes)
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        assert np.linalg.norm(leaf) > 0, path
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert totals(layer_table(spec, classes))[0] == sum(
        math.prod(shape) for layer in shapes(spec, classes).values() for shape in layer.values()
    )
    return found


def with_six(spec, features=256):
    """The nets of Krizhevsky et al.'s Table 2: conv6 on pool5's output, seeing both towers."""
    sixth = ConvSpec(features, 3, padding=1, kernel_init=Init("normal", 0.03), bias_init=Init("constant", 1.0))
    return dataclasses.replace(spec, name="six", convs=(*spec.convs, sixth))


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_another_activation(activation):
    spec = dataclasses.replace(narrow("paper"), activation=activation)
    found = works(spec)
    function = {"tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}[activation]
    for name in ("conv1", "conv3", "fc6"):
        with np.errstate(over="ignore"):
            assert distance(found[name], function(np.asarray(found[f"{name}.pre"], np.float64))) < 1e-5, name


def test_pooling_that_does_not_overlap():
    spec = narrow("paper", size=95)
    sizes = {name: shape[0] for name, shape in spec.stages(CLASSES).items() if "pool" in name}
    assert sizes == {"pool1": 11, "pool2": 5, "pool5": 2}
    for name in ("conv1", "conv2", "conv5"):
        spec = spec.with_layer(name, pool=PoolSpec("max", window=2, stride=2, round_up=False))
    found = works(spec)
    assert found["pool1"].shape[1] == 11
    blocks = np.asarray(found["norm1"])[:, :22, :22].reshape(2, 11, 2, 11, 2, -1)
    np.testing.assert_array_equal(found["pool1"], blocks.max((2, 4)))


def test_average_pooling():
    spec = narrow("paper").with_layer("conv5", pool=PoolSpec("avg"))
    found = works(spec)
    assert distance(found["pool5"][:, 0, 0], np.asarray(found["conv5"]).mean((1, 2))) < 1e-6


def test_without_norms_the_shapes_stay():
    spec = narrow("paper").with_convs(norm=None)
    found = works(spec)
    assert not any("norm" in name for name in found)
    assert found["pool1"].shape[1:] == narrow("paper").stages(CLASSES)["pool1"]
    assert PAPER.with_convs(norm=None).stages(1000)["logits"] == (1000,)
    assert "norm1" in narrow("paper").stages(CLASSES)  # the original is as it was


def test_a_middle_layer_removed():
    spec = narrow("paper")
    shorter = dataclasses.replace(spec, convs=spec.convs[:2] + spec.convs[3:])
    found = works(shorter)
    assert "pool4" in found
    assert {"fc5", "fc6", "logits"} <= set(found)
    assert "fc7" not in found
    assert shorter.head_name() == "fc7"


def test_the_sixth_layer_of_the_papers_table_2():
    six = with_six(PAPER)
    assert totals(layer_table(six))[0] == 61_555_304
    made_shapes = shapes(six)
    assert sum(math.prod(s) for layer in made_shapes.values() for s in layer.values()) == 61_555_304
    assert made_shapes["conv6"]["kernel"] == (3, 3, 256, 256)
    assert six.stages(1000)["conv6"] == (6, 6, 256)
    assert list(made_shapes)[-3:] == ["fc7", "fc8", "fc9"]

    spec = with_six(narrow("paper"), features=8)
    works(spec)
    graph, state = nnx.split(made(spec, CLASSES))
    images = pictures(spec).astype(np.float32)

    def first_half(state):
        return nnx.merge(graph, state).activations(images, "conv6")[1]["conv6"][..., :4].sum()

    grads = nnx.to_pure_dict(jax.jit(jax.grad(first_half))(state))
    for half in np.split(np.asarray(grads["conv5"]["bias"]), 2):  # it sees both towers
        assert np.linalg.norm(half) > 0
    assert np.linalg.norm(grads["conv6"]["bias"][4:]) == 0


@pytest.mark.parametrize("dense", [(), (DenseSpec(24, dropout=0.2),), (DenseSpec(8), DenseSpec(12), DenseSpec(4))])
def test_other_hidden_layers(dense):
    spec = dataclasses.replace(narrow("paper"), dense=dense)
    found = works(spec)
    assert sum(name.endswith(".pre") and name.startswith("fc") for name in found) == len(dense)
    assert spec.head_name() == f"fc{6 + len(dense)}"
    model = made(spec, CLASSES)
    width = dense[-1].features if dense else math.prod(found["pool5"].shape[1:])
    assert getattr(model, spec.head_name()).kernel.shape == (width, CLASSES)


@pytest.mark.parametrize("groups", [1, 4])
def test_other_groups(groups):
    spec = narrow("paper").with_groups(groups)
    works(spec)
    assert spec.groups == groups
    assert [conv.groups for conv in spec.convs] == [1, groups, 1, groups, groups]
    assert spec.convs[0].norm.groups == groups
    assert shapes(spec, CLASSES)["conv4"]["kernel"] == (3, 3, 12 // groups, 12)


@pytest.mark.parametrize(("name", "size", "classes"), [("paper", 100, 1), ("torchvision", 63, 11)])
def test_other_images_and_classes(name, size, classes):
    works(narrow(name, size=size), classes)


def test_the_smallest_image_that_fits():
    size = next(
        n for n in range(1, 224) if not isinstance(attempt(lambda n=n: narrow("paper", size=n).stages(2)), Exception)
    )
    assert narrow("paper", size=size).stages(2)["pool5"][:2] == (1, 1)
    works(narrow("paper", size=size))
    with pytest.raises(ValueError, match=f"images of {size - 1} pixels are too small"):
        create_model("paper", image_size=size - 1)


def attempt(call):
    try:
        return call()
    except ValueError as error:
        return error


def test_image_size_keeps_the_ratio_to_what_is_before_the_crop():
    model = nnx.eval_shape(lambda: create_model("paper", image_size=112))
    assert (model.spec.input.size, model.spec.input.resize) == (112, 128)
    assert get_spec("paper").input == PAPER.input
    assert InputSpec(size=32, resize=32).at_size(24) == InputSpec(size=24, resize=24)


def test_widths():
    spec = narrow("paper").with_layer("conv3", features=10).with_layer("conv1", kernel=7, stride=2, padding=(1, 2))
    works(spec)
    assert shapes(spec, CLASSES)["conv4"]["kernel"] == (3, 3, 5, 12)


def test_with_layer_names_each_layer():
    spec = PAPER.with_layer("fc6", features=100).with_layer("fc8", bias_init=Init("constant", 2.0))
    assert [layer.features for layer in spec.dense] == [100, 4096]
    assert spec.head.bias_init == Init("constant", 2.0)
    assert PAPER.dense[0].features == 4096
    with pytest.raises(ValueError, match=r"the layer must be one of 'conv1', .*'fc8', got 'conv6'"):
        PAPER.with_layer("conv6", features=3)


def test_a_spec_is_a_value():
    assert len({PAPER, get_spec("paper"), get_spec("caffenet")}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.activation = "tanh"


@pytest.mark.parametrize("scheme", INIT_SCHEMES)
def test_initialisations(scheme):
    spec = with_init(narrow("paper", features=200), scheme)
    model = create_model(spec, num_classes=200)
    std = {
        "paper": {"conv2": 0.01, "conv4": 0.01, "fc7": 0.01, "fc8": 0.01},
        "source2012": {"conv2": 0.01, "conv4": 0.03, "fc7": 0.01, "fc8": 0.01},
        "bvlc_alexnet": {"conv2": 0.01, "conv4": 0.01, "fc7": 0.005, "fc8": 0.01},
        "caffenet": {"conv2": 0.01, "conv4": 0.01, "fc7": 0.005, "fc8": 0.01},
        # fan out: k·k·K
        "kaiming": {"conv2": (2 / (25 * 16)) ** 0.5, "conv4": (2 / (9 * 12)) ** 0.5, "fc7": 0.01, "fc8": 0.01},
        # uniform within 1/√fan in, the fan of one group
        "pytorch": {"conv2": (3 * 25 * 4) ** -0.5, "conv4": (3 * 9 * 6) ** -0.5, "fc7": 600**-0.5, "fc8": 600**-0.5},
    }[scheme]
    raised = {"paper": 1, "source2012": 1, "bvlc_alexnet": 0.1, "caffenet": 1, "kaiming": 0}.get(scheme)
    for layer, wanted in std.items():
        kernel = np.asarray(getattr(model, layer).kernel[...])
        np.testing.assert_allclose(kernel.std(), wanted, rtol=5 / (2 * kernel.size) ** 0.5)
        bias = np.asarray(getattr(model, layer).bias[...])
        if raised is None:
            assert 0 < abs(bias).max() <= 3**0.5 * wanted * (1 + 1e-6)
        else:
            np.testing.assert_array_equal(bias, np.float32(0 if layer == "fc8" else raised))
    with pytest.raises(ValueError, match=r"the initialisation must be one of 'paper', .* got 'xavier'"):
        with_init(spec, "xavier")


def test_with_init_changes_nothing_else():
    other = with_init(PAPER, "kaiming")
    assert with_init(other, "paper") == PAPER
    assert with_init(get_spec("bvlc_alexnet"), "bvlc_alexnet") == get_spec("bvlc_alexnet")
    assert with_init(PAPER, "source2012").convs[3].kernel_init == get_spec("source2012").convs[3].kernel_init


def test_l2_normalisation_as_a_norm(x64):
    """k=0, α=1, β=0.5 over the whole width."""
    norm = NormSpec(size=None, k=0.0, alpha=1.0, beta=0.5)
    spec = narrow("paper").with_layer("conv1", norm=norm)
    found = stages(build(spec, parameters(spec, CLASSES), dtype="float64"), pictures(spec), ["conv1", "norm1"])
    length = np.linalg.norm(found["conv1"], axis=-1, keepdims=True)
    safe = np.where(length > 0, length, 1)
    np.testing.assert_allclose(found["norm1"], np.asarray(found["conv1"]) / safe, rtol=1e-12)


def test_the_order_of_a_block():
    spec = narrow("paper")
    order = ("norm", "activation", "map_norm", "pool")
    changed = spec.with_layer("conv1", order=order, map_norm=MapNormSpec(3))
    assert list(changed.stages(2))[:5] == ["conv1.pre", "norm1", "conv1", "norm1.map", "pool1"]
    found = works(changed)
    assert (np.asarray(found["norm1"]) < 0).any()
    assert (np.asarray(found["norm1.map"]) >= 0).all()


BAD_FIELDS = {
    "kernels": (lambda: ConvSpec(0, 3), "a convolution's features must be at least 1, got 0"),
    "kernel": (lambda: ConvSpec(8, 0), "a convolution's kernel must be at least 1, got 0"),
    "stride": (lambda: ConvSpec(8, 3, stride=0), "a convolution's stride must be at least 1, got 0"),
    "groups": (lambda: ConvSpec(8, 3, groups=0), "a convolution's groups must be at least 1, got 0"),
    "padding": (lambda: ConvSpec(8, 3, padding=-1), "padding must not be negative, got -1"),
    "order": (lambda: ConvSpec(8, 3, order=("activation", "lrn")), "must be one of .*'norm'.*, got 'lrn'"),
    "no activation": (lambda: ConvSpec(8, 3, order=("pool",)), r"must hold each of \['activation'\] once"),
    "twice": (lambda: ConvSpec(8, 3, order=("activation", "activation")), "once, got"),
    "left out": (lambda: ConvSpec(8, 3, order=("activation",), pool=PoolSpec()), r"\['activation', 'pool'\] once"),
    "pool": (lambda: PoolSpec("mean"), "pool.kind must be one of 'max', 'avg', got 'mean'"),
    "window": (lambda: PoolSpec(window=0), "pool.window must be at least 1, got 0"),
    "dropout": (lambda: DenseSpec(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
    "dropout_at": (lambda: DenseSpec(dropout_at="both"), "dropout_at must be one of 'input', 'output', got 'both'"),
    "units": (lambda: DenseSpec(0), "features must be at least 1, got 0"),
    "init": (lambda: Init("he"), "Init.kind must be one of 'normal', .*got 'he'"),
    "activation": (lambda: dataclasses.replace(PAPER, activation="gelu"), "activation must be one of .*got 'gelu'"),
    "form": (lambda: dataclasses.replace(PAPER, dropout_form="caffe"), "dropout_form must be one of .*got 'caffe'"),
    "adaptive": (lambda: dataclasses.replace(PAPER, adaptive_pool=0), "adaptive_pool must be at least 1, got 0"),
    "no convolution": (lambda: dataclasses.replace(PAPER, convs=()), "at least one convolutional layer"),
    "size": (lambda: InputSpec(size=0), "input.size must be at least 1, got 0"),
    "resize": (lambda: InputSpec(size=224, resize=200), "input.resize must be at least the crop's 224 pixels, got 200"),
    "rule": (lambda: InputSpec(resize_rule="crop"), "resize_rule must be one of 'shorter_side', 'warp', got 'crop'"),
    "channels": (lambda: InputSpec(channel_order="grb"), "channel_order must be one of 'rgb', 'bgr', got 'grb'"),
    "mean image": (lambda: InputSpec(mean_image="all"), "mean_image must be one of 'centre', 'position', got 'all'"),
    "norm's size": (lambda: NormSpec(size=0), "size"),
    "norm's alpha": (lambda: NormSpec(alpha_per="sum"), "alpha_per must be one of 'term', 'window', got 'sum'"),
    "norm's groups": (lambda: NormSpec(groups=0), "groups"),
    "map norm's size": (lambda: MapNormSpec(size=0), "size"),
    "std": (lambda: InputSpec(std=(1.0, 0.0, 1.0)), "std"),
    "unknown": (lambda: ModelSpec.from_dict(PAPER.to_dict() | {"depth": 3}), "ModelSpec has no field depth"),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_a_field_out_of_range_is_refused_where_it_is_set(case):
    make, message = BAD_FIELDS[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_head_spec_has_no_width():
    with pytest.raises(TypeError):
        HeadSpec(features=3)
