"""Grouped convolution against plain loops, ONNX Runtime and PyTorch."""

from __future__ import annotations

import functools

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import close, in_forms
from flax import nnx
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from alexnet_jax.nn import Conv, conv, output_size

# The fixture `x64` holds for all examples of a test alike.
CASES = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FORMS = ("auto", "reference")


def random(*shapes, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    arrays = tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)
    return arrays if len(arrays) > 1 else arrays[0]


@st.composite
def cases(draw):
    """(shape of x, shape of the kernel, keywords, seed)."""
    groups = draw(st.integers(1, 3))
    per_group, features = draw(st.integers(1, 3)), groups * draw(st.integers(1, 2))
    kh, kw = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    h, w = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    padding = draw(st.one_of(st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 2))))
    round_up = draw(st.booleans())
    low, high = (padding, padding) if isinstance(padding, int) else padding
    assume(kh <= h + low + high and kw <= w + low + high)
    # Padding as wide as the window: test_windows.py.
    assume(not round_up or high < min(kh, kw))
    keywords = {"stride": draw(st.integers(1, 3)), "padding": padding, "groups": groups, "round_up": round_up}
    x_shape = (draw(st.integers(1, 2)), h, w, groups * per_group)
    return x_shape, (kh, kw, per_group, features), keywords, draw(st.integers(0, 1000))


def check_against_loops(x_shape, kernel_shape, keywords, seed):
    """In both forms, value and gradients."""
    x, kernel, bias = random(x_shape, kernel_shape, kernel_shape[-1:], seed=seed)
    expected = brute_force.conv(x, kernel, bias, **keywords)
    dy = random(expected.shape, seed=seed + 1)
    expected_gradients = brute_force.conv_gradient(x, kernel, dy, **keywords)
    result = in_forms(functools.partial(conv, **keywords), x, kernel, bias, cotangent=dy)
    for y, gradients in result.values():
        assert y.dtype == np.float64
        close(y, expected)
        for got, wanted in zip(gradients, expected_gradients, strict=True):
            close(got, wanted)


@CASES
@given(case=cases())
def test_forward_and_gradient(x64, case):
    check_against_loops(*case)


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "keywords"),
    [
        # The paper's layers in small: an 11 × 11 window with stride 4 that hangs over, a grouped 5 × 5 one.
        ((1, 16, 16, 3), (11, 11, 3, 2), {"stride": 4, "round_up": True}),
        ((1, 16, 16, 3), (11, 11, 3, 2), {"stride": 4, "padding": (0, 3)}),
        ((1, 15, 15, 3), (11, 11, 3, 2), {"stride": 4, "padding": 2}),
        ((1, 5, 5, 4), (5, 5, 2, 4), {"padding": 2, "groups": 2}),
        # A window that skips pixels, uneven padding, depthwise groups.
        ((1, 7, 6, 2), (2, 2, 2, 1), {"stride": 3, "padding": (1, 0), "round_up": True}),
        ((1, 4, 5, 4), (3, 2, 1, 8), {"padding": (0, 2), "groups": 4}),
    ],
)
def test_forward_and_gradient_of_known_layers(x64, x_shape, kernel_shape, keywords):
    check_against_loops(x_shape, kernel_shape, keywords, 3)


def test_auto_equals_reference(x64):
    x, kernel, bias = random((2, 7, 7, 6), (3, 3, 3, 4), (4,))
    keywords = {"stride": 2, "padding": (1, 0), "groups": 2, "round_up": True}
    dy = random((2, 4, 4, 4), seed=1)
    result = in_forms(functools.partial(conv, **keywords), x, kernel, bias, cotangent=dy)
    for auto, reference in zip(jax.tree.leaves(result["auto"]), jax.tree.leaves(result["reference"]), strict=True):
        close(auto, reference, 1e-13)


@pytest.mark.parametrize("forms", FORMS)
def test_groups_do_not_see_each_other(x64, forms):
    x, kernel = random((1, 5, 5, 4), (3, 3, 2, 6))
    gradient = jax.grad(lambda x: conv(x, kernel, groups=2, forms=forms)[..., :3].sum())(x)
    assert np.all(gradient[..., 2:] == 0)
    assert np.all(gradient[..., :2] != 0)
    gradient = jax.grad(lambda x: conv(x, kernel, groups=2, forms=forms)[..., 3:].sum())(x)
    assert np.all(gradient[..., :2] == 0)
    assert np.all(gradient[..., 2:] != 0)


