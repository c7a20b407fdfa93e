"""Every picture that the program draws."""

from alexnet_jax.figures.retrieval import MOST_SHOWN, Predicted, Similar, neighbours, predictions
from alexnet_jax.figures.runs import confusion, data_preview, first_layer_kernels, learning_curves
from alexnet_jax.figures.towers import two_towers

__all__ = [
    "MOST_SHOWN",
    "Predicted",
    "Similar",
    "confusion",
    "data_preview",
    "first_layer_kernels",
    "learning_curves",
    "neighbours",
    "predictions",
    "two_towers",
]
