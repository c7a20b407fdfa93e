"""A network as plain frozen data, and its size arithmetic.

Everything that differs between one AlexNet and another is a field here: a variant
is made from another by `dataclasses.replace` or the `with_…` methods below, never
by new code. The class that runs a spec is in `alexnet.py`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, NamedTuple

from alexnet_jax.nn import Init, checks, output_size
from alexnet_jax.nn.windows import Padding, as_pair

ACTIVATIONS = ("relu", "tanh", "sigmoid", "identity")
STAGES = ("activation", "norm", "map_norm", "pool")
NORMAL = Init("normal", 0.01)
ZERO = Init("constant", 0.0)


def _at_least(value: float, low: float, name: str) -> None:
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def _above(value: float, low: float, name: str) -> None:
    if value <= low:
        raise ValueError(f"{name} must be more than {low}, got {value}")


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The input contract: what the model's images must be.

    Attributes:
      size: pixels of the square image that the network takes (the crop).
      resize: pixels to which an image is scaled before the crop.
      resize_rule: "shorter_side" scales the shorter side to `resize` and takes the
        central square (the paper); "warp" scales both sides to `resize` (Caffe).
      channel_order: "rgb" or "bgr".
      scale: the largest pixel value, 255 or 1.
      mean: subtracted from each channel, on that scale and in that channel order,
        where no mean image is at hand.
      std: each channel is divided by it, after the mean.
      mean_image: None subtracts `mean`; "centre" subtracts the central crop of the
        training set's mean image from every crop (the 2012 source); "position"
        subtracts the mean image at the crop's position (Caffe).
    """

    size: int = 224
    resize: int = 256
    resize_rule: str = "shorter_side"
    channel_order: str = "rgb"
    scale: float = 255.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    mean_image: str | None = None

    def __post_init__(self):
        _at_least(self.size, 1, "input.size")
        _above(self.scale, 0, "input.scale")
        if self.resize < self.size:
            raise ValueError(f"input.resize must be at least the crop's {self.size} pixels, got {self.resize}")
        _above(min(self.std), 0, "each of input.std")
        checks.choice(self.resize_rule, "input.resize_rule", ("shorter_side", "warp"))
        checks.choice(self.channel_order, "input.channel_order", ("rgb", "bgr"))
        if self.mean_image is not None:
            checks.choice(self.mean_image, "input.mean_image", ("centre", "position"))

    def at_size(self, size: int) -> InputSpec:
        """The same contract for another crop; the size before the crop keeps its ratio."""
        return dataclasses.replace(self, size=size, resize=max(size, round(self.resize * size / self.size)))


@dataclasses.dataclass(frozen=True)
class NormSpec:
    """Local response normalisation across maps; the fields of `nn.local_response_norm`."""

    size: int | None = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    alpha_per: str = "term"
    groups: int = 1

    def __post_init__(self):
        if self.size is not None:
            _at_least(self.size, 1, "norm.size")
        _at_least(self.groups, 1, "norm.groups")
        checks.choice(self.alpha_per, "norm.alpha_per", ("term", "window"))

    def seam(self) -> tuple[int, int]:
        """How many channels before its own, and after them, a tower needs where the norm crosses towers."""
        if self.size is None:
            raise ValueError("a norm over the whole width can't run in towers: give it a size, or groups")
        return self.size // 2, (self.size - 1) // 2


@dataclasses.dataclass(frozen=True)
class MapNormSpec:
    """Response normalisation within a map; the fields of `nn.within_map_response_norm`."""

    size: int = 5
    scale: float = 0.001
    beta: float = 0.75

    def __post_init__(self):
        _at_least(self.size, 1, "map_norm.size")
        _at_least(self.scale, 0, "map_norm.scale")


