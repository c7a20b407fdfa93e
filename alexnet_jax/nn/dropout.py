"""Dropout in the paper's form and in the inverted one.

One mask an image, a function of the image's key and the tower of the network
alone: the same whatever the batch, the number of devices or their layout.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from alexnet_jax import keys as keys_lib
from alexnet_jax.nn import checks


def dropout(
    x: jax.typing.ArrayLike,
    *,
    rate: float = 0.5,
    train: bool = False,
    key: jax.Array | None = None,
    form: str = "paper",
    groups: int = 1,
    first_group: int | jax.Array = 0,
) -> jax.Array:
    """Drops each activation with probability `rate` while training.

    Args:
      x: (N, ..., C), floating point.
      rate: the probability of dropping, in [0, 1).
      train: whether to drop.
      key: one key, from which one an image is derived, or N keys. Needed to train.
      form: "paper" multiplies by a 0/1 mask in training and by 1 - rate at test
        (Krizhevsky et al. 2012, section 4.2, and the 2012 source); "inverted" divides
        by 1 - rate in training and does nothing at test (Caffe, PyTorch).
      groups: how many towers of the network the channels belong to. Each draws its
        own mask, so that a device that holds one tower can draw just that one.
      first_group: the first of these towers; may be traced.

    Returns:
      Shape and dtype of `x`.

    Raises:
      ValueError: a rate out of range, an unknown form, channels not divisible by
        `groups`, or train=True without a key.
      TypeError: an integer `x`, or a key that is none.
    """
    x = checks.floating(x, "dropout")
    checks.choice(form, "form", ("paper", "inverted"))
    rate = float(rate)
    if not 0 <= rate < 1:
        raise ValueError(f"the dropout rate must be in [0, 1), got {rate}")
    keep = 1 - rate
    if not train or rate == 0:
        return x * jnp.asarray(keep, x.dtype) if form == "paper" else x
    if key is None:
        raise ValueError("dropout with train=True needs a key, e.g. key=jax.random.key(0)")
    if x.ndim < 2:
        raise ValueError(f"dropout takes (N, ..., C), got shape {x.shape}")
    per_group = checks.groups_of(x.shape[-1], groups, "dropout")
    keys = keys_lib.per_image(key, x.shape[0])
    shape = (*x.shape[1:-1], per_group)
    masks = [
        jax.vmap(lambda k: _mask(k, shape, keep))(keys_lib.fold(keys, first_group + group)) for group in range(groups)
    ]
    kept = jnp.where(jnp.concatenate(masks, -1), x, jnp.zeros((), x.dtype))
    return kept if form == "paper" else kept / jnp.asarray(keep, x.dtype)


def _mask(key: jax.Array, shape: tuple[int, ...], keep: float) -> jax.Array:
    """Booleans of `shape`, true with probability `keep`; the same with and without x64."""
    count = math.prod(shape)
    if keep == 0.5:  # one random bit an activation: ten times cheaper than jax.random.bernoulli
        words = jax.random.bits(key, (-(-count // 32),), jnp.uint32)
        mask = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1 == 1
        return mask.reshape(-1)[:count].reshape(shape)
    return jax.random.bits(key, (count,), jnp.uint32).reshape(shape) < jnp.uint32(min(round(keep * 2**32), 2**32 - 1))


class Dropout(nnx.Module):
    """`dropout` as a module without state; the key comes with each call."""

    def __init__(self, rate: float = 0.5, *, form: str = "paper", groups: int = 1):
        self.rate, self.form, self.groups = rate, form, groups

    def __call__(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """(N, ..., C) to (N, ..., C)."""
        return dropout(x, rate=self.rate, train=train, key=key, form=self.form, groups=self.groups)
