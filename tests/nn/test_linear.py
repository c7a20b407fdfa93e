"""Linear layers: the product against loops, its gradients, and when they are our own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import close
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet_jax import create_model, get_spec
from alexnet_jax.nn import Linear, forms, linear


def random(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def loops(x, kernel, bias, dy):
    """The product and the gradients of all three, an addition at a time."""
    y, dx, dkernel, dbias = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(kernel.shape), np.zeros(bias.shape)
    for n, k in np.ndindex(dy.shape):
        y[n, k] = bias[k]
        dbias[k] += dy[n, k]
        for c in range(len(kernel)):
            y[n, k] += x[n, c] * kernel[c, k]
            dx[n, c] += dy[n, k] * kernel[c, k]
            dkernel[c, k] += dy[n, k] * x[n, c]
    return y, dx, dkernel, dbias


@pytest.mark.parametrize("compiled", [jax.jit, forms.jit], ids=["jit", "by Eigen"])
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images=st.integers(1, 4), channels=st.integers(1, 9), features=st.integers(1, 5), seed=st.integers(0, 99))
def test_product_and_gradients_against_loops(compiled, x64, images, channels, features, seed):
    x, kernel, bias = random((images, channels), seed), random((channels, features), seed + 1), random(features, seed)
    dy = random((images, features), seed + 2)
    for form in ("auto", "reference"):
        run = compiled(lambda *a, form=form: jax.vjp(lambda *b: linear(*b, forms=form), *a[:3])[1](a[3]))
        expected = loops(x, kernel, bias, dy)
        close(compiled(lambda *a, form=form: linear(*a, forms=form))(x, kernel, bias), expected[0])
        for got, wanted in zip(run(x, kernel, bias, dy), expected[1:], strict=True):
            close(got, wanted)


def test_leading_axes_and_no_bias(x64):
    x, kernel = random((2, 3, 4)), random((4, 5), 1)
    for form in ("auto", "reference"):
        close(linear(x, kernel, forms=form), np.einsum("abc,ck->abk", x, kernel))
        close(jax.vmap(lambda x, form=form: linear(x, kernel, forms=form))(x), np.einsum("abc,ck->abk", x, kernel))
        close(linear(x[0, 0], kernel, forms=form), x[0, 0] @ kernel)


def test_a_gradient_of_a_gradient(x64):
    x, kernel = random((3, 4)), random((4, 2), 1)

    def penalty(form):
        slope = jax.grad(lambda x, kernel: jnp.sum(jnp.tanh(linear(x, kernel, forms=form))))
        return jax.grad(lambda x, kernel: jnp.sum(slope(x, kernel) ** 2), (0, 1))

    for got, wanted in zip(penalty("auto")(x, kernel), penalty("reference")(x, kernel), strict=True):
        close(got, wanted)


def own(function, *arguments):
    """How many products with gradients of its own a program holds."""
    return str(jax.make_jaxpr(lambda *a: function(*a))(*arguments)).count("name=_product")


def test_where_the_gradient_is_our_own(monkeypatch):
    x, kernel = random((2, 4), dtype=np.float32), random((4, 3), dtype=np.float32)
    assert own(linear, x, kernel) == 1
    assert not own(linear, x[:, :3], kernel[:3])  # rows that have no halves
    assert not own(lambda x, kernel: linear(x, kernel, forms="reference"), x, kernel)
    assert not own(linear, jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16))
    monkeypatch.setattr(forms, "platform", lambda: "gpu")
    assert not own(linear, x, kernel)


def test_a_network_uses_it_and_takes_another_layer_in_its_place():
    spec = get_spec("torchvision").with_dense(features=8)
    model = create_model(spec, num_classes=4, rngs=0, image_size=64)
    images = np.zeros((2, 64, 64, 3), np.float32)
    assert own(model, images) == 3
    model.forms = "reference"
    assert not own(model, images)
    model.forms = "auto"
    setattr(model, spec.head_name(), nnx.Linear(8, 4, rngs=nnx.Rngs(1)))
    assert own(model, images) == 2


def test_its_module_is_flax_s_with_the_same_parameters(x64):
    mine, flax_s = (
        kind(4, 3, rngs=nnx.Rngs(2), param_dtype=jnp.float64, kernel_init=nnx.initializers.normal())
        for kind in (Linear, nnx.Linear)
    )
    mine.bias[...] = flax_s.bias[...] = jnp.arange(3.0)
    x = random((2, 4))
    close(mine(x), flax_s(x))
    close(mine(x, forms="reference"), flax_s(x))
    half = Linear(4, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(2))
    assert half(x).dtype == jnp.bfloat16
    with pytest.raises(TypeError, match="precision"):  # of Flax's, and would do nothing
        Linear(4, 3, precision="highest", rngs=nnx.Rngs(2))


def test_forward_mode_names_the_remedy():
    x, kernel = random((2, 4), dtype=np.float32), random((4, 3), dtype=np.float32)
    with pytest.raises(TypeError, match=r'linear with forms="auto" .* use forms="reference"'):
        jax.jvp(lambda x: linear(x, kernel), (x,), (x,))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((2, 4), (5, 3)), "takes 5 channels, got x of shape"),
        (((2, 4), (4, 3, 1)), r"must be \(C, K\)"),
        (((2, 4), (4, 3), (4,)), r"bias must be \(3,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, words):
    with pytest.raises(ValueError, match=words):
        linear(*[np.zeros(shape, np.float32) for shape in shapes])


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        linear(np.zeros((2, 4), np.int32), np.zeros((4, 3), np.float32))
