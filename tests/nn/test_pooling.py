"""Pooling against plain loops, ONNX Runtime and PyTorch."""

from __future__ import annotations

import functools

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import adaptive_windows, close, in_forms, pool_windows, value_and_gradients
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet_jax.nn import adaptive_avg_pool, avg_pool, max_pool, output_size

# The fixture `x64` holds for all examples of a test alike.
CASES = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FORMS = ("auto", "reference")
POOLS = {
    "max": (max_pool, brute_force.max_pool, brute_force.max_pool_gradient),
    "avg": (avg_pool, brute_force.mean_pool, brute_force.mean_pool_gradient),
}
pools = pytest.mark.parametrize(("pool", "value_of", "gradient_of"), POOLS.values(), ids=POOLS)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@st.composite
def cases(draw):
    """(x, keywords); some x are full of ties."""
    window = draw(st.integers(1, 4))
    shape = (
        draw(st.integers(1, 2)),
        draw(st.integers(window, 7)),
        draw(st.integers(window, 7)),
        draw(st.integers(1, 2)),
    )
    x = random(*shape, seed=draw(st.integers(0, 1000)))
    if draw(st.booleans()):
        x = np.round(x)
    return x, {"window": window, "stride": draw(st.integers(1, 5)), "round_up": draw(st.booleans())}


def check(pool, value_of, gradient_of, x, windows):
    """In both forms, value and gradient."""
    expected = value_of(x, windows)
    dy = random(*expected.shape, seed=7)
    for y, (dx,) in in_forms(pool, x, cotangent=dy).values():
        assert y.dtype == np.float64
        close(y, expected)
        close(dx, gradient_of(x, dy, windows))


@pools
@CASES
@given(case=cases())
def test_forward_and_gradient(x64, pool, value_of, gradient_of, case):
    x, keywords = case
    check(functools.partial(pool, **keywords), value_of, gradient_of, x, pool_windows(*x.shape[1:3], **keywords))


@pools
@pytest.mark.parametrize(
    ("size", "keywords", "expected"),
    [
        (13, {}, 6),  # the paper: window 3, stride 2
        (8, {"round_up": True}, 4),  # cifar
        (8, {}, 3),
        (5, {"window": 2, "round_up": True}, 3),
        (7, {"window": 2, "stride": 3, "round_up": True}, 3),
        (6, {"window": 2, "stride": 3, "round_up": True}, 2),
        (3, {"window": 3}, 1),
    ],
)
def test_forward_and_gradient_of_known_pools(x64, pool, value_of, gradient_of, size, keywords, expected):
    x = random(1, size, size, 2)
    full = {"window": 3, "stride": 2, "round_up": False, **keywords}
    windows = pool_windows(size, size, **full)
    assert max(windows) == (expected - 1, expected - 1)
    assert output_size(size, full["window"], full["stride"], round_up=full["round_up"]) == expected
    check(functools.partial(pool, **keywords), value_of, gradient_of, x, windows)


@pools
def test_auto_equals_reference(x64, pool, value_of, gradient_of):
    x = np.round(2 * random(2, 8, 7, 3))
    dy = random(2, 4, 3, 3, seed=1)
    result = in_forms(functools.partial(pool, round_up=True), x, cotangent=dy)
    for auto, reference in zip(jax.tree.leaves(result["auto"]), jax.tree.leaves(result["reference"]), strict=True):
        close(auto, reference, 1e-14)


