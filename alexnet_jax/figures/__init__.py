"""Every picture that the program draws."""

from alexnet_jax.figures.runs import confusion, data_preview, first_layer_kernels, learning_curves
from alexnet_jax.figures.towers import two_towers

__all__ = ["confusion", "data_preview", "first_layer_kernels", "learning_curves", "two_towers"]
