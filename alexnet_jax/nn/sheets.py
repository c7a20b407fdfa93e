"""Images side by side on larger ones, so that tiles of a fixed size cover them with less to spare.

Tiles of 3 × 3 outputs cover 13 × 13 (conv3 to conv5) as if they were 15 × 15, and four images with a row and
a column of zeros between them, 27 × 27, exactly. A tile on a seam sees two images: there each one's outputs
are as exact as the larger values of both allow, and what is not finite in one reaches the other's border.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
from jax import lax

Pads = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Sheet:
    """How images are laid out for a convolution of stride 1; the numbers are of rows and of columns.

    Attributes:
      images: on one sheet, along each axis.
      pitch: pixels from one image, or its outputs, to the next.
      made: pixels of one image's outputs.
    """

    images: tuple[int, ...]
    pitch: tuple[int, ...]
    made: tuple[int, ...]

    @classmethod
    def of(cls, shape: Sequence[int], kernel: int, pads: Pads, tile: int) -> Self:
        """One image or two along each axis: what needs fewer tiles.

        Args:
          shape: of the images, (N, H, W, C).
          kernel: pixels of its side.
          pads: (low, high) zeros of each image along both axes, which then are those of a sheet.
          tile: outputs of a tile along each axis.
        """
        count, axes = shape[0], []
        cut = min(min(pad) for pad in pads) < 0  # there is nothing of an image to lay beside another's
        for size, (low, high) in zip(shape[1:3], pads, strict=True):
            made = size + low + high - kernel + 1
            pitch = max(size + max(low, high), made)  # two neighbours share the zeros between them
            pair = not cut and count % 2 == 0 and -(-(pitch + made) // tile) < 2 * -(-made // tile)
            count //= 2 if pair else 1
            axes.append((2 if pair else 1, pitch, made))
        return cls(*zip(*axes, strict=True))

    def joined(self, x: jax.Array) -> jax.Array:
        """Images, or their outputs, (N, H, W, C), as sheets, with zeros between."""
        if self.images == (1, 1):
            return x
        (a, b), (rows, columns) = self.images, self.pitch
        height, width = x.shape[1:3]
        config = [(0, 0, 0), (0, rows - height, 0), (0, columns - width, 0), (0, 0, 0)]
        x = lax.pad(x, jnp.zeros((), x.dtype), config).reshape(-1, a, b, rows, columns, x.shape[-1])
        x = x.swapaxes(2, 3).reshape(-1, a * rows, b * columns, x.shape[-1])
        return x[:, : a * rows - rows + height, : b * columns - columns + width]

    def apart(self, y: jax.Array) -> jax.Array:
        """The outputs of sheets as those of images, (N, H', W', K)."""
        if self.images == (1, 1):
            return y
        (a, b), (rows, columns) = self.images, self.pitch
        height, width = self.made
        config = [(0, 0, 0), (0, rows - height, 0), (0, columns - width, 0), (0, 0, 0)]
        y = lax.pad(y, jnp.zeros((), y.dtype), config).reshape(-1, a, rows, b, columns, y.shape[-1])
        return y.swapaxes(2, 3)[..., :height, :width, :].reshape(-1, height, width, y.shape[-1])
