"""Who sees whom, shown through gradients, both ways: what must not depend does not, what must depend does."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from alexnet_jax import get_spec

from .builders import build, made, narrow, parameters, pictures, small


@functools.lru_cache
def gradients(name, forms):
    """A compiled function from weights of every stage's values to the gradient of their sum, and such weights."""
    spec = narrow(name)
    model, images = made(spec, 6, forms=forms), pictures(spec).astype(np.float32)
    graph, state = nnx.split(model)
    zeros = {stage: np.zeros((2, *shape), np.float32) for stage, shape in spec.stages(6).items()}

    def value(state, weights):
        found = nnx.merge(graph, state).activations(images, weights)[1]
        return sum((found[stage] * weights[stage]).sum() for stage in weights)

    compiled = jax.jit(jax.grad(value))
    return lambda weights: nnx.to_pure_dict(compiled(state, weights)), zeros


def sensitivity(name, stage, pick, forms="auto"):
    """The gradient of a weighted sum over one stage's first or second half of the channels to every parameter."""
    run, zeros = gradients(name, forms)
    weights = zeros[stage].copy()
    width = weights.shape[-1] // 2
    chosen = weights[..., :width] if pick == "first" else weights[..., width:]
    chosen[...] = np.cos(np.arange(chosen.size)).reshape(chosen.shape)
    return run(zeros | {stage: weights})


def halves(grad):
    """Norms of the gradient to the first and to the second tower's kernels."""
    first, second = np.split(np.asarray(grad), 2, axis=-1)
    return float(np.linalg.norm(first)), float(np.linalg.norm(second))


def assert_sees(grads, layer, own, other):
    """`own` and `other`: whether the gradient reaches the first and the second tower's share of the layer."""
    for key in ("kernel", "bias"):
        for norm, wanted in zip(halves(grads[layer][key]), (own, other), strict=True):
            assert np.isfinite(norm)
            assert (norm > 0) is wanted, (layer, key, own, other)


# A bias moves all of a layer's maps of a tower, so it also stands for "the tower's maps".
# stage, layers of whose other half the first tower must see nothing, layers it sees both halves of
SEES = [
    ("conv2", ("conv1", "conv2"), ()),
    ("norm2", ("conv1", "conv2"), ()),
    ("conv3", ("conv3",), ("conv1", "conv2")),
    ("conv4", ("conv3", "conv4"), ("conv1", "conv2")),
    ("conv5", ("conv3", "conv4", "conv5"), ("conv1", "conv2")),
    ("pool5", ("conv3", "conv4", "conv5"), ("conv1", "conv2")),
    ("fc6", ("fc6",), ("conv1", "conv2", "conv3", "conv4", "conv5")),
    ("fc7", ("fc7",), ("conv5", "fc6")),
    ("logits", ("fc8",), ("conv4", "conv5", "fc6", "fc7")),
]


@pytest.mark.parametrize(("stage", "apart", "together"), SEES)
def test_two_towers(stage, apart, together):
    grads = sensitivity("paper", stage, "first")
    for layer in apart:
        assert_sees(grads, layer, True, False)
    for layer in together:
        assert_sees(grads, layer, True, True)


@pytest.mark.parametrize("stage", ["conv2", "conv5"])
def test_the_second_tower_in_turn(stage):
    grads = sensitivity("paper", stage, "second")
    assert_sees(grads, stage, False, True)
    assert_sees(grads, {"conv2": "conv1", "conv5": "conv4"}[stage], False, True)


def test_reference_forms_keep_the_towers_apart():
    grads = sensitivity("paper", "conv5", "first", "reference")
    for layer in ("conv3", "conv4", "conv5"):
        assert_sees(grads, layer, True, False)
    assert_sees(grads, "conv2", True, True)


@pytest.mark.parametrize("name", ["single", "one_tower"])
def test_one_column_sees_all(name):
    grads = sensitivity(name, "conv5", "first")
    assert_sees(grads, "conv5", True, False)
    for layer in ("conv1", "conv2", "conv3", "conv4"):
        assert_sees(grads, layer, True, True)


def neighbours(name, channel):
    """Which of conv1's kernels the norm's channel sees, in the variant's own 96 kernels."""
    spec = small(name, features=4)
    graph, state = nnx.split(build(spec, parameters(spec, 2)))
    images = pictures(spec, 1).astype(np.float32)

    def value(state):
        return nnx.merge(graph, state).activations(images, ["norm1"])[1]["norm1"][..., channel].sum()

    kernel = jax.jit(jax.grad(value))(state)["conv1"]["kernel"][...]
    return np.flatnonzero(np.linalg.norm(np.asarray(kernel).reshape(-1, 96), axis=0))


@pytest.mark.parametrize("name", ["paper", "source2012"])
def test_the_towers_norms_end_in_the_middle(name):
    assert neighbours(name, 47).tolist() == [45, 46, 47]
    assert neighbours(name, 48).tolist() == [48, 49, 50]
    assert neighbours(name, 20).tolist() == [18, 19, 20, 21, 22]


@pytest.mark.parametrize("name", ["bvlc_alexnet", "caffenet", "single"])
def test_a_norm_over_the_whole_layer_crosses_the_middle(name):
    assert neighbours(name, 47).tolist() == [45, 46, 47, 48, 49]
    assert neighbours(name, 48).tolist() == [46, 47, 48, 49, 50]


ORDERS = {
    "paper": ["conv1.pre", "conv1", "norm1", "pool1"],
    "source2012": ["conv1.pre", "norm1", "pool1", "conv1"],
    "single": ["conv1.pre", "conv1", "norm1", "pool1"],
    "one_tower": ["conv1.pre", "conv1", "norm1", "pool1"],
    "half": ["conv1.pre", "conv1", "pool1"],
    "torchvision": ["conv1.pre", "conv1", "pool1"],
    "bvlc_alexnet": ["conv1.pre", "conv1", "norm1", "pool1"],
    "caffenet": ["conv1.pre", "conv1", "pool1", "norm1"],
    "cifar": ["conv1.pre", "conv1", "pool1", "norm1.map"],
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_the_first_block(name):
    assert [stage for stage in get_spec(name).stages(10) if "1" in stage] == ORDERS[name]


def test_each_stage_depends_on_the_one_before_it_in_its_order():
    """A perturbed conv1 shows in the stages after it: `activations` captures no stale value."""
    for name in ("paper", "source2012", "caffenet"):
        spec = narrow(name)
        params, images = parameters(spec, 3), pictures(spec, 1).astype(np.float32)
        names = [stage for stage in spec.stages(3) if "1" in stage]
        before = build(spec, params).activations(images, names)[1]
        params["conv1"]["kernel"] = params["conv1"]["kernel"] * 1.5
        after = build(spec, params).activations(images, names)[1]
        for stage in names:
            assert not np.allclose(before[stage], after[stage], rtol=1e-3), (name, stage)
