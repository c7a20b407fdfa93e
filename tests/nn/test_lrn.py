"""Response normalisation across maps, against plain loops, ONNX Runtime and PyTorch."""

from __future__ import annotations

import functools

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import channel_neighbours, close, in_forms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet_jax.nn import LocalResponseNorm, local_response_norm

# The fixture `x64` holds for all examples of a test alike.
CASES = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FORMS = ("auto", "reference")
# One compilation a case is faster than one an operation.
lrn = jax.jit(local_response_norm, static_argnames=("size", "alpha", "beta", "k", "groups", "alpha_per", "forms"))
L2 = {"size": None, "k": 0.0, "alpha": 1.0, "beta": 0.5}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def expected_norm(x, *, size=5, alpha=1e-4, beta=0.75, k=2.0, groups=1, alpha_per="term"):
    """(value, cotangent -> gradient), from the formula."""
    channels = x.shape[-1]
    if alpha_per == "window":
        alpha = alpha / (channels // groups if size is None else size)
    arguments = (channel_neighbours(channels, size, groups), alpha, beta, k)
    return brute_force.response_norm(x, *arguments), lambda dy: brute_force.response_norm_gradient(x, dy, *arguments)


def check(x, **keywords):
    """`local_response_norm` in both forms, value and gradient."""
    dy = random(*x.shape, seed=7)
    value, gradient = expected_norm(x, **keywords)
    for y, (dx,) in in_forms(functools.partial(local_response_norm, **keywords), x, cotangent=dy).values():
        assert y.dtype == np.float64
        close(y, value)
        close(dx, gradient(dy))


@st.composite
def cases(draw):
    groups = draw(st.integers(1, 3))
    channels = groups * draw(st.integers(1, 7))
    keywords = {
        "groups": groups,
        "size": draw(st.one_of(st.none(), st.integers(1, 9), st.sampled_from([14, 15, 40]))),
        "alpha_per": draw(st.sampled_from(["term", "window"])),
        "alpha": draw(st.sampled_from([1e-4, 0.3, 1.0, 2.0])),
        "beta": draw(st.sampled_from([0.75, 0.5, 1.0, 0.3, 2.0])),
        "k": draw(st.sampled_from([2.0, 1.0, 0.0, 0.4])),
    }
    lead = draw(st.sampled_from([(), (2,), (1, 2, 2)]))
    return (*lead, channels), keywords, draw(st.integers(0, 1000))


# Across maps


@CASES
@given(case=cases())
def test_forward_and_gradient(x64, case):
    shape, keywords, seed = case
    check(random(*shape, seed=seed), **keywords)


@pytest.mark.parametrize(
    ("channels", "keywords"),
    [
        (12, {}),  # the paper
        (12, {"groups": 2}),
        (12, {"alpha": 1e-4, "alpha_per": "window", "k": 1.0}),  # Caffe
        (6, {"size": 4, "alpha": 1.0}),
        (6, {"size": 1, "alpha": 1.0}),
        # Wide windows: as reduce_window sums them, odd and even, and wider than the channels.
        (24, {"size": 19, "alpha": 1.0}),
        (24, {"size": 18, "alpha": 1.0}),
        (24, {"size": 30, "alpha": 1.0}),
        (44, {"size": 20, "alpha": 1.0, "groups": 2}),
        # Windows that reach every channel from some channels only, and from all.
        (4, {"size": 6, "alpha": 1.0}),
        (4, {"size": 7, "alpha": 1.0}),
        (4, {"size": 8, "alpha": 1.0}),
        (1, {"size": 4, "alpha": 1.0}),
        (24, {"size": None, "alpha": 1.0, "groups": 4}),
        (24, {"size": None, "alpha": 1.0, "alpha_per": "window", "groups": 4}),
        (5, L2),
        (6, {**L2, "groups": 3}),
        (6, {"alpha": 0.0}),
    ],
)
def test_forward_and_gradient_of_known_norms(x64, channels, keywords):
    check(random(1, 2, 1, channels), **keywords)


def test_values_written_out(x64):
    """size 4 reaches two channels down and one up."""
    x = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
    y = local_response_norm(x, size=4, alpha=1.0, beta=1.0, k=0.0)
    close(y, [1 / (1 + 4), 2 / (1 + 4 + 9), 3 / (1 + 4 + 9 + 16), 4 / (4 + 9 + 16 + 25), 5 / (9 + 16 + 25)])
    y = local_response_norm(x, size=3, alpha=3.0, beta=1.0, k=1.0, alpha_per="window")
    close(y, [1 / 6, 2 / 15, 3 / 30, 4 / 51, 5 / 42])


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 20])
def test_window_is_what_the_gradient_sees(x64, size, forms):
    x = jnp.asarray(abs(random(8)) + 0.1)
    jacobian = jax.jit(jax.jacrev(lambda x: local_response_norm(x, size=size, alpha=1.0, forms=forms)))(x)
    for i in range(8):
        seen = set(np.flatnonzero(np.asarray(jacobian[i])))
        assert seen == {j for j in range(i - size // 2, i - size // 2 + size) if 0 <= j < 8}


@pytest.mark.parametrize("keywords", [{}, {"size": 4, "alpha": 1.0, "groups": 2}, {**L2, "groups": 2}])
def test_auto_equals_reference(x64, keywords):
    x, dy = random(2, 3, 3, 8), random(2, 3, 3, 8, seed=1)
    result = in_forms(functools.partial(local_response_norm, **keywords), x, cotangent=dy)
    for auto, reference in zip(jax.tree.leaves(result["auto"]), jax.tree.leaves(result["reference"]), strict=True):
        close(auto, reference, 1e-13)


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("size", [4, 5, None])
def test_nothing_leaks_between_groups(x64, size, forms):
    x = jnp.asarray(random(1, 2, 2, 12))

    def gradient_of_half(part, groups):
        def half(x):
            y = local_response_norm(x, size=size, alpha=1.0, groups=groups, forms=forms)
            return (y[..., part] ** 2).sum()

        return jax.jit(jax.grad(half))(x)

    low, high = slice(0, 6), slice(6, 12)
    for seen, unseen in ((low, high), (high, low)):
        gradient = gradient_of_half(seen, 2)
        assert np.all(gradient[..., unseen] == 0)
        assert np.all(gradient[..., seen] != 0)
    # Without groups the neighbours over the middle are seen.
    reach = 6 if size is None else (size - 1) // 2
    gradient = gradient_of_half(low, 1)
    assert np.all(gradient[..., 6 : 6 + reach] != 0)
    assert np.all(gradient[..., 6 + reach :] == 0)


@pytest.mark.parametrize("forms", FORMS)
def test_groups_are_norms_side_by_side(x64, forms):
    x = jnp.asarray(random(2, 2, 2, 12))
    whole = lrn(x, alpha=1.0, groups=3, forms=forms)
    parts = [lrn(part, alpha=1.0, forms=forms) for part in np.split(np.asarray(x), 3, -1)]
    close(whole, jnp.concatenate(parts, -1), 1e-14)


def test_both_conventions_of_alpha(x64):
    x = jnp.asarray(random(2, 8))
    for size, divisor in ((3, 3), (4, 4), (100, 100), (None, 4)):
        keywords = {"size": size, "groups": 2}
        close(
            lrn(x, alpha=1.0, alpha_per="window", **keywords),
            lrn(x, alpha=1.0 / divisor, alpha_per="term", **keywords),
            1e-14,
        )
    default = lrn(x, alpha=1.0)
    assert np.array_equal(default, lrn(x, alpha=1.0, alpha_per="term"))
    assert not np.allclose(default, lrn(x, alpha=1.0, alpha_per="window"))


def test_l2_normalisation(x64):
    x = random(2, 3, 7)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    dy = random(2, 3, 7, seed=1)
    for y, (dx,) in in_forms(functools.partial(local_response_norm, **L2), x, cotangent=dy).values():
        close(y, x / norm)
        close(dx, (dy - x / norm * (x / norm * dy).sum(-1, keepdims=True)) / norm)


@pytest.mark.parametrize("keywords", [L2, {"k": 0.0}, {"k": 0.0, "size": 2, "groups": 2}, {"k": 0.0, "beta": 0.3}, {}])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_at_zero(x64, keywords, dtype):
    """Value 0; the gradient is 0 where the bracket is 0, and dy / k^β otherwise."""
    x = jnp.zeros((2, 4), dtype)
    expected = np.full(x.shape, 0 if keywords.get("k") == 0 else 2**-0.75)
    block = functools.partial(local_response_norm, **keywords)
    for y, (dx,) in in_forms(block, x, cotangent=jnp.ones_like(x)).values():
        assert np.all(y == 0)
        close(dx.astype(np.float64), expected, 1e-10 if dtype == jnp.float64 else 4e-3)


def test_zero_windows_beside_others(x64):
    """With k = 0, one pixel all zero and one with a single value: each as the formula has it."""
    x = np.array([[0.0, 0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0, 1e-3]])
    for keywords in (L2, {"size": 3, "k": 0.0, "alpha": 1.0, "beta": 0.75}):
        check(x, **keywords)


def test_second_derivatives_are_finite_at_zero(x64):
    def loss(x):
        return (local_response_norm(x, forms="reference", **L2) ** 2).sum()

    assert np.all(jax.jit(jax.hessian(loss))(jnp.zeros(3)) == 0)


def test_jit_grad_and_vmap(x64):
    x = random(3, 2, 2, 6)
    keywords = {"size": 4, "alpha": 1.0, "groups": 2}

    def loss(x):
        return (local_response_norm(x, **keywords) ** 2).sum()

    value, gradient = expected_norm(x, **keywords)
    close(jax.vmap(lambda x: local_response_norm(x, **keywords))(x), value)
    close(jax.jit(lambda x: local_response_norm(x, **keywords))(x), value)
    close(jax.vmap(lambda x: local_response_norm(x, **keywords), in_axes=2, out_axes=2)(x), value)
    close(jax.grad(loss)(x), gradient(2 * value))
    close(jax.jit(jax.vmap(jax.grad(loss)))(x), gradient(2 * value))


def test_reverse_over_reverse_of_auto(x64):
    """`auto` refuses forward mode, but its gradient can be differentiated again."""
    x, v, keywords = random(4), random(4, seed=1), {"size": 3, "alpha": 1.0}

    def loss(x):
        return (local_response_norm(x, **keywords) ** 2).sum()

    def gradient(x):
        value, pull = expected_norm(x, **keywords)
        return pull(2 * value)

    product = jax.jit(jax.grad(lambda x: (jax.grad(loss)(x) * v).sum()))(x)
    close(product, brute_force.hessian(gradient, x) @ v)
    with pytest.raises(TypeError, match="reference"):
        jax.jvp(lambda x: local_response_norm(x, **keywords), (x,), (v,))


@pytest.mark.parametrize("keywords", [{"size": 4, "alpha": 1.0, "groups": 2}, L2, {"beta": 0.3, "alpha": 1.0}])
def test_jvp_of_reference(x64, keywords):
    x, tangent = random(2, 6), random(2, 6, seed=1)
    block = functools.partial(local_response_norm, forms="reference", **keywords)
    y, got = jax.jit(lambda x, t: jax.jvp(block, (x,), (t,)))(x, tangent)
    value, gradient = expected_norm(x, **keywords)
    close(y, value)
    close(got, brute_force.jvp(lambda dy: (gradient(dy),), (tangent,), x.shape))


@pytest.mark.parametrize("keywords", [{"size": 4, "alpha": 1.0, "groups": 2}, L2, {"size": 3, "beta": 0.3}])
def test_hessian_of_reference(x64, keywords):
    x, weights = random(2, 4), random(2, 4, seed=1)

    def loss(x):
        return (weights * local_response_norm(x, forms="reference", **keywords) ** 2).sum()

    def gradient(x):
        value, pull = expected_norm(x, **keywords)
        return pull(2 * weights * value)

    close(jax.jit(jax.hessian(loss))(x), brute_force.hessian(gradient, x))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16])
