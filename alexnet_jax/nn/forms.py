"""The one rule of forms="auto": which form of a block runs on which platform, for which shapes.

Every rule here was measured (docs/performance.md); every form gives the same numbers up to
rounding, and "reference", plain `lax`, is what they are compared with.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

CPU_OPTIONS: dict[str, str | bool] = {
    # XLA's CPU compiler has two libraries for products and convolutions, YNNPACK, its choice, and Eigen, which took
    # half to four fifths of the time for an AlexNet's. This leaves sums alone to the former.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    # One operation after another, each on all cores, and no copy of what nobody else reads then: XLA's choice copied
    # the kernels of the linear layers in every step, to update some while others are in use.
    "xla_cpu_enable_concurrency_optimized_scheduler": False,
    "xla_cpu_copy_insertion_use_region_analysis": True,
    # Barriers stay until operations have been fused, so that they say what is computed once and kept.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}
WINOGRAD_CHANNELS = 48  # of a group; with fewer it was no faster, and took seconds to compile
WINOGRAD_TILES = 48  # of all images; with fewer, to transform the kernel costs more than is saved
WINOGRAD_WORK = 1e8  # multiplications of a convolution; below it, seconds of compilation would save milliseconds
WINOGRAD_OUTPUTS = 3  # of a tile, along each axis; more would save multiplications and round worse
TOGETHER = 8 * 227 * 227  # pixels of the images that go through the convolutions together: more leave the cache


def platform() -> str:
    """Where JAX computes unless told otherwise: "cpu", "gpu", …"""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    if chosen is None:
        return jax.default_backend()
    return chosen if isinstance(chosen, str) else chosen.platform


_by_eigen = contextvars.ContextVar("by_eigen", default=False)  # what is being traced


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` with `CPU_OPTIONS` on a CPU: products and convolutions by Eigen, and barriers that hold.

    For the outermost function alone, `jit(jax.grad(f))`: JAX refuses compiler options in what it transforms or
    traces as a part of something else, such as `jax.grad(jit(f))`.

    Args:
      function: whose blocks use forms="auto".
      options: of `jax.jit`.
    """
    if platform() != "cpu" or not _takes_options():
        return jax.jit(function, **options)

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        before = _by_eigen.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            _by_eigen.reset(before)

    return jax.jit(traced, compiler_options=CPU_OPTIONS, **options)


@functools.cache
def _takes_options() -> bool:
    """Whether this XLA knows all of `CPU_OPTIONS`; they are no part of its interface."""
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=CPU_OPTIONS)
    except (jax.errors.JaxRuntimeError, ValueError):
        return False
    return True


def conv_gradients(x: jax.Array, kernel: jax.Array, stride: int) -> bool:
    """Whether a convolution uses this package's gradients: where pooling does, but by Eigen only if Winograd's."""
    return own_gradients(x) and (not _by_eigen.get() or winograd(x, kernel, stride))


def own_gradients(x: jax.Array) -> bool:
    """Whether convolution and pooling use this package's gradients: on a CPU, where XLA's are slow.

    Not in half precision, which the CPU's are not made for.
    """
    return x.dtype in (jnp.float32, jnp.float64) and platform() == "cpu" and _some(x)


def fused(x: jax.Array) -> bool:
    """Whether one kernel does ReLU, norm and pooling after a convolution: on a GPU, in bfloat16.

    In float32 it was no faster than XLA.
    """
    return x.dtype == jnp.bfloat16 and platform() == "gpu" and _some(x)


def _some(x: jax.Array) -> bool:
    """Whether it is of known size, unlike a free batch in `jax.export`, and not empty."""
    return all(isinstance(n, int) and n > 0 for n in x.shape)


def in_blocks(x: jax.Array, kernel: jax.Array, stride: int) -> bool:
    """Whether a convolution is done in blocks of stride × stride pixels: that of images, on a GPU."""
    rows, columns = kernel.shape[:2]
    return platform() == "gpu" and 1 < stride <= rows == columns and x.shape[-1] <= 4


def winograd(x: jax.Array, kernel: jax.Array, stride: int) -> bool:
    """Whether a convolution is done by Winograd's method: where there is much to do.

    For 5 × 5 kernels (conv2), and by Eigen, which multiplies the small matrices well, 3 × 3 ones (conv3 to conv5).
    """
    kh, kw, channels, features = kernel.shape
    images, height, width = x.shape[:3]
    tiles = images * -(-height // WINOGRAD_OUTPUTS) * -(-width // WINOGRAD_OUTPUTS)
    work = images * height * width * kh * kw * channels * features
    if stride != 1 or channels < WINOGRAD_CHANNELS or tiles < WINOGRAD_TILES or work < WINOGRAD_WORK:
        return False
    return (kh, kw) == (5, 5) or ((kh, kw) == (3, 3) and _by_eigen.get())


def together(images: jax.Array) -> int:
    """How many of the images (N, H, W, C) go through the convolutions together, in inference by Eigen; divides N.

    As many as `TOGETHER` says, or down to half as many, so that their maps stay in the cache; all of them
    where N has no such divisor.
    """
    count = images.shape[0]
    most = TOGETHER // math.prod(images.shape[1:3])
    if not _by_eigen.get() or not isinstance(count, int) or count <= most:
        return count
    return next((n for n in range(most, max(most // 2, 2) - 1, -1) if count % n == 0), count)


def by_eigen() -> bool:
    """Whether `jit` compiles what is being traced: products by Eigen, and barriers that hold in fusion."""
    return _by_eigen.get()


@contextlib.contextmanager
def reverse_mode_only(what: str) -> Iterator[None]:
    """Names the remedy where JAX refuses forward-mode differentiation of a form with its own gradient.

    Where `jit` or `checkpoint` lies between, JAX finds out after this has been left, and its own words stand alone.
    """
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            f'{what} with forms="auto" has no forward-mode derivative (jvp, jacfwd): use forms="reference" '
            '(of a model: model.forms = "reference")'
        ) from error
