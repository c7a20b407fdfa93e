"""Local response normalisation across maps, and within a map.

    b_i = a_i / (k + α Σ_j a_j²)^β

with the sum over the neighbours of channel i at the same position (Krizhevsky et
al. 2012, section 3.3: n = 5 channels, k = 2, α = 1e-4, β = 0.75, after the ReLU).
Two conventions of α are in use: on the plain sum (the paper, TensorFlow), or
divided by the window's size (Caffe, PyTorch, the 2012 source).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from alexnet_jax.nn import checks
from alexnet_jax.nn.forms import reverse_mode_only


def local_response_norm(
    x: jax.typing.ArrayLike,
    *,
    size: int | None = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    groups: int = 1,
    alpha_per: str = "term",
    forms: str = "auto",
) -> jax.Array:
    """Divides every activation by a power of its neighbours' energy.

    With size=None, k=0, alpha=1, beta=0.5 this is L2 normalisation across channels.

    Args:
      x: (..., C), floating point; the neighbours are along the last axis.
      size: channels in the window, cut at the edges. An odd one is centred; an even
        one reaches from i - size/2 to i + size/2 - 1 (the 2012 source). None is the
        whole width.
      alpha: weight of the squares; not negative.
      beta: the exponent.
      k: the constant; not negative. With k=0, value and gradient are 0 where the
        squares of the whole window vanish (in float32, below about 1e-19).
      groups: the channels fall into that many groups, and no window reaches over
        (the paper's two towers).
      alpha_per: "term" puts alpha on the plain sum, "window" divides it by `size`.
      forms: "auto" keeps only `x` for the backward pass (reverse mode only);
        "reference" is plain `lax`, which also takes `jvp` and `hessian`.

    Returns:
      (..., C), dtype of `x`. bfloat16 and float16 are computed in float32.

    Raises:
      ValueError: an argument out of range, or channels not divisible by `groups`.
      TypeError: an integer `x`.
    """
    x = checks.floating(x, "local_response_norm")
    checks.forms_name(forms)
    checks.choice(alpha_per, "alpha_per", ("term", "window"))
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, or None for the whole width, got {size}")
    if alpha < 0 or k < 0 or (alpha == 0 and k == 0):
        raise ValueError(f"alpha and k must not be negative, nor both zero, got alpha={alpha}, k={k}")
    if x.ndim < 1:
        raise ValueError("local_response_norm takes arrays with a channel axis, got a scalar")
    channels = checks.groups_of(x.shape[-1], groups, "local_response_norm")
    if size is None:
        low = high = channels - 1
    else:
        low, high = min(size // 2, channels - 1), min((size - 1) // 2, channels - 1)
    if alpha_per == "window":
        alpha = alpha / (channels if size is None else size)

    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    form = _plain if forms == "reference" else _saving_x_only
    with reverse_mode_only("local_response_norm"):
        y = form(wide, _Window(low, high, groups), float(alpha), float(beta), float(k))
    return y.astype(x.dtype)


class LocalResponseNorm(nnx.Module):
    """`local_response_norm` as a module without parameters; the same keywords."""

    def __init__(
        self,
        *,
        size: int | None = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 2.0,
        groups: int = 1,
        alpha_per: str = "term",
        forms: str = "auto",
    ):
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k
        self.groups, self.alpha_per, self.forms = groups, alpha_per, forms

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) to (..., C)."""
        return local_response_norm(
            x,
            size=self.size,
            alpha=self.alpha,
            beta=self.beta,
            k=self.k,
            groups=self.groups,
            alpha_per=self.alpha_per,
            forms=self.forms,
        )


def within_map_response_norm(
    x: jax.typing.ArrayLike, *, size: int = 5, scale: float = 0.001, beta: float = 0.75
) -> jax.Array:
    """Normalises by the neighbourhood in the same map: a / (1 + scale/size² Σ a²)^β.

    The window is size × size pixels, centred (an even one starts size/2 before the
    pixel) and cut at the edges, with scale/size² whatever the cut: the second norm
    of conv2 in the 2012 source, and cuda-convnet's CIFAR-10 nets.

    Args:
      x: maps, (..., H, W, C), floating point.
      size: pixels of the window's side.
      scale: weight of the mean square; not negative.
      beta: the exponent.

    Returns:
      Shape and dtype of `x`. bfloat16 and float16 are computed in float32.

    Raises:
      ValueError: an argument out of range, or rank below 3.
      TypeError: an integer `x`.
    """
    x = checks.floating(x, "within_map_response_norm")
    if x.ndim < 3:
        raise ValueError(f"within_map_response_norm takes (..., H, W, C), got shape {x.shape}")
    if size < 1 or scale < 0:
        raise ValueError(f"size must be at least 1 and scale not negative, got size={size}, scale={scale}")
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    lead = (1,) * (x.ndim - 3)
    pad = (size // 2, (size - 1) // 2)
    energy = lax.reduce_window(
        wide * wide, 0.0, lax.add, (*lead, size, size, 1), (1,) * x.ndim, (*((0, 0) for _ in lead), pad, pad, (0, 0))
    )
    return (wide * (1 + scale / size**2 * energy) ** -beta).astype(x.dtype)


class _Window(NamedTuple):
    """Of channel i: [i - low, i + high], cut at the ends of its group of channels."""

    low: int
    high: int
    groups: int

    def sums(self, x: jax.Array) -> jax.Array:
        """Over the window of each element of the last axis."""
        channels = x.shape[-1] // self.groups
        if self.low == self.high == channels - 1 or self.low + self.high > 16:
            return self._wide_sums(x.reshape(*x.shape[:-1], self.groups, channels)).reshape(x.shape)
        # Rows of all groups, and zeros for what lies beyond a seam: rows of one group took XLA on a CPU twice as long.
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(self.low, self.high)])
        place = np.arange(x.shape[-1]) % channels
        total = x
        for away in range(-self.low, self.high + 1):
            if away:
                neighbour = lax.slice_in_dim(padded, self.low + away, self.low + away + x.shape[-1], axis=-1)
                inside = (place + away >= 0) & (place + away < channels)
                total += neighbour if self.groups == 1 else jnp.where(inside, neighbour, 0)
        return total

    def _wide_sums(self, x: jax.Array) -> jax.Array:
        if self.low == self.high == x.shape[-1] - 1:
            return jnp.broadcast_to(x.sum(-1, keepdims=True), x.shape)
        lead = x.ndim - 1  # one running reduction beats many shifted copies
        window = ((1,) * lead + (self.low + self.high + 1,), (1,) * x.ndim, ((0, 0),) * lead + ((self.low, self.high),))
        return lax.reduce_window(x, 0.0, lax.add, *window)

    def mirrored(self) -> _Window:
        """Of channel j: the channels whose windows it lies in."""
        return _Window(self.high, self.low, self.groups)


