"""Convolution of stride 1 by Winograd's minimal filtering, with a fraction of the multiplications.

A tile of m × m outputs of an r × r kernel is y = Aᵀ [(G k Gᵀ) ⊙ (Bᵀ d B)] A, with d the
(m + r - 1)² inputs that it sees (Winograd 1980; Lavin and Gray 2016). At each of as many points
the products over all tiles and channels are one matrix product. Images go side by side where
that needs fewer tiles (`sheets.py`). The gradient by the input is a convolution with the turned
kernel, that by the kernel Gᵀ [(Bᵀ d B) ⊙ (A dy Aᵀ)] G, summed over tiles.

Exact up to rounding; in float32 the error is five (3 × 3) to eight (5 × 5) times that of the direct form.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.nn.sheets import Pads, Sheet

Grid = list[list[jax.Array]]

# Where the polynomials are evaluated, beside infinity; small numbers, whose powers round little.
POINTS = (0, 1, -1, 0.5, -0.5, 2)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """F(m × m, r × r): m `outputs` and r elements of the `kernel` along each axis; at most 7 points, m + r - 1."""

    outputs: int
    kernel: int

    @property
    def points(self) -> int:
        """Along each axis: where a tile is evaluated, and how many inputs it sees."""
        return self.outputs + self.kernel - 1

    @functools.cached_property
    def matrices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Aᵀ (m, n), G (n, r) and Bᵀ (n, n) of n points, after Toom and Cook."""
        m, r, n = self.outputs, self.kernel, self.points
        at = np.array(POINTS[: n - 1], float)
        scale = np.array([np.prod([p - q for q in at if q != p]) for p in at])
        infinity = np.eye(n)[-1:]
        g = np.vstack([at[:, None] ** np.arange(r) / scale[:, None], infinity[:, -r:]])
        a_t = np.hstack([at ** np.arange(m)[:, None], infinity[:, -m:].T])
        # Bᵀ is what makes it a correlation: Σ_u Aᵀ[i, u] G[u, j] Bᵀ[u, l] is 1 where l = i + j, else 0.
        left = np.einsum("iu,uj->iju", a_t, g).reshape(-1, n)
        wanted = np.array([np.eye(n)[i + j] for i in range(m) for j in range(r)])
        return a_t, g, np.linalg.lstsq(left, wanted, rcond=None)[0].round(12)

    def convolve(self, x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
        """(N, H, W, C) and (r, r, C, K) to (N, H', W', K)."""
        sheet = Sheet.of(x.shape, self.kernel, pads, self.outputs)
        x = sheet.joined(x)
        size = [n + low + high - self.kernel + 1 for n, (low, high) in zip(x.shape[1:3], pads, strict=True)]
        g = self.matrices[1]
        weights = _both(g, [[kernel[i, j] for j in range(self.kernel)] for i in range(self.kernel)])
        seen = self._seen(x, [low for low, _ in pads], size)
        points = range(self.points)
        products = [[jnp.matmul(seen[u][v], weights[u][v]) for v in points] for u in points]
        return sheet.apart(self._made(products)[:, : size[0], : size[1]])

    def input_gradient(self, kernel: jax.Array, dy: jax.Array, pads: Pads) -> jax.Array:
        """The gradient of `convolve` by its input."""
        turned = [(self.kernel - 1 - low, self.kernel - 1 - high) for low, high in pads]
        return self.convolve(dy, lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3)), turned)

    def kernel_gradient(self, x: jax.Array, dy: jax.Array, pads: Pads) -> jax.Array:
        """The gradient of `convolve` by its kernel."""
        m, (a_t, g, _) = self.outputs, self.matrices
        sheet = Sheet.of(x.shape, self.kernel, pads, m)
        x, dy = sheet.joined(x), sheet.joined(dy)
        size = dy.shape[1:3]
        seen = self._seen(x, [low for low, _ in pads], size)
        ends = [-n % m for n in size]
        dy = lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *((0, end, 0) for end in ends), (0, 0, 0)])
        asked = _both(a_t.T, [[dy[:, i::m, j::m] for j in range(m)] for i in range(m)])
        points = range(self.points)

        def flat(a: jax.Array) -> jax.Array:
            return lax.optimization_barrier(a.reshape(-1, a.shape[-1]))  # or XLA writes it turned, with long strides

        products = [[jnp.matmul(flat(seen[u][v]).T, flat(asked[u][v])) for v in points] for u in points]
        return jnp.stack([jnp.stack(lax.optimization_barrier(row)) for row in _both(g.T, products)])

    def _seen(self, x: jax.Array, lows: Sequence[int], size: Sequence[int]) -> Grid:
        """Bᵀ d B of all tiles: at each point (N, tiles, tiles, C)."""
        m, b_t = self.outputs, self.matrices[2]
        tiles = [-(-n // m) for n in size]
        ends = [m * t + self.kernel - 1 - n - low for t, n, low in zip(tiles, x.shape[1:3], lows, strict=True)]
        config = [(0, 0, 0), *((low, end, 0) for low, end in zip(lows, ends, strict=True)), (0, 0, 0)]
        x = lax.pad(x, jnp.zeros((), x.dtype), config)

        def every(a: jax.Array, axis: int) -> list[jax.Array]:
            length = m * (tiles[axis - 1] - 1) + 1
            return [lax.slice_in_dim(a, i, i + length, m, axis) for i in range(self.points)]

        rows = [lax.optimization_barrier(row) for row in _combined(b_t, every(x, 1))]
        return [_combined(b_t, every(row, 2)) for row in rows]

    def _made(self, products: Grid) -> jax.Array:
        """Aᵀ p A, the tiles side by side: (N, m · tiles, m · tiles, K)."""
        outputs = _both(self.matrices[0], products)
        y = jnp.stack([jnp.stack([lax.optimization_barrier(a) for a in row], 3) for row in outputs], 2)
        return y.reshape(len(y), y.shape[1] * y.shape[2], y.shape[3] * y.shape[4], -1)


def _both(matrix: np.ndarray, grid: Grid) -> Grid:
    """M g Mᵀ, of arrays."""
    columns = [[lax.optimization_barrier(a) for a in _combined(matrix, column)] for column in zip(*grid, strict=True)]
    return [_combined(matrix, row) for row in zip(*columns, strict=True)]


def _combined(matrix: np.ndarray, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Matrix times arrays, written out: most of its elements are 0, 1 or -1."""

    def total(row: np.ndarray) -> jax.Array:
        terms = [(a if c == 1 else -a if c == -1 else a * float(c)) for c, a in zip(row, arrays, strict=True) if c]
        return functools.reduce(jnp.add, terms)

    return [total(row) for row in matrix]
