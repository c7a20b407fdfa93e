"""Whose names and layouts a file's arrays have, and the way to ours.

Ours: `convN.kernel` (k, k, C/groups, K), `fcN.kernel` (in, out), `bias` (out,), images NHWC, so
that fc6 sees its maps flattened in the order height, width, channel.

PyTorch's, in torchvision's `alexnet` and the half-width listing alike: `features.I.weight`
(K, C/groups, k, k), `classifier.I.weight` (out, in), with I the layer's place in its `Sequential`,
images NCHW. So:

- a convolution's kernel OIHW becomes HWIO: transposed (2, 3, 1, 0). Groups need nothing more:
  in both, kernel o belongs to group o // (K / groups), and I counts the channels of one group;
- a matrix (out, in) becomes (in, out);
- fc6's inputs go from the order channel, height, width to height, width, channel;
- biases stay. These networks have no LRN, whose α would have to be translated.

Caffe's, in `bvlc_alexnet` and `caffenet`: `convN[0]` (K, C/groups, k, k), `fcN[0]` (out, in), biases
`convN[1]` and `fcN[1]`, images NCHW: the same steps as from PyTorch. Besides:

- images are BGR, and so are these variants' (`InputSpec.channel_order`), whose kernels stay. For a
  spec that takes RGB, the channels of conv1's kernel are turned round;
- Caffe divides LRN's α by the window's size, and so do these variants (`NormSpec.alpha_per`), whose
  norms run across both groups. No weight depends on it.
"""

from __future__ import annotations

import math

import numpy as np

from alexnet_jax.models import ModelSpec
from alexnet_jax.weights.errors import WeightsError

_FEATURES, _CLASSIFIER = (0, 3, 6, 8, 10), (1, 4, 6)
# The variants whose published weights have PyTorch's names.
TORCH_VARIANTS = ("torchvision", "half")
# Those whose published weights have Caffe's.
CAFFE_VARIANTS = ("bvlc_alexnet", "caffenet")


def layers(spec: ModelSpec) -> list[str]:
    """The layers that have parameters, in the order of the computation."""
    return [*spec.conv_names(), *spec.dense_names(), spec.head_name()]


def shapes(spec: ModelSpec, num_classes: int) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a network in our layout, by name: "conv1.kernel", "conv1.bias", …"""
    before = {stage.name: stage.before for stage in spec.walk(num_classes)}
    found: dict[str, tuple[int, ...]] = {}
    for name, conv in zip(spec.conv_names(), spec.convs, strict=True):
        found[f"{name}.kernel"] = (conv.kernel, conv.kernel, before[f"{name}.pre"][-1] // conv.groups, conv.features)
        found[f"{name}.bias"] = (conv.features,)
    widths = [*(layer.features for layer in spec.dense), num_classes]
    for name, stage, width in zip(
        [*spec.dense_names(), spec.head_name()],
        [*(f"{name}.pre" for name in spec.dense_names()), "logits"],
        widths,
        strict=True,
    ):
        found[f"{name}.kernel"] = (math.prod(before[stage]), width)
        found[f"{name}.bias"] = (width,)
    return found


class Native:
    """Our own names and layout."""

    kind = "this project's"

    def __init__(self, spec: ModelSpec):
        self.spec = spec

    def name(self, ours: str) -> str:
        """The file's name of a parameter."""
        return ours

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The file's shape of a parameter of ours."""
        return shape

    def ours(self, name: str, value: np.ndarray) -> np.ndarray:
        """The file's values in our layout; `name` is ours."""
        return value


class _ChannelsFirst(Native):
    """The layout that PyTorch and Caffe share; the module's docstring has the rules."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]

    def ours(self, name: str, value: np.ndarray) -> np.ndarray:
        if value.ndim == 4:
            return value.transpose(2, 3, 1, 0)
        # The first layer that sees maps; it is the head where there are no hidden ones.
        first = [*self.spec.dense_names(), self.spec.head_name()][0]
        if name == f"{first}.kernel":
            stage = f"{first}.pre" if self.spec.dense else "logits"
            height, width, channels = next(place.before for place in self.spec.walk(1) if place.name == stage)
            return value.reshape(-1, channels, height, width).transpose(2, 3, 1, 0).reshape(value.shape[::-1])
        return value.T


class Torch(_ChannelsFirst):
    """PyTorch's names and layout."""

    kind = "PyTorch's"

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        if (len(spec.convs), len(spec.dense)) != (len(_FEATURES), len(_CLASSIFIER) - 1):
            raise WeightsError(f"PyTorch's names are known for five convolutions and three others, not for {spec.name}")
        places = [*(f"features.{i}" for i in _FEATURES), *(f"classifier.{i}" for i in _CLASSIFIER)]
        self.places = dict(zip(layers(spec), places, strict=True))

    def name(self, ours: str) -> str:
        layer, _, leaf = ours.partition(".")
        return f"{self.places[layer]}.{'weight' if leaf == 'kernel' else 'bias'}"


class Caffe(_ChannelsFirst):
    """Caffe's names, as in its `net.params`, and its layout."""

    kind = "Caffe's"

    def name(self, ours: str) -> str:
        layer, _, leaf = ours.partition(".")
        return f"{layer}[{0 if leaf == 'kernel' else 1}]"

    def ours(self, name: str, value: np.ndarray) -> np.ndarray:
        found = super().ours(name, value)
        if name == f"{self.spec.conv_names()[0]}.kernel" and self.spec.input.channel_order == "rgb":
            return found[:, :, ::-1]
        return found


def layout_of(names: list[str]) -> type[Native]:
    """Whose names a file has."""
    if any(name.startswith(("features.", "classifier.")) for name in names):
        return Torch
    return Caffe if any(name.endswith("[0]") for name in names) else Native
