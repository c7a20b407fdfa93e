"""Parameters, multiply-accumulates and neurons: the published numbers, from the table and from the module."""

from __future__ import annotations

import math

import pytest

from alexnet_jax import get_spec, list_models
from alexnet_jax.models.summary import layer_table, totals

from .builders import layer_names, shapes

PARAMETERS = {
    "paper": 60_965_224,
    "source2012": 60_965_224,
    "single": 62_378_344,
    "one_tower": 59_798_312,
    "half": 16_630_440,
    "torchvision": 61_100_840,
    "bvlc_alexnet": 60_965_224,
    "caffenet": 60_965_224,
    "cifar": 89_578,  # at 10 classes
}
# Krizhevsky et al. 2012, section 3 and figure 2.
PAPER_PARAMETERS = {
    "conv1": 34_944,
    "conv2": 307_456,
    "conv3": 885_120,
    "conv4": 663_936,
    "conv5": 442_624,
    "fc6": 37_752_832,
    "fc7": 16_781_312,
    "fc8": 4_097_000,
}
PAPER_MACS = {
    "conv1": 105_415_200,
    "conv2": 223_948_800,
    "conv3": 149_520_384,
    "conv4": 112_140_288,
    "conv5": 74_760_192,
    "fc6": 37_748_736,
    "fc7": 16_777_216,
    "fc8": 4_096_000,
}
# 253,440, which the figure prints for conv1, is not 55·55·96.
PAPER_NEURONS = {
    "input": 150_528,
    "conv1": 290_400,
    "conv2": 186_624,
    "conv3": 64_896,
    "conv4": 64_896,
    "conv5": 43_264,
    "fc6": 4096,
    "fc7": 4096,
    "fc8": 1000,
}
TWO_TOWERS = ["paper", "source2012", "bvlc_alexnet", "caffenet"]


def classes(name):
    return 10 if name == "cifar" else 1000


def test_the_table_here_names_every_variant():
    assert sorted(PARAMETERS) == sorted(list_models())
    assert list_models()[0] == "paper"


@pytest.mark.parametrize("name", list_models())
def test_parameters_in_total(name):
    spec, num_classes = get_spec(name), classes(name)
    assert totals(layer_table(spec, num_classes))[0] == PARAMETERS[name]
    made = shapes(spec, num_classes)
    assert sum(math.prod(shape) for layer in made.values() for shape in layer.values()) == PARAMETERS[name]


@pytest.mark.parametrize("name", list_models())
def test_each_row_of_the_table_counts_the_modules_own_parameters(name):
    spec, num_classes = get_spec(name), classes(name)
    made = shapes(spec, num_classes)
    counted = {row.layer: row.parameters for row in layer_table(spec, num_classes) if row.parameters}
    assert list(counted) == layer_names(spec)
    assert counted == {layer: sum(math.prod(s) for s in made[layer].values()) for layer in made}


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_parameters_of_each_layer(name):
    made = shapes(get_spec(name))
    assert {layer: sum(math.prod(s) for s in made[layer].values()) for layer in made} == PAPER_PARAMETERS
    rows = layer_table(get_spec(name))
    assert {row.layer: row.parameters for row in rows if row.parameters} == PAPER_PARAMETERS
    assert made["conv2"]["kernel"] == (5, 5, 48, 256)
    assert made["conv3"]["kernel"] == (3, 3, 256, 384)
    assert made["fc6"]["kernel"] == (9216, 4096)


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_multiply_accumulates_of_each_layer(name):
    spec = get_spec(name)
    rows = layer_table(spec)
    assert {row.layer: row.macs for row in rows if row.macs} == PAPER_MACS
    assert totals(rows)[1] == sum(PAPER_MACS.values()) == 724_406_816
    # Once more, from the kernels that the module makes and the positions they are used at.
    traced = spec.stages(1000) | {"fc8.pre": (1,)}
    for layer, shape in shapes(spec).items():
        positions = math.prod(traced[f"{layer}.pre"][:-1]) if layer.startswith("conv") else 1
        assert math.prod(shape["kernel"]) * positions == PAPER_MACS[layer], layer


@pytest.mark.parametrize("name", ["paper", "source2012"])
def test_neurons_of_each_layer(name):
    rows = {row.layer: row for row in layer_table(get_spec(name))}
    assert {layer: math.prod(rows[layer].output) for layer in PAPER_NEURONS} == PAPER_NEURONS


def test_the_papers_maps():
    found = get_spec("paper").stages(1000)
    assert [
        found[f"{stage}"] for stage in ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    ] == [
        (55, 55, 96),
        (27, 27, 96),
        (27, 27, 256),
        (13, 13, 256),
        (13, 13, 384),
        (13, 13, 384),
        (13, 13, 256),
        (6, 6, 256),
    ]


def test_the_other_variants_maps():
    assert get_spec("torchvision").stages(1000)["conv1"] == (55, 55, 64)
    assert get_spec("torchvision").stages(1000)["avgpool"] == (6, 6, 256)
    assert get_spec("half").stages(1000)["pool5"] == (6, 6, 128)
    assert get_spec("one_tower").stages(1000)["pool5"] == (6, 6, 256)
    assert get_spec("caffenet").stages(1000)["norm1"] == (27, 27, 96)
    assert get_spec("bvlc_alexnet").stages(1000)["norm1"] == (55, 55, 96)
    cifar = get_spec("cifar").stages(10)
    assert [cifar[name][0] for name in ("conv1", "pool1", "pool2", "pool3")] == [32, 16, 8, 4]
