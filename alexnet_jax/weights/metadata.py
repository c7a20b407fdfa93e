"""What travels with weights beside their values: spec, class names, preprocessing, provenance."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from alexnet_jax.models import ModelSpec
from alexnet_jax.weights.errors import WeightsError
from alexnet_jax.weights.layouts import shapes
from alexnet_jax.weights.source import LARGEST_FILE, Entry

FORMAT = "1"  # of the metadata
MEAN_IMAGE = "mean_image"  # the array's name in a file
_DEEPEST = 64  # layers of a network from a file
_LARGEST = 1 << 14  # pixels of an image's side


def preprocessing(spec: ModelSpec, *, layout: str, mean_image: bool) -> dict[str, Any]:
    """The input contract, for a program that knows nothing of this package.

    Args:
      spec: the network.
      layout: of the images, "NHWC" or "NCHW".
      mean_image: whether the mean image is in the file.
    """
    contract = spec.input
    first = {
        "shorter_side": f"scale the shorter side to {contract.resize} pixels (bilinear, antialiased), "
        f"take the central {contract.resize}×{contract.resize}",
        "warp": f"scale both sides to {contract.resize} pixels (bilinear, antialiased)",
    }[contract.resize_rule]
    steps = [first, f"take the central {contract.size}×{contract.size}"]
    if mean_image:
        steps.append("subtract the same part of the mean image (RGB, 0 to 255)")
    if contract.channel_order == "bgr":
        steps.append("reverse the channels to blue, green, red")
    if contract.scale != 255:
        steps.append(f"multiply by {contract.scale:g}/255")
    if not mean_image and any(contract.mean):
        steps.append(f"subtract {list(contract.mean)} from the channels")
    if set(contract.std) != {1.0}:
        steps.append(f"divide the channels by {list(contract.std)}")
    shape = (contract.size, contract.size)
    return {
        **dataclasses.asdict(contract),
        "layout": layout,
        "shape": ["N", *shape, 3] if layout == "NHWC" else ["N", 3, *shape],
        "dtype": "float32",
        "mean_image_included": mean_image,
        "steps": ["an image in RGB, 0 to 255", *steps],
    }


def metadata(
    spec: ModelSpec,
    num_classes: int,
    *,
    layout: str,
    classes: tuple[str, ...] | None,
    mean_image: bool,
    provenance: Mapping[str, Any],
) -> dict[str, str]:
    """The metadata by name; all but `alexnet_jax` (the format) and `variant` are JSON.

    Args:
      spec, layout, mean_image: as for `preprocessing`.
      num_classes: the width of the logits.
      classes: their names; left out where they are not known.
      provenance: where the weights come from, as plain data.
    """
    found: dict[str, Any] = {
        "spec": spec.to_dict(),
        "num_classes": num_classes,
        "preprocessing": preprocessing(spec, layout=layout, mean_image=mean_image),
        "provenance": dict(provenance),
    }
    if classes is not None:
        found["classes"] = classes
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in found.items()}
    return {"alexnet_jax": FORMAT, "variant": spec.name, **texts}


def read_spec(text: str) -> ModelSpec:
    """A spec from a file's metadata, which anybody may have written.

    Raises:
      WeightsError: it is none, or one that no memory would hold.
    """
    try:
        spec = ModelSpec.from_dict(json.loads(text))
        if len(spec.convs) + len(spec.dense) > _DEEPEST or spec.input.resize > _LARGEST:
            raise ValueError(f"more than {_DEEPEST} layers, or images of more than {_LARGEST} pixels")
        _check_types(ModelSpec, spec)
        if 4 * sum(math.prod(shape) for shape in shapes(spec, 1).values()) > LARGEST_FILE:
            raise ValueError("more parameters than a file of weights may have")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError, StopIteration) as error:
        raise WeightsError(
            f"the spec in its metadata can't be used ({' '.join(str(error).split())[:200]}): made by a newer version?"
        ) from None
    return spec


def read_classes(text: str) -> tuple[str, ...]:
    """Class names from a file's metadata.

    Raises:
      WeightsError: it is no list of texts.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise WeightsError("the classes in its metadata are no JSON list of names")
    return tuple(found)


def read_mean_image(entry: Entry) -> np.ndarray:
    """The mean image of a file, (R, R, 3), float32.

    Raises:
      WeightsError: it is no such array, or its values are not from 0 to 255.
    """
    if len(entry.shape) != 3 or entry.shape[0] != entry.shape[1] or entry.shape[2] != 3 or entry.dtype != "float32":
        raise WeightsError(f"its mean image is {entry.dtype} {entry.shape}, not float32 (R, R, 3)")
    found = entry.read()
    if not ((found >= 0) & (found <= 255)).all():
        raise WeightsError("its mean image has values that are not from 0 to 255: the file is damaged")
    return found


def _check_types(kind: Any, value: Any) -> None:
    """Refuses a value of another type than annotated; whole numbers pass for floating-point ones."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        choices = typing.get_args(kind)
        if value is None and types.NoneType in choices:
            return
        kinds = [choice for choice in choices if choice is not types.NoneType]
        kind = next((one for one in kinds if isinstance(value, typing.get_origin(one) or one)), kinds[0])
    origin = typing.get_origin(kind) or kind
    allowed = (int, float) if origin is float else (origin,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and origin is not bool):
        raise TypeError(f"{str(value)[:50]!r} should be of type {getattr(kind, '__name__', kind)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    if dataclasses.is_dataclass(origin):
        hints = typing.get_type_hints(origin)
        for field in dataclasses.fields(origin):
            _check_types(hints[field.name], getattr(value, field.name))
    elif origin is tuple:
        kinds = list(typing.get_args(kind))
        items: tuple[Any, ...] = tuple(typing.cast("Iterable[Any]", value))
        each = [kinds[0]] * len(items) if kinds[-1] is Ellipsis else kinds
        if len(each) != len(items):
            raise TypeError(f"{str(value)[:50]} should have {len(each)} values")
        for one, item in zip(each, items, strict=True):
            _check_types(one, item)
