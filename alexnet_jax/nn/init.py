"""Initialisations as plain data, so that a spec can name them and a file can hold them.

Sources: Krizhevsky et al. 2012, section 5 (normal 0.01, biases 0 or 1); the 2012
source (0.03 in conv3 to conv5); Caffe's AlexNets (normal 0.01 and 0.005, biases 0.1
or 1); PyTorch's defaults (torchvision); Kaiming normal, fan out (He et al. 2015).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from alexnet_jax.nn import checks

Initializer = Callable[[jax.Array, tuple[int, ...], jax.typing.DTypeLike], jax.Array]
NORMAL: Initializer = nnx.initializers.normal(0.01)  # of kernels and biases, unless told otherwise
ZEROS: Initializer = nnx.initializers.zeros_init()

KINDS = ("normal", "constant", "kaiming_normal", "pytorch")


@dataclasses.dataclass(frozen=True)
class Init:
    """How one parameter starts.

    Attributes:
      kind: "normal" (mean 0, standard deviation `value`), "constant" (`value`),
        "kaiming_normal" (standard deviation sqrt(2 / fan out), for ReLU), or
        "pytorch" (uniform within ±1/sqrt(fan in): PyTorch's default for kernels and
        biases of both convolution and linear layers).
      value: the number that the kind takes, if any.
    """

    kind: str = "normal"
    value: float = 0.01

    def __post_init__(self):
        checks.choice(self.kind, "Init.kind", KINDS)

    def initializer(self, *, fan_in: int, fan_out: int) -> Initializer:
        """A function (key, shape, dtype) -> array for a layer with these fans.

        Args:
          fan_in: values that one output sees: kh·kw·C/groups, or the input's width.
          fan_out: kh·kw·K, or the output's width (PyTorch's count, groups or not).
        """

        def normal(std: float) -> Initializer:
            return lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype)

        if self.kind == "normal":
            return normal(self.value)
        if self.kind == "kaiming_normal":
            return normal(math.sqrt(2 / fan_out))
        if self.kind == "constant":
            return lambda key, shape, dtype: jnp.full(shape, self.value, dtype)
        bound = 1 / math.sqrt(fan_in)
        return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
