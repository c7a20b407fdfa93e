"""What the network sees of an image, made on the device inside the step.

Every random choice follows from the image's own key, and no sum over values is in
here, so the result is bit for bit the same in every layout of devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.models.inputs import centre_crop, to_contract
from alexnet_jax.models.spec import InputSpec


def training_view(
    images: jax.Array, keys: jax.Array, contract: InputSpec, mean_image: jax.Array, *, flip: bool
) -> jax.Array:
    """A random crop of each image, mirrored half of the time, in the input contract.

    Krizhevsky et al. 2012, section 4.1. All offsets are equally likely, the last
    included (the 2012 source: 33 × 33 of them for 224 in 256).

    Args:
      images: (N, S, S, 3), uint8.
      keys: one key an image, (N,).
      contract: the network's input contract; `size` is the crop's.
      mean_image: (S, S, 3), float32, on 0 to 255 in RGB.
      flip: whether to mirror.

    Returns:
      (N, size, size, 3), float32.
    """

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        offset_key, flip_key = jax.random.split(key)
        room = image.shape[0] - contract.size
        top, left = jax.random.randint(offset_key, (2,), 0, room + 1, jnp.int32)

        def crop(x: jax.Array) -> jax.Array:
            return lax.dynamic_slice(x, (top, left, jnp.int32(0)), (contract.size, contract.size, 3))

        mean = None
        if contract.mean_image == "centre":
            mean = centre_crop(mean_image, contract.size)
        elif contract.mean_image == "position":
            mean = crop(mean_image)
        mirrored = flip & (jax.random.bits(flip_key, (), jnp.uint32) % 2 == 1)
        if contract.mean_image == "position":  # subtracted before the image is mirrored
            view = to_contract(crop(image), contract, mean)
            return jnp.where(mirrored, view[:, ::-1], view)
        view = crop(image)
        return to_contract(jnp.where(mirrored, view[:, ::-1], view), contract, mean)

    return jax.vmap(one)(images, keys)


def evaluation_view(images: jax.Array, contract: InputSpec, mean_image: jax.Array) -> jax.Array:
    """The central crop of each image in the input contract.

    Args:
      images: (N, S, S, 3), uint8.
      contract: the network's input contract.
      mean_image: (S, S, 3), float32, on 0 to 255 in RGB.

    Returns:
      (N, size, size, 3), float32.
    """
    mean = None if contract.mean_image is None else centre_crop(mean_image, contract.size)
    return to_contract(centre_crop(images, contract.size), contract, mean)
