"""Max pooling that remembers the place of each window's winner, for a gradient without a search.

XLA's own gradient looks through every window again and scatters; on a CPU that takes ten times
as long as the forward pass. Here the forward pass keeps one byte an output, the winner's place
in its window, and each input looks at the few windows that it lies in.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pads = tuple[tuple[int, int], ...]

MAX_WINDOW = 11  # pixels along each axis; a place in a larger window does not fit into a byte


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool_with_index(x: jax.Array, window: int, stride: int, pads: Pads) -> jax.Array:
    """The largest value of each window; the gradient goes to the first of equals, row by row.

    Args:
      x: maps (N, H, W, C).
      window: pixels of the square window, at most 11: a place fits a byte.
      stride: pixels between windows.
      pads: (low, high) padding by minus infinity along each axis; a low one must be 0.
    """
    return _largest(x, window, stride, pads)


def _largest(x, window, stride, pads):
    return lax.reduce_window(x, -np.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads)


def _forward(x, window, stride, pads):
    y = _largest(x, window, stride, pads)
    padded = jnp.pad(x, pads, constant_values=-np.inf)
    place = jnp.full(y.shape, window**2 - 1, jnp.int8)
    for at in reversed(range(window**2 - 1)):  # the first of equals is written last
        row, column = divmod(at, window)
        stop = (y.shape[0], row + stride * (y.shape[1] - 1) + 1, column + stride * (y.shape[2] - 1) + 1, y.shape[3])
        seen = lax.slice(padded, (0, row, column, 0), stop, (1, stride, stride, 1))
        place = jnp.where(seen == y, jnp.int8(at), place)
    return y, (place, jnp.empty((*x.shape[1:3], 0)))  # the last one only says how large x was


def _backward(window, stride, pads, kept, dy):
    place, like = kept
    reach = (window - 1) // stride  # windows that began before the one that begins nearest
    height, width = like.shape[:2]
    ends = [max(0, -(-n // stride) - count) for n, count in zip((height, width), dy.shape[1:3], strict=True)]
    margin = ((0, 0), *((reach, end) for end in ends), (0, 0))
    place, dy = jnp.pad(place, margin, constant_values=-1), jnp.pad(dy, margin)

    def of_window(a: jax.Array, up: int, left: int) -> jax.Array:
        """For each input what belongs to the window that begins `up` and `left` windows before the nearest."""
        rows = a[:, reach - up : reach - up + -(-height // stride)]
        both = rows[:, :, reach - left : reach - left + -(-width // stride)]
        return jnp.repeat(jnp.repeat(both, stride, 1), stride, 2)[:, :height, :width]

    dx = jnp.zeros((), dy.dtype)
    for up in range(reach + 1):
        for left in range(reach + 1):
            row, column = np.arange(height) % stride + up * stride, np.arange(width) % stride + left * stride
            at = np.where((row < window)[:, None] & (column < window), row[:, None] * window + column, -2)
            won = of_window(place, up, left) == at.astype(np.int8)[None, :, :, None]
            dx += jnp.where(won, of_window(dy, up, left), 0)
    return (dx,)


max_pool_with_index.defvjp(_forward, _backward)
