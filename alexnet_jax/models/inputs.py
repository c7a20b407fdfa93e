"""The input contract at work: from uint8 images to what a network takes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.spec import InputSpec
from alexnet_jax.nn import checks

RULES = ("shorter_side", "warp")  # how images become square


def resize(image: np.ndarray, size: int, rule: str = "shorter_side") -> np.ndarray:
    """One image as a square of `size` pixels, bilinear with antialiasing.

    Args:
      image: (H, W, 3), uint8.
      size: pixels of the result's sides.
      rule: "shorter_side" scales the shorter side to `size` and takes the central
        square (Krizhevsky et al. 2012, section 2); "warp" scales both sides (Caffe).

    Returns:
      (size, size, 3), uint8; `image` itself where it has the size already.
    """
    checks.choice(rule, "the resize rule", RULES)
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(scale(Image.fromarray(image), size, rule))


def scale(image: Image.Image, size: int, rule: str, extent: tuple[float, float] | None = None) -> Image.Image:
    """The scaling of `resize` on an image of Pillow's, in its own mode.

    Args:
      image: of a mode whose values may be averaged, such as "L" and "RGB".
      size: pixels of the result's sides.
      rule: as `resize` takes it.
      extent: width and height of the part at the upper left that holds the picture, not
        always whole numbers; None is all of it.

    Returns:
      An image of the same mode, size × size.
    """
    width, height = extent or image.size
    box: tuple[float, float, float, float] = (0, 0, width, height)
    if checks.choice(rule, "the resize rule", RULES) == "shorter_side":
        # Scaling, then cutting the centre, is scaling the central square: no full-size copy.
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def centre_crop(images: jax.Array, size: int) -> jax.Array:
    """The central size × size pixels of (..., H, W, C)."""
    top, left = (images.shape[-3] - size) // 2, (images.shape[-2] - size) // 2
    return images[..., top : top + size, left : left + size, :]


def to_contract(crops: jax.Array, contract: InputSpec, mean: jax.Array | None = None) -> jax.Array:
    """Crops of 0 to 255 in RGB as the network takes them.

    Args:
      crops: (..., size, size, 3), any dtype.
      contract: the input contract.
      mean: what to subtract, on 0 to 255 in RGB: (3,) or the mean image's crop
        (..., size, size, 3). None is the contract's own `mean`.

    Returns:
      The same shape, float32.
    """
    x = crops.astype(jnp.float32)
    if contract.channel_order == "bgr":
        x = x[..., ::-1]
        mean = None if mean is None else mean[..., ::-1]
    scale = contract.scale / 255
    shift = jnp.asarray(contract.mean, jnp.float32) if mean is None else mean * scale
    std = jnp.asarray(contract.std, jnp.float32)
    return (x * scale - _with_rank(shift, x.ndim)) / _with_rank(std, x.ndim)


def _with_rank(values: jax.Array, rank: int) -> jax.Array:
    return values.reshape((1,) * (rank - values.ndim) + values.shape)


def preprocess(
    images: np.ndarray | jax.Array | Sequence[np.ndarray],
    model: AlexNet,
    *,
    mean_image: np.ndarray | jax.Array | None = None,
) -> jax.Array:
    """Images as the model takes them at test: resized, cropped at the centre, normalised.

    Args:
      images: uint8 RGB, (N, H, W, 3), or (H, W, 3) for one, or a list of such images of
        any sizes.
      model: the model, whose `spec.input` is the contract.
      mean_image: the training set's mean image on 0 to 255 in RGB, (R, R, 3) with R the
        contract's `resize`, for the variants that subtract one. None subtracts the
        contract's mean pixel instead.

    Returns:
      (N, size, size, 3), float32.

    Raises:
      TypeError: images that are not uint8.
      ValueError: images that are not NHWC with three channels, or a mean image that the
        contract does not use or that has another size.
    """
    contract = model.spec.input
    if isinstance(images, (np.ndarray, jax.Array)) and images.ndim == 3:
        images = images[None]
    arrays = [np.asarray(image) for image in images]
    for image in arrays:
        if image.dtype != np.uint8:
            raise TypeError(f"preprocess takes uint8 images of 0 to 255, got {image.dtype}")
        if image.ndim != 3 or image.shape[-1] != 3:
            hint = ": use images.transpose(0, 2, 3, 1)" if image.ndim == 3 and image.shape[0] == 3 else ""
            raise ValueError(f"preprocess takes RGB images (H, W, 3), got one of shape {image.shape}{hint}")
    if not arrays:
        raise ValueError("preprocess got no images")
    mean = None
    if mean_image is not None:
        wanted = (contract.resize, contract.resize, 3)
        if contract.mean_image is None:
            raise ValueError(f"{model.spec.name} subtracts a mean pixel; mean_image must be None")
        if mean_image.shape != wanted:
            raise ValueError(f"mean_image must be {wanted}, got {mean_image.shape}")
        mean = centre_crop(jnp.asarray(mean_image, jnp.float32), contract.size)
    scaled = np.stack([resize(image, contract.resize, contract.resize_rule) for image in arrays])
    return to_contract(centre_crop(jnp.asarray(scaled), contract.size), contract, mean)
