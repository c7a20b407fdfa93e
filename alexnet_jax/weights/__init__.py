"""Weights from files and into files, and published ones by name.

In: PyTorch's, Caffe's, safetensors, Flax's, this project's runs; out: safetensors, ONNX, StableHLO.
"""

from alexnet_jax.weights.errors import WeightsError
from alexnet_jax.weights.loading import Weights, load_weights, open_weights
from alexnet_jax.weights.onnx_export import save_onnx
from alexnet_jax.weights.pretrained import from_pretrained
from alexnet_jax.weights.saving import save_safetensors
from alexnet_jax.weights.stablehlo import save_stablehlo

__all__ = [
    "Weights",
    "WeightsError",
    "from_pretrained",
    "load_weights",
    "open_weights",
    "save_onnx",
    "save_safetensors",
    "save_stablehlo",
]