def test_dtypes(x64, dtype):
    x = jnp.asarray(3 * random(2, 3, 8), dtype)
    dy = jnp.asarray(random(2, 3, 8, seed=1), dtype)
    value, gradient = expected_norm(np.asarray(x, np.float64), alpha=1.0)
    expected_dx = gradient(np.asarray(dy, np.float64))
    # Half precision is computed in float32: only the result is rounded.
    tolerance = {jnp.float64: 1e-14, jnp.float32: 2e-6}.get(dtype, float(jnp.finfo(dtype).eps))
    block = functools.partial(local_response_norm, alpha=1.0)
    for y, (dx,) in in_forms(block, x, cotangent=dy).values():
        assert y.dtype == dx.dtype == dtype
        np.testing.assert_allclose(y.astype(np.float64), value, rtol=tolerance)
        np.testing.assert_allclose(dx.astype(np.float64), expected_dx, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "largest"), [(jnp.float16, 60000.0), (jnp.bfloat16, 1e15)])
def test_squares_of_large_values_do_not_overflow(x64, dtype, largest):
    x = jnp.asarray([largest, -largest, largest / 2, 0, 1, largest], dtype)
    block = functools.partial(local_response_norm, alpha=1.0, beta=0.5)
    value, _ = expected_norm(np.asarray(x, np.float64), alpha=1.0, beta=0.5)
    for y, (dx,) in in_forms(block, x, cotangent=jnp.ones_like(x)).values():
        np.testing.assert_allclose(y.astype(np.float64), value, rtol=float(jnp.finfo(dtype).eps))
        assert np.all(np.isfinite(dx.astype(np.float64)))