def test_without_bias(x64):
    x, kernel = random((1, 4, 4, 2), (3, 3, 2, 3))
    close(conv(x, kernel), brute_force.conv(x, kernel))
    close(conv(x, kernel, jnp.zeros(3)), conv(x, kernel))


def test_jit_grad_and_vmap(x64):
    x, kernel, bias = random((3, 1, 5, 5, 4), (3, 3, 2, 4), (4,))
    keywords = {"stride": 2, "padding": 1, "groups": 2}

    def loss(x, kernel, bias):
        return (conv(x, kernel, bias, **keywords) ** 2).sum()

    each = [brute_force.conv(a, kernel, bias, **keywords) for a in x]
    close(jax.vmap(lambda a: conv(a, kernel, bias, **keywords))(x), np.stack(each))
    gradients = [brute_force.conv_gradient(a, kernel, 2 * y, **keywords) for a, y in zip(x, each, strict=True)]
    got = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2)), in_axes=(0, None, None)))(x, kernel, bias)
    for a, b in zip(got, zip(*gradients, strict=True), strict=True):
        close(a, np.stack(b))
    close(jax.grad(loss)(x[0], kernel, bias), gradients[0][0])
    close(jax.jit(lambda a: conv(a, kernel, bias, **keywords))(x[0]), each[0])


def test_vmap_over_kernels(x64):
    x, kernels = random((1, 4, 4, 4), (3, 2, 2, 2, 4))
    each = [brute_force.conv(x, kernel, groups=2) for kernel in kernels]
    close(jax.vmap(lambda kernel: conv(x, kernel, groups=2))(kernels), np.stack(each))


def test_jvp_of_reference(x64):
    x, kernel, bias, tx, tkernel, tbias = random((1, 4, 4, 4), (3, 3, 2, 2), (2,), (1, 4, 4, 4), (3, 3, 2, 2), (2,))
    keywords = {"padding": 1, "stride": 2, "groups": 2}
    y, tangent = jax.jvp(lambda *a: conv(*a, forms="reference", **keywords), (x, kernel, bias), (tx, tkernel, tbias))
    close(y, brute_force.conv(x, kernel, bias, **keywords))
    expected = brute_force.jvp(
        lambda dy: brute_force.conv_gradient(x, kernel, dy, **keywords), (tx, tkernel, tbias), y.shape
    )
    close(tangent, expected)


def test_hessian_of_reference(x64):
    x, kernel, weights = random((1, 3, 3, 2), (2, 2, 1, 2), (1, 2, 2, 2))

    def loss(x):
        return (weights * conv(x, kernel, groups=2, forms="reference") ** 2).sum()

    def gradient(x):
        y = brute_force.conv(x, kernel, groups=2)
        return brute_force.conv_gradient(x, kernel, 2 * weights * y, groups=2)[0]

    close(jax.jit(jax.hessian(loss))(x), brute_force.hessian(gradient, x))


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16])
def test_dtypes(x64, dtype, forms):
    x, kernel, bias = (jnp.asarray(a, dtype) for a in random((1, 5, 5, 4), (3, 3, 2, 4), (4,)))
    y = conv(x, kernel, bias, groups=2, forms=forms)
    assert y.dtype == dtype
    wide = [np.asarray(a, np.float64) for a in (x, kernel, bias)]
    expected = brute_force.conv(*wide, groups=2)
    magnitude = brute_force.conv(*(abs(a) for a in wide), groups=2)  # what rounding errors are relative to
    assert np.all(abs(np.asarray(y, np.float64) - expected) <= 2 * float(jnp.finfo(dtype).eps) * magnitude)


def test_dtypes_are_promoted(x64):
    x, kernel = random((1, 4, 4, 2), (3, 3, 2, 3))
    assert conv(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.float32)).dtype == jnp.float32
    assert conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float64)).dtype == jnp.float64


