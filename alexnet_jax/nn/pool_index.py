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

from alexnet_jax.nn import forms

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
    # Over slices, where XLA's own reduction takes four times as long on a CPU.
    # Barriers, or what made x is computed anew for every window, and the maxima by all that reads them.
    x = lax.optimization_barrier(x)
    return lax.optimization_barrier(functools.reduce(jnp.maximum, _seen(x, window, stride, pads)))


def _seen(x, window, stride, pads):
    """What each window sees at each of its places, row by row."""
    x = jnp.pad(x, pads, constant_values=-np.inf)
    rows, columns = ((n - window) // stride + 1 for n in x.shape[1:3])
    shape = (len(x), stride * (rows - 1) + 1, stride * (columns - 1) + 1, x.shape[3])
    for row, column in np.ndindex(window, window):
        start = (0, row, column, 0)
        yield lax.slice(x, start, [a + b for a, b in zip(start, shape, strict=True)], (1, stride, stride, 1))


def _forward(x, window, stride, pads):
    if forms.by_eigen():
        y = _largest(x, window, stride, pads)
    else:  # XLA's reduction, which is not fused into what reads it: conv2's gradient would compute the slices anew
        y = lax.reduce_window(x, -np.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads)
    seen = list(_seen(x, window, stride, pads))
    place = jnp.full(y.shape, window**2 - 1, jnp.int8)
    for at in reversed(range(window**2 - 1)):  # the first of equals is written last
        place = jnp.where(seen[at] == y, jnp.int8(at), place)
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
