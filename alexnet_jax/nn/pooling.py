"""Pooling over overlapping windows, with sizes rounded down or up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.nn import checks
from alexnet_jax.nn.forms import own_gradients, reverse_mode_only
from alexnet_jax.nn.pool_index import MAX_WINDOW, max_pool_with_index
from alexnet_jax.nn.windows import full_padding


def max_pool(
    x: jax.typing.ArrayLike, *, window: int = 3, stride: int = 2, round_up: bool = False, forms: str = "auto"
) -> jax.Array:
    """The largest value in each window (Krizhevsky et al. 2012, section 3.4: window 3, stride 2).

    Where several inputs of a window are equal, the first of them, row by row, takes
    the whole gradient.

    Args:
      x: maps, (N, H, W, C), floating point.
      window: pixels of the square window.
      stride: pixels between windows; they overlap where it is smaller than `window`.
      round_up: lets a last window hang over the edge (the 2012 source, Caffe) instead
        of dropping it (PyTorch).
      forms: "auto" picks the fastest form; "reference" is a single `lax` operation.

    Returns:
      (N, H', W', C), dtype of `x`.

    Raises:
      ValueError: rank other than 4, or a window that does not fit.
      TypeError: integer images.
    """
    x = checks.maps(x, "max_pool")
    checks.forms_name(forms)
    pads = _pads(x, window, stride, round_up)
    if forms == "auto" and own_gradients(x) and window <= MAX_WINDOW:
        with reverse_mode_only("max_pool"):
            return max_pool_with_index(x, window, stride, pads)
    return lax.reduce_window(x, -np.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads)


def avg_pool(
    x: jax.typing.ArrayLike, *, window: int = 3, stride: int = 2, round_up: bool = False, forms: str = "auto"
) -> jax.Array:
    """The mean of each window; a window that hangs over the edge divides by what it covers.

    Arguments, result and errors as for `max_pool`. Sums in float32 at least.
    """
    x = checks.maps(x, "avg_pool")
    checks.forms_name(forms)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    pads = _pads(x, window, stride, round_up)
    total = lax.reduce_window(wide, 0.0, lax.add, (1, window, window, 1), (1, stride, stride, 1), pads)
    rows, columns = (
        np.minimum(np.arange(n) * stride + window, size) - np.arange(n) * stride
        for n, size in zip(total.shape[1:3], x.shape[1:3], strict=True)
    )
    covered = (rows[:, None] * columns)[None, :, :, None]
    return (total / covered.astype(wide.dtype)).astype(x.dtype)


def adaptive_avg_pool(x: jax.typing.ArrayLike, size: int) -> jax.Array:
    """Means over size × size bins that cover the map (torchvision's AlexNet: 6 × 6).

    Bin i of n pixels covers floor(i·n/size) up to ceil((i+1)·n/size), as in PyTorch;
    a map that has the size already passes unchanged.

    Args:
      x: maps, (N, H, W, C), floating point.
      size: bins along each axis.

    Returns:
      (N, size, size, C), dtype of `x`.

    Raises:
      ValueError: rank other than 4, or a size below 1.
      TypeError: integer images.
    """
    x = checks.maps(x, "adaptive_avg_pool")
    if size < 1:
        raise ValueError(f"adaptive_avg_pool needs a size of at least 1 bin, got {size}")
    if x.shape[1:3] == (size, size):
        return x
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    rows, columns = (jnp.asarray(bins(n, size), wide.dtype) for n in x.shape[1:3])
    return jnp.einsum("nhwc,ih,jw->nijc", wide, rows, columns, precision=lax.Precision.HIGHEST).astype(x.dtype)


def bins(pixels: int, size: int) -> np.ndarray:
    matrix = np.zeros((size, pixels))
    for i in range(size):
        low, high = i * pixels // size, -(-(i + 1) * pixels // size)
        matrix[i, low:high] = 1 / (high - low)
    return matrix


def _pads(x: jax.Array, window: int, stride: int, round_up: bool) -> tuple[tuple[int, int], ...]:
    rows, columns = (full_padding(n, window, stride, 0, round_up=round_up) for n in x.shape[1:3])
    return ((0, 0), rows, columns, (0, 0))
