"""The blocks' formulas as slow numpy loops, with hand-derived gradients: what the tests compare with.

Arrays are NHWC. Everything also works on complex numbers, so that `hessian` can
differentiate a gradient by the complex step.
"""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np


def window_starts(size, window, stride=1, low=0, high=0, round_up=False):
    """First pixel of each window along one axis, laid one after the other."""
    starts = [-low]
    while True:
        following = starts[-1] + stride
        # Rounding up: while something is left to cover, and the next window starts on the image.
        uncovered, fits = starts[-1] + window < size + high, following + window <= size + high
        if not ((uncovered and following < size) if round_up else fits):
            return starts
        starts.append(following)


def _conv_terms(x_shape, kernel_shape, stride, padding, groups, round_up):
    """All products of a convolution: (index of y, index of x, index of the kernel)."""
    low, high = (padding, padding) if isinstance(padding, int) else padding
    (n, h, w, _), (kh, kw, per_group, features) = x_shape, kernel_shape
    rows = window_starts(h, kh, stride, low, high, round_up)
    columns = window_starts(w, kw, stride, low, high, round_up)
    shape = (n, len(rows), len(columns), features)
    terms = []
    for (i, r), (j, c), dr, dc in itertools.product(enumerate(rows), enumerate(columns), range(kh), range(kw)):
        if not (0 <= r + dr < h and 0 <= c + dc < w):
            continue
        for image, feature, channel in itertools.product(range(n), range(features), range(per_group)):
            group = feature // (features // groups)
            terms.append(
                (
                    (image, i, j, feature),
                    (image, r + dr, c + dc, group * per_group + channel),
                    (dr, dc, channel, feature),
                )
            )
    return shape, terms


def conv(x, kernel, bias=None, *, stride=1, padding=0, groups=1, round_up=False):
    shape, terms = _conv_terms(x.shape, kernel.shape, stride, padding, groups, round_up)
    y = np.zeros(shape, np.result_type(x, kernel))
    for out, pixel, weight in terms:
        y[out] += x[pixel] * kernel[weight]
    if bias is not None:
        for feature in range(shape[-1]):
            y[..., feature] += bias[feature]
    return y


def conv_gradient(x, kernel, dy, *, stride=1, padding=0, groups=1, round_up=False):
    """(dx, dkernel, dbias)."""
    _, terms = _conv_terms(x.shape, kernel.shape, stride, padding, groups, round_up)
    dtype = np.result_type(x, kernel, dy)
    dx, dkernel = np.zeros(x.shape, dtype), np.zeros(kernel.shape, dtype)
    for out, pixel, weight in terms:
        dx[pixel] += dy[out] * kernel[weight]
        dkernel[weight] += dy[out] * x[pixel]
    return dx, dkernel, dy.sum((0, 1, 2))


