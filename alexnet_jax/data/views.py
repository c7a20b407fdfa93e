"""What the network sees of an image, made on the device inside the step.

Every random choice follows from the row's own keys, and no product of matrices and
no sum in the compiler's order is in here, so the result is bit for bit the same in
every layout of devices.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax import keys as keys_of
from alexnet_jax.models.inputs import centre_crop, to_contract
from alexnet_jax.models.spec import InputSpec
from alexnet_jax.nn import checks

COLOUR_NOISES = ("paper", "source2012")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What training does to an image besides cropping it.

    Attributes:
      flip: mirror half of the images (Krizhevsky et al. 2012, section 4.1).
      colour_noise: None, or whose noise along the principal directions of the training
        pixels' colours, one draw of three normals an image: "paper" (section 4.1) or
        "source2012", which also divides what the network takes by 1.1 while the noise
        is on. `colour_directions` has the formulas.
      shared_draw: how many consecutive rows of the batch share a crop and a flip; 32 in
        the 2012 source. Colour noise stays a draw an image.

    Raises:
      ValueError: an unknown noise, or a draw that no image shares.
    """

    flip: bool = False
    colour_noise: str | None = None
    shared_draw: int = 1

    def __post_init__(self):
        if self.colour_noise is not None:
            checks.choice(self.colour_noise, "colour_noise", COLOUR_NOISES)
        if self.shared_draw < 1:
            raise ValueError(f"shared_draw must be at least 1, got {self.shared_draw}")

    @property
    def divisor(self) -> float:
        """What the network's input is divided by while the noise is on; never at test."""
        return 1.1 if self.colour_noise == "source2012" else 1.0


class ViewKeys(NamedTuple):
    """Keys of a batch, (N,) each; `view_keys` makes them.

    Attributes:
      place: for an image's crop and flip.
      colour: for its colour noise; None without.
    """

    place: jax.Array
    colour: jax.Array | None = None


def view_keys(seed: int, step: jax.Array, rows: jax.Array, augmentation: Augmentation) -> ViewKeys:
    """The keys of some rows of a step's batch.

    Args:
      seed: the run's seed.
      step: int32 scalar, the step's number; may be traced.
      rows: int32 (N,), the images' rows in the *global* batch of the step.
      augmentation: says which rows share a draw, and whether there is colour noise.
    """
    shared = rows if augmentation.shared_draw == 1 else rows // augmentation.shared_draw
    return ViewKeys(
        place=keys_of.for_step(seed, keys_of.Purpose.VIEW, step, shared),
        colour=keys_of.for_step(seed, keys_of.Purpose.COLOUR, step, rows) if augmentation.colour_noise else None,
    )


def colour_directions(kind: str, eigenvalues: np.ndarray, eigenvectors: np.ndarray) -> np.ndarray:
    """The three colours whose multiples by standard normals add up to an image's noise.

    With eigenvalues λ and eigenvectors p of the covariance of the training pixels:

    - "paper": Krizhevsky et al. 2012, section 4.1: Σ pᵢ αᵢ λᵢ with α ~ N(0, 0.1²). Its λ can
      only be that of pixels from 0 to 1, so direction i is 255 · 0.1 · λᵢ/255² · pᵢ.
    - "source2012": the 2012 source: 0.1 · √λᵢ · pᵢ.

    Args:
      kind: "paper" or "source2012".
      eigenvalues: (3,), of RGB on 0 to 255.
      eigenvectors: (3, 3), a column each.

    Returns:
      (3, 3), float32, a column each, on 0 to 255 in RGB.

    Raises:
      ValueError: an unknown kind.
    """
    checks.choice(kind, "colour_noise", COLOUR_NOISES)
    # The covariance of grey images has zeros among its eigenvalues, rounded to either side.
    variances = np.maximum(np.asarray(eigenvalues, np.float64), 0)
    lengths = 0.1 * (variances / 255 if kind == "paper" else np.sqrt(variances))
    return (np.asarray(eigenvectors, np.float64) * lengths[None, :]).astype(np.float32)


