"""Bias, ReLU, response normalisation and max pooling in one pass over memory, for a GPU.

What follows a convolution reads and writes far more bytes than it computes: as separate operations
each stage, and each stage's gradient, goes over conv1's maps anew. Here one kernel (Pallas, compiled
by Triton) reads the convolution's output and writes the pooled maps and, one byte each, the place of
every window's winner; a second one reads both and writes the gradient of the convolution's output.
Nothing between them is stored.

The sum over neighbouring channels is a product with a banded matrix of zeros and ones, which the
matrix units do while memory is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from alexnet_jax.nn.forms import reverse_mode_only
from alexnet_jax.nn.windows import output_size

WINDOW, STRIDE = 3, 2  # of the pooling
HALO = 16  # channels on either side of a program's own: as far as a norm's window may reach
GROUP = 128  # channels of a norm's group
# Of a program, measured on one H200 (docs/performance.md).
CHANNELS, COLUMNS, ROWS = 32, 64, 7  # forward; so many rows of the pooled maps one after the other
PIXELS, PARTS = 16, 16  # backward: pixels of 64 channels at a time, and how many times
WARPS = 4


class Norm(NamedTuple):
    """A response norm across channels: of channel i the window [i - low, i + high] of its group."""

    low: int
    high: int
    groups: int
    alpha: float
    beta: float
    k: float

    @classmethod
    def of(
        cls, channels: int, *, size: int | None, alpha: float, beta: float, k: float, alpha_per: str, groups: int
    ) -> Norm:
        """From the keywords of `local_response_norm`."""
        each = channels // groups
        low, high = (each, each) if size is None else (size // 2, (size - 1) // 2)
        alpha = alpha / (size or each) if alpha_per == "window" else alpha
        return cls(low, high, groups, alpha, beta, k)


class Block(NamedTuple):
    """What follows a convolution: ReLU, perhaps a norm, max pooling over windows that may hang over the far edges."""

    norm: Norm | None
    outputs: tuple[int, ...]
    interpret: bool = False


def fits(channels: int, norm: Mapping[str, Any] | None) -> bool:
    """Whether the kernels can do a norm of so many channels, in keywords of `local_response_norm`.

    Its window reaches no farther than `HALO`, its groups are few enough for the matrix of a program, and its
    divisor is never 0.
    """
    if norm is None:
        return True
    size = norm["size"]
    return size is not None and size // 2 <= HALO and channels // norm["groups"] <= GROUP and norm["k"] > 0


def relu_norm_max_pool(
    x: jax.Array,
    bias: jax.Array,
    norm: Mapping[str, Any] | None = None,
    *,
    round_up: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """max_pool(local_response_norm(relu(x + bias))), with the norm in float32 (of squares rounded as `x` is).

    On a GPU, and where `interpret`. It has a gradient, but no forward-mode derivative. Under `jax.shard_map` it
    needs check_vma=False, with which gradients of what is replicated are each device's own, not yet summed. In a
    function under `jax.jit` alone whose arguments are sharded over devices, each device does all of it.

    Args:
      x: maps (N, H, W, C), bfloat16 or float32, of one image or more.
      bias: (C,).
      norm: the keywords of `local_response_norm`, or None for no norm.
      round_up: as for `max_pool`, whose windows are 3 pixels wide and 2 apart.
      interpret: runs the kernels by JAX's own interpreter, on any device, slowly.

    Returns:
      (N, H', W', C), dtype of `x`.

    Raises:
      ValueError: a norm that does not fit (`fits`), no image, or maps smaller than a window.
      TypeError: another dtype.
    """
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        raise TypeError(f"relu_norm_max_pool takes bfloat16 or float32, got {x.dtype}: use the stages apart")
    if not x.shape[0]:
        raise ValueError(f"relu_norm_max_pool needs an image, got maps of shape {x.shape}: use the stages apart")
    if not fits(x.shape[-1], norm):
        raise ValueError(
            f"relu_norm_max_pool cannot do the norm {norm} of {x.shape[-1]} channels: use the stages apart"
        )
    outputs = tuple(output_size(n, WINDOW, STRIDE, round_up=round_up) for n in x.shape[1:3])
    about = None if norm is None else Norm.of(x.shape[-1], **norm)
    with reverse_mode_only("relu_norm_max_pool"):
        return _block(x, bias, Block(about, outputs, interpret))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _block(x: jax.Array, bias: jax.Array, about: Block) -> jax.Array:
    return _run_forward(x, bias, about)[0]


def _forward(x, bias, about):
    y, place = _run_forward(x, bias, about)
    return y, (x, bias, place)


def _backward(about, kept, dy):
    x, bias, place = kept
    dx, sums = _run_backward(x, bias, place, dy, about)
    return dx, sums.sum((0, 1)).astype(bias.dtype)


_block.defvjp(_forward, _backward)


def _run_forward(x: jax.Array, bias: jax.Array, about: Block) -> tuple[jax.Array, jax.Array]:
    images, height, width, channels = x.shape
    rows, columns = about.outputs
    norm = about.norm

    blocks, seen = pl.cdiv(channels, CHANNELS), CHANNELS + 2 * HALO
    bands = _bands(norm, [(n * CHANNELS - HALO, seen, n * CHANNELS, CHANNELS) for n in range(blocks)], channels)

    def kernel(x_ref, bias_ref, bands_ref, y_ref, place_ref):
        at = pl.program_id(0) * COLUMNS + _count(COLUMNS)
        image, column = lax.div(at, jnp.int32(columns)), lax.rem(at, jnp.int32(columns))
        there, first = at < images * columns, pl.program_id(2) * ROWS
        own = pl.program_id(1) * CHANNELS + _count(CHANNELS)
        around = pl.program_id(1) * CHANNELS - HALO + _count(seen)
        real = own < channels
        see_own = _reader(x_ref, bias_ref, own, real)
        see_around = _reader(x_ref, bias_ref, around, (around >= 0) & (around < channels), careful=False)
        band = bands_ref[pl.program_id(1)]

        def look(down, row, kept):
            """At three pixels of a row: the largest so far, its place, and the sum, which shows what is no number."""

            def at_column(right, kept):
                best, place, total = kept
                c = STRIDE * column + right
                inside = there & (row < height) & (c < width)
                pixel = (image * height + row) * width + c
                y = see_own(pixel, inside)
                if norm is not None:
                    d = _energy(see_around(pixel, inside), band, norm)
                    y = (y.astype(jnp.float32) * _powers(d, norm.beta)[0]).astype(x.dtype)
                y = jnp.where(inside[:, None], y, -1)  # less than any after ReLU
                return jnp.maximum(best, y), jnp.where(y <= best, place, down * WINDOW + right), total + y

            return lax.fori_loop(*_times(WINDOW), at_column, kept)

        def pool(number, kept):
            row = first + number
            best, place, total = look(1, STRIDE * row + 1, kept)
            last = look(0, STRIDE * row + 2, nothing)  # the next window's first row too
            place = jnp.where(last[0] <= best, place, last[1] + 2 * WINDOW)
            best, total = jnp.maximum(last[0], best), total + last[2]
            best = jnp.where(total == total, best, total)
            mask = (there & (row < rows))[:, None] & real[None, :]
            index = ((image * rows + row) * columns + column)[:, None], own[None, :]
            plt.store(y_ref.at[index], best, mask=mask)
            plt.store(place_ref.at[index], place.astype(jnp.int8), mask=mask)
            return last

        shape = (COLUMNS, CHANNELS)
        nothing = jnp.full(shape, -1, x.dtype), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, x.dtype)
        lax.fori_loop(*_times(ROWS), pool, look(0, STRIDE * first, nothing))

    shape = (images * rows * columns, channels)
    y, place = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape, jnp.int8)],
        grid=(pl.cdiv(images * columns, COLUMNS), blocks, pl.cdiv(rows, ROWS)),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=about.interpret,
        name="relu_norm_pool",
    )(x.reshape(-1, channels), bias, bands)
    return y.reshape(images, rows, columns, channels), place


def _run_backward(
    x: jax.Array, bias: jax.Array, place: jax.Array, dy: jax.Array, about: Block
) -> tuple[jax.Array, jax.Array]:
    images, height, width, channels = x.shape
    rows, columns = about.outputs
    norm = about.norm
    # A program sees every second pixel of every second row: those lie in the same number of windows.
    high, wide = pl.cdiv(height, STRIDE), pl.cdiv(width, STRIDE)
    groups = norm.groups if norm is not None else pl.cdiv(channels, 64)
    each = pl.cdiv(channels, groups)
    padded = max(16, pl.next_power_of_2(each))
    pixels = max(16, PIXELS * 64 // padded)
    programs = pl.cdiv(images * high * wide, pixels * PARTS)
    mirrored = None if norm is None else norm._replace(low=norm.high, high=norm.low)
    bands = jnp.concatenate(
        [_bands(n and n._replace(groups=1), [(0, padded, 0, padded)], each) for n in (norm, mirrored)]
    )

    def kernel(x_ref, bias_ref, place_ref, dy_ref, bands_ref, dx_ref, sums_ref):
        program, parity = pl.program_id(0), pl.program_id(2)
        odd_row, odd_column = lax.div(parity, jnp.int32(2)), lax.rem(parity, jnp.int32(2))
        index = _count(padded)
        own = pl.program_id(1) * each + index
        real = (index < each) & (own < channels)
        read = _reader(x_ref, bias_ref, own, real, careful=False)
        band = bands_ref[0]
        back = band if norm == mirrored else bands_ref[1]

        def part(number, total):
            at = (program * PARTS + number) * pixels + _count(pixels)
            line = lax.div(at, jnp.int32(wide))
            image, r, c = lax.div(line, jnp.int32(high)), lax.rem(line, jnp.int32(high)), lax.rem(at, jnp.int32(wide))
            row, column = STRIDE * r + odd_row, STRIDE * c + odd_column
            there = (image < images) & (row < height) & (column < width)
            pixel = (image * height + row) * width + column
            window = (image * rows + r) * columns + c

            def found(up, left):
                """The gradient from the window that begins so many windows before the pixel's nearest."""
                i, j = r - up, c - left
                inside = there & (i >= 0) & (j >= 0) & (i < rows) & (j < columns)
                at = (window - up * columns - left)[:, None], own[None, :]
                mask = inside[:, None] & real[None, :]
                place = (odd_row + STRIDE * up) * WINDOW + odd_column + STRIDE * left
                won = plt.load(place_ref.at[at], mask=mask, other=-1) == place.astype(jnp.int8)
                return jnp.where(won, plt.load(dy_ref.at[at], mask=mask, other=0), 0).astype(jnp.float32)

            def none():
                return jnp.zeros((pixels, padded), jnp.float32)

            a = read(pixel, there)
            slope = found(0, 0)
            slope += lax.cond(odd_row == 0, lambda: found(1, 0), none)
            slope += lax.cond(odd_column == 0, lambda: found(0, 1), none)
            slope += lax.cond(odd_row + odd_column == 0, lambda: found(1, 1), none)
            positive = a > 0
            if norm is not None:
                power, inverse = _powers(_energy(a, band, norm), norm.beta)
                a = a.astype(jnp.float32)
                sums = _sums(slope * a * power * inverse, back, 3 if x.dtype == jnp.float32 else 1)
                slope = slope * power - 2 * norm.alpha * norm.beta * a * sums
            slope = jnp.where(positive, slope, 0)
            mask = there[:, None] & real[None, :]
            plt.store(dx_ref.at[pixel[:, None], own[None, :]], slope.astype(dx_ref.dtype), mask=mask)
            return total + jnp.where(there[:, None], slope, 0)

        total = lax.fori_loop(*_times(PARTS), part, jnp.zeros((pixels, padded), jnp.float32))
        plt.store(sums_ref.at[parity, program, own], total.sum(0), mask=real)

    dx, sums = pl.pallas_call(
        kernel,
        out_shape=[
            jax.ShapeDtypeStruct((images * height * width, channels), x.dtype),
            jax.ShapeDtypeStruct((STRIDE**2, programs, channels), jnp.float32),
        ],
        grid=(programs, groups, STRIDE**2),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=about.interpret,
        name="relu_norm_pool_gradient",
    )(x.reshape(-1, channels), bias, place, dy.reshape(-1, channels), bands)
    return dx.reshape(x.shape), sums


