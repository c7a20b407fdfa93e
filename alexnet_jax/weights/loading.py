"""load_weights: from a file or folder to a network that holds its weights."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alexnet_jax.models import AlexNet, ModelSpec, create_model, get_spec, list_models
from alexnet_jax.weights.caffe import read_mean
from alexnet_jax.weights.errors import WeightsError
from alexnet_jax.weights.files import open_source
from alexnet_jax.weights.layouts import (
    CAFFE_VARIANTS,
    TORCH_VARIANTS,
    Caffe,
    Native,
    Torch,
    layers,
    layout_of,
    shapes,
)
from alexnet_jax.weights.source import Source

_FLOATS = ("float64", "float32", "float16", "bfloat16")
_SHOWN = 100  # of the names that nobody expects


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network with loaded weights, and what was and was not loaded.

    Attributes:
      model: the network, parameters in float32.
      kind: what the file is, in words.
      loaded: the layers that hold the file's weights.
      fresh: the layers that start from `rngs`, each with the reason; only with partial=True.
      unused: the names of the file's arrays that no layer took; only with partial=True.
      classes: the classes' names in the order of the logits, where the file gives them for this head.
      mean_image: (R, R, 3), float32, on 0 to 255 in RGB, where the file gives it.
    """

    model: AlexNet
    kind: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    mean_image: np.ndarray | None = None

    def lines(self) -> tuple[tuple[str, str], ...]:
        """What a program says of them: a heading and its words, a line each."""
        found = [("loaded", f"{', '.join(self.loaded)} ({self.kind})"), ("afresh", ", ".join(self.fresh) or "nothing")]
        return (*found, *([("not used", _listed(self.unused))] if self.unused else []))


def load_weights(
    path: str | os.PathLike[str],
    *,
    variant: str | ModelSpec | None = None,
    num_classes: int | None = None,
    partial: bool = False,
    rngs: int | jax.Array | nnx.Rngs = 0,
    prototxt: str | os.PathLike[str] | None = None,
) -> AlexNet:
    """The network whose weights are in a file or in a training run's folder.

    Read are PyTorch's state dicts (`.pth`, `.pt`; the zip form and the one before PyTorch 1.6) of
    torchvision's `alexnet` and the half-width listing, alone or under "state_dict",
    "model_state_dict" or "model"; safetensors and Flax's MessagePack with PyTorch's names or ours;
    Caffe's `.caffemodel` of `bvlc_alexnet` and `caffenet`; this project's runs and checkpoints. What a
    file is, its bytes say, not its name. No file can run code, neither PyTorch nor Caffe is needed, and
    no more memory is reserved than the file's own size warrants.
    `alexnet_jax.weights.layouts` says how layouts are translated.

    Args:
      path: the file, or a run's folder (its best checkpoint is taken) or one checkpoint in that.
      variant: a name of `list_models`, or a spec, such as one for another image size. None takes
        what a run's checkpoint or safetensors metadata (`variant`) says, or the only variant whose
        names and shapes these are.
      num_classes: the width of the logits; None is that of the file's head, or 1000 if
        partial=True and its head can't be taken.
      partial: takes every layer that fits, kernel and bias, and starts the others from `rngs`:
        for files of convolutions alone, or for other classes. What was loaded is logged at level INFO to
        "alexnet_jax.weights"; `alexnet_jax.weights.open_weights` returns it.
      rngs: a seed, a key or `nnx.Rngs` for what starts afresh.
      prototxt: Caffe's description of the network (`deploy.prototxt`), for a `.caffemodel` that has
        none in itself. It must agree with what the `.caffemodel` says.

    Returns:
      The model, its parameters in float32 whatever the file's floating-point type.

    Raises:
      WeightsError: no such file, an unknown or broken one; a variant that can't be told (the
        candidates are named) or is not the file's; and, all in one message, layers that a Caffe file
        describes otherwise (which partial=True only logs), missing, unexpected and misshapen arrays,
        and those whose values are not floating-point, or not finite in float32.
      CheckpointError: a run's folder without a checkpoint that can be used.
      ValueError: an unknown variant.
    """
    found = open_weights(path, variant=variant, num_classes=num_classes, partial=partial, rngs=rngs, prototxt=prototxt)
    for heading, words in found.lines():
        logging.getLogger("alexnet_jax.weights").info("%s: %s", heading, words)
    return found.model


