"""Response normalisation within a map, against plain loops."""

from __future__ import annotations

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import close, pixel_neighbours, value_and_gradients
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet_jax.nn import within_map_response_norm

# The fixture `x64` holds for all examples of a test alike.
CASES = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def expected_within(x, *, size=5, scale=0.001, beta=0.75):
    """The same for the norm within a map; x is (N, H, W, C)."""
    n, h, w, c = x.shape
    arguments = (pixel_neighbours(h, w, size), scale / size**2, beta, 1)

    def flat(a):
        return a.transpose(0, 3, 1, 2).reshape(n, c, h * w)

    def maps(a):
        return a.reshape(n, c, h, w).transpose(0, 2, 3, 1)

    return (
        maps(brute_force.response_norm(flat(x), *arguments)),
        lambda dy: maps(brute_force.response_norm_gradient(flat(x), flat(dy), *arguments)),
    )


def check_within(x, **keywords):
    dy = random(*x.shape, seed=7)
    value, gradient = expected_within(x, **keywords)
    y, (dx,) = value_and_gradients(lambda x: within_map_response_norm(x, **keywords), x, cotangent=dy)
    assert y.dtype == np.float64
    close(y, value)
    close(dx, gradient(dy))


# Within a map


@CASES
@given(
    n=st.integers(1, 2),
    h=st.integers(1, 5),
    w=st.integers(1, 5),
    c=st.integers(1, 2),
    size=st.integers(1, 8),
    scale=st.sampled_from([0.001, 1.0, 30.0, 0.0]),
    beta=st.sampled_from([0.75, 0.5, 1.2]),
)
def test_within_map_forward_and_gradient(x64, n, h, w, c, size, scale, beta):
    check_within(random(n, h, w, c, seed=h + 10 * w), size=size, scale=scale, beta=beta)


def test_within_map_defaults_are_those_of_the_2012_source(x64):
    x = 30 * random(1, 7, 7, 2)
    close(within_map_response_norm(x), expected_within(x, size=5, scale=0.001, beta=0.75)[0])
    check_within(x)


@pytest.mark.parametrize("size", [2, 3])
def test_within_map_window_is_what_the_gradient_sees(x64, size):
    x = jnp.asarray(abs(random(4, 5, 2)) + 0.1)
    jacobian = np.asarray(jax.jit(jax.jacrev(lambda x: within_map_response_norm(x, size=size, scale=1.0)))(x))
    for r, c in np.ndindex(4, 5):
        for channel in (0, 1):
            assert np.all(jacobian[r, c, channel, :, :, 1 - channel] == 0)  # maps do not see each other
            seen = set(zip(*np.nonzero(jacobian[r, c, channel, :, :, channel]), strict=True))
            reach = range(-(size // 2), size - size // 2)
            assert seen == {(r + dr, c + dc) for dr in reach for dc in reach if 0 <= r + dr < 4 and 0 <= c + dc < 5}


def test_within_map_values_written_out(x64):
    """scale / size² is the same at the edge, where fewer pixels are summed."""
    x = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1)
    y = within_map_response_norm(x, size=3, scale=9.0, beta=1.0)
    close(y.reshape(3), [1 / (1 + 5), 2 / (1 + 14), 3 / (1 + 13)])


def test_within_map_jit_grad_and_vmap(x64):
    x = random(2, 3, 4, 2)
    value, gradient = expected_within(x, size=2, scale=2.0)

    def norm(x):
        return within_map_response_norm(x, size=2, scale=2.0)

    close(jax.jit(norm)(x), value)
    close(jax.vmap(norm)(x), value)  # rank 3 inside
    close(norm(x[None]), value[None])  # rank 5
    close(jax.jit(jax.vmap(jax.grad(lambda x: (norm(x) ** 2).sum())))(x), gradient(2 * value))


def test_within_map_jvp_and_hessian(x64):
    x, tangent = random(1, 2, 3, 1), random(1, 2, 3, 1, seed=1)
    keywords = {"size": 2, "scale": 2.0}
    value, gradient = expected_within(x, **keywords)
    y, got = jax.jvp(lambda x: within_map_response_norm(x, **keywords), (x,), (tangent,))
    close(y, value)
    close(got, brute_force.jvp(lambda dy: (gradient(dy),), (tangent,), x.shape))

    def loss_gradient(x):
        value, pull = expected_within(x, **keywords)
        return pull(2 * value)

    hessian = jax.jit(jax.hessian(lambda x: (within_map_response_norm(x, **keywords) ** 2).sum()))(x)
    close(hessian, brute_force.hessian(loss_gradient, x))


@pytest.mark.parametrize(
    ("dtype", "factor"), [(jnp.float64, 1.0), (jnp.float32, 1.0), (jnp.float16, 1e4), (jnp.bfloat16, 1e15)]
)
def test_within_map_dtypes_and_large_values(x64, dtype, factor):
    x = jnp.asarray(factor * random(1, 4, 4, 2), dtype)
    y = jax.jit(lambda x: within_map_response_norm(x, scale=1.0, beta=0.5))(x)
    assert y.dtype == dtype
    value, _ = expected_within(np.asarray(x, np.float64), scale=1.0, beta=0.5)
    tolerance = max(float(jnp.finfo(dtype).eps), 1e-14) * (8 if dtype == jnp.float32 else 1)
    np.testing.assert_allclose(np.asarray(y, np.float64), value, rtol=tolerance)


def test_within_map_is_finite_at_zero(x64):
    y, (dx,) = value_and_gradients(within_map_response_norm, np.zeros((1, 3, 3, 1)), cotangent=np.ones((1, 3, 3, 1)))
    assert np.all(y == 0)
    assert np.all(dx == 1)


def test_within_map_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"takes \(\.\.\., H, W, C\), got shape \(4, 4\)"):
        within_map_response_norm(jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="size=0"):
        within_map_response_norm(jnp.ones((4, 4, 1)), size=0)
    with pytest.raises(ValueError, match=r"scale=-0\.5"):
        within_map_response_norm(jnp.ones((4, 4, 1)), scale=-0.5)
    with pytest.raises(TypeError, match="floating-point arrays, got uint8"):
        within_map_response_norm(jnp.ones((4, 4, 1), jnp.uint8))