@pytest.mark.parametrize(
    ("x", "kernel", "keywords", "error", "message"),
    [
        ((4, 4, 2), (3, 3, 2, 4), {}, ValueError, r"rank 4, got shape \(4, 4, 2\)"),
        ((1, 4, 4, 2), (3, 3, 2), {}, ValueError, r"kernel must be .* got shape \(3, 3, 2\)"),
        ((1, 4, 4, 2), (3, 3, 1, 3), {"groups": 2}, ValueError, "output: 3 channels .* groups=2"),
        ((1, 4, 4, 3), (3, 3, 1, 4), {"groups": 2}, ValueError, "input: 3 channels .* groups=2"),
        ((1, 4, 4, 2), (3, 3, 2, 4), {"groups": 0}, ValueError, "groups=0"),
        ((1, 4, 4, 2), (3, 3, 2, 4), {"groups": -2}, ValueError, "groups=-2"),
        ((1, 4, 4, 2), (3, 3, 3, 4), {}, ValueError, r"\(3, 3, 3, 4\) sees 3 channels, but 2 input channels"),
        ((1, 4, 4, 4), (3, 3, 4, 4), {"groups": 2}, ValueError, r"sees 4 channels, but 4 .* 2 group\(s\) are 2"),
        ((1, 2, 4, 2), (3, 3, 2, 4), {}, ValueError, "window of 3 does not fit into 2 pixels"),
        ((1, 4, 2, 2), (3, 3, 2, 4), {}, ValueError, "window of 3 does not fit into 2 pixels"),
        ((1, 4, 4, 2), (3, 3, 2, 4), {"stride": 0}, ValueError, "stride 0"),
        ((1, 4, 4, 2), (3, 3, 2, 4), {"padding": -1}, ValueError, "got -1"),
        ((1, 4, 4, 2), (3, 3, 2, 4), {"padding": (0, -1)}, ValueError, r"got \(0, -1\)"),
        ((1, 4, 4, 2), (3, 3, 2, 4), {"forms": "fast"}, ValueError, "'auto', 'reference', got 'fast'"),
    ],
)
def test_bad_arguments_are_named(x, kernel, keywords, error, message):
    with pytest.raises(error, match=message):
        conv(jnp.ones(x), jnp.ones(kernel), **keywords)


@pytest.mark.parametrize("shape", [(3,), (1,), (5,), (2, 2), (1, 4), ()])
def test_a_bias_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="bias"):
        conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 4)), jnp.ones(shape))


def test_integer_arrays_are_refused():
    with pytest.raises(TypeError, match="conv takes floating-point arrays, got uint8"):
        conv(jnp.ones((1, 4, 4, 2), jnp.uint8), jnp.ones((3, 3, 2, 4)))
    with pytest.raises(TypeError, match=r"kernel .*got int32"):
        conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 4), jnp.int32))


# The module


def test_module_is_the_function(x64):
    layer = Conv(
        4, 6, 3, stride=2, padding=(0, 1), groups=2, round_up=True, param_dtype=jnp.float64, rngs=nnx.Rngs(0),
        bias_init=nnx.initializers.normal(1.0),
    )  # fmt: skip
    x = random((2, 6, 7, 4))
    kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
    assert kernel.shape == (3, 3, 2, 6)
    assert bias.shape == (6,)
    expected = brute_force.conv(x, kernel, bias, stride=2, padding=(0, 1), groups=2, round_up=True)
    assert expected.shape[1:3] == (
        output_size(6, 3, 2, (0, 1), round_up=True),
        output_size(7, 3, 2, (0, 1), round_up=True),
    )
    for forms in FORMS:
        close(layer(jnp.asarray(x), forms=forms), expected)


