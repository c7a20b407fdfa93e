"""Initialisations: their spread, bounds and constants, and PyTorch's defaults."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_jax.nn import Conv, Init
from alexnet_jax.nn.init import KINDS

SHAPE = (5, 5, 24, 64)
FANS = {"fan_in": 5 * 5 * 24, "fan_out": 5 * 5 * 64}


def draw(init, shape=SHAPE, seed=0, dtype=jnp.float32, **fans):
    return init.initializer(**{**FANS, **fans})(jax.random.key(seed), shape, dtype)


def assert_normal(values, std):
    """Mean 0 and standard deviation `std` within 5 standard errors, and a normal's tails."""
    values, count = np.asarray(values, np.float64).ravel(), values.size
    assert abs(values.mean()) < 5 * std / count**0.5
    assert abs(values.std() / std - 1) < 5 / (2 * count) ** 0.5
    for sigmas in (1, 2, 3):
        inside = math.erf(sigmas / 2**0.5)
        assert abs((abs(values) < sigmas * std).mean() - inside) < 5 * (inside * (1 - inside) / count) ** 0.5


def assert_uniform(values, bound):
    """Flat within ±bound, and up to it."""
    values, count = np.asarray(values, np.float64).ravel(), values.size
    assert abs(values).max() <= bound
    assert abs(values).max() > bound * (1 - 20 / count)
    quarters = np.histogram(values, bins=4, range=(-bound, bound))[0] / count
    assert np.all(abs(quarters - 0.25) < 5 * (0.25 * 0.75 / count) ** 0.5)


@pytest.mark.parametrize("value", [0.01, 0.03, 0.005])
def test_normal(value):
    assert_normal(draw(Init("normal", value)), value)
    assert_normal(draw(Init("normal", value), fan_in=1, fan_out=7), value)  # whatever the fans


def test_default_is_the_paper_s():
    assert Init() == Init("normal", 0.01)
    assert_normal(draw(Init()), 0.01)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_constant(value):
    for dtype in (jnp.float32, jnp.bfloat16):
        array = draw(Init("constant", value), (7,), dtype=dtype)
        assert array.shape == (7,)
        assert array.dtype == dtype
        assert np.all(array == jnp.asarray(value, dtype))


def test_kaiming_normal_takes_fan_out():
    assert_normal(draw(Init("kaiming_normal")), math.sqrt(2 / (5 * 5 * 64)))
    assert_normal(draw(Init("kaiming_normal", 123.0), fan_in=9, fan_out=50), math.sqrt(2 / 50))


def test_pytorch_takes_fan_in():
    assert_uniform(draw(Init("pytorch")), 1 / math.sqrt(5 * 5 * 24))
    assert_uniform(draw(Init("pytorch", 123.0), fan_in=100, fan_out=3), 0.1)
    assert_uniform(draw(Init("pytorch"), (4096,)), 1 / math.sqrt(5 * 5 * 24))  # a bias, with the kernel's fan in


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_shape_and_dtype(x64, kind, dtype):
    array = draw(Init(kind), (3, 3, 2, 4), dtype=dtype)
    assert array.shape == (3, 3, 2, 4)
    assert array.dtype == dtype


@pytest.mark.parametrize("kind", ["normal", "kaiming_normal", "pytorch"])
def test_a_key_decides(kind):
    init = Init(kind)
    assert np.array_equal(draw(init, (3, 4)), draw(init, (3, 4)))
    assert not np.any(draw(init, (3, 4)) == draw(init, (3, 4), seed=1))


def test_works_under_jit_and_in_a_layer():
    init = Init("pytorch").initializer(**FANS)
    jitted = jax.jit(lambda key: init(key, (3, 4), jnp.float32))(jax.random.key(0))
    np.testing.assert_allclose(jitted, init(jax.random.key(0), (3, 4), jnp.float32), rtol=1e-6)
    layer = Conv(24, 64, 5, kernel_init=init, bias_init=init, rngs=nnx.Rngs(0))
    assert_uniform(layer.kernel[...], 1 / math.sqrt(5 * 5 * 24))
    assert abs(layer.bias[...]).max() <= 1 / math.sqrt(5 * 5 * 24)


def test_it_is_plain_data():
    init = Init("constant", 0.1)
    assert dataclasses.asdict(init) == {"kind": "constant", "value": 0.1}
    assert Init(**dataclasses.asdict(init)) == init
    assert hash(init) == hash(Init("constant", 0.1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        init.value = 0.2


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"Init\.kind must be one of 'normal', 'constant', .* got 'xavier'"):
        Init("xavier")


@pytest.mark.parity
@pytest.mark.parametrize("groups", [1, 2])
def test_pytorch_s_default_of_a_convolution(torch, groups):
    """The same bounds, for kernel and bias; fan in counts one group's channels."""
    torch.manual_seed(0)
    peer = torch.nn.Conv2d(24, 512, 5, groups=groups)
    init = Init("pytorch")
    kernel_shape = (5, 5, 24 // groups, 512)
    fans = {"fan_in": 5 * 5 * 24 // groups, "fan_out": 5 * 5 * 512}
    assert tuple(peer.weight.shape) == (512, 24 // groups, 5, 5)
    bound = 1 / math.sqrt(fans["fan_in"])
    for ours, theirs in (
        (draw(init, kernel_shape, **fans), peer.weight.detach().numpy()),
        (draw(init, (512,), **fans), peer.bias.detach().numpy()),
    ):
        assert_uniform(theirs, bound)
        assert_uniform(ours, bound)


@pytest.mark.parity
def test_pytorch_s_default_of_a_linear_layer(torch):
    torch.manual_seed(0)
    peer = torch.nn.Linear(300, 1000)
    fans = {"fan_in": 300, "fan_out": 1000}
    for ours, theirs in (
        (draw(Init("pytorch"), (300, 1000), **fans), peer.weight.detach().numpy()),
        (draw(Init("pytorch"), (1000,), **fans), peer.bias.detach().numpy()),
    ):
        assert_uniform(theirs, 1 / math.sqrt(300))
        assert_uniform(ours, 1 / math.sqrt(300))


@pytest.mark.parity
@pytest.mark.parametrize("groups", [1, 2])
def test_pytorch_s_kaiming_normal(torch, groups):
    """Fan out is kh·kw·K in PyTorch, groups or not."""
    torch.manual_seed(0)
    peer = torch.nn.Conv2d(24, 64, 5, groups=groups).weight
    torch.nn.init.kaiming_normal_(peer, mode="fan_out", nonlinearity="relu")
    std = math.sqrt(2 / (5 * 5 * 64))
    assert_normal(peer.detach().numpy(), std)
    assert_normal(draw(Init("kaiming_normal"), (5, 5, 24 // groups, 64), fan_out=5 * 5 * 64), std)
