"""The named variants, as data.

Sources, cited by letter: P, Krizhevsky, Sutskever, Hinton, "ImageNet Classification
with Deep Convolutional Neural Networks", NIPS 2012; S, the 2012 source code that the
Computer History Museum released in 2025 (run 145); C, Caffe's `bvlc_alexnet` and
`bvlc_reference_caffenet`; T, torchvision's `alexnet`; B, the half-width PyTorch
listing of the note that began this project. `docs/variants.md` puts them side by side.
"""

from __future__ import annotations

import dataclasses

from alexnet_jax.models.spec import (
    NORMAL,
    ZERO,
    ConvSpec,
    DenseSpec,
    HeadSpec,
    InputSpec,
    MapNormSpec,
    ModelSpec,
    NormSpec,
    PoolSpec,
)
from alexnet_jax.nn import Init, checks

# The mean pixel of ILSVRC-2012's training set in RGB, as published with Caffe's models.
# It stands in for the mean image until a data set brings its own.
IMAGENET_MEAN = (122.67891434, 116.66876762, 104.00698793)
# CIFAR-10's mean pixel, on 0 to 255.
CIFAR_MEAN = (125.31, 122.95, 113.87)

_ONE = Init("constant", 1.0)
_TENTH = Init("constant", 0.1)
_NORM = NormSpec(groups=2)
_POOL = PoolSpec()

# P sections 3 and 5. P leaves the rounding of pool sizes and of conv1 open (they divide
# exactly at 224 with conv1's 3 pixels of padding); both are S's: round up.
PAPER = ModelSpec(
    name="paper",
    input=InputSpec(mean=IMAGENET_MEAN, mean_image="centre"),
    convs=(
        ConvSpec(96, 11, stride=4, round_up=True, norm=_NORM, pool=_POOL),
        ConvSpec(256, 5, padding=2, groups=2, norm=_NORM, pool=_POOL, bias_init=_ONE),
        ConvSpec(384, 3, padding=1),
        ConvSpec(384, 3, padding=1, groups=2, bias_init=_ONE),
        ConvSpec(256, 3, padding=1, groups=2, pool=_POOL, bias_init=_ONE),
    ),
    dense=(DenseSpec(bias_init=_ONE), DenseSpec(bias_init=_ONE)),
)


def _source2012() -> ModelSpec:
    """S: conv1's ReLU comes last, conv2 has a second norm, conv5 pools before its ReLU; 0.03 in conv3 to conv5."""
    norm = dataclasses.replace(_NORM, alpha_per="window")
    spec = dataclasses.replace(PAPER, name="source2012")
    spec = spec.with_layer("conv1", norm=norm, order=("norm", "pool", "activation"))
    spec = spec.with_layer("conv2", norm=norm, map_norm=MapNormSpec(size=5, scale=0.001, beta=0.75))
    spec = spec.with_layer("conv5", order=("pool", "activation"))
    for name in ("conv3", "conv4", "conv5"):
        spec = spec.with_layer(name, kernel_init=Init("normal", 0.03))
    return spec


def _one_tower() -> ModelSpec:
    """P section 3.2, footnote: half of the kernels, except in conv5 and the fully connected layers."""
    spec = dataclasses.replace(PAPER.with_groups(1), name="one_tower")
    for name, features in zip(spec.conv_names(), (48, 128, 192, 192, 256), strict=True):
        spec = spec.with_layer(name, features=features)
    return spec


