"""Randomness: seed -> purpose -> step -> image -> layer -> tower.

This is the only module that folds numbers into keys. Every random choice of a
run is a pure function of (seed, purpose, step, global row of the batch, layer,
tower of the spec), never of a device, so that the same run draws the same
numbers in every layout of devices and after every restart.
"""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp
import numpy as np

# Whatever the process's default: mapped over keys, the others don't draw for each key alone.
GENERATOR = "threefry2x32"


class Purpose(enum.IntEnum):
    """What a stream of random numbers is for; the values are part of a run's identity."""

    INIT = 0
    DROPOUT = 1
    VIEW = 2  # crops and flips
    COLOUR = 3


def root(seed: int, purpose: Purpose) -> jax.Array:
    """The key of one purpose of the run with this seed."""
    return jax.random.fold_in(jax.random.key(seed, impl=GENERATOR), int(purpose))


def for_step(seed: int, purpose: Purpose, step: jax.Array, rows: jax.Array) -> jax.Array:
    """One key for each image of a step.

    Args:
      seed: the run's seed.
      purpose: which stream.
      step: int32 scalar, the step's number; may be traced.
      rows: int32 array (N,), the images' rows in the *global* batch of the step.

    Returns:
      Keys, shape (N,).
    """
    key = jax.random.fold_in(root(seed, purpose), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def per_image(key: jax.Array, count: int) -> jax.Array:
    """One key an image, from one key or from an array that already holds them.

    Args:
      key: a key (typed, or a raw uint32 one) or `count` of them. Keys of another
        generator than threefry become threefry keys of their first two words.
      count: the number of images.

    Returns:
      Typed keys, shape (count,).

    Raises:
      TypeError: `key` is not a key.
      ValueError: `key` holds another number of keys than `count`.
    """
    if not hasattr(key, "dtype"):
        raise TypeError(f"expected a key such as jax.random.key(0), got {key!r}")
    if key.dtype == jnp.uint32:  # the old raw form, jax.random.PRNGKey(0)
        key = jax.random.wrap_key_data(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"expected a key such as jax.random.key(0), got an array of {key.dtype}")
    if str(jax.random.key_impl(key)) != GENERATOR:
        key = jax.random.wrap_key_data(jax.random.key_data(key)[..., :2], impl=GENERATOR)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(count))
    if key.shape != (count,):
        raise ValueError(f"expected one key or one for each of {count} images, got keys of shape {key.shape}")
    return key


def fold(keys: jax.Array, number: int | jax.Array) -> jax.Array:
    """Folds one number (a layer's index, a tower's index) into each of the keys, shape (N,)."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits `count` examples, int64 (count,), on the host.

    A pure function of its arguments: a resumed run finds its place without replaying.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)