def _count(number: int) -> jax.Array:
    return lax.iota(jnp.int32, number)


def _times(number: int) -> tuple[np.int32, np.int32]:
    return np.int32(0), np.int32(number)  # also where JAX counts in 64 bits


def _reader(
    x_ref: Any, bias_ref: Any, channel: jax.Array, real: jax.Array, *, careful: bool = True
) -> Callable[..., jax.Array]:
    """relu(x + bias) of pixels (P,), of which some are inside, and channels (C,), of which some are real."""
    bias = plt.load(bias_ref.at[channel], mask=real, other=0).astype(x_ref.dtype)

    def read(pixel: jax.Array, inside: jax.Array) -> jax.Array:
        mask = inside[:, None] & real[None, :]
        x = plt.load(x_ref.at[pixel[:, None], channel[None, :]], mask=mask, other=0)
        x = x + bias[None, :]
        # Triton's maximum makes a zero of what is not a number; this does not, at one more operation.
        return (x + abs(x)) * 0.5 if careful else jnp.maximum(x, 0)

    return read


def _bands(norm: Norm | None, blocks: Sequence[tuple[int, int, int, int]], channels: int) -> jax.Array:
    """For each block (first channel seen, how many, first own channel, how many) a matrix of zeros and ones:
    row j, column i is 1 where the window of the i-th own channel has the j-th one seen in it."""
    found = []
    for first_seen, seen, first_own, own in blocks:
        j, i = np.arange(first_seen, first_seen + seen)[:, None], np.arange(first_own, first_own + own)
        near = (j >= 0) & (j < channels)
        if norm is not None:
            each = channels // norm.groups
            near = near & (j >= i - norm.low) & (j <= i + norm.high) & (j // each == i // each)
        found.append(np.broadcast_to(near, (seen, own)))
    return jnp.asarray(np.stack(found), jnp.bfloat16)


def _energy(a: jax.Array, band: jax.Array, norm: Norm) -> jax.Array:
    return norm.k + norm.alpha * _sums(a * a, band, 3 if a.dtype == jnp.float32 else 1)


def _sums(a: jax.Array, band: jax.Array, terms: int) -> jax.Array:
    """Over each channel's window, of numbers cut into so many terms of 8 bits: three are all of a float32."""
    total = jnp.dot(a.astype(jnp.bfloat16), band, preferred_element_type=jnp.float32)
    for _ in range(terms - 1):
        a = a - a.astype(jnp.bfloat16).astype(jnp.float32)
        total += jnp.dot(a.astype(jnp.bfloat16), band, preferred_element_type=jnp.float32)
    return total


def _powers(d: jax.Array, beta: float) -> tuple[jax.Array, jax.Array]:
    """d^-β and 1/d."""
    r = lax.rsqrt(d)
    if beta == 0.75:
        return r * lax.rsqrt(d * r), r * r
    return d**-beta, r * r