def _torchvision() -> ModelSpec:
    """T: one column, no norms, dropout before fc6 and fc7, adaptive average pooling."""
    pool = PoolSpec(round_up=False)
    spec = ModelSpec(
        name="torchvision",
        input=InputSpec(scale=1.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        convs=(
            ConvSpec(64, 11, stride=4, padding=2, pool=pool),
            ConvSpec(192, 5, padding=2, pool=pool),
            ConvSpec(384, 3, padding=1),
            ConvSpec(256, 3, padding=1),
            ConvSpec(256, 3, padding=1, pool=pool),
        ),
        dense=(DenseSpec(dropout_at="input"), DenseSpec(dropout_at="input")),
        adaptive_pool=6,
        dropout_form="inverted",
    )
    return with_init(spec, "pytorch")


def _half() -> ModelSpec:
    """B: T's order of blocks with half of the paper's kernels. Its input contract is not given; T's is assumed."""
    spec = dataclasses.replace(_torchvision(), name="half", adaptive_pool=None)
    for name, features in zip(spec.conv_names(), (48, 128, 192, 192, 128), strict=True):
        spec = spec.with_layer(name, features=features)
    return spec.with_dense(features=2048)


def _bvlc_alexnet() -> ModelSpec:
    """C: 227 pixels, norms across both groups with α/n and k=1, biases 0.1."""
    blue, green, red = IMAGENET_MEAN[::-1]
    contract = InputSpec(
        size=227, resize_rule="warp", channel_order="bgr", mean=(blue, green, red), mean_image="position"
    )
    spec = dataclasses.replace(PAPER, name="bvlc_alexnet", input=contract, dropout_form="inverted")
    for name in ("conv1", "conv2"):
        spec = spec.with_layer(name, norm=NormSpec(k=1.0, alpha_per="window"))
    return with_init(spec.with_layer("conv1", round_up=False), "bvlc_alexnet")


def _caffenet() -> ModelSpec:
    """C: `bvlc_alexnet` with each pool before its norm, biases 1."""
    spec = dataclasses.replace(_bvlc_alexnet(), name="caffenet")
    for name in ("conv1", "conv2"):
        spec = spec.with_layer(name, order=("activation", "pool", "norm"))
    return with_init(spec, "caffenet")


def _cifar() -> ModelSpec:
    """S's "18 %" net of cuda-convnet, assumed for P's figure 1: three convolutions, one linear layer."""
    average = PoolSpec("avg")
    norm = MapNormSpec(size=3, scale=5e-5, beta=0.75)
    order = ("activation", "pool", "map_norm")
    return ModelSpec(
        name="cifar",
        input=InputSpec(size=32, resize=32, mean=CIFAR_MEAN, mean_image="centre"),
        convs=(
            ConvSpec(32, 5, padding=2, order=order, pool=_POOL, map_norm=norm, kernel_init=Init("normal", 1e-4)),
            ConvSpec(32, 5, padding=2, order=order, pool=average, map_norm=norm),
            ConvSpec(64, 5, padding=2, order=order, pool=average),
        ),
        dense=(),
    )


# kernels of convolutions, of hidden layers, of the head; biases of conv2, conv4, conv5, fc6, fc7.
_SCHEMES: dict[str, tuple[Init, Init, Init, Init]] = {
    "paper": (NORMAL, NORMAL, NORMAL, _ONE),
    "source2012": (NORMAL, NORMAL, NORMAL, _ONE),
    "bvlc_alexnet": (NORMAL, Init("normal", 0.005), NORMAL, _TENTH),
    "caffenet": (NORMAL, Init("normal", 0.005), NORMAL, _ONE),
    "kaiming": (Init("kaiming_normal", 0.0), NORMAL, NORMAL, ZERO),
    "pytorch": (Init("pytorch", 0.0), Init("pytorch", 0.0), Init("pytorch", 0.0), Init("pytorch", 0.0)),
}
INIT_SCHEMES = tuple(_SCHEMES)


def with_init(spec: ModelSpec, scheme: str) -> ModelSpec:
    """The spec with the initialisation of a source.

    Args:
      spec: any spec.
      scheme: "paper" (P section 5), "source2012" (0.03 in conv3 to conv5), "bvlc_alexnet",
        "caffenet" (C), "kaiming" (B: Kaiming normal with fan out in convolutions, normal
        0.01 in linear layers, biases 0) or "pytorch" (T and B when nothing is asked for).
        The raised biases are those of the second, fourth and fifth convolution and of
        the hidden fully connected layers.

    Raises:
      ValueError: an unknown scheme.
    """
    checks.choice(scheme, "the initialisation", INIT_SCHEMES)
    kernel, dense, head, raised = _SCHEMES[scheme]
    rest = raised if scheme == "pytorch" else ZERO
    convs = []
    for number, conv in enumerate(spec.convs, 1):
        start = Init("normal", 0.03) if scheme == "source2012" and number >= 3 else kernel
        # S's networks with a sixth layer give it a bias of 1 too.
        bias = raised if number in (2, 4, 5) or (scheme == "source2012" and number > 5) else rest
        convs.append(dataclasses.replace(conv, kernel_init=start, bias_init=bias))
    return dataclasses.replace(
        spec,
        convs=tuple(convs),
        dense=tuple(dataclasses.replace(layer, kernel_init=dense, bias_init=raised) for layer in spec.dense),
        head=HeadSpec(kernel_init=head, bias_init=rest),
    )


VARIANTS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        PAPER,
        _source2012(),
        dataclasses.replace(PAPER.with_groups(1), name="single"),
        _one_tower(),
        _half(),
        _torchvision(),
        _bvlc_alexnet(),
        _caffenet(),
        _cifar(),
    )
}
