"""Images, a mean image, contracts, and one view made in NumPy, for the tests of the views."""

from __future__ import annotations

import itertools

import numpy as np

from alexnet_jax.models.spec import InputSpec

COUNT, SIDE, SIZE = 12, 9, 6
MEAN_IMAGE = np.random.default_rng(5).uniform(80, 170, (SIDE, SIDE, 3)).astype(np.float32)
IMAGES = np.random.default_rng(6).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
CONTRACTS = {
    f"{mean_image} {order}": InputSpec(
        size=SIZE,
        resize=SIDE,
        channel_order=order,
        scale=scale,
        mean=tuple(np.multiply((0.1, 0.2, 0.3), scale)),
        std=(0.5, 1.0, 2.0),
        mean_image=mean_image,
    )
    for mean_image, order, scale in itertools.product((None, "centre", "position"), ("rgb", "bgr"), (255.0,))
} | {"unit scale": InputSpec(size=SIZE, resize=SIDE, scale=1.0, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))}


def reference(image, contract, top, left, mirrored) -> np.ndarray:
    """One view in float64."""
    window = np.s_[top : top + SIZE, left : left + SIZE]
    start = (SIDE - SIZE) // 2
    mean_image = {
        None: None,
        "centre": MEAN_IMAGE[start : start + SIZE, start : start + SIZE],
        "position": MEAN_IMAGE[window],
    }[contract.mean_image]
    if mirrored and contract.mean_image == "position":  # the mean image is mirrored with what it was taken from
        mean_image = mean_image[:, ::-1]
    crop = image[window].astype(np.float64)
    crop = crop[:, ::-1] if mirrored else crop
    if contract.channel_order == "bgr":
        crop = crop[..., ::-1]
        mean_image = None if mean_image is None else mean_image[..., ::-1]
    scale = contract.scale / 255
    mean = np.array(contract.mean) if mean_image is None else mean_image.astype(np.float64) * scale
    return (crop * scale - mean) / np.array(contract.std)


def found_choices(view, image, contract, flip):
    """All (top, left, mirrored) whose reference is the view."""
    room = range(SIDE - SIZE + 1)
    return [
        choice
        for choice in itertools.product(room, room, (False, True) if flip else (False,))
        if np.allclose(view, reference(image, contract, *choice), rtol=0, atol=1e-6 * contract.scale / 0.2)
    ]
