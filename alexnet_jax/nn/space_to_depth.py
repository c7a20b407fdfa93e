"""A convolution with a stride as one without: of blocks of stride × stride pixels, laid into the channels.

conv1 sees 3 channels, of which a GPU's matrix units use a tenth; as blocks of 4 × 4 pixels they are 48.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.nn.conv_gradients import Pads, direct


def in_blocks(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """The convolution of maps (N, H, W, C) with a kernel (k, k, C, K), as `conv_gradients.direct` does it."""
    images, channels = x.shape[0], x.shape[-1]
    size, features = kernel.shape[0], kernel.shape[-1]
    blocks = -(-size // stride)
    outputs = [(n + sum(pad) - size) // stride + 1 for n, pad in zip(x.shape[1:3], pads, strict=True)]
    rows, columns = (n + blocks - 1 for n in outputs)
    ends = [n * stride - seen - pad[0] for n, seen, pad in zip((rows, columns), x.shape[1:3], pads, strict=True)]
    margin = [(pad[0], end, 0) for pad, end in zip(pads, ends, strict=True)]  # a negative end cuts what nobody sees
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margin, (0, 0, 0)])
    x = x.reshape(images, rows, stride, columns, stride, channels).swapaxes(2, 3)
    missing = (0, blocks * stride - size)
    kernel = jnp.pad(kernel, (missing, missing, (0, 0), (0, 0)))
    kernel = kernel.reshape(blocks, stride, blocks, stride, channels, features).swapaxes(1, 2)
    depth = stride * stride * channels
    x, kernel = x.reshape(images, rows, columns, depth), kernel.reshape(blocks, blocks, depth, features)
    return direct(x, kernel, 1, ((0, 0), (0, 0)))