@pytest.mark.parametrize("forms", FORMS)
def test_the_first_of_equal_values_takes_the_whole_gradient(x64, forms):
    """Row by row: the window's values are 1 5 5 / 5 0 5 / 5 5 5."""
    x = jnp.array([[1.0, 5, 5], [5, 0, 5], [5, 5, 5]]).reshape(1, 3, 3, 1)
    gradient = jax.grad(lambda x: max_pool(x, forms=forms).sum())(x)
    assert np.array_equal(gradient.reshape(3, 3), [[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    # All equal, overlapping windows: each gives its corner one.
    gradient = jax.grad(lambda x: max_pool(x, round_up=True, forms=forms).sum())(jnp.zeros((1, 6, 6, 1)))
    expected = np.zeros((6, 6))
    expected[::2, ::2] = 1
    assert np.array_equal(gradient.reshape(6, 6), expected)
    # A row counts before a column.
    x = jnp.array([[0.0, 0, 1], [0, 0, 0], [1, 0, 0]]).reshape(1, 3, 3, 1)
    gradient = jax.grad(lambda x: max_pool(x, forms=forms).sum())(x)
    assert np.array_equal(gradient.reshape(3, 3), [[0, 0, 1], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("forms", FORMS)
def test_what_hangs_over_is_never_the_largest(x64, forms):
    x = -1 - abs(random(1, 4, 4, 1))
    y = max_pool(x, round_up=True, forms=forms)
    assert y.shape == (1, 2, 2, 1)
    close(y[0, 1, 1, 0], x[0, 2:, 2:, 0].max())
    very_low = jnp.full((1, 4, 4, 1), -np.finfo(np.float64).max)
    assert np.all(max_pool(very_low, round_up=True, forms=forms) == very_low[:, :2, :2])


@pytest.mark.parametrize("forms", FORMS)
def test_a_mean_divides_by_what_the_window_covers(x64, forms):
    y = avg_pool(jnp.ones((1, 4, 5, 1)), round_up=True, forms=forms)
    close(y, np.ones((1, 2, 2, 1)))
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    close(avg_pool(x, round_up=True, forms=forms).reshape(2, 2), [[5, 6.5], [11, 12.5]])


@pools
def test_jit_grad_and_vmap(x64, pool, value_of, gradient_of):
    x = random(3, 2, 6, 5, 2)
    windows = pool_windows(6, 5, 3, 2, True)

    def run(x):
        return pool(x, round_up=True)

    each = [value_of(a, windows) for a in x]
    gradients = np.stack([gradient_of(a, 2 * y, windows) for a, y in zip(x, each, strict=True)])
    close(jax.jit(run)(x[0]), each[0])
    close(jax.vmap(run)(x), np.stack(each))
    close(jax.grad(lambda x: (run(x) ** 2).sum())(x[0]), gradients[0])
    close(jax.jit(jax.vmap(jax.grad(lambda x: (run(x) ** 2).sum())))(x), gradients)


@pools
def test_jvp_of_reference(x64, pool, value_of, gradient_of):
    x, tangent = random(1, 4, 5, 2), random(1, 4, 5, 2, seed=1)
    windows = pool_windows(4, 5, 3, 2, True)
    y, got = jax.jvp(lambda x: pool(x, round_up=True, forms="reference"), (x,), (tangent,))
    close(y, value_of(x, windows))
    close(got, brute_force.jvp(lambda dy: (gradient_of(x, dy, windows),), (tangent,), y.shape))


def test_jvp_of_reference_at_ties(x64):
    """Forward mode follows the same input as reverse mode."""
    x, tangent = np.zeros((1, 4, 4, 1)), random(1, 4, 4, 1)
    _, got = jax.jvp(lambda x: max_pool(x, round_up=True, forms="reference"), (x,), (tangent,))
    close(got, tangent[:, ::2, ::2])


@pools
def test_hessian_of_reference(x64, pool, value_of, gradient_of):
    x = random(1, 4, 3, 1)
    windows = pool_windows(4, 3, 2, 1, False)

    def loss(x):
        return (pool(x, window=2, stride=1, forms="reference") ** 3).sum()

    def gradient(x):
        return gradient_of(x, 3 * value_of(x, windows) ** 2, windows)

    close(jax.jit(jax.hessian(loss))(x), brute_force.hessian(gradient, x))


@pytest.mark.parametrize("forms", FORMS)
@pools
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16])
def test_dtypes(x64, pool, value_of, gradient_of, dtype, forms):
    x = jnp.asarray(1 + abs(random(1, 6, 6, 2)), dtype)
    ones = jnp.ones((1, 3, 3, 2), dtype)
    y, (dx,) = in_forms(functools.partial(pool, round_up=True), x, cotangent=ones, forms=(forms,))[forms]
    assert y.dtype == dx.dtype == dtype
    wide, windows = np.asarray(x, np.float64), pool_windows(6, 6, 3, 2, True)
    expected = value_of(wide, windows)
    tolerance = 0 if pool is max_pool else 4 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=tolerance)
    np.testing.assert_allclose(
        np.asarray(dx, np.float64), gradient_of(wide, np.ones(expected.shape), windows), rtol=tolerance
    )


@pytest.mark.parametrize("forms", FORMS)
def test_means_of_half_precision_are_summed_in_float32(forms):
    """In bfloat16 a running sum of ones stops at 256; in float16 this one would overflow."""
    assert np.all(avg_pool(jnp.ones((1, 20, 20, 1), jnp.bfloat16), window=20, forms=forms) == 1)
    assert np.all(avg_pool(jnp.full((1, 3, 3, 1), 60000, jnp.float16), forms=forms) == 60000)
    assert np.all(adaptive_avg_pool(jnp.ones((1, 20, 20, 1), jnp.bfloat16), 1) == 1)


@pools
@pytest.mark.parametrize(
    ("shape", "keywords", "message"),
    [
        ((6, 6, 2), {}, r"rank 4, got shape \(6, 6, 2\).*x\[None\]"),
        ((1, 6, 6, 2, 1), {}, r"rank 4, got shape \(1, 6, 6, 2, 1\)"),
        ((1, 2, 6, 2), {}, "window of 3 does not fit into 2 pixels"),
        ((1, 6, 2, 2), {}, "window of 3 does not fit into 2 pixels"),
        ((1, 2, 2, 2), {"round_up": True}, "window of 3 does not fit into 2 pixels"),
        ((1, 6, 6, 2), {"window": 0}, "window 0"),
        ((1, 6, 6, 2), {"stride": 0}, "stride 0"),
        ((1, 6, 6, 2), {"forms": "quick"}, "'auto', 'reference', got 'quick'"),
    ],
)
def test_bad_arguments_are_named(pool, value_of, gradient_of, shape, keywords, message):
    with pytest.raises(ValueError, match=message):
        pool(jnp.ones(shape), **keywords)


@pools
def test_integer_images_are_refused(pool, value_of, gradient_of):
    with pytest.raises(TypeError, match=f"{pool.__name__} takes floating-point arrays, got uint8"):
        pool(jnp.ones((1, 6, 6, 2), jnp.uint8))


# Adaptive average pooling


@CASES
@given(n=st.integers(1, 2), h=st.integers(1, 9), w=st.integers(1, 9), c=st.integers(1, 2), size=st.integers(1, 7))
def test_adaptive_forward_and_gradient(x64, n, h, w, c, size):
    x = random(n, h, w, c, seed=h + 10 * w)
    windows, dy = adaptive_windows(h, w, size), random(n, size, size, c, seed=7)
    y, (dx,) = value_and_gradients(lambda x: adaptive_avg_pool(x, size), x, cotangent=dy)
    assert y.dtype == np.float64
    close(y, brute_force.mean_pool(x, windows))
    close(dx, brute_force.mean_pool_gradient(x, dy, windows))


def test_adaptive_values_written_out(x64):
    """Five pixels in two bins: [0, 3) and [2, 5); in three: [0, 2), [1, 4), [3, 5)."""
    x = jnp.tile(jnp.array([1.0, 2, 4, 8, 16])[None, :, None, None], (1, 1, 5, 1))
    close(adaptive_avg_pool(x, 2)[0, :, 0, 0], [7 / 3, 28 / 3])
    close(adaptive_avg_pool(x, 3)[0, :, 0, 0], [1.5, 14 / 3, 12])
    # Fewer pixels than bins repeat.
    close(adaptive_avg_pool(x[:, :1, :1], 3), np.ones((1, 3, 3, 1)))


def test_adaptive_passes_a_map_of_that_size_unchanged():
    x = jnp.asarray(random(2, 6, 6, 3), jnp.float32)
    assert np.array_equal(adaptive_avg_pool(x, 6), x)


def test_adaptive_jit_grad_vmap_jvp_and_hessian(x64):
    x, tangent = random(2, 1, 5, 4, 2), random(1, 5, 4, 2, seed=1)
    windows = adaptive_windows(5, 4, 3)
    each = [brute_force.mean_pool(a, windows) for a in x]

    def pool(x):
        return adaptive_avg_pool(x, 3)

    def gradient(x):
        return brute_force.mean_pool_gradient(x, 3 * brute_force.mean_pool(x, windows) ** 2, windows)

    def loss(x):
        return (pool(x) ** 3).sum()

    close(jax.jit(pool)(x[0]), each[0])
    close(jax.vmap(pool)(x), np.stack(each))
    close(jax.vmap(jax.grad(loss))(x), np.stack([gradient(a) for a in x]))
    _, got = jax.jvp(pool, (x[0],), (tangent,))
    close(got, brute_force.mean_pool(tangent, windows))
    close(jax.jit(jax.hessian(loss))(x[0]), brute_force.hessian(gradient, x[0]))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("size", [3, 5])
def test_adaptive_dtypes(x64, dtype, size):
    x = jnp.asarray(1 + abs(random(1, 5, 5, 2)), dtype)
    y = adaptive_avg_pool(x, size)
    assert y.dtype == dtype
    expected = brute_force.mean_pool(np.asarray(x, np.float64), adaptive_windows(5, 5, size))
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=4 * float(jnp.finfo(dtype).eps))


def test_adaptive_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"adaptive_avg_pool .*rank 4, got shape \(6, 6, 2\)"):
        adaptive_avg_pool(jnp.ones((6, 6, 2)), 3)
    with pytest.raises(TypeError, match="adaptive_avg_pool takes floating-point arrays, got int32"):
        adaptive_avg_pool(jnp.ones((1, 6, 6, 2), jnp.int32), 3)