@dataclasses.dataclass(frozen=True)
class PoolSpec:
    """Pooling: `kind` "max" or "avg", `window` and `stride` in pixels, sizes rounded up or down."""

    kind: str = "max"
    window: int = 3
    stride: int = 2
    round_up: bool = True

    def __post_init__(self):
        checks.choice(self.kind, "pool.kind", ("max", "avg"))
        _at_least(self.window, 1, "pool.window")
        _at_least(self.stride, 1, "pool.stride")


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """One convolutional layer with what follows it.

    Attributes:
      features: kernels, over all groups.
      kernel: pixels of the kernel's side.
      stride: pixels between windows.
      padding: zeros around the input, as one number or (low, high).
      round_up: a last incomplete window counts (`nn.conv`).
      groups: how many towers the layer is split into; 1 sees all channels.
      order: in which order activation, norm, map_norm and pool follow the
        convolution; what is None is passed over.
      norm, map_norm, pool: these blocks, or None.
      kernel_init, bias_init: how the parameters start.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: Padding = 0
    round_up: bool = False
    groups: int = 1
    order: tuple[str, ...] = STAGES
    norm: NormSpec | None = None
    map_norm: MapNormSpec | None = None
    pool: PoolSpec | None = None
    kernel_init: Init = NORMAL
    bias_init: Init = ZERO

    def __post_init__(self):
        for name in ("features", "kernel", "stride", "groups"):
            _at_least(getattr(self, name), 1, f"a convolution's {name}")
        as_pair(self.padding)
        for name in self.order:
            checks.choice(name, "an entry of a convolution's order", STAGES)
        given = ["activation", *(name for name in STAGES[1:] if getattr(self, name) is not None)]
        missing = [name for name in given if name not in self.order]
        if missing or len(set(self.order)) != len(self.order):
            raise ValueError(f"a convolution's order must hold each of {given} once, got {self.order}")

    def following(self) -> tuple[str, ...]:
        """What follows the convolution, in order: the entries of `order` that are there."""
        return tuple(name for name in self.order if name == "activation" or getattr(self, name) is not None)


@dataclasses.dataclass(frozen=True)
class DenseSpec:
    """One hidden fully connected layer, with activation and dropout.

    Attributes:
      features: units.
      dropout: probability of dropping.
      dropout_at: "output" drops the layer's own units (the paper, Caffe), "input"
        what it sees (torchvision).
      kernel_init, bias_init: how the parameters start.
    """

    features: int = 4096
    dropout: float = 0.5
    dropout_at: str = "output"
    kernel_init: Init = NORMAL
    bias_init: Init = ZERO

    def __post_init__(self):
        _at_least(self.features, 1, "a fully connected layer's features")
        checks.choice(self.dropout_at, "dropout_at", ("input", "output"))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"a fully connected layer's dropout must be in [0, 1), got {self.dropout}")


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """The last linear layer; its width is the number of classes, given when a model is built."""

    kernel_init: Init = NORMAL
    bias_init: Init = ZERO


class Stage(NamedTuple):
    """A named point of the computation and one image's shapes before and after it."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A whole network. The layers are named by position: conv1 …, then fc6 …, then logits.

    Attributes:
      name: what to call it.
      input: the input contract.
      convs: the convolutional layers.
      dense: the hidden fully connected layers.
      head: the last linear layer.
      activation: "relu", "tanh", "sigmoid" or "identity", for the whole network.
      adaptive_pool: average pooling to that many bins before the first fully
        connected layer (torchvision), or None.
      dropout_form: "paper" or "inverted", see `nn.dropout`.
    """

    name: str
    input: InputSpec
    convs: tuple[ConvSpec, ...]
    dense: tuple[DenseSpec, ...]
    head: HeadSpec = HeadSpec()
    activation: str = "relu"
    adaptive_pool: int | None = None
    dropout_form: str = "paper"

    def __post_init__(self):
        checks.choice(self.activation, "activation", ACTIVATIONS)
        checks.choice(self.dropout_form, "dropout_form", ("paper", "inverted"))
        if self.adaptive_pool is not None:
            _at_least(self.adaptive_pool, 1, "adaptive_pool")
        if not self.convs:
            raise ValueError("a network needs at least one convolutional layer, got convs=()")

    @property
    def groups(self) -> int:
        """The number of towers: the most groups that a convolution has."""
        return max(conv.groups for conv in self.convs)

    def conv_names(self) -> tuple[str, ...]:
        """conv1, conv2, …"""
        return tuple(f"conv{i + 1}" for i in range(len(self.convs)))

    def dense_names(self) -> tuple[str, ...]:
        """The hidden fully connected layers' names: fc6, fc7 after five convolutions."""
        return tuple(f"fc{len(self.convs) + i + 1}" for i in range(len(self.dense)))

    def head_name(self) -> str:
        """The last layer's name, fc8 after five convolutions and two hidden layers."""
        return f"fc{len(self.convs) + len(self.dense) + 1}"

    def with_convs(self, **changes: Any) -> ModelSpec:
        """This spec with the fields changed in every convolutional layer."""
        return dataclasses.replace(self, convs=tuple(dataclasses.replace(conv, **changes) for conv in self.convs))

    def with_dense(self, **changes: Any) -> ModelSpec:
        """This spec with the fields changed in every hidden fully connected layer."""
        return dataclasses.replace(self, dense=tuple(dataclasses.replace(layer, **changes) for layer in self.dense))

    def with_layer(self, name: str, **changes: Any) -> ModelSpec:
        """This spec with the fields changed in one layer, named as in `stages`."""
        convs = dict(zip(self.conv_names(), self.convs, strict=True))
        dense = dict(zip(self.dense_names(), self.dense, strict=True))
        checks.choice(name, "the layer", [*convs, *dense, self.head_name()])
        if name == self.head_name():
            return dataclasses.replace(self, head=dataclasses.replace(self.head, **changes))
        layers: dict[str, Any] = convs if name in convs else dense
        layers[name] = dataclasses.replace(layers[name], **changes)
        return dataclasses.replace(self, convs=tuple(convs.values()), dense=tuple(dense.values()))

    def with_groups(self, groups: int) -> ModelSpec:
        """This spec with its grouped layers and norms in another number of groups."""
        convs = []
        for conv in self.convs:
            norm = conv.norm
            if norm is not None and norm.groups > 1:
                norm = dataclasses.replace(norm, groups=groups)
            convs.append(dataclasses.replace(conv, norm=norm, groups=groups if conv.groups > 1 else 1))
        return dataclasses.replace(self, convs=tuple(convs))

    def check_towers(self, towers: int) -> None:
        """Whether the network can be split over so many towers.

        Raises:
          ValueError: it has no such groups, or a layer whose channels they do not divide.
        """
        norms = [conv.norm.groups for conv in self.convs if conv.norm is not None]
        split = [groups for groups in [*(conv.groups for conv in self.convs), *norms] if groups > 1]
        if self.groups % towers or any(groups % towers for groups in split):
            raise ValueError(
                f"{self.name} has {self.groups} group(s) of kernels and can't be split over {towers} towers: "
                "every grouped layer and norm must divide by them"
            )
        widths = [layer.features for layer in self.convs] + [layer.features for layer in self.dense]
        for name, width in zip(self.conv_names() + self.dense_names(), widths, strict=True):
            if width % towers:
                raise ValueError(f"{name} has {width} channels, which {towers} towers do not divide")

    def walk(self, num_classes: int) -> list[Stage]:
        """Every stage in the order of the computation, with the shapes before and after it.

        Raises:
          ValueError: the layers do not fit together; the message names the layer.
        """
        found: list[Stage] = []
        now: tuple[int, ...] = (self.input.size, self.input.size, 3)

        def add(name: str, after: tuple[int, ...]) -> None:
            nonlocal now
            found.append(Stage(name, now, after))
            now = after

        for number, conv in enumerate(self.convs, 1):
            size, _, channels = now
            if channels % conv.groups or conv.features % conv.groups:
                raise ValueError(
                    f"conv{number}: {channels} input and {conv.features} output channels must both be divisible by "
                    f"its groups={conv.groups}: change features or groups"
                )
            if conv.norm is not None and conv.features % conv.norm.groups:
                raise ValueError(
                    f"norm{number}: {conv.features} channels are not divisible by its groups={conv.norm.groups}"
                )
            size = self._windows(f"conv{number}", size, conv.kernel, conv.stride, conv.padding, conv.round_up)
            add(f"conv{number}.pre", (size, size, conv.features))
            for stage in conv.following():
                if stage == "pool" and conv.pool is not None:
                    pool = conv.pool
                    size = self._windows(f"pool{number}", size, pool.window, pool.stride, 0, pool.round_up)
                label = {"activation": "conv{}", "norm": "norm{}", "map_norm": "norm{}.map", "pool": "pool{}"}
                add(label[stage].format(number), (size, size, conv.features))
        if self.adaptive_pool is not None:
            add("avgpool", (self.adaptive_pool, self.adaptive_pool, now[-1]))
        for name, dense in zip(self.dense_names(), self.dense, strict=True):
            add(f"{name}.pre", (dense.features,))
            add(name, (dense.features,))
        _at_least(num_classes, 1, "num_classes")
        add("logits", (num_classes,))
        return found

    def at_image_size(self, size: int) -> ModelSpec:
        """This spec for square images of another size.

        Raises:
          ValueError: a size below 1.
        """
        _at_least(size, 1, "image_size")
        return dataclasses.replace(self, input=self.input.at_size(size))

    def stages(self, num_classes: int) -> dict[str, tuple[int, ...]]:
        """Every stage's name and the shape of one image's activations there, in order."""
        return {stage.name: stage.after for stage in self.walk(num_classes)}

    def _windows(self, name: str, size: int, window: int, stride: int, padding: Padding, round_up: bool) -> int:
        try:
            return output_size(size, window, stride, padding, round_up=round_up)
        except ValueError as error:
            raise ValueError(
                f"{self.name}: images of {self.input.size} pixels are too small: {name}: {error}"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """As nested plain data that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`, also after a passage through JSON."""
        return _build(cls, data)


def _build(kind: Any, data: Any) -> Any:
    """`data` as an instance of the annotated type `kind`."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = set(data) - set(hints)
        if unknown:
            raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}; made by a newer version?")
        return kind(**{name: _build(hints[name], value) for name, value in data.items()})
    if isinstance(data, dict):  # a dataclass or None
        return _build(next(t for t in typing.get_args(kind) if t is not types.NoneType), data)
    if isinstance(data, (list, tuple)):
        item = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else Any
        return tuple(_build(item, value) for value in data)
    return data
