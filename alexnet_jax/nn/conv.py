"""Convolution in groups, with explicit (low, high) padding."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from alexnet_jax.nn import checks, space_to_depth
from alexnet_jax.nn.collectives import equally_varying
from alexnet_jax.nn.conv_gradients import Pads, convolve, direct
from alexnet_jax.nn.forms import by_eigen, conv_gradients, in_blocks, reverse_mode_only
from alexnet_jax.nn.init import NORMAL, ZEROS, Initializer
from alexnet_jax.nn.windows import Padding, full_padding


def conv(
    x: jax.typing.ArrayLike,
    kernel: jax.typing.ArrayLike,
    bias: jax.typing.ArrayLike | None = None,
    *,
    stride: int = 1,
    padding: Padding = 0,
    groups: int = 1,
    round_up: bool = False,
    forms: str = "auto",
) -> jax.Array:
    """Two-dimensional convolution (cross-correlation, as in every AlexNet code).

    Group g sees the input channels [g·C/groups, (g+1)·C/groups) and makes the same
    share of the output channels: how the two towers of Krizhevsky et al. 2012,
    section 3.5, stay apart in conv2, conv4 and conv5.

    Args:
      x: maps, (N, H, W, C), floating point.
      kernel: (kh, kw, C/groups, K).
      bias: (K,), or None.
      stride: pixels between windows, along both axes.
      padding: zeros around the maps along both axes, as one number or as (low, high).
      groups: the number of groups; divides C and K.
      round_up: enlarges the high padding so that a last incomplete window counts.
      forms: "auto" picks the fastest form; "reference" is a single `lax` convolution.

    Returns:
      (N, H', W', K) in the promoted dtype of the arguments.

    Raises:
      ValueError: shapes that do not fit together; the message names them.
      TypeError: integer images.
    """
    x = checks.maps(x, "conv")
    kernel = checks.floating(kernel, "conv's kernel")
    checks.forms_name(forms)
    if kernel.ndim != 4:
        raise ValueError(f"conv's kernel must be (kh, kw, C/groups, K), got shape {kernel.shape}")
    kh, kw, per_group, features = kernel.shape
    channels = x.shape[-1]
    checks.groups_of(features, groups, "conv's output")
    if checks.groups_of(channels, groups, "conv's input") != per_group:
        raise ValueError(
            f"conv's kernel {kernel.shape} sees {per_group} channels, but {channels} input channels "
            f"in {groups} group(s) are {channels // groups} a group"
        )
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    if bias is not None:
        bias = checks.floating(bias, "conv's bias")
        if bias.shape != (features,):
            raise ValueError(f"conv's bias must be ({features},) for the kernel {kernel.shape}, got shape {bias.shape}")
        dtype = jnp.promote_types(dtype, bias.dtype)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    rows, columns = (
        full_padding(size, window, stride, padding, round_up=round_up)
        for size, window in zip(x.shape[1:3], (kh, kw), strict=True)
    )
    pads = (rows, columns)

    if forms == "reference":
        y = direct(x, kernel, stride, pads, groups)
    else:
        x, kernel = equally_varying(x, kernel)
        # XLA's own grouped convolution is two to three times slower on a CPU, backward above all.
        pairs = list(zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True))
        if conv_gradients(*pairs[0], stride):
            form: Callable[..., jax.Array] = convolve
        else:
            form = space_to_depth.in_blocks if in_blocks(*pairs[0], stride) else direct
        with reverse_mode_only("conv"):
            if groups > 1 and form is convolve and by_eigen():
                y = _together(x, kernel, stride, pads, groups)
            else:
                outputs = [form(a, b, stride, pads) for a, b in pairs]
                y = outputs[0] if groups == 1 else jnp.concatenate(outputs, -1)
    return y if bias is None else y + bias.astype(dtype).reshape(1, 1, 1, -1)


def _together(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads, groups: int) -> jax.Array:
    """All groups as one array: by Eigen as fast as one after the other, and half as much to compile."""
    x = jnp.stack(jnp.split(x, groups, -1))
    kernel = jnp.stack(jnp.split(kernel, groups, -1))
    y = lax.optimization_barrier(jax.vmap(lambda x, kernel: convolve(x, kernel, stride, pads))(x, kernel))
    return lax.optimization_barrier(jnp.moveaxis(y, 0, -2).reshape(*y.shape[1:-1], -1))


class Conv(nnx.Module):
    """`conv` with its parameters: `kernel` (k, k, C/groups, K) and `bias` (K,).

    The number of groups may be given anew at each call, for a module that holds
    only some of the groups (one tower's shard).
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: Padding = 0,
        groups: int = 1,
        round_up: bool = False,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        kernel_init: Initializer = NORMAL,
        bias_init: Initializer = ZEROS,
        rngs: nnx.Rngs,
    ):
        per_group = checks.groups_of(in_features, groups, "Conv's input")
        checks.groups_of(features, groups, "Conv's output")
        shape = (kernel_size, kernel_size, per_group, features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(bias_init(rngs.params(), (features,), param_dtype))
        self.stride, self.padding, self.groups, self.round_up = stride, padding, groups, round_up
        self.dtype = dtype

    def __call__(
        self, x: jax.Array, *, groups: int | None = None, forms: str = "auto", biased: bool = True
    ) -> jax.Array:
        """Maps (N, H, W, C) to (N, H', W', K), in `dtype` (None: the promoted one); without the bias on request."""
        kernel, bias = self.kernel[...], self.bias[...]
        if self.dtype is not None:
            x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return conv(
            x,
            kernel,
            bias if biased else None,
            stride=self.stride,
            padding=self.padding,
            groups=self.groups if groups is None else groups,
            round_up=self.round_up,
            forms=forms,
        )