def open_weights(
    path: str | os.PathLike[str],
    *,
    variant: str | ModelSpec | None = None,
    num_classes: int | None = None,
    partial: bool = False,
    rngs: int | jax.Array | nnx.Rngs = 0,
    prototxt: str | os.PathLike[str] | None = None,
    mean: str | os.PathLike[str] | None = None,
) -> Weights:
    """As `load_weights`, with what was and was not loaded, and what else the file gives.

    `mean` is Caffe's `mean.binaryproto`; `Weights.mean_image` is then its image, in this package's
    convention whatever the file's. The network must subtract one, of the size that its images are
    scaled to.
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if isinstance(variant, str):
        get_spec(variant)  # an unknown name is refused before any work
    place = pathlib.Path(path)
    image = None if mean is None else read_mean(pathlib.Path(mean))
    source = open_source(place, None if prototxt is None else pathlib.Path(prototxt))
    try:
        return _load(source, image, variant, num_classes, partial, rngs)
    except WeightsError as error:
        raise WeightsError(f"{place}: {error}") from None


def _load(
    source: Source,
    image: np.ndarray | None,
    variant: str | ModelSpec | None,
    num_classes: int | None,
    partial: bool,
    rngs: Any,
) -> Weights:
    layout = layout_of(list(source.entries))(_spec(source, variant))
    spec, head = layout.spec, layout.spec.head_name()
    side = spec.input.resize if spec.input.mean_image else None
    if image is not None and image.shape != (side, side, 3):
        raise WeightsError(
            f"the mean image has {_size(image.shape[:2])} pixels, and {spec.name} subtracts "
            + (f"one of {side}×{side}" if side else "a mean pixel: leave mean= out")
        )
    differences = source.differences(spec)
    classes = num_classes or _classes(source, layout) or 1000
    faults = _faults(source, layout, classes)
    if partial and num_classes is None and _of(head, faults):
        classes = 1000
    unclaimed = source.entries.keys() - {layout.name(name) for name in shapes(spec, classes)}
    if not partial and (differences or faults or unclaimed):
        raise WeightsError(_refusal(spec, differences, faults, unclaimed))

    fresh = {layer: reason for layer in layers(spec) if (reason := "; ".join(_of(layer, faults)))}
    taken = [layer for layer in layers(spec) if layer not in fresh]
    if not taken:
        raise WeightsError(f"no layer of {spec.name} can be taken: {_refusal(spec, differences, faults, unclaimed)}")
    if source.classes is not None and head in taken and len(source.classes) != classes:
        raise WeightsError(f"it has {len(source.classes):,} class names for {classes:,} classes: it is damaged")
    params: dict[str, dict[str, jax.Array]] = {layer: {} for layer in taken}
    broken = {}
    for name in shapes(spec, classes):
        layer, _, leaf = name.partition(".")
        if layer in fresh:
            continue
        entry = source.entries[layout.name(name)]
        with np.errstate(over="ignore", invalid="ignore"):
            value = layout.ours(name, entry.read()).astype(np.float32)
        if not np.isfinite(value).all():
            broken[name] = f"{layout.name(name)} has {np.sum(~np.isfinite(value)):,} values that are not finite"
        params[layer][leaf] = jnp.asarray(value)
    if broken:
        raise WeightsError(f"{'; '.join(broken.values())}: they are of a run that diverged, or damaged")

    def create() -> AlexNet:
        return create_model(spec, num_classes=classes, rngs=rngs)

    model = create() if fresh else nnx.eval_shape(lambda: create_model(spec, num_classes=classes))
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, {**nnx.to_pure_dict(state), **params})
    used = {layout.name(f"{layer}.{leaf}") for layer in taken for leaf in ("kernel", "bias")}
    return Weights(
        nnx.merge(graph, state),
        "; ".join([source.kind, *differences]),
        tuple(taken),
        tuple(f"{layer} ({reason})" for layer, reason in fresh.items()),
        tuple(sorted(source.entries.keys() - used)),
        source.classes if head in taken else None,
        source.mean_image if image is None else image,
    )


def _spec(source: Source, variant: str | ModelSpec | None) -> ModelSpec:
    """The network to load into: what the caller says, what the file says, or what its shapes say."""
    if isinstance(variant, ModelSpec):
        return variant
    said = source.spec.name if source.spec is not None else source.variant
    if said is not None and variant is not None and variant != said:
        raise WeightsError(f"it says that it is {said!r}, not {variant!r}: leave variant out, or give that one")
    if source.spec is not None:
        return source.spec
    if variant is not None:
        return get_spec(variant)
    if said is not None:
        if said not in list_models():
            raise WeightsError(f"its metadata names the variant {said[:100]!r}, which there is not: give variant=")
        return get_spec(said)
    kind = layout_of(list(source.entries))
    fits = {}
    for name in TORCH_VARIANTS if kind is Torch else CAFFE_VARIANTS if kind is Caffe else list_models():
        layout = kind(get_spec(name))
        expected = shapes(layout.spec, _classes(source, layout) or 1000)
        faults = _faults(source, layout, _classes(source, layout) or 1000)
        fits[name] = len(expected) - len(faults), -len(source.differences(layout.spec))
    best = [name for name, count in fits.items() if count == max(fits.values())]
    if not max(fits.values())[0]:
        raise WeightsError(
            f"none of its arrays ({_listed(source.entries)}) is one of an AlexNet's: "
            "give variant= to see what is expected"
        )
    if len(best) > 1:
        raise WeightsError(f"its names and shapes are those of {', '.join(best)} alike: say which with variant=")
    return get_spec(best[0])


def _classes(source: Source, layout: Native) -> int | None:
    """The classes of the file's head; None where it has none."""
    entry = source.entries.get(layout.name(f"{layout.spec.head_name()}.bias"))
    return entry.shape[0] if entry is not None and len(entry.shape) == 1 and entry.shape[0] else None


