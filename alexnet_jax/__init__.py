"""AlexNet (Krizhevsky, Sutskever, Hinton 2012) in JAX and Flax."""

from alexnet_jax import nn
from alexnet_jax.models import (
    AlexNet,
    ModelSpec,
    create_model,
    get_spec,
    list_models,
    preprocess,
    with_init,
)
from alexnet_jax.weights import from_pretrained, load_weights

__version__ = "0.1.0"

__all__ = [
    "AlexNet",
    "ModelSpec",
    "__version__",
    "create_model",
    "from_pretrained",
    "get_spec",
    "list_models",
    "load_weights",
    "nn",
    "preprocess",
    "with_init",
]
