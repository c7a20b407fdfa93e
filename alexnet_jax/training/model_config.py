"""The section `model` of a configuration: a variant, and what differs from it."""

from __future__ import annotations

import dataclasses

from alexnet_jax.models import INIT_SCHEMES, ModelSpec, list_models, with_init
from alexnet_jax.models.spec import ACTIVATIONS, ConvSpec
from alexnet_jax.nn import Init
from alexnet_jax.training.optimizer import multipliers
from alexnet_jax.training.schema import ConfigError, key, one_of, positive


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network: a named variant, and what differs from it."""

    name: str = one_of("paper", tuple(list_models()), "the variant to start from")
    width: float = key(
        0.5,
        "share of the variant's kernels, rounded to a multiple of its groups",
        allowed="more than 0",
        check=lambda value: value > 0,
    )
    hidden_width: float = key(
        0.25,
        "share of the variant's hidden fully connected units, rounded likewise",
        allowed="more than 0",
        check=lambda value: value > 0,
    )
    activation: str | None = one_of(None, ACTIVATIONS, "non-linearity; None: the variant's")
    lrn: bool = key(True, "keep the variant's response norms, across and within maps; False leaves them out")
    groups: int | None = positive(None, "groups of the grouped layers and norms; None: the variant's")
    dropout: float | None = key(
        None,
        "probability of dropping in the hidden fully connected layers; None: the variant's",
        allowed="from 0 to less than 1",
        check=lambda value: 0 <= value < 1,
    )
    init: str | None = one_of("source2012", INIT_SCHEMES, "initialisation; None: the variant's")
    pool_window: int | None = positive(
        None, "side of every pooling window; 2 does not overlap at the stride of 2; None: the variant's", unit="pixels"
    )
    padding: str = key("", "convolutions whose padding is another, such as 'conv2=1,conv5=0', in pixels on every side")
    sixth_conv: bool = key(
        False,
        "add the sixth convolution of the paper's last two networks on top of the last pool: 3×3, as many kernels as "
        "the layer below, seeing both towers; the fully connected layers become fc7, fc8, fc9",
    )


def changed(spec: ModelSpec, choice: ModelConfig) -> ModelSpec:
    """A variant's spec with what the section changes.

    Raises:
      ConfigError: a change that the variant can't take; names the key.
    """
    if choice.groups is not None:
        if spec.groups == 1 and choice.groups > 1:
            raise ConfigError(f"config.model.groups={choice.groups}: {spec.name} has no grouped layers to change")
        spec = spec.with_groups(choice.groups)
    if choice.sixth_conv:
        spec = _with_sixth(spec)
    spec = _with_width(spec, choice.width, choice.hidden_width)
    if choice.activation is not None:
        spec = dataclasses.replace(spec, activation=choice.activation)
    if not choice.lrn:
        spec = spec.with_convs(norm=None, map_norm=None)
    if choice.pool_window is not None:
        for name, conv in zip(spec.conv_names(), spec.convs, strict=True):
            if conv.pool is not None:
                spec = spec.with_layer(name, pool=dataclasses.replace(conv.pool, window=choice.pool_window))
    for name, pixels in multipliers("model.padding", choice.padding, spec.conv_names()).items():
        if not pixels.is_integer():
            raise ConfigError(f"config.model.padding={choice.padding!r}: {name} takes a whole number of pixels")
        spec = spec.with_layer(name, padding=int(pixels))
    if choice.dropout is not None:
        if not spec.dense:
            raise ConfigError(f"config.model.dropout={choice.dropout}: {spec.name} has no hidden layers to drop from")
        spec = spec.with_dense(dropout=choice.dropout)
    return spec if choice.init is None else with_init(spec, choice.init)


def _with_sixth(spec: ModelSpec) -> ModelSpec:
    """Krizhevsky et al. 2012, section 6; the layer's numbers are the 2012 source's (N(0, 0.03²), bias 1)."""
    if len(spec.convs) != 5:
        raise ConfigError(f"config.model.sixth_conv=True: {spec.name} has {len(spec.convs)} convolutions, not five")
    sixth = ConvSpec(
        spec.convs[-1].features,
        3,
        padding=1,
        kernel_init=Init("normal", 0.03),
        bias_init=Init("constant", 1.0),
    )
    return dataclasses.replace(spec, convs=(*spec.convs, sixth))


def _with_width(spec: ModelSpec, kernels: float, hidden: float) -> ModelSpec:
    """Shares of the layers' kernels and units, in multiples of the spec's groups."""

    def scaled(features: int, share: float) -> int:
        return features if share == 1 else max(1, round(features * share / spec.groups)) * spec.groups

    return dataclasses.replace(
        spec,
        convs=tuple(dataclasses.replace(conv, features=scaled(conv.features, kernels)) for conv in spec.convs),
        dense=tuple(dataclasses.replace(layer, features=scaled(layer.features, hidden)) for layer in spec.dense),
    )
