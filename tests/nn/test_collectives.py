"""What towers exchange, on emulated devices, against slices of the whole in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from alexnet_jax.nn import conv, linear, local_response_norm, max_pool
from alexnet_jax.nn.collectives import all_channels, with_neighbours

CHANNELS = 16
towers_of = pytest.mark.parametrize("towers", [1, 2, 4])


def on_towers(function, towers, out_specs):
    """Maps a function over towers that hold a share of the channels (last of four axes) each."""
    assert jax.device_count() >= towers, "conftest.py asks for four devices"
    mesh = Mesh(np.array(jax.devices()[:towers]), ("tower",))
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=P(None, None, None, "tower"), out_specs=out_specs, check_vma=False)
    )


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def neighbourhood(x, towers, low, high):
    """Each tower's channels with those before and after, zeros at the ends, side by side."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(low, high)])
    share = x.shape[-1] // towers
    return np.concatenate([padded[..., t * share : (t + 1) * share + low + high] for t in range(towers)], -1)


@towers_of
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_every_tower_gets_all_channels_in_order(x64, towers, dtype):
    x = jnp.asarray(random(2, 3, 3, CHANNELS), dtype)
    gathered = on_towers(lambda x: all_channels(x, CHANNELS, "tower")[None], towers, P("tower"))(x)
    assert gathered.shape == (towers, 2, 3, 3, CHANNELS)
    assert gathered.dtype == dtype
    for copy in gathered:
        assert np.array_equal(copy, x)


@pytest.mark.parametrize("towers", [2, 4])
def test_all_channels_at_any_rank(x64, towers):
    x = random(3, 2, 1, CHANNELS)
    for shape in ((6,), (3, 2), ()):
        gathered = on_towers(
            lambda x, shape=shape: all_channels(
                (x if shape else x[0, 0, 0]).reshape(*shape, CHANNELS // towers), CHANNELS, "tower"
            )[None],
            towers,
            P("tower"),
        )(x)
        expected = x.reshape(*shape, CHANNELS) if shape else x[0, 0, 0]
        for copy in gathered:
            assert np.array_equal(copy, expected)


@towers_of
def test_the_gradient_of_all_channels_returns_to_its_tower(x64, towers):
    """Each tower weighs the gathered channels with its own numbers: their sum comes back, to the owner's part."""
    x, weights = random(1, 2, 2, CHANNELS), random(4, 1, 2, 2, CHANNELS, seed=1)

    def loss(x):
        mine = jnp.asarray(weights)[jax.lax.axis_index("tower")]
        return (mine * all_channels(x, CHANNELS, "tower")).sum()[None]

    gradient = jax.grad(lambda x: on_towers(loss, towers, P("tower"))(x).sum())(x)
    np.testing.assert_allclose(gradient, weights[:towers].sum(0), rtol=1e-12)


def test_what_is_whole_already_passes():
    x = jnp.asarray(random(2, 3, 3, CHANNELS), jnp.float32)
    assert all_channels(x, CHANNELS, None) is x
    assert all_channels(x, CHANNELS, "tower") is x  # no mapped axis is needed
    assert all_channels(x, 2 * CHANNELS, None) is x
    # On towers that all hold everything, too: a later layer of a network that was gathered before.
    mesh = Mesh(np.array(jax.devices()[:2]), ("tower",))
    whole = jax.shard_map(
        lambda x: all_channels(x, CHANNELS, "tower"), mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False
    )
    assert np.array_equal(jax.jit(whole)(x), x)


@towers_of
@pytest.mark.parametrize(("low", "high"), [(0, 0), (2, 2), (2, 1), (1, 0), (0, 3), (4, 4)])
def test_neighbours(x64, towers, low, high):
    x = random(2, 2, 1, CHANNELS)
    got = on_towers(lambda x: with_neighbours(x, low, high, "tower"), towers, P(None, None, None, "tower"))(x)
    assert np.array_equal(got, neighbourhood(x, towers, low, high))


@pytest.mark.parametrize("towers", [2, 4])
def test_the_gradient_of_neighbours_returns_to_its_tower(x64, towers):
    """The transpose of the exchange, from the numpy version's matrix."""
    x, low, high = random(1, 1, 1, CHANNELS), 2, 1
    width = CHANNELS + towers * (low + high)
    matrix = np.stack([neighbourhood(unit, towers, low, high) for unit in np.eye(CHANNELS)])
    weights = random(1, 1, 1, width, seed=1)

    def loss(x):
        spec = P(None, None, None, "tower")
        return (weights * on_towers(lambda x: with_neighbours(x, low, high, "tower"), towers, spec)(x)).sum()

    np.testing.assert_allclose(jax.grad(loss)(x).ravel(), matrix @ weights.ravel(), rtol=1e-12)


@towers_of
@pytest.mark.parametrize("size", [4, 5])
def test_a_norm_over_the_seam(x64, towers, size):
    """With its neighbours, each tower normalises as the whole layer does, forward and backward."""
    x, weights = random(2, 2, 2, CHANNELS), random(2, 2, 2, CHANNELS, seed=1)
    low, high = size // 2, (size - 1) // 2

    def split(x):
        wide = local_response_norm(with_neighbours(x, low, high, "tower"), size=size, alpha=1.0)
        return wide[..., low : wide.shape[-1] - high]

    def loss(norm):
        return lambda x: (weights * norm(x)).sum()

    mapped = on_towers(split, towers, P(None, None, None, "tower"))

    def whole(x):
        return local_response_norm(x, size=size, alpha=1.0)

    np.testing.assert_allclose(mapped(x), whole(x), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(loss(mapped))(x), jax.grad(loss(whole))(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_batch_over_devices_has_the_gradient_of_the_whole(x64, check_vma):
    """Kernels are the same on every device; JAX sums their gradients itself where it keeps account, else we do."""
    kernels = random(5, 5, 2, 6, seed=1), random(24, 3, seed=2)

    def loss(kernels, x):
        y = max_pool(conv(x, kernels[0], padding=2, groups=2))
        return jnp.sin(linear(y.reshape(len(y), -1), kernels[1])).sum()

    def on_device(kernels, x):
        gradient = jax.grad(loss)(kernels, x)
        return gradient if check_vma else jax.lax.psum(gradient, "data")

    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    images = random(4, 5, 5, 4)
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma)
    jax.tree.map(np.testing.assert_allclose, jax.jit(mapped)(kernels, images), jax.grad(loss)(kernels, images))
