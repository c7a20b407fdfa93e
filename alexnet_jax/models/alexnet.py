"""One class that runs any spec, alone or as one tower of several."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from alexnet_jax import keys as keys_lib
from alexnet_jax.models.spec import ConvSpec, DenseSpec, HeadSpec, ModelSpec, NormSpec
from alexnet_jax.nn import (
    Conv,
    Linear,
    adaptive_avg_pool,
    avg_pool,
    checks,
    dropout,
    local_response_norm,
    max_pool,
    within_map_response_norm,
)
from alexnet_jax.nn.collectives import all_channels, with_neighbours
from alexnet_jax.nn.forms import fused, together
from alexnet_jax.nn.fused import STRIDE, WINDOW, fits, relu_norm_max_pool

_ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "identity": lambda x: x}


class AlexNet(nnx.Module):
    """The network that a `ModelSpec` describes.

    Parameters are `convN.kernel` (k, k, C/groups, K), `fcN.kernel` (in, out) and their
    `bias` (out,): output channels come last everywhere.

    Attributes:
      spec: the network as data; static.
      num_classes: the width of the logits; static.
      forms: "auto" or "reference", see `alexnet_jax.nn`; static, may be set later.
      tower_axis: None, or the name of a mapped axis under which the parameters are
        one tower's shard (a share of the output channels of every layer). The
        network then runs spec.groups / axis size groups, gathers activations where
        a layer sees both towers, and returns whole logits. Static, may be set later.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        num_classes: int = 1000,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        forms: str = "auto",
        tower_axis: str | None = None,
        rngs: nnx.Rngs,
    ):
        shapes = spec.stages(num_classes)  # refuses what does not fit together, before any work
        self.spec, self.num_classes = spec, num_classes
        self.forms, self.tower_axis, self.dtype = checks.forms_name(forms), tower_axis, dtype

        channels = 3
        for name, conv in zip(spec.conv_names(), spec.convs, strict=True):
            area = conv.kernel**2
            fans = {"fan_in": area * channels // conv.groups, "fan_out": area * conv.features}
            layer = Conv(
                channels,
                conv.features,
                conv.kernel,
                stride=conv.stride,
                padding=conv.padding,
                groups=conv.groups,
                round_up=conv.round_up,
                dtype=dtype,
                param_dtype=param_dtype,
                kernel_init=conv.kernel_init.initializer(**fans),
                bias_init=conv.bias_init.initializer(**fans),
                rngs=rngs,
            )
            setattr(self, name, layer)
            channels = conv.features

        features = _last_map(shapes)
        widths = [*(layer.features for layer in spec.dense), num_classes]
        linear: list[DenseSpec | HeadSpec] = [*spec.dense, spec.head]
        for name, width, dense in zip([*spec.dense_names(), spec.head_name()], widths, linear, strict=True):
            fans = {"fan_in": features, "fan_out": width}
            fully_connected = Linear(
                features,
                width,
                dtype=dtype,
                param_dtype=param_dtype,
                kernel_init=dense.kernel_init.initializer(**fans),
                bias_init=dense.bias_init.initializer(**fans),
                rngs=rngs,
            )
            setattr(self, name, fully_connected)
            features = width

    def __call__(
        self, images: jax.typing.ArrayLike, *, train: bool = False, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Class scores.

        Args:
          images: (N, size, size, 3), floating point, in the input contract
            `spec.input` (`alexnet_jax.preprocess` makes them from uint8).
          train: whether dropout drops.
          dropout_key: one key, from which one an image is derived, or N keys; needed
            with train=True.

        Returns:
          Logits (N, num_classes), in `dtype` or the promoted dtype of images and parameters.

        Raises:
          ValueError: images of another size or layout, or train=True without a key.
          TypeError: images that are not floating point.
        """
        return self._run(images, train, dropout_key)[0]

    def activations(
        self,
        images: jax.typing.ArrayLike,
        names: Iterable[str],
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Class scores and the activations of named stages.

        Args:
          images, train, dropout_key: as for a call.
          names: stages such as "conv1.pre", "conv1", "norm1", "pool1", "fc7", "logits";
            `spec.stages(num_classes)` lists them with their shapes.

        Returns:
          (logits, {name: array (N, …)}). Under a tower axis, a stage holds the tower's share.

        Raises:
          ValueError: an unknown name, and what a call raises.
        """
        names = (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            checks.choice(name, f"a stage of {self.spec.name}", self.spec.stages(self.num_classes))
        return self._run(images, train, dropout_key, names)

    def _run(
        self, images: jax.typing.ArrayLike, train: bool, dropout_key: jax.Array | None, names: Sequence[str] = ()
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits and the named stages."""
        h = self._checked(images)
        if self.tower_axis is not None:
            self.spec.check_towers(lax.axis_size(self.tower_axis))
        if train and dropout_key is None:
            raise ValueError("train=True needs a key for dropout: pass dropout_key=jax.random.key(0)")
        keys = keys_lib.per_image(dropout_key, h.shape[0]) if train and dropout_key is not None else None

        whole = train or self.tower_axis is not None or self.forms == "reference"
        few = h.shape[0] if whole else together(h)
        if few == h.shape[0]:
            h, found = self._convolutions(h, names)
        else:
            parts = h.reshape(-1, few, *h.shape[1:])
            made = lax.map(lambda part: self._convolutions(part, names), parts)
            h, found = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), made)
        h = h.reshape(h.shape[0], math.prod(h.shape[1:]))

        width = h.shape[-1]
        for index, (name, dense) in enumerate(zip(self.spec.dense_names(), self.spec.dense, strict=True)):
            drop = partial(self._dropout, rate=dense.dropout, keys=keys, layer=index, train=train)
            with jax.named_scope(name):
                h = all_channels(h, width, self.tower_axis)
                if dense.dropout_at == "input":
                    h = drop(h, width)
                h = found[f"{name}.pre"] = self._linear(name, h)
                h = found[name] = _ACTIVATIONS[self.spec.activation](h)
                width = dense.features
                if dense.dropout_at == "output":
                    h = drop(h, width)
        with jax.named_scope(self.spec.head_name()):
            h = self._linear(self.spec.head_name(), all_channels(h, width, self.tower_axis))
            logits = found["logits"] = all_channels(h, self.num_classes, self.tower_axis)
        return logits, {name: found[name] for name in names}

    def _convolutions(self, h: jax.Array, names: Sequence[str]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the first linear layer sees, as maps, and those of the named stages that come before it."""
        found: dict[str, jax.Array] = {}
        channels = 3
        for number, (name, layer) in enumerate(zip(self.spec.conv_names(), self.spec.convs, strict=True), 1):
            if layer.groups == 1:
                with jax.named_scope(name):
                    h = all_channels(h, channels, self.tower_axis)
            h = self._conv_block(number, name, layer, h, found, names)
            channels = layer.features
        h = all_channels(h, channels, self.tower_axis)
        if self.spec.adaptive_pool is not None:
            with jax.named_scope("avgpool"):
                h = found["avgpool"] = adaptive_avg_pool(h, self.spec.adaptive_pool)
        return h, {name: found[name] for name in names if name in found}

    def _conv_block(
        self,
        number: int,
        name: str,
        layer: ConvSpec,
        h: jax.Array,
        found: dict[str, jax.Array],
        names: Sequence[str],
    ) -> jax.Array:
        """Convolution `number` and what follows it; puts each stage into `found`, but for those that nobody sees."""
        if self._fused(number, name, layer, h, names):
            h = found[f"pool{number}"] = self._fused_block(number, name, layer, h)
            return h
        with jax.named_scope(name):
            h = getattr(self, name)(h, groups=self._local(layer.groups), forms=self.forms)
        found[f"{name}.pre"] = h
        for stage in layer.following():
            if stage == "activation":
                with jax.named_scope(name):
                    h = found[name] = _ACTIVATIONS[self.spec.activation](h)
            elif stage == "norm" and layer.norm is not None:
                with jax.named_scope(f"norm{number}"):
                    h = found[f"norm{number}"] = self._norm(layer.norm, h)
            elif stage == "map_norm" and layer.map_norm is not None:
                with jax.named_scope(f"norm{number}.map"):
                    h = within_map_response_norm(h, **dataclasses.asdict(layer.map_norm))
                    found[f"norm{number}.map"] = h
            elif stage == "pool" and layer.pool is not None:
                pool, options = layer.pool, dataclasses.asdict(layer.pool)
                options.pop("kind")
                with jax.named_scope(f"pool{number}"):
                    h = (max_pool if pool.kind == "max" else avg_pool)(h, **options, forms=self.forms)
                    found[f"pool{number}"] = h
        return h

    def _fused(self, number: int, name: str, layer: ConvSpec, h: jax.Array, names: Sequence[str]) -> bool:
        """Whether one kernel does all that follows a convolution: ReLU, perhaps a norm, max pooling."""
        between = {f"{name}.pre", name, f"norm{number}"}
        if self.forms == "reference" or not fused(h) or self.spec.activation != "relu" or between & set(names):
            return False
        if layer.following() not in (("activation", "norm", "pool"), ("activation", "pool")):
            return False
        if not isinstance(getattr(self, name), Conv):
            return False  # another in its place
        pool, norm = layer.pool, layer.norm
        if pool is None or (pool.kind, pool.window, pool.stride) != ("max", WINDOW, STRIDE):
            return False
        if norm is not None and norm.groups == 1 and self.tower_axis is not None:
            return False  # its windows reach into the other tower
        return fits(layer.features, None if norm is None else dataclasses.asdict(norm))

    def _fused_block(self, number: int, name: str, layer: ConvSpec, h: jax.Array) -> jax.Array:
        conv, norm = getattr(self, name), layer.norm
        assert layer.pool is not None
        with jax.named_scope(name):
            h = conv(h, groups=self._local(layer.groups), forms=self.forms, biased=False)
        options = None if norm is None else dataclasses.asdict(norm) | {"groups": self._local(norm.groups)}
        with jax.named_scope(f"pool{number}"):
            return relu_norm_max_pool(h, conv.bias[...], options, round_up=layer.pool.round_up)

    def _linear(self, name: str, h: jax.Array) -> jax.Array:
        layer = getattr(self, name)
        return layer(h, forms=self.forms) if isinstance(layer, Linear) else layer(h)  # another in its place

    def _norm(self, norm: NormSpec, h: jax.Array) -> jax.Array:
        options = dataclasses.asdict(norm) | {"forms": self.forms}
        if self.tower_axis is None or norm.groups > 1:
            return local_response_norm(h, **options | {"groups": self._local(norm.groups)})
        low, high = norm.seam()
        wide = local_response_norm(with_neighbours(h, low, high, self.tower_axis), **options)
        return wide[..., low : low + h.shape[-1]]

    def _dropout(
        self, h: jax.Array, width: int, *, rate: float, keys: jax.Array | None, layer: int, train: bool
    ) -> jax.Array:
        """One mask a tower of the spec, so that a device with one tower draws that one alone."""
        groups = self.spec.groups if width % self.spec.groups == 0 else 1
        first: int | jax.Array = 0
        if h.shape[-1] != width and self.tower_axis is not None:
            groups = self._local(groups)
            first = lax.axis_index(self.tower_axis) * groups
        keys = keys if keys is None else keys_lib.fold(keys, layer)
        return dropout(
            h, rate=rate, train=train, key=keys, form=self.spec.dropout_form, groups=groups, first_group=first
        )

    def _local(self, groups: int) -> int:
        """How many of a layer's groups run here: its share under a tower axis."""
        if self.tower_axis is None or groups == 1:
            return groups
        return groups // lax.axis_size(self.tower_axis)

    def _checked(self, images: jax.typing.ArrayLike) -> jax.Array:
        images = jnp.asarray(images)
        size = self.spec.input.size
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(
                f"{self.spec.name} takes floating-point images in its own input contract, got {images.dtype}: "
                "use alexnet_jax.preprocess(images, model)"
            )
        if images.ndim == 3 and images.shape[0] == 3 != images.shape[-1]:
            raise ValueError(
                f"images must be a batch (N, {size}, {size}, 3), got what looks like one CHW image, {images.shape}: "
                "use images.transpose(1, 2, 0)[None]"
            )
        if images.ndim == 3:
            raise ValueError(f"images must be a batch (N, {size}, {size}, 3), got {images.shape}: use images[None]")
        if images.ndim == 4 and images.shape[-1] != 3 and images.shape[1] == 3:
            raise ValueError(
                f"images must be NHWC, got what looks like NCHW, {images.shape}: use images.transpose(0, 2, 3, 1)"
            )
        if images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images must be (N, {size}, {size}, 3), got {images.shape}: use alexnet_jax.preprocess, "
                "or build the model with create_model(…, image_size=…)"
            )
        return images if self.dtype is None else images.astype(self.dtype)


def _last_map(shapes: dict[str, tuple[int, ...]]) -> int:
    """How many values the first fully connected layer sees."""
    return math.prod([shape for shape in shapes.values() if len(shape) == 3][-1])
