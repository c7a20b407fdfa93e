"""The forms that a GPU is given: what follows a convolution as one kernel, and conv1 in blocks of pixels.

The kernel runs in JAX's interpreter here; that it can be lowered for a GPU is a test of its own.
"""

from __future__ import annotations

import functools
import importlib

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import close
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet_jax import create_model
from alexnet_jax.models import get_spec
from alexnet_jax.models.spec import NormSpec
from alexnet_jax.nn import conv, forms, fused, local_response_norm, max_pool
from alexnet_jax.nn.conv_gradients import direct
from alexnet_jax.nn.space_to_depth import in_blocks
from alexnet_jax.training.model_config import ModelConfig, changed

CONV = importlib.import_module("alexnet_jax.nn.conv")  # `nn.conv` is the function
NETWORK = importlib.import_module("alexnet_jax.models.alexnet")
NORM = {"size": 5, "alpha": 0.1, "beta": 0.75, "k": 2.0, "alpha_per": "term", "groups": 1}
CASES = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def random(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def kernel(x, bias, dy, norm, round_up=False):
    """(y, dx, dbias) of the kernels."""
    form = functools.partial(fused.relu_norm_max_pool, norm=norm, round_up=round_up, interpret=True)

    def both(x, bias, dy):
        y, pulled = jax.vjp(form, x, bias)
        return y, *pulled(dy)

    return jax.jit(both)(x, bias, dy)


def by_loops(x, bias, dy, norm, round_up):
    """The same in float64, stage by stage."""
    x, bias, dy = (np.asarray(a, np.float64) for a in (x, bias, dy))
    activated = np.maximum(x + bias, 0)
    windows = brute_force.pool_windows(*x.shape[1:3], 3, 2, round_up)
    if norm is None:
        return brute_force.max_pool(activated, windows), brute_force.max_pool_gradient(activated, dy, windows)
    neighbours = brute_force.channel_neighbours(x.shape[-1], norm["size"], norm["groups"])
    alpha = norm["alpha"] / (norm["size"] if norm["alpha_per"] == "window" else 1)
    about = (alpha, norm["beta"], norm["k"])
    normed = brute_force.response_norm(activated, neighbours, *about)
    slope = brute_force.max_pool_gradient(normed, dy, windows)
    return brute_force.max_pool(normed, windows), brute_force.response_norm_gradient(
        activated, slope, neighbours, *about
    )


@pytest.mark.parametrize(
    ("shape", "norm", "round_up"),
    [
        ((2, 9, 7, 36), NORM | {"groups": 2}, False),  # groups that end inside a program's channels
        ((1, 8, 10, 5), NORM | {"size": 4, "beta": 0.5, "alpha_per": "window"}, True),  # an uneven window
        ((1, 17, 3, 33), NORM | {"size": 1, "k": 0.5}, True),  # more rows than a program has, one channel beyond
        ((2, 7, 7, 65), None, True),  # channels that no number of programs divides
    ],
)
def test_the_kernel_against_loops(shape, norm, round_up):
    x, bias = random(shape), random(shape[-1:], 1)
    dy = random(max_pool(x, round_up=round_up).shape, 2)
    y, dx, dbias = kernel(x, bias, dy, norm, round_up)
    expected, slope = by_loops(x, bias, dy, norm, round_up)
    slope[np.asarray(x, np.float64) + bias <= 0] = 0
    close(y, expected, 1e-5)
    close(dx, slope, 1e-5)
    close(dbias, slope.sum((0, 1, 2)), 1e-4)


def test_the_kernel_in_half_precision_is_the_stages_one_after_the_other():
    """Up to a rounding, and with the same winners among equals."""
    x = jnp.asarray(random((2, 9, 9, 32)), jnp.bfloat16)
    bias, norm = jnp.asarray(random((32,), 1)).astype(jnp.bfloat16), NORM | {"groups": 2}
    dy = jnp.asarray(random((2, 4, 4, 32), 2), jnp.bfloat16)

    def stages(x, bias):
        y = local_response_norm(jax.nn.relu(x + bias.reshape(1, 1, 1, -1)), **norm, forms="reference")
        return max_pool(y, forms="reference")

    y, pulled = jax.vjp(stages, x, bias)
    found, dx, dbias = kernel(x, bias, dy, norm)
    assert found.dtype == dx.dtype == jnp.bfloat16
    as_wide = functools.partial(np.asarray, dtype=np.float32)
    np.testing.assert_allclose(as_wide(found), as_wide(y), rtol=2**-7)
    for one, other in zip((dx, dbias), pulled(dy), strict=True):
        distance = np.linalg.norm(as_wide(one) - as_wide(other)) / np.linalg.norm(as_wide(other))
        assert distance < 2e-2


def test_the_first_of_equals_takes_the_gradient():
    x = np.ones((1, 5, 5, 2), np.float32)
    _, dx, _ = kernel(x, np.zeros(2, np.float32), np.ones((1, 2, 2, 2), np.float32), None)
    expected = np.zeros((5, 5))
    expected[:4:2, :4:2] = 1  # the first pixel of each window
    assert (np.asarray(dx[0, :, :, 0]) == expected).all()


@pytest.mark.parametrize("norm", [NORM, None])
def test_what_is_not_a_number_is_passed_on(norm, monkeypatch):
    """As XLA does; Triton's maximum drops it, so that a broken network would seem to work."""
    x = random((1, 7, 7, 4))
    x[0, 3, 3, 1] = np.nan
    expected = np.isnan(np.asarray(max_pool(x)))
    monkeypatch.setattr(jnp, "maximum", jnp.fmax)  # what Triton makes of it
    y = np.asarray(fused.relu_norm_max_pool(x, jnp.zeros(4), norm, interpret=True))
    assert expected.any()
    assert (np.isnan(y) >= expected).all()  # a norm gives it to neighbours too


@pytest.mark.parametrize("wide", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_kernel_for_each_image_apart(wide):
    """Under vmap, with JAX in 64 bits or not."""
    with jax.enable_x64(wide):
        x, bias = random((2, 2, 7, 5, 8)), random((8,), 1)
        form = functools.partial(fused.relu_norm_max_pool, norm=NORM, interpret=True)
        dbias = jax.vmap(jax.grad(lambda bias, x: jnp.sum(form(x, bias) ** 2)), (None, 0))(jnp.asarray(bias), x)
        for each, image in zip(dbias, x, strict=True):
            close(each, jax.grad(lambda bias, image=image: jnp.sum(form(image, bias) ** 2))(jnp.asarray(bias)), 1e-5)


def test_a_norm_that_the_kernel_cannot_do():
    x = jnp.zeros((1, 5, 5, 256))
    for wrong in ({"size": None}, {"size": 35}, {"k": 0.0}, {}):
        assert not fused.fits(256, NORM | wrong)
        with pytest.raises(ValueError, match="256 channels"):
            fused.relu_norm_max_pool(x, jnp.zeros(256), NORM | wrong, interpret=True)
    assert fused.fits(256, NORM | {"groups": 2})


def test_forward_mode_names_the_remedy():
    x, bias = jnp.ones((1, 5, 5, 4)), jnp.ones(4)
    with pytest.raises(TypeError, match='forms="reference"'):
        jax.jvp(lambda x: fused.relu_norm_max_pool(x, bias, NORM, interpret=True), (x,), (x,))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_kernels_are_lowered_for_a_gpu(dtype):
    """By this JAX, to Triton's language; only a GPU's compiler can go further."""
    shape = (4, 55, 55, 96)

    def both(x, bias, dy):
        y, pulled = jax.vjp(lambda x, bias: fused.relu_norm_max_pool(x, bias, NORM | {"groups": 2}), x, bias)
        return y, pulled(dy)

    arguments = [jax.ShapeDtypeStruct(s, dtype) for s in (shape, (96,), (4, 27, 27, 96))]
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("one",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        text = jax.jit(both).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 2


@CASES
@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    kernel=st.integers(2, 5),
    stride=st.integers(2, 4),
    pads=st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
    seed=st.integers(0, 1000),
)
def test_a_convolution_in_blocks_is_the_convolution(x64, size, kernel, stride, pads, seed):
    """With pixels that no window sees, and with more padding than the kernel's blocks fill."""
    x, weights = random((2, *size, 3), seed, np.float64), random((kernel, kernel, 3, 4), seed + 1, np.float64)

    def both(form, x, weights):
        y, pulled = jax.vjp(lambda x, weights: form(x, weights, stride, pads), x, weights)
        return y, pulled(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    jax.tree.map(close, *(jax.jit(functools.partial(both, form))(x, weights) for form in (in_blocks, direct)))


def test_conv1_in_blocks_against_loops(x64, monkeypatch):
    """Through `conv`, where the platform is a GPU: 11 × 11 with a stride of 4, as conv1 has it."""
    monkeypatch.setattr(forms, "platform", lambda: "gpu")
    x, weights = random((1, 20, 24, 3), 0, np.float64), random((11, 11, 3, 2), 1, np.float64)
    close(conv(x, weights, stride=4, padding=2), brute_force.conv(x, weights, stride=4, padding=2))
    assert "48" in str(jax.make_jaxpr(lambda x: conv(x, weights, stride=4, padding=2))(x))
    oblong = random((3, 5, 3, 2), 2, np.float64)  # not in blocks
    close(conv(x, oblong, stride=2), brute_force.conv(x, oblong, stride=2))


def test_which_forms_a_gpu_is_given(monkeypatch):
    image, weights = jnp.zeros((2, 32, 32, 3), jnp.bfloat16), jnp.zeros((11, 11, 3, 8), jnp.bfloat16)
    assert not forms.fused(image)
    assert not forms.in_blocks(image, weights, 4)
    monkeypatch.setattr(forms, "platform", lambda: "gpu")
    assert forms.fused(image)
    assert not forms.fused(image.astype(jnp.float32))
    assert not forms.fused(image[:0])
    assert forms.in_blocks(image, weights, 4)
    assert not forms.in_blocks(image, weights, 1)
    assert not forms.in_blocks(image, weights[:, :3], 3)  # not square
    assert not forms.in_blocks(jnp.zeros((2, 32, 32, 48)), jnp.zeros((5, 5, 48, 8)), 2)


@pytest.fixture
def by_kernels(monkeypatch):
    """Networks in the forms of a GPU, any dtype, the kernels interpreted; the calls of the kernel."""
    calls = []

    def interpreted(x, bias, norm, **options):
        calls.append(norm)
        return fused.relu_norm_max_pool(x, bias, norm, **options, interpret=True)

    monkeypatch.setattr(NETWORK, "fused", lambda x: True)
    monkeypatch.setattr(NETWORK, "relu_norm_max_pool", interpreted)
    monkeypatch.setattr(CONV, "conv_gradients", lambda *a: False)
    monkeypatch.setattr(CONV, "in_blocks", lambda x, weights, stride: stride > 1)
    return calls


def small(name, **options):
    spec = changed(get_spec(name).at_image_size(67), ModelConfig(width=1 / 16, hidden_width=1 / 64, init=None))
    return create_model(spec, num_classes=5, **options), random((2, 67, 67, 3))


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("paper", 2),
        pytest.param("torchvision", 0, marks=pytest.mark.slow),
        pytest.param("bvlc_alexnet", 2, marks=pytest.mark.slow),
    ],
)
def test_networks_by_kernels(by_kernels, name, norms):
    """All three blocks with pooling, in value and gradient."""
    model, images = small(name)
    graph, params = nnx.split(model)

    def loss(params, form):
        network = nnx.merge(graph, params)
        network.forms = form
        return jnp.sum(network(images) ** 2)

    found = jax.jit(jax.value_and_grad(functools.partial(loss, form="auto")))(params)
    assert [norm is not None for norm in by_kernels] == [True] * norms + [False] * (3 - norms)
    expected = jax.jit(jax.value_and_grad(functools.partial(loss, form="reference")))(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        distance = jnp.linalg.norm(one - other) / jnp.linalg.norm(other)
        assert distance < 1e-4
    assert len(by_kernels) == 3


def test_stages_that_someone_wants_to_see_stay_apart(by_kernels):
    model, images = small("paper")
    _, found = model.activations(images, ["conv1.pre", "norm2", "pool1", "pool5"])
    assert len(by_kernels) == 1  # conv5's
    model.forms = "reference"
    _, expected = model.activations(images, ["conv1.pre", "norm2", "pool1", "pool5"])
    jax.tree.map(functools.partial(close, tolerance=1e-4), found, expected)


def test_blocks_that_are_not_the_kernels_stay_apart(by_kernels):
    """Another order, another activation, other windows, a norm that is too wide, another layer in the place of one."""
    for name, kernels in (("source2012", 0), ("caffenet", 1)):
        model, images = small(name)
        by_kernels.clear()
        model(images)
        assert len(by_kernels) == kernels, name
    model, images = small("paper")
    norm = NormSpec(groups=2, size=None)
    model.spec = model.spec.with_layer("conv1", norm=norm)
    model.conv5 = Other(model.conv5)
    by_kernels.clear()
    model(images)
    assert len(by_kernels) == 1  # conv2's


class Other(nnx.Module):
    """A convolution that takes what `Conv` took before it could leave its bias to others."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x, *, groups=None, forms="auto"):
        return self.layer(x, groups=groups, forms=forms)


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "words"),
    [
        ((0, 9, 9, 16), jnp.bfloat16, ValueError, r"needs an image, got maps of shape \(0, 9, 9, 16\)"),
        ((1, 9, 9, 16), jnp.float16, TypeError, "bfloat16 or float32, got float16"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused(shape, dtype, error, words):
    with pytest.raises(error, match=rf"relu_norm_max_pool .*{words}: use the stages apart"):
        fused.relu_norm_max_pool(jnp.zeros(shape, dtype), jnp.zeros(16, dtype), interpret=True)
