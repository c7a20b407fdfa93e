"""The blocks of AlexNet, each usable alone under `jit`, `grad` and `vmap`."""

from alexnet_jax.nn.conv import Conv, conv
from alexnet_jax.nn.dropout import Dropout, dropout
from alexnet_jax.nn.init import Init
from alexnet_jax.nn.linear import Linear, linear
from alexnet_jax.nn.lrn import LocalResponseNorm, local_response_norm, within_map_response_norm
from alexnet_jax.nn.pooling import adaptive_avg_pool, avg_pool, max_pool
from alexnet_jax.nn.windows import output_size

__all__ = [
    "Conv",
    "Dropout",
    "Init",
    "Linear",
    "LocalResponseNorm",
    "adaptive_avg_pool",
    "avg_pool",
    "conv",
    "dropout",
    "linear",
    "local_response_norm",
    "max_pool",
    "output_size",
    "within_map_response_norm",
]