@pytest.mark.parametrize("size", [0, -1])
def test_adaptive_needs_a_bin(size):
    with pytest.raises(ValueError, match=f"size.*{size}"):
        adaptive_avg_pool(jnp.ones((1, 6, 6, 2)), size)


# Other frameworks

PEER_CASES = [
    ((2, 13, 11, 3), 3, 2, False),
    ((2, 8, 7, 3), 3, 2, True),
    ((1, 8, 10, 2), 3, 2, False),
    ((1, 7, 9, 2), 2, 2, True),
    ((1, 7, 8, 2), 4, 3, True),
]


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize(("shape", "window", "stride", "round_up"), PEER_CASES)
@pytest.mark.parametrize(("pool", "operator"), [(max_pool, "MaxPool"), (avg_pool, "AveragePool")])
def test_onnx_runtime(run_onnx, pool, operator, shape, window, stride, round_up, forms):
    x = random(*shape).astype(np.float32)
    expected = run_onnx(operator, x, kernel_shape=[window, window], strides=[stride, stride], ceil_mode=int(round_up))
    close(pool(x, window=window, stride=stride, round_up=round_up, forms=forms), expected, 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize(("shape", "window", "stride", "round_up"), [*PEER_CASES, ((1, 6, 7, 2), 2, 3, True)])
@pytest.mark.parametrize(("pool", "peer"), [(max_pool, "max_pool2d"), (avg_pool, "avg_pool2d")])
def test_pytorch(x64, torch, pool, peer, shape, window, stride, round_up):
    """Without padding, a mean over a window that hangs over divides by what it covers in PyTorch too."""
    x = np.round(random(*shape), 1)  # with ties
    tx = torch.tensor(x, requires_grad=True)
    ty = getattr(torch.nn.functional, peer)(tx.permute(0, 3, 1, 2), window, stride, ceil_mode=round_up)
    ty = ty.permute(0, 2, 3, 1)
    dy = random(*ty.shape, seed=1)
    ty.backward(torch.tensor(dy))
    block = functools.partial(pool, window=window, stride=stride, round_up=round_up)
    for y, (dx,) in in_forms(block, x, cotangent=dy).values():
        close(y, ty.detach().numpy())
        close(dx, tx.grad.numpy())


@pytest.mark.parity
@pytest.mark.parametrize(("h", "w", "size"), [(13, 11, 6), (6, 6, 6), (4, 3, 6), (5, 9, 2)])
def test_adaptive_pytorch(x64, torch, h, w, size):
    x, dy = random(2, h, w, 3), random(2, size, size, 3, seed=1)
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.adaptive_avg_pool2d(tx.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    ty.backward(torch.tensor(dy))
    y, (dx,) = value_and_gradients(lambda x: adaptive_avg_pool(x, size), x, cotangent=dy)
    close(y, ty.detach().numpy())
    close(dx, tx.grad.numpy())
