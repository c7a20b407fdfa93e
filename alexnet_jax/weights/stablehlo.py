"""A network as StableHLO, by `jax.export`: to be run by a program that has JAX and nothing of ours."""

from __future__ import annotations

import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from alexnet_jax.data.atomic import replacing
from alexnet_jax.weights.loading import Weights
from alexnet_jax.weights.metadata import MEAN_IMAGE
from alexnet_jax.weights.saving import described

PLATFORMS = ("cpu", "cuda")
MODEL, METADATA = "model.stablehlo", "metadata.json"  # names in the archive


def save_stablehlo(
    weights: Weights, path: str | os.PathLike[str], *, provenance: Mapping[str, Any] | None = None
) -> None:
    """Writes a network, its weights within, as an exported computation for CPU and CUDA, free in the batch.

    The file is a zip archive, not compressed, of `model.stablehlo` (what `jax.export.deserialize`
    takes: (N, size, size, 3) float32 in the input contract to logits (N, num_classes), in true
    float32 also on a GPU), `metadata.json` (as in `save_safetensors`, as JSON throughout) and, where it
    is known, `mean_image.npy`.

    Args:
      weights: as for `save_safetensors`.
      path: the file, which is replaced whole or not at all.
      provenance: as for `save_safetensors`.
    """
    spec = weights.model.spec
    model = nnx.merge(*nnx.split(weights.model))  # another object: the caller's keeps its forms
    model.forms = "reference"  # the others refuse a batch of unknown size
    images = jax.ShapeDtypeStruct(export.symbolic_shape(f"n, {spec.input.size}, {spec.input.size}, 3"), jnp.float32)
    with jax.default_matmul_precision("float32"):
        exported = export.export(jax.jit(lambda images: model(images)), platforms=PLATFORMS)(images)
    origin = {**(provenance or {}), "jax": jax.__version__, "platforms": PLATFORMS}
    mean_image, texts = described(weights, "NHWC", origin)
    about = {name: text if name in ("variant", "alexnet_jax") else json.loads(text) for name, text in texts.items()}
    with (
        replacing(pathlib.Path(path)) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
    ):
        _write(archive, MODEL, bytes(exported.serialize()))
        _write(archive, METADATA, json.dumps(about, indent=1, ensure_ascii=False).encode())
        if mean_image is not None:
            buffer = io.BytesIO()
            np.save(buffer, mean_image)
            _write(archive, f"{MEAN_IMAGE}.npy", buffer.getvalue())


def _write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Dated at zip's zero, so that the same weights give the same bytes."""
    archive.writestr(zipfile.ZipInfo(name), content)
