"""What the machine can do: a large matrix product, and a copy from memory to memory, as each library does them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

WHAT = {"product": "GFLOP/s", "copy": "GB/s"}
LIBRARIES = ("PyTorch", "JAX", "NumPy")
ROWS = 4096  # of the matrices
BYTES = 2**28  # that a copy reads, and writes: far more than a core's own caches


class Limit:
    """One measurement by one library, on all cores.

    Args:
      what: "product", GFLOP/s of a square matrix product, 2·rows³ operations, or "copy", GB/s read
        and written by a copy of `size` bytes into memory that is there already.
      library: "PyTorch", "JAX" or "NumPy" (whose copy has one thread).
      precision: "float32", "tf32" or "bfloat16", of the product.
      device: PyTorch's name of it; JAX takes its default device, NumPy the CPU.
      rows: of the matrices.
      size: bytes that a copy reads.
    """

    def __init__(
        self,
        what: str,
        library: str,
        *,
        precision: str = "float32",
        device: str = "cpu",
        rows: int = ROWS,
        size: int = BYTES,
    ):
        make = {"PyTorch": _torch, "JAX": _jax, "NumPy": _numpy}[library]
        self._work = make(what, precision, device, rows, size)
        self._amount = 2e-9 * (rows**3 if what == "product" else size)

    def run(self, count: int) -> float:
        """The rate over so many repetitions."""
        start = time.perf_counter()
        self._work(count)
        return count * self._amount / (time.perf_counter() - start)


def _numpy(what: str, precision: str, device: str, rows: int, size: int) -> Callable[[int], None]:
    if precision != "float32" or device != "cpu":
        raise ValueError(f"NumPy has no {precision} on {device}")
    a = np.random.default_rng(0).standard_normal((rows, rows) if what == "product" else size // 4, np.float32)
    out = np.zeros_like(a)

    def work(count: int) -> None:
        for _ in range(count):
            if what == "product":
                np.matmul(a, a, out=out)
            else:
                np.copyto(out, a)

    return work


def _torch(what: str, precision: str, device: str, rows: int, size: int) -> Callable[[int], None]:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    shape = (rows, rows) if what == "product" else (size // dtype.itemsize,)
    a = torch.randn(shape, device=device).to(dtype)
    out = torch.zeros_like(a)

    def work(count: int) -> None:
        for _ in range(count):
            if what == "product":
                torch.mm(a, a, out=out)
            else:
                out.copy_(a)
        if device != "cpu":
            torch.cuda.synchronize()

    return work


def _jax(what: str, precision: str, device: str, rows: int, size: int) -> Callable[[int], None]:
    import jax
    import jax.numpy as jnp

    from alexnet_jax.trained import PRECISIONS

    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    shape = (rows, rows) if what == "product" else (size // jnp.dtype(dtype).itemsize,)
    a = jax.random.normal(jax.random.key(0), shape, dtype)
    # Into memory that is there: the result takes over the argument that nobody needs any more.
    if what == "product":
        function = jax.jit(
            lambda out, a: jnp.matmul(a, a, precision=PRECISIONS[precision]), donate_argnums=0, keep_unused=True
        )
    else:
        function = jax.jit(lambda out, a: jnp.negative(a), donate_argnums=0, keep_unused=True)
    out: Any = jnp.zeros_like(a)

    def work(count: int) -> None:
        nonlocal out
        for _ in range(count):
            out = function(out, a)
        out.block_until_ready()

    return work
