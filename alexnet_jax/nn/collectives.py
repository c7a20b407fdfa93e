"""What two towers exchange, the identity where there is no tower axis; and arrays that vary over the same axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def all_channels(x: jax.Array, channels: int, axis_name: str | None) -> jax.Array:
    """Gathers the channels of all towers, in order; what is whole already passes.

    Args:
      x: (..., C or C/towers).
      channels: C, the width of the whole layer.
      axis_name: the mapped axis of the towers, or None.

    Returns:
      (..., C).
    """
    if axis_name is None or x.shape[-1] == channels:
        return x
    return lax.all_gather(x, axis_name, axis=x.ndim - 1, tiled=True)


def with_neighbours(x: jax.Array, low: int, high: int, axis_name: str) -> jax.Array:
    """Adds `low` channels of the tower before and `high` of the one after, zeros at the ends.

    Returns:
      (..., low + C + high).

    Raises:
      ValueError: a tower has fewer channels than its neighbour needs.
    """
    if max(low, high) > x.shape[-1]:
        raise ValueError(f"a tower of {x.shape[-1]} channels can't give {max(low, high)} to its neighbour")
    towers = lax.axis_size(axis_name)
    parts = [x]
    if low:
        parts.insert(0, lax.ppermute(x[..., -low:], axis_name, [(i, i + 1) for i in range(towers - 1)]))
    if high:
        parts.append(lax.ppermute(x[..., :high], axis_name, [(i + 1, i) for i in range(towers - 1)]))
    return jnp.concatenate(parts, -1)


def equally_varying(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays, cast to vary over the same mapped axes where `jax.shard_map` keeps account of that (its default).

    It refuses a `custom_vjp` whose gradient varies over more axes than the argument does. The cast's gradient is the
    sum over the axes that it adds, so that a replicated kernel gets that of all devices.
    """
    varying = [_varying(a) for a in arrays]
    every = frozenset[object]().union(*varying)
    found = []
    for a, own in zip(arrays, varying, strict=True):
        missing = tuple(sorted(every - own, key=str))
        found.append(lax.pcast(a, missing, to="varying") if missing else a)
    return found


def _varying(a: jax.Array) -> frozenset[object]:
    account = getattr(jax.typeof(a), "manual_axis_type", None)
    return frozenset() if account is None else account.varying
