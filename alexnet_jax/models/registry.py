"""Named networks: create_model, list_models."""

from __future__ import annotations

import difflib

import jax
import jax.numpy as jnp
from flax import nnx

from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.spec import ModelSpec
from alexnet_jax.models.variants import VARIANTS


def list_models() -> list[str]:
    """The names that `create_model` knows, `paper` first."""
    return list(VARIANTS)


def get_spec(name: str) -> ModelSpec:
    """The spec of a named variant.

    Raises:
      ValueError: no such variant; names the nearest.
    """
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, VARIANTS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no model {name!r}; {hint}Known: {', '.join(VARIANTS)}")
    return VARIANTS[name]


def create_model(
    name_or_spec: str | ModelSpec,
    *,
    num_classes: int = 1000,
    image_size: int | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: int | jax.Array | nnx.Rngs = 0,
    forms: str = "auto",
) -> AlexNet:
    """Builds an AlexNet with fresh parameters.

    Args:
      name_or_spec: a name of `list_models`, or a `ModelSpec`.
      num_classes: the width of the logits.
      image_size: pixels of the square images; None is the variant's own.
      dtype: dtype of the computation; None promotes images and parameters.
      param_dtype: dtype of the parameters.
      rngs: what the parameters are drawn from: a seed, a key or `nnx.Rngs`.
      forms: "auto" picks the fastest form of each block, "reference" the plain one
        (forward-mode and higher derivatives, export).

    Returns:
      The model; `model.spec.input` is its input contract.

    Raises:
      ValueError: an unknown name, images too small, channels that groups do not divide.
    """
    spec = name_or_spec if isinstance(name_or_spec, ModelSpec) else get_spec(name_or_spec)
    if image_size is not None:
        spec = spec.at_image_size(image_size)
    for what, wanted in (("param_dtype", param_dtype), ("dtype", dtype)):
        if wanted is not None and jax.dtypes.canonicalize_dtype(wanted) != jnp.dtype(wanted):
            raise ValueError(
                f'{what}={jnp.dtype(wanted)} needs 64-bit JAX: call jax.config.update("jax_enable_x64", True) first'
            )
    if not isinstance(rngs, nnx.Rngs):
        rngs = nnx.Rngs(rngs)
    return AlexNet(spec, num_classes=num_classes, dtype=dtype, param_dtype=param_dtype, forms=forms, rngs=rngs)
