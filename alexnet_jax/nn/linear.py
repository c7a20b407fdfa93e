"""A linear layer, with an input gradient that a CPU computes as fast as it reads the kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from alexnet_jax.nn import checks
from alexnet_jax.nn.collectives import equally_varying
from alexnet_jax.nn.forms import own_gradients, reverse_mode_only
from alexnet_jax.nn.init import NORMAL, ZEROS, Initializer

_PARTS = 2  # of the kernel's rows, in the gradient


def linear(
    x: jax.typing.ArrayLike,
    kernel: jax.typing.ArrayLike,
    bias: jax.typing.ArrayLike | None = None,
    *,
    forms: str = "auto",
) -> jax.Array:
    """x · kernel + bias.

    Args:
      x: (..., C), floating point.
      kernel: (C, K).
      bias: (K,), or None.
      forms: "auto" picks the fastest form; "reference" is a single `lax` product.

    Returns:
      (..., K) in the promoted dtype of the arguments.

    Raises:
      ValueError: shapes that do not fit together; the message names them.
      TypeError: integers.
    """
    x, kernel = checks.floating(x, "linear"), checks.floating(kernel, "linear's kernel")
    checks.forms_name(forms)
    if kernel.ndim != 2:
        raise ValueError(f"linear's kernel must be (C, K), got shape {kernel.shape}")
    channels, features = kernel.shape
    if x.shape[-1:] != (channels,):
        raise ValueError(f"linear's kernel {kernel.shape} takes {channels} channels, got x of shape {x.shape}")
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    if bias is not None:
        bias = checks.floating(bias, "linear's bias")
        if bias.shape != (features,):
            raise ValueError(
                f"linear's bias must be ({features},) for the kernel {kernel.shape}, got shape {bias.shape}"
            )
        dtype = jnp.promote_types(dtype, bias.dtype)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if forms == "auto" and own_gradients(x) and channels % _PARTS == 0:
        x, kernel = equally_varying(x, kernel)
        with reverse_mode_only("linear"):
            y = _product(x.reshape(-1, channels), kernel).reshape(*x.shape[:-1], features)
    else:
        y = lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return y if bias is None else y + bias.astype(dtype).reshape((1,) * (y.ndim - 1) + (-1,))


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(N, C) and (C, K) to (N, K)."""
    return lax.dot_general(x, kernel, (((1,), (0,)), ((), ())))


def _forward(x, kernel):
    return _product(x, kernel), (x, kernel)


def _backward(kept, dy):
    x, kernel = kept
    # The kernel first, and as two products in a stack: as one, in either order, Eigen takes four to eleven times as
    # long, and YNNPACK up to one and a half (fc6 and fc7, 32 to 128 images).
    rows = kernel.reshape(_PARTS, -1, kernel.shape[1])
    stack = jnp.broadcast_to(dy, (_PARTS, *dy.shape))
    dx = lax.dot_general(rows, stack, (((2,), (2,)), ((0,), (0,)))).reshape(kernel.shape[0], -1).T
    return dx, lax.dot_general(x, dy, (((0,), (0,)), ((), ())))


_product.defvjp(_forward, _backward)


class Linear(nnx.Linear):
    """`linear` with its parameters, Flax's: `kernel` (C, K) and `bias` (K,)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        kernel_init: Initializer = NORMAL,
        bias_init: Initializer = ZEROS,
        rngs: nnx.Rngs,
    ):
        # What else Flax's takes (precision, dot_general, …) would do nothing here.
        super().__init__(
            in_features,
            out_features,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, *, forms: str = "auto") -> jax.Array:  # type: ignore[override]
        """(..., C) to (..., K), in `dtype` (None: the promoted one)."""
        assert self.bias is not None
        kernel, bias = self.kernel[...], self.bias[...]
        if self.dtype is not None:
            x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return linear(x, kernel, bias, forms=forms)