def _faults(source: Source, layout: Native, num_classes: int) -> dict[str, str]:
    """What is wrong with the file's arrays, by our names: before any value is read."""
    found = {}
    for name, shape in shapes(layout.spec, num_classes).items():
        theirs, expected = layout.name(name), layout.shape(shape)
        entry = source.entries.get(theirs)
        if entry is None:
            found[name] = f"{theirs} is missing"
        elif entry.shape != expected:
            found[name] = f"{theirs} is {_size(entry.shape)}, not {_size(expected)}"
        elif entry.dtype not in _FLOATS:
            found[name] = f"{theirs} is of type {entry.dtype}, not floating-point"
    return found


def _of(layer: str, faults: dict[str, str]) -> list[str]:
    return [fault for name, fault in faults.items() if name.partition(".")[0] == layer]


def _refusal(spec: ModelSpec, differences: list[str], faults: dict[str, str], unclaimed: Iterable[str]) -> str:
    """Everything that is wrong, in one line."""
    lines = [*differences, *faults.values(), *([f"not expected: {_listed(unclaimed)}"] if unclaimed else [])]
    return f"as {spec.name}, {'; '.join(lines)}. Give another variant=, or partial=True to take the layers that fit"


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:100] if name.isprintable() else repr(name[:100]) for name in names[:_SHOWN]) + more