def channel_neighbours(channels, size, groups=1):
    """For each channel the channels of its window: i - n//2 … i - n//2 + n - 1, cut at its group's edges."""
    per_group = channels // groups
    result = []
    for i in range(channels):
        first = i // per_group * per_group
        window = range(i - size // 2, i - size // 2 + size) if size is not None else range(channels)
        result.append([j for j in range(first, first + per_group) if j in window])
    return result


def pixel_neighbours(height, width, size):
    """For each pixel, counted row by row, the pixels of its square window, cut at the edges."""
    reach = range(-(size // 2), size - size // 2)
    return [
        [(r + dr) * width + c + dc for dr in reach for dc in reach if 0 <= r + dr < height and 0 <= c + dc < width]
        for r in range(height)
        for c in range(width)
    ]


def response_norm(x, neighbours, alpha, beta, k):
    """x_i / (k + α Σ x_j²)^β along the last axis; 0 where the bracket is 0."""
    y = np.zeros_like(x)
    for row in np.ndindex(x.shape[:-1]):
        for i, window in enumerate(neighbours):
            d = k + alpha * sum(x[row][j] ** 2 for j in window)
            if d != 0:
                y[row][i] = x[row][i] / d**beta
    return y


def response_norm_gradient(x, dy, neighbours, alpha, beta, k):
    dx = np.zeros(x.shape, np.result_type(x, dy))
    for row in np.ndindex(x.shape[:-1]):
        for i, window in enumerate(neighbours):
            d = k + alpha * sum(x[row][j] ** 2 for j in window)
            if d == 0:
                continue
            dx[row][i] += dy[row][i] / d**beta
            for j in window:
                dx[row][j] -= dy[row][i] * x[row][i] * beta * d ** (-beta - 1) * 2 * alpha * x[row][j]
    return dx


def pool_windows(height, width, window, stride, round_up):
    """The pixels that each window covers, row by row, as {(i, j): [(r, c), …]}."""
    rows = window_starts(height, window, stride, round_up=round_up)
    columns = window_starts(width, window, stride, round_up=round_up)
    return {
        (i, j): [(r + dr, c + dc) for dr in range(window) for dc in range(window) if r + dr < height and c + dc < width]
        for i, r in enumerate(rows)
        for j, c in enumerate(columns)
    }


def adaptive_windows(height, width, size):
    """The pixels of each bin: those that touch [i·n/size, (i + 1)·n/size)."""

    def touching(i, pixels):
        return [p for p in range(pixels) if (p + 1) * size > i * pixels and p * size < (i + 1) * pixels]

    return {
        (i, j): [(r, c) for r in touching(i, height) for c in touching(j, width)]
        for i in range(size)
        for j in range(size)
    }


def _pool_shape(x, windows):
    i, j = max(windows)
    return (x.shape[0], i + 1, j + 1, x.shape[3])


def _first_largest(x, n, c, pixels):
    best = pixels[0]
    for pixel in pixels[1:]:
        if x[(n, *pixel, c)].real > x[(n, *best, c)].real:
            best = pixel
    return best


def max_pool(x, windows):
    y = np.zeros(_pool_shape(x, windows), x.dtype)
    for n, i, j, c in np.ndindex(y.shape):
        y[n, i, j, c] = x[(n, *_first_largest(x, n, c, windows[i, j]), c)]
    return y


def max_pool_gradient(x, dy, windows):
    dx = np.zeros(x.shape, np.result_type(x, dy))
    for n, i, j, c in np.ndindex(dy.shape):
        dx[(n, *_first_largest(x, n, c, windows[i, j]), c)] += dy[n, i, j, c]
    return dx


def mean_pool(x, windows):
    y = np.zeros(_pool_shape(x, windows), x.dtype)
    for n, i, j, c in np.ndindex(y.shape):
        y[n, i, j, c] = sum(x[n, r, q, c] for r, q in windows[i, j]) / len(windows[i, j])
    return y


def mean_pool_gradient(x, dy, windows):
    dx = np.zeros(x.shape, np.result_type(x, dy))
    for n, i, j, c in np.ndindex(dy.shape):
        for r, q in windows[i, j]:
            dx[n, r, q, c] += dy[n, i, j, c] / len(windows[i, j])
    return dx


def jvp(gradient, tangents, y_shape):
    """The tangent of y, from the gradients of each of y's numbers.

    Args:
      gradient: cotangent of y -> tuple of gradients, one an argument.
      tangents: one an argument.
    """
    result = np.zeros(y_shape)
    for index in np.ndindex(y_shape):
        unit = np.zeros(y_shape)
        unit[index] = 1
        result[index] = sum((g * t).sum() for g, t in zip(gradient(unit), tangents, strict=True))
    return result


def hessian(gradient, x):
    """Second derivatives of a scalar function, shape x.shape + x.shape, by the complex step of its gradient."""
    result = np.zeros(x.shape + x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1e-30j
        result[(..., *index)] = gradient(moved).imag / 1e-30
    return result


def value_and_gradients(function, *arguments, cotangent):
    """(y, gradients of Σ cotangent·y) of a JAX function under `jit`, as numpy arrays."""
    return in_forms(lambda *a, forms: function(*a), *arguments, cotangent=cotangent, forms=("only",))["only"]


def in_forms(block, *arguments, cotangent, forms=("auto", "reference")):
    """{form: (y, gradients of Σ cotangent·y)} of a block that takes `forms`; compiled together, which is faster."""

    @jax.jit
    def run(arguments, cotangent):
        result = {}
        for form in forms:
            y, pull = jax.vjp(functools.partial(block, forms=form), *arguments)
            assert y.shape == cotangent.shape, f"the block gives {y.shape}, the formula {cotangent.shape}"
            result[form] = y, pull(cotangent)
        return result

    return jax.tree.map(np.asarray, run(arguments, cotangent))


def close(actual, desired, tolerance=1e-10):
    """Equal shapes, and within `tolerance`, absolute and relative."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.shape == desired.shape
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)