def test_module_is_the_function(x64):
    x = jnp.asarray(random(2, 8))
    assert np.array_equal(LocalResponseNorm()(x), local_response_norm(x))
    keywords = {
        "size": 4,
        "alpha": 0.5,
        "beta": 0.6,
        "k": 1.5,
        "groups": 2,
        "alpha_per": "window",
        "forms": "reference",
    }
    close(LocalResponseNorm(**keywords)(x), local_response_norm(x, **keywords), 1e-15)
    for name, other in (("size", 5), ("alpha", 0.4), ("beta", 0.5), ("k", 2.0), ("groups", 1), ("alpha_per", "term")):
        assert not np.allclose(
            LocalResponseNorm(**keywords)(x), LocalResponseNorm(**{**keywords, name: other})(x), rtol=1e-6
        ), name


def test_module_passes_forms_on(x64):
    x = jnp.asarray(random(4))
    jax.jvp(LocalResponseNorm(forms="reference"), (x,), (x,))
    with pytest.raises(TypeError, match="reference"):
        jax.jvp(LocalResponseNorm(), (x,), (x,))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"size": 0}, "size must be at least 1.*got 0"),
        ({"size": -5}, "got -5"),
        ({"alpha": -1e-4}, "alpha=-0.0001"),
        ({"k": -2.0}, "k=-2.0"),
        ({"alpha": 0.0, "k": 0.0}, r"nor both zero, got alpha=0.0, k=0.0"),
        ({"groups": 4}, "6 channels are not divisible by groups=4"),
        ({"groups": 0}, "groups=0"),
        ({"alpha_per": "size"}, "'term', 'window', got 'size'"),
        ({"forms": "best"}, "'auto', 'reference', got 'best'"),
    ],
)
def test_bad_arguments_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        local_response_norm(jnp.ones((2, 6)), **keywords)
    with pytest.raises(ValueError, match=message):
        LocalResponseNorm(**keywords)(jnp.ones((2, 6)))


