"""A network small enough to be worked out in NumPy's float64, and that working out."""

from __future__ import annotations

import pathlib

import numpy as np

from alexnet_jax.data.prepared import Split
from alexnet_jax.models import InputSpec, ModelSpec
from alexnet_jax.models.spec import ConvSpec
from alexnet_jax.trained import Trained

SIDE, SIZE = 11, 8  # of the images, of the crops
ROOM = SIDE - SIZE
PLACES = [(0, 0), (0, ROOM), (ROOM, 0), (ROOM, ROOM), (ROOM // 2, ROOM // 2)]
CONTRACTS = {
    "centre": InputSpec(size=SIZE, resize=SIDE, mean_image="centre"),
    "position": InputSpec(size=SIZE, resize=SIDE, mean_image="position", channel_order="bgr"),
    "pixel": InputSpec(size=SIZE, resize=SIDE, scale=1.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
}


def network(contract: str = "centre", *, classes: int = 7, seed: int = 0, sharpness: float = 1.0) -> Trained:
    """One 3×3 convolution of stride 2 with ReLU, and a linear layer, with random parameters."""
    draw = np.random.default_rng(seed)
    spec = ModelSpec("small", CONTRACTS[contract], (ConvSpec(4, 3, stride=2),), ())
    scale = 1 / 400 if CONTRACTS[contract].scale == 255 else 1 / 10
    params = {
        "conv1": {"kernel": draw.standard_normal((3, 3, 3, 4)) * scale, "bias": draw.standard_normal(4) / 4},
        "fc2": {"kernel": draw.standard_normal((36, classes)) * sharpness, "bias": draw.standard_normal(classes)},
    }
    params = {name: {key: x.astype(np.float32) for key, x in layer.items()} for name, layer in params.items()}
    mean_image = draw.uniform(90, 160, (SIDE, SIDE, 3)).astype(np.float32)
    names = tuple(f"class {label}" for label in range(classes))
    return Trained(pathlib.Path(f"run{seed}"), 1, "as given", spec, names, params, mean_image, {}, None)


def images_of(count: int, classes: int = 7, seed: int = 9) -> Split:
    """So many images of noise."""
    draw = np.random.default_rng([seed, count])
    return Split(
        draw.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8), draw.integers(0, classes, count).astype(np.int32)
    )


def logits(one: Trained, image: np.ndarray, place: tuple[int, int], mirrored: bool) -> np.ndarray:
    """The scores of one window of one image, in float64 and in loops."""
    contract = one.spec.input
    top, left = place
    window = image[top : top + SIZE, left : left + SIZE].astype(np.float64)
    mean = np.asarray(one.mean_image, np.float64)
    if contract.mean_image == "position":
        view = window - mean[top : top + SIZE, left : left + SIZE]
        view = view[:, ::-1] if mirrored else view
    else:
        view = window[:, ::-1] if mirrored else window
        if contract.mean_image == "centre":
            view = view - mean[ROOM // 2 : ROOM // 2 + SIZE, ROOM // 2 : ROOM // 2 + SIZE]
    view = view[..., ::-1] if contract.channel_order == "bgr" else view
    if contract.mean_image is None:
        view = (view * contract.scale / 255 - np.array(contract.mean)) / np.array(contract.std)
    kernel, bias = (np.asarray(one.params["conv1"][key], np.float64) for key in ("kernel", "bias"))
    hidden = np.empty((3, 3, 4))
    for row in range(3):
        for column in range(3):
            part = view[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            hidden[row, column] = np.einsum("ijc,ijck->k", part, kernel) + bias
    kernel, bias = (np.asarray(one.params["fc2"][key], np.float64) for key in ("kernel", "bias"))
    return np.maximum(hidden, 0).reshape(-1) @ kernel + bias


def probabilities(networks, split: Split, crops: str) -> np.ndarray:
    """Softmaxes averaged over views and networks, float64 (N, C)."""
    views = [(place, mirrored) for mirrored in (False, True) for place in PLACES]
    views = views if crops == "ten" else [(PLACES[-1], False)]
    found = []
    for image in split.images:
        each = [logits(one, image, *view) for one in networks for view in views]
        softmaxes = [np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in each]
        found.append(np.mean(softmaxes, axis=0))
    return np.array(found)


def expected(networks, split: Split, crops: str = "centre") -> dict:
    """Loss and errors by their definitions; the scores have no ties."""
    table = probabilities(networks, split, crops)
    own = table[np.arange(len(split)), split.labels]
    rank = (table > own[:, None]).sum(1)
    return {
        "loss": -np.log(own).mean(),
        "top1_error": 100 * (rank >= 1).mean(),
        "top5_error": 100 * (rank >= 5).mean() if table.shape[1] > 5 else None,
        "predicted": table.argmax(1),
    }
