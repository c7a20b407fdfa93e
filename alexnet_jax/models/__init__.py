"""The networks: specs as data, the named variants, and the class that runs them."""

from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.inputs import preprocess, resize
from alexnet_jax.models.registry import create_model, get_spec, list_models
from alexnet_jax.models.spec import (
    ConvSpec,
    DenseSpec,
    HeadSpec,
    InputSpec,
    MapNormSpec,
    ModelSpec,
    NormSpec,
    PoolSpec,
)
from alexnet_jax.models.variants import INIT_SCHEMES, with_init

__all__ = [
    "INIT_SCHEMES",
    "AlexNet",
    "ConvSpec",
    "DenseSpec",
    "HeadSpec",
    "InputSpec",
    "MapNormSpec",
    "ModelSpec",
    "NormSpec",
    "PoolSpec",
    "create_model",
    "get_spec",
    "list_models",
    "preprocess",
    "resize",
    "with_init",
]