def test_scalars_and_integers_are_refused():
    with pytest.raises(ValueError, match="scalar"):
        local_response_norm(jnp.ones(()))
    with pytest.raises(TypeError, match="floating-point arrays, got int32"):
        local_response_norm(jnp.ones((2, 6), jnp.int32))
    with pytest.raises(TypeError, match="got bool"):
        local_response_norm(jnp.ones((2, 6), bool))


# Other frameworks. Both divide alpha by the window's size.


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("keywords", [{}, {"size": 3, "alpha": 2.0, "k": 1.0}, {"size": 7, "alpha": 1.0, "beta": 0.5}])
def test_onnx_runtime(run_onnx, keywords, forms):
    """ONNX Runtime takes odd sizes only."""
    x = random(2, 3, 2, 10).astype(np.float32)
    settings = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0, **keywords}
    expected = run_onnx(
        "LRN", x, size=settings["size"], alpha=settings["alpha"], beta=settings["beta"], bias=settings["k"]
    )
    close(lrn(x, alpha_per="window", forms=forms, **keywords), expected, 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 25])
def test_pytorch(x64, torch, size):
    x, dy = random(2, 3, 2, 10), random(2, 3, 2, 10, seed=1)
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.local_response_norm(tx.permute(0, 3, 1, 2), size, alpha=1.5, beta=0.75, k=2.0)
    ty = ty.permute(0, 2, 3, 1)
    ty.backward(torch.tensor(dy))
    block = functools.partial(local_response_norm, size=size, alpha=1.5, alpha_per="window")
    for y, (dx,) in in_forms(block, x, cotangent=dy).values():
        close(y, ty.detach().numpy())
        close(dx, tx.grad.numpy())