def _colour_noise(keys: jax.Array, directions: jax.Array) -> jax.Array:
    """What is added to every pixel of each image, (N, 3), on 0 to 255 in RGB."""
    normal = jax.vmap(lambda key: jax.random.normal(key, (3,), jnp.float32))(keys)
    # Multiplied and added one by one: a matrix product has other bits on two devices than on one.
    parts = normal.T[:, :, None] * directions.T[:, None, :]
    # In a loop, which XLA doesn't merge with what follows: it would draw an image's normals
    # again for each of its pixels, ten times the time of a view on a CPU.
    return lax.scan(lambda total, part: (total + part, None), parts[0], parts[1:])[0]


def training_view(
    images: jax.Array,
    keys: ViewKeys,
    contract: InputSpec,
    mean_image: jax.Array,
    augmentation: Augmentation,
    directions: jax.Array | np.ndarray | None = None,
    *,
    noise_on: jax.Array | bool = True,
) -> jax.Array:
    """A random crop of each image, changed as `augmentation` says, in the input contract.

    Krizhevsky et al. 2012, section 4.1. All offsets are equally likely, the last
    included (the 2012 source: 33 × 33 of them for 224 in 256). Colour noise is added to
    the crop's values of 0 to 255, the same to every pixel.

    Args:
      images: (N, S, S, 3), uint8.
      keys: from `view_keys`.
      contract: the network's input contract; `size` is the crop's.
      mean_image: (S, S, 3), float32, on 0 to 255 in RGB.
      augmentation: what is done.
      directions: (3, 3), float32, from `colour_directions`; None without colour noise.
      noise_on: boolean scalar, may be traced. False leaves out the colour noise and the
        division that belongs to it, as in the 2012 source's last epochs.

    Returns:
      (N, size, size, 3), float32.

    Raises:
      ValueError: colour noise without its directions or keys.
    """
    noise = None
    if augmentation.colour_noise is not None:
        if directions is None or keys.colour is None:
            raise ValueError(f"colour_noise={augmentation.colour_noise!r} needs directions and keys.colour")
        noise = jnp.where(noise_on, _colour_noise(keys.colour, jnp.asarray(directions, jnp.float32)), 0)

    def one(image: jax.Array, key: jax.Array, noise: jax.Array | None) -> jax.Array:
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
        mirrored = augmentation.flip & (jax.random.bits(flip_key, (), jnp.uint32) % 2 == 1)
        pixels = crop(image) if noise is None else crop(image).astype(jnp.float32) + noise[None, None, :]
        if contract.mean_image == "position":  # subtracted before the image is mirrored
            view = to_contract(pixels, contract, mean)
            return jnp.where(mirrored, view[:, ::-1], view)
        return to_contract(jnp.where(mirrored, pixels[:, ::-1], pixels), contract, mean)

    views = jax.vmap(one)(images, keys.place, noise)
    return views if augmentation.divisor == 1 else views / jnp.where(noise_on, jnp.float32(augmentation.divisor), 1)


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


def ten_crops(images: jax.Array, contract: InputSpec, mean_image: jax.Array) -> jax.Array:
    """Ten views of each image in the input contract, whose predictions are averaged at test.

    The corners at the top left, top right, bottom left and bottom right, the centre, and
    the mirror images of the five in the same order (Krizhevsky et al. 2012, section 4.1;
    the 2012 source: (0, 0), (0, 32), (32, 0), (32, 32), (16, 16) for 224 in 256).

    Args:
      images: (N, S, S, 3), uint8.
      contract: the network's input contract; `size` is the crops'. With `mean_image`
        "centre" the mean image's own central crop is subtracted from every crop, after
        its mirroring; with "position", what is subtracted is mirrored as well.
      mean_image: (S, S, 3), float32, on 0 to 255 in RGB.

    Returns:
      (N, 10, size, size, 3), float32.
    """
    size, room = contract.size, images.shape[-3] - contract.size
    places = [(0, 0), (0, room), (room, 0), (room, room), (room // 2, room // 2)]

    def crops(x: jax.Array) -> jax.Array:
        windows = [x[..., top : top + size, left : left + size, :] for top, left in places]
        return jnp.stack(windows, axis=-4)

    def mirrored_too(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, x[..., ::-1, :]], axis=-4)

    if contract.mean_image == "position":
        return mirrored_too(to_contract(crops(images), contract, crops(mean_image)))
    mean = None if contract.mean_image is None else centre_crop(mean_image, size)
    return to_contract(mirrored_too(crops(images)), contract, mean)