def _power(d: jax.Array, beta: float) -> jax.Array:
    """d^-β; β = 0.75 and 0.5 without a general power, which is several times slower."""
    if beta == 0.75:
        r = lax.rsqrt(d)
        return r * lax.sqrt(r)
    if beta == 0.5:
        return lax.rsqrt(d)
    return d**-beta


def _factors(x: jax.Array, window: _Window, alpha: float, beta: float, k: float) -> tuple[jax.Array, jax.Array]:
    """(d^-β, 1/d) for d = k + α Σ x², both 0 where d is 0."""
    d = k + alpha * window.sums(x * x)
    if k > 0:
        return _power(d, beta), 1 / d
    some = d >= np.finfo(d.dtype).tiny  # a subnormal d counts as zero: hardware may flush it
    d = jnp.where(some, d, 1)
    return jnp.where(some, _power(d, beta), 0), jnp.where(some, 1 / d, 0)


def _plain(x: jax.Array, window: _Window, alpha: float, beta: float, k: float) -> jax.Array:
    return x * _factors(x, window, alpha, beta, k)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _saving_x_only(x: jax.Array, window: _Window, alpha: float, beta: float, k: float) -> jax.Array:
    return _plain(x, window, alpha, beta, k)


def _forward(x, window, alpha, beta, k):
    return _plain(x, window, alpha, beta, k), x


def _backward(window, alpha, beta, k, x, dy):
    # dx_j = dy_j p_j - 2αβ x_j Σ_{i sees j} dy_i x_i p_i / d_i: the window as seen from j is mirrored.
    p, inverse = _factors(x, window, alpha, beta, k)
    return (dy * p - 2 * alpha * beta * x * window.mirrored().sums(dy * x * p * inverse),)


_saving_x_only.defvjp(_forward, _backward)
