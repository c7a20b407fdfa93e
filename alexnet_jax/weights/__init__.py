"""Weights from files: PyTorch's, safetensors, Flax's, and this project's own runs."""

from alexnet_jax.weights.errors import WeightsError
from alexnet_jax.weights.loading import Weights, load_weights, open_weights

__all__ = ["Weights", "WeightsError", "load_weights", "open_weights"]