def test_module_starts_as_the_initialisers_say():
    layer = Conv(
        2, 3, 2, rngs=nnx.Rngs(0),
        kernel_init=lambda key, shape, dtype: jnp.full(shape, 7, dtype),
        bias_init=lambda key, shape, dtype: jnp.full(shape, 5, dtype),
    )  # fmt: skip
    assert np.all(layer.kernel[...] == 7)
    assert np.all(layer.bias[...] == 5)
    # By default as the paper: normal with 0.01, bias 0.
    layer = Conv(16, 32, 5, rngs=nnx.Rngs(0))
    assert float(jnp.std(layer.kernel[...])) == pytest.approx(0.01, rel=0.05)
    assert np.all(layer.bias[...] == 0)
    assert not np.array_equal(layer.kernel[...], Conv(16, 32, 5, rngs=nnx.Rngs(1)).kernel[...])


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "x_dtype", "expected"),
    [
        (None, jnp.float32, jnp.float32, jnp.float32),
        (None, jnp.float32, jnp.bfloat16, jnp.float32),
        (None, jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32, jnp.float32, jnp.bfloat16),
        (jnp.float32, jnp.bfloat16, jnp.bfloat16, jnp.float32),
    ],
)
def test_module_dtypes(dtype, param_dtype, x_dtype, expected):
    layer = Conv(2, 2, 3, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    assert layer.kernel[...].dtype == param_dtype
    assert layer.bias[...].dtype == param_dtype
    assert layer(jnp.ones((1, 3, 3, 2), x_dtype)).dtype == expected


def test_module_with_half_of_the_groups(x64):
    """A tower's shard of a layer of two groups runs as one group."""
    layer = Conv(4, 6, 3, groups=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = jnp.asarray(random((1, 4, 4, 4)))
    whole = layer(x)
    kernel, bias = layer.kernel[...], layer.bias[...]
    for half in (0, 1):
        layer.kernel = nnx.Param(kernel[..., 3 * half : 3 * half + 3])
        layer.bias = nnx.Param(bias[3 * half : 3 * half + 3])
        close(layer(x[..., 2 * half : 2 * half + 2], groups=1), whole[..., 3 * half : 3 * half + 3])


def test_module_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match=r"Conv's input: 3 channels .* groups=2"):
        Conv(3, 4, 3, groups=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"Conv's output: 5 channels .* groups=2"):
        Conv(4, 5, 3, groups=2, rngs=nnx.Rngs(0))


# Other frameworks

PEER_CASES = [
    ((2, 9, 8, 4), (3, 3, 2, 6), {"stride": 2, "padding": 1, "groups": 2}),
    ((1, 7, 7, 3), (5, 5, 3, 4), {"stride": 1, "padding": 2}),
    ((1, 15, 19, 3), (11, 11, 3, 2), {"stride": 4}),
    ((2, 6, 6, 6), (3, 2, 2, 3), {"stride": 3, "padding": (0, 2), "groups": 3}),
]


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize(("x_shape", "kernel_shape", "keywords"), PEER_CASES)
def test_onnx_runtime(run_onnx, x_shape, kernel_shape, keywords, forms):
    x, kernel, bias = random(x_shape, kernel_shape, kernel_shape[-1:], dtype=np.float32)
    padding = keywords.get("padding", 0)
    low, high = (padding, padding) if isinstance(padding, int) else padding
    expected = run_onnx(
        "Conv",
        x,
        kernel.transpose(3, 2, 0, 1),
        bias,
        group=keywords.get("groups", 1),
        strides=[keywords["stride"]] * 2,
        pads=[low, low, high, high],
    )
    close(conv(x, kernel, bias, forms=forms, **keywords), expected, 2e-5)


@pytest.mark.parity
@pytest.mark.parametrize(("x_shape", "kernel_shape", "keywords"), PEER_CASES)
def test_pytorch(x64, torch, x_shape, kernel_shape, keywords):
    x, kernel, bias = random(x_shape, kernel_shape, kernel_shape[-1:])
    padding = keywords.get("padding", 0)
    low, high = (padding, padding) if isinstance(padding, int) else padding
    tx, tkernel, tbias = (torch.tensor(a, requires_grad=True) for a in (x, kernel, bias))
    ty = torch.nn.functional.conv2d(
        torch.nn.functional.pad(tx.permute(0, 3, 1, 2), (low, high, low, high)),
        tkernel.permute(3, 2, 0, 1),
        tbias,
        stride=keywords["stride"],
        groups=keywords.get("groups", 1),
    ).permute(0, 2, 3, 1)
    dy = random(tuple(ty.shape), seed=1)
    ty.backward(torch.tensor(dy))
    result = in_forms(functools.partial(conv, **keywords), x, kernel, bias, cotangent=dy)
    for y, gradients in result.values():
        close(y, ty.detach().numpy())
        for got, peer in zip(gradients, (tx, tkernel, tbias), strict=True):
            close(got, peer.grad.numpy())
