"""Weights to safetensors, by our names or PyTorch's."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from flax import nnx

from alexnet_jax.data.atomic import replacing
from alexnet_jax.models import ModelSpec, get_spec
from alexnet_jax.nn import checks
from alexnet_jax.weights.errors import WeightsError
from alexnet_jax.weights.layouts import TORCH_VARIANTS, Torch
from alexnet_jax.weights.loading import Weights
from alexnet_jax.weights.metadata import MEAN_IMAGE, metadata

NAMES = ("native", "torchvision")


def save_safetensors(
    weights: Weights,
    path: str | os.PathLike[str],
    *,
    names: str = "native",
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network to one safetensors file that `load_weights` reads without being told the variant.

    The metadata holds `variant`, and as JSON `spec`, `num_classes`, `classes`, `preprocessing` and
    `provenance`. Where the network subtracts a mean image that is known, it is the array
    `mean_image`, (R, R, 3), on 0 to 255 in RGB.

    Args:
      weights: from `open_weights`; or `Weights(model, …)` of any model.
      path: the file, which is replaced whole or not at all.
      names: "native" writes our names and layouts; "torchvision" torchvision's keys and PyTorch's
        layouts, for the networks that have them, so that `load_state_dict(strict=True)` takes it.
      provenance: where the weights come from, see `origin`.

    Raises:
      WeightsError: PyTorch's names for a network that does not have them.
      ValueError: unknown names.
    """
    spec = weights.model.spec
    if checks.choice(names, "names", NAMES) == "torchvision":
        check_torchvision(spec)
    arrays = as_torchvision(spec, parameters(weights)) if names == "torchvision" else parameters(weights)
    mean_image, texts = described(weights, "NCHW" if names == "torchvision" else "NHWC", provenance)
    if mean_image is not None:
        arrays[MEAN_IMAGE] = mean_image
    content = safetensors.numpy.save(arrays, texts)
    with replacing(pathlib.Path(path)) as partial:
        partial.write_bytes(content)


def described(
    weights: Weights, layout: str, provenance: Mapping[str, Any] | None
) -> tuple[np.ndarray | None, dict[str, str]]:
    """The mean image that goes with a network, if it is known, and the metadata of a file that holds both."""
    mean_image = known_mean_image(weights)
    texts = metadata(
        weights.model.spec,
        weights.model.num_classes,
        layout=layout,
        classes=weights.classes,
        mean_image=mean_image is not None,
        provenance=provenance or {},
    )
    return mean_image, texts


def check_torchvision(spec: ModelSpec) -> None:
    """Whether a network of PyTorch's computes the same under torchvision's names.

    Raises:
      WeightsError: it does not; the message says what is different.
    """
    for why, there in (
        ("norms", any(conv.norm or conv.map_norm for conv in spec.convs)),
        ("groups", spec.groups > 1),
        (f"{len(spec.convs)} convolutions", len(spec.convs) != 5),
        (f"{len(spec.dense)} hidden layers", len(spec.dense) != 2),
        (f"{spec.activation} instead of ReLU", spec.activation != "relu"),
        ("another form than torchvision's", not any(_alike(spec, name) for name in TORCH_VARIANTS)),
    ):
        if there:
            raise WeightsError(
                f"{spec.name} has {why}, and torchvision's network has not: PyTorch would compute something else. "
                f"--names torchvision is for {' and '.join(TORCH_VARIANTS)}; others go to ONNX or native safetensors"
            )


def _alike(spec: ModelSpec, name: str) -> bool:
    """Whether a network is a variant but for its widths, image size and what matters in training only."""

    def form(one: ModelSpec) -> Any:
        convs = [
            (c.kernel, c.stride, c.padding, c.round_up, c.pool, c.order if c.pool is not None else None)
            for c in one.convs
        ]
        scaled = one.dropout_form == "paper" and any(layer.dropout for layer in one.dense)  # at test
        return convs, one.adaptive_pool, scaled

    return form(spec) == form(get_spec(name))


def parameters(weights: Weights) -> dict[str, np.ndarray]:
    """The parameters in our names and layout, float32: "conv1.kernel" and so on."""
    tree = nnx.to_pure_dict(nnx.state(weights.model))
    return {
        f"{layer}.{leaf}": np.asarray(value, np.float32)
        for layer, leaves in tree.items()
        for leaf, value in leaves.items()
    }


def as_torchvision(spec: ModelSpec, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters by torchvision's names in PyTorch's layouts: the inverse of `layouts.Torch.ours`."""
    layout = Torch(spec)
    found = {}
    for name, value in params.items():
        theirs = value.transpose(3, 2, 0, 1) if value.ndim == 4 else channels_first(spec, name, value).T
        found[layout.name(name)] = np.ascontiguousarray(theirs)
    return found


def channels_first(spec: ModelSpec, name: str, value: np.ndarray) -> np.ndarray:
    """A parameter of ours with the rows of the first fully connected layer in the order channel, height, width."""
    first, *_ = [*spec.dense_names(), spec.head_name()]
    if name != f"{first}.kernel":
        return value
    maps = [stage.after for stage in spec.walk(1) if len(stage.after) == 3][-1]
    return value.reshape(*maps, -1).transpose(2, 0, 1, 3).reshape(value.shape)


def known_mean_image(weights: Weights) -> np.ndarray | None:
    """The mean image that the network subtracts; None where it subtracts none or it is not known."""
    contract = weights.model.spec.input
    if contract.mean_image is None or weights.mean_image is None:
        return None
    found = np.asarray(weights.mean_image, np.float32)
    return found if found.shape == (contract.resize, contract.resize, 3) else None


def origin(path: pathlib.Path, weights: Weights) -> dict[str, str]:
    """Where weights come from: the file's name and SHA-256, what it is, and who wrote this."""
    from alexnet_jax import __version__

    found = {"source": path.absolute().name, "kind": weights.kind, "written_by": f"alexnet-jax {__version__}"}
    if path.is_file():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for block in iter(functools.partial(file.read, 1 << 20), b""):
                digest.update(block)
        found["sha256"] = digest.hexdigest()
    return found
