"""The forms that a CPU is given: Winograd's convolution, gradients by patches, and when each is chosen."""

from __future__ import annotations

import functools
import sys

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import close
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from alexnet_jax.nn import conv, conv_gradients, forms, max_pool
from alexnet_jax.nn.sheets import Sheet
from alexnet_jax.nn.winograd import Tiles

pytestmark = pytest.mark.usefixtures("fully_compiled")  # how these forms are compiled is a part of them
CASES = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NARROW = ((2, 9, 8, 4), (5, 5, 2, 6))  # conv2 in small: 5 × 5 in two groups


def random(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.fixture
def always_winograd(monkeypatch):
    for bound in ("CHANNELS", "TILES", "WORK"):
        monkeypatch.setattr(forms, f"WINOGRAD_{bound}", 0)


def check_winograd(tiles, images, size, pads, seed):
    """Value and both gradients against loops."""
    tiles = Tiles(*tiles)
    x, kernel = random((images, *size, 2), seed), random((tiles.kernel, tiles.kernel, 2, 3), seed + 1)
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    y = jax.jit(lambda x, kernel: tiles.convolve(x, kernel, pads))(x, kernel)
    close(y, brute_force.conv(padded, kernel))
    dy = random(y.shape, seed + 2)
    dx, dkernel = brute_force.conv_gradient(padded, kernel, dy)[:2]
    (top, _), (left, _) = pads
    expected = dx[:, top : top + size[0], left : left + size[1]]
    close(jax.jit(lambda kernel, dy: tiles.input_gradient(kernel, dy, pads))(kernel, dy), expected)
    close(jax.jit(lambda x, dy: tiles.kernel_gradient(x, dy, pads))(x, dy), dkernel)


@pytest.mark.parametrize(("kernel", "images"), [(5, 1), (3, 1), (3, 4)])
def test_winograds_convolutions_against_loops(x64, kernel, images):
    """The tiles that conv2 and conv3 to conv5 have, on maps that they do not divide, with uneven padding.

    Four images go side by side.
    """
    size, pads = (8, 6), ((2, 0), (1, 2))
    sheet = Sheet.of((images, *size, 2), kernel, pads, forms.WINOGRAD_OUTPUTS)
    assert sheet.images == ((1, 2) if images > 1 else (1, 1))
    check_winograd((forms.WINOGRAD_OUTPUTS, kernel), images, size, pads, 0)


@pytest.mark.slow
@settings(CASES, max_examples=6)
@given(
    tiles=st.sampled_from([(3, 5), (3, 3), (2, 3), (3, 2)]),
    images=st.sampled_from([1, 2, 4]),
    size=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    pads=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
    seed=st.integers(0, 1000),
)
def test_winograd_against_loops(x64, tiles, images, size, pads, seed):
    """Any size of tiles, maps that they do not divide, images side by side, uneven padding."""
    r = tiles[1]
    assume(all(n + sum(pad) >= r and max(pad) < r for n, pad in zip(size, pads, strict=True)))
    check_winograd(tiles, images, size, pads, seed)


@pytest.mark.parametrize(
    ("images", "size", "kernel", "expected"),
    [
        (4, 13, 3, (2, 2)),  # 27 × 27 of four images: nine tiles of three, in place of ten
        (2, 13, 3, (2, 1)),
        (6, 13, 3, (2, 1)),
        (1, 13, 3, (1, 1)),
        (8, 27, 5, (1, 1)),  # nine tiles already
    ],
)
def test_which_images_go_side_by_side(images, size, kernel, expected):
    pads = ((kernel // 2, kernel // 2),) * 2
    sheet = Sheet.of((images, size, size, 2), kernel, pads, 3)
    assert sheet.images == expected
    x = 1 + np.arange(images * size * size * 2, dtype=np.float32).reshape(images, size, size, 2)
    joined = sheet.joined(x)
    rows, columns = expected
    assert joined.shape == (
        images // rows // columns,
        *(n * size + (n - 1) * (kernel // 2) for n in expected),
        2,
    )
    assert (np.asarray(sheet.apart(joined)) == x).all()
    assert np.count_nonzero(joined) == x.size  # zeros between


def test_more_padding_than_a_kernel_sees(x64):
    """The input's gradient then cuts off pixels along one axis, and images lie side by side along neither."""
    check_winograd((3, 3), 4, (10, 13), ((4, 3), (1, 0)), 0)


@pytest.mark.parametrize("together", [1, pytest.param(10**9, marks=pytest.mark.slow)])
@CASES
@given(
    images=st.sampled_from([1, 2, 3, 4]),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    window=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 4),
    pads=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
    seed=st.integers(0, 1000),
)
def test_kernel_gradient_against_loops(x64, together, images, size, window, stride, pads, seed):
    """A few images at a time, or all at once; windows that leave pixels over, and that skip some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_gradients, "PATCHES", together)
        assume(all(n + sum(pad) >= k for n, k, pad in zip(size, window, pads, strict=True)))
        x, kernel = random((images, *size, 2), seed), random((*window, 2, 3), seed + 1)
        padded = np.pad(x, ((0, 0), *pads, (0, 0)))
        dy = random(brute_force.conv(padded, kernel, stride=stride).shape, seed + 2)
        found = jax.jit(lambda x, dy: conv_gradients.kernel_gradient(x, dy, window, stride, pads))(x, dy)
        close(found, brute_force.conv_gradient(padded, kernel, dy, stride=stride)[1])


@pytest.mark.parametrize(
    ("compiled", "window", "groups"),
    [
        pytest.param(jax.jit, 5, 2, marks=pytest.mark.slow),
        pytest.param(forms.jit, 5, 2, marks=pytest.mark.slow),
        pytest.param(forms.jit, 5, 1, marks=pytest.mark.slow),
        (forms.jit, 3, 2),
        (forms.jit, 3, 1),
    ],
)
def test_conv_takes_winograds_form(x64, always_winograd, compiled, window, groups):
    """Value and both gradients; and no convolution is left in the program: products alone."""
    x, kernel = random(NARROW[0]), random((window, window, 4 // groups, 6), 1)
    block = functools.partial(conv, padding=window // 2, groups=groups)

    def all_three(forms):
        def made(x, kernel, dy):
            y, pulled = jax.vjp(functools.partial(block, forms=forms), x, kernel)
            return y, pulled(dy)

        return made

    arguments = x, kernel, random((2, 9, 8, 6), 2)
    found, expected = compiled(all_three("auto"))(*arguments), jax.jit(all_three("reference"))(*arguments)
    jax.tree.map(close, found, expected)
    assert "conv_general_dilated" not in str(compiled(all_three("auto")).trace(*arguments).jaxpr)


@pytest.mark.parametrize(("size", "window", "channels"), [(27, 5, 48), (13, 3, 192)])
def test_winograds_rounding_in_float32(always_winograd, size, window, channels):
    """Some units in the last place: a few times the direct form's, far from half precision's."""
    x = random((2, size, size, channels), dtype=np.float32)
    kernel = random((window, window, channels, 16), 1, np.float32)
    exact = by_products(x, kernel)

    def error(form):
        found = forms.jit(functools.partial(conv, padding=window // 2, forms=form))(x, kernel)
        return np.sqrt(((np.asarray(found) - exact) ** 2).mean() / (exact**2).mean())

    assert error("reference") < 1e-6
    assert error("reference") < error("auto") < 12 * error("reference")


def by_products(x, kernel):
    """A convolution that keeps the size, in float64, as products: loops over pixels would take minutes."""
    window, (height, width) = len(kernel), x.shape[1:3]
    around = [(window // 2, window // 2)] * 2
    padded = np.pad(x.astype(np.float64), ((0, 0), *around, (0, 0)))
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64)
        for i in range(window)
        for j in range(window)
    )


@pytest.mark.slow
def test_gradients_of_gradients(x64, always_winograd):
    """`grad` of `grad` goes through the gradients of this package."""
    x, kernel = random(NARROW[0]), random(NARROW[1], 1)

    def loss(x, kernel, forms):
        y = conv(x, kernel, padding=2, groups=2, forms=forms)
        return (max_pool(y, round_up=True, forms=forms) ** 2).sum()

    def norm(x, kernel, forms):
        return sum((g**2).sum() for g in jax.grad(loss, argnums=(0, 1))(x, kernel, forms))

    twice = jax.jit(jax.grad(norm, argnums=(0, 1)), static_argnums=2)
    auto, reference = (twice(x, kernel, name) for name in ("auto", "reference"))
    jax.tree.map(close, auto, reference)


@pytest.mark.parametrize("axis", [0, 3])
def test_vmap(x64, axis):
    x, kernel = random((3, 2, 6, 7, 4)), random((3, 3, 2, 6), 1)
    x = np.moveaxis(x, 0, axis)

    def grads(x):
        return jax.grad(lambda x, k: (max_pool(conv(x, k, stride=2, padding=1, groups=2)) ** 2).sum(), (0, 1))(
            x, kernel
        )

    mapped = jax.jit(jax.vmap(grads, in_axes=axis))(x)
    for index in range(3):
        for got, expected in zip(mapped, jax.jit(grads)(np.take(x, index, axis)), strict=True):
            close(got[index], expected)


def own(function, *arguments):
    """Whether a program holds gradients of its own."""
    return "custom_vjp" in str(jax.make_jaxpr(lambda *a: function(*a))(*arguments))  # anew, never from JAX's cache


def test_where_the_forms_are_chosen(monkeypatch):
    x, kernel = random((1, 9, 9, 2), dtype=np.float32), random((3, 3, 2, 2), dtype=np.float32)
    assert own(conv, x, kernel)
    assert own(max_pool, x)
    for half in (jnp.bfloat16, jnp.float16):
        assert not own(conv, jnp.asarray(x, half), jnp.asarray(kernel, half))
        assert not own(max_pool, jnp.asarray(x, half))
    assert not own(lambda x: max_pool(x, window=12, round_up=True), random((1, 14, 14, 1), dtype=np.float32))
    monkeypatch.setattr(forms, "platform", lambda: "gpu")
    assert not own(conv, x, kernel)
    assert not own(max_pool, x)


def test_the_platform_is_that_of_the_default_device():
    assert forms.platform() == "cpu"
    with jax.default_device(jax.devices("cpu")[0]):
        assert forms.platform() == "cpu"


@pytest.mark.parametrize(
    ("images", "size", "kernel", "stride", "plain", "by_eigen"),
    [
        (32, 27, (5, 5, 48, 128), 1, True, True),  # conv2, one group
        (1, 27, (5, 5, 48, 128), 1, True, True),
        (32, 27, (5, 5, 48, 128), 2, False, False),
        (32, 27, (5, 5, 47, 128), 1, False, False),  # few channels
        (32, 27, (5, 5, 48, 3), 1, False, False),  # little work
        (32, 13, (3, 3, 256, 384), 1, False, True),  # conv3: 3 × 3 by Eigen alone
        (2, 13, (3, 3, 256, 384), 1, False, True),
        (1, 13, (3, 3, 256, 384), 1, False, False),  # few tiles
        (32, 13, (4, 4, 256, 384), 1, False, False),
        (32, 13, (3, 5, 256, 384), 1, False, False),
    ],
)
def test_where_winograd_is_chosen(images, size, kernel, stride, plain, by_eigen):
    found = []

    def choose(x):
        image = jax.ShapeDtypeStruct((images, size, size, kernel[2]), jnp.float32)
        found.append(forms.winograd(image, jax.ShapeDtypeStruct(kernel, jnp.float32), stride))

    jax.jit(choose)(0)
    forms.jit(choose)(0)
    assert found == [plain, by_eigen]


@pytest.mark.parametrize(
    ("images", "size", "wanted"),
    [
        (1, 227, 1),
        (8, 227, 8),
        (9, 227, 9),  # 3 would be too few
        (10, 227, 5),
        (12, 227, 6),
        (32, 227, 8),
        (128, 227, 8),
        (127, 227, 127),  # a prime
        (126, 227, 7),
        (32, 224, 8),
        (6, 448, 2),
        (6, 1000, 6),
        (500, 32, 250),  # of 402 at most
    ],
)
def test_how_many_images_go_together(images, size, wanted):
    """By Eigen, and nowhere else."""
    x, found = jax.ShapeDtypeStruct((images, size, size, 3), jnp.float32), []
    forms.jit(lambda _: found.append(forms.together(x)))(0)
    assert found == [wanted]
    assert forms.together(x) == images


@pytest.mark.parametrize("name", ["conv", "max_pool"])
def test_forward_mode_names_the_remedy(name):
    x, kernel = random((1, 6, 6, 2), dtype=np.float32), random((3, 3, 2, 2), dtype=np.float32)
    block = {"conv": lambda x: conv(x, kernel), "max_pool": max_pool}[name]
    with pytest.raises(TypeError, match=f'{name} with forms="auto" .* use forms="reference"'):
        jax.jvp(block, (x,), (x,))


def test_a_batch_of_unknown_size_exports_in_both_forms():
    (n,) = jax.export.symbolic_shape("n")
    kernel = random((5, 5, 2, 2), dtype=np.float32)
    for name in ("auto", "reference"):
        net = jax.jit(lambda x, name=name: max_pool(conv(x, kernel, padding=2, forms=name), forms=name))
        exported = jax.export.export(net)(jax.ShapeDtypeStruct((n, 9, 9, 2), jnp.float32))
        x = random((3, 9, 9, 2), dtype=np.float32)
        np.testing.assert_allclose(exported.call(x), net(x), rtol=1e-4, atol=1e-5)


def test_what_is_compiled_for_eigen_uses_xlas_gradients(x64, monkeypatch):
    """Where it is not Winograd's. The numbers are the same; what is traced elsewhere is not concerned."""
    seen = []
    conv_own = conv_gradients.convolve
    monkeypatch.setattr(sys.modules["alexnet_jax.nn.conv"], "convolve", lambda *a: seen.append(1) or conv_own(*a))
    x, kernel = random(NARROW[0]), random(NARROW[1], 1)

    def loss(x, kernel):
        return jnp.sum(conv(x, kernel, padding=2, groups=2) ** 2)

    gradient = jax.grad(loss, argnums=(0, 1))
    found = forms.jit(gradient)(x, kernel)
    assert not seen
    for one, other in zip(found, jax.jit(gradient)(x, kernel), strict=True):
        close(one, other)
    assert seen


def test_an_xla_without_the_options_compiles_as_always(monkeypatch):
    monkeypatch.setattr(forms, "CPU_OPTIONS", {"xla_cpu_no_such_option": "0"})
    forms._takes_options.cache_clear()
    try:
        assert not forms._takes_options()
        assert forms.jit(lambda x: x + 1, donate_argnums=0)(jnp.float32(1)) == 2
    finally:
        forms._takes_options.cache_clear()


def test_pooling_compiled_for_eigen(x64):
    """The value, and a gradient that goes to the first of equals, as in the reference."""
    x = np.random.default_rng(0).integers(0, 3, (2, 9, 8, 3)).astype(float)

    def both(form):
        def made(x, dy):
            y, pulled = jax.vjp(functools.partial(max_pool, forms=form), x)
            return y, pulled(dy)

        return made

    dy = random(max_pool(x).shape, 1)
    jax.tree.map(close, forms.jit(both("auto"))(x, dy), jax.jit(both("reference"))(x, dy))
    assert "reduce_window" not in str(forms.jit(both("auto")).trace(x, dy).jaxpr)
