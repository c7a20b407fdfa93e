"""Convolution with gradients that a CPU runs at nearly the rate of its matrix products.

Forward and input gradient are XLA's, or Winograd's where `forms.winograd` says so. The kernel's
gradient is Winograd's too where Eigen multiplies, and elsewhere one matrix product of the output's
gradient with all patches of a few images, image group by image group, so that the patches stay in
the cache; XLA's own takes two to five times as long.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.nn import forms
from alexnet_jax.nn.winograd import Tiles

Pads = tuple[tuple[int, int], tuple[int, int]]

PATCHES = 2**22  # numbers in the patches of one product at most: 16 MiB in float32


def direct(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads, groups: int = 1) -> jax.Array:
    """XLA's convolution: (N, H, W, C) and (kh, kw, C/groups, K) to (N, H', W', K)."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """`direct` in one group, differentiable once in reverse mode or any number of times by `grad`."""
    if forms.winograd(x, kernel, stride):
        return Tiles(forms.WINOGRAD_OUTPUTS, len(kernel)).convolve(x, kernel, pads)
    return direct(x, kernel, stride, pads)


def _forward(x, kernel, stride, pads):
    return convolve(x, kernel, stride, pads), (x, kernel)


def _backward(stride, pads, kept, dy):
    x, kernel = kept
    if not forms.winograd(x, kernel, stride):
        (dx,) = jax.linear_transpose(lambda x: direct(x, kernel, stride, pads), x)(dy)
        return dx, kernel_gradient(x, dy, kernel.shape[:2], stride, pads)
    tiles = Tiles(forms.WINOGRAD_OUTPUTS, len(kernel))
    dx = tiles.input_gradient(kernel, dy, pads)
    if forms.by_eigen():
        return dx, tiles.kernel_gradient(x, dy, pads)
    return dx, kernel_gradient(x, dy, kernel.shape[:2], stride, pads)


convolve.defvjp(_forward, _backward)


def kernel_gradient(x: jax.Array, dy: jax.Array, size: tuple[int, int], stride: int, pads: Pads) -> jax.Array:
    """The gradient of a convolution by its (kh, kw, C, K) kernel.

    With a stride, blocks of stride × stride pixels become channels first: the kernel is then one
    of ⌈kh / stride⌉ × ⌈kw / stride⌉ blocks and stride 1, with zeros where it was shorter.

    Args:
      x: maps (N, H, W, C).
      dy: the gradient by the outputs, (N, H', W', K).
      size: (kh, kw).
      stride: pixels between windows.
      pads: (low, high) zeros along both axes.
    """
    images, height, width, features = dy.shape
    rows, columns = (-(-n // stride) for n in size)
    blocks = _blocks(x, stride, pads, (height + rows - 1, width + columns - 1))
    patch = rows * columns * blocks.shape[-1]

    def product(blocks: jax.Array, dy: jax.Array) -> jax.Array:
        """(K, patch), the large side last: so XLA shares the product among the cores."""
        shifted = [blocks[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
        patches = jnp.concatenate(shifted, -1).reshape(-1, patch)
        return lax.dot_general(dy.reshape(-1, features), patches, (((0,), (0,)), ((), ())))

    together = math.gcd(images, 2 ** int(math.log2(max(1, PATCHES / (height * width * patch)))))
    if together == images:
        total = product(blocks, dy)
    else:
        parts = [a.reshape(-1, together, *a.shape[1:]) for a in (blocks, dy)]
        zero = jnp.zeros((features, patch), dy.dtype)
        total, _ = lax.scan(lambda total, part: (total + product(*part), None), zero, parts)
    total = total.reshape(features, rows, columns, stride, stride, x.shape[-1]).transpose(1, 3, 2, 4, 5, 0)
    return total.reshape(rows * stride, columns * stride, x.shape[-1], features)[: size[0], : size[1]]


def _blocks(x: jax.Array, stride: int, pads: Pads, count: tuple[int, int]) -> jax.Array:
    """(N, rows, columns, stride² · C): the padded maps, cut into `count` blocks of pixels."""
    ends = [c * stride - n - low for (low, _), n, c in zip(pads, x.shape[1:3], count, strict=True)]
    config = [(0, 0, 0), *((low, end, 0) for (low, _), end in zip(pads, ends, strict=True)), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), config)  # a negative end cuts off what no window sees
    if stride == 1:
        return x
    x = x.reshape(len(x), count[0], stride, count[1], stride, x.shape[-1]).swapaxes(2, 3)
    return x.reshape(len(x), *count, -1)
