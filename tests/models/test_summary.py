"""The layer table as text."""

from __future__ import annotations

import dataclasses

import pytest

from alexnet_jax import get_spec, list_models
from alexnet_jax.models import ConvSpec
from alexnet_jax.models.summary import HEADINGS, as_markdown, as_text, cells, comparison, layer_table, totals

SIX = dataclasses.replace(get_spec("paper"), name="six", convs=(*get_spec("paper").convs, ConvSpec(256, 3, padding=1)))


@pytest.mark.parametrize("spec", [*map(get_spec, list_models()), SIX], ids=lambda spec: spec.name)
def test_text_and_markdown(spec):
    lines = cells(spec, 1000)
    parameters, macs = totals(layer_table(spec, 1000))
    assert tuple(lines[0]) == HEADINGS
    assert {len(line) for line in lines} == {len(HEADINGS)}
    assert [line[0] for line in lines[1:-1]] == [str(i) for i in range(len(lines) - 2)]
    assert lines[-1][-2:] == [f"{parameters:,}", f"{macs:,}"]

    text = as_text(lines).splitlines()
    assert len(text) == len(lines) + 1
    assert all(line == line.rstrip() for line in text)
    ends = {len(line) for line in text[2:] if line.endswith(tuple("0123456789")) and line.count("  ") > 2}
    assert len(text[0]) in ends  # the counts stand under their heading's end
    assert f"{parameters:,}" in text[-1]

    markdown = as_markdown(lines).splitlines()
    assert len(markdown) == len(lines) + 1
    assert {line.count("|") for line in markdown} == {len(HEADINGS) + 1}
    assert set(markdown[1]) <= set("|- ")
    assert markdown[0].startswith("| id | layer |")


def test_the_papers_rows():
    rows = {row.layer: row for row in layer_table(get_spec("paper"))}
    assert list(rows) == [
        *("input", "conv1", "relu1", "norm1", "pool1", "conv2", "relu2", "norm2", "pool2"),
        *("conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5"),
        *("fc6", "relu6", "dropout6", "fc7", "relu7", "dropout7", "fc8"),
    ]
    assert rows["conv1"].structure == "96 of 11×11×3, stride 4, pad (0, 3)"
    assert rows["conv2"].structure == "256 of 5×5×48, stride 1, pad 2, 2 groups"
    assert rows["conv3"].structure == "384 of 3×3×256, stride 1, pad 1"
    assert rows["norm1"].structure == "LRN n=5, k=2, α=0.0001, β=0.75, 2 groups"
    assert rows["pool1"].structure == "max 3×3, stride 2, up"
    assert rows["fc6"].structure == "linear 9216 → 4096"
    assert rows["dropout7"].structure == "dropout 0.5 after relu7, paper form"
    assert rows["input"].structure == "RGB 0–255 minus the mean image"


def test_what_tells_the_variants_apart():
    def structure(name, layer):
        return {row.layer: row.structure for row in layer_table(get_spec(name), 10)}[layer]

    assert structure("source2012", "norm1") == "LRN n=5, k=2, α=0.0001/n, β=0.75, 2 groups"
    assert structure("source2012", "norm2.map") == "within-map 5×5, scale 0.001, β=0.75"
    assert structure("bvlc_alexnet", "norm1") == "LRN n=5, k=1, α=0.0001/n, β=0.75"
    assert structure("bvlc_alexnet", "conv1") == "96 of 11×11×3, stride 4, pad 0"
    assert structure("bvlc_alexnet", "input") == "BGR 0–255 minus the mean image"
    assert structure("torchvision", "conv1") == "64 of 11×11×3, stride 4, pad 2"
    assert structure("torchvision", "avgpool") == "adaptive average to 6×6"
    assert structure("torchvision", "dropout6") == "dropout 0.5 before fc6, inverted form"
    assert structure("torchvision", "input") == "RGB 0–1 minus the mean pixel"
    assert structure("torchvision", "pool1") == "max 3×3, stride 2, down"
    assert structure("cifar", "pool2") == "avg 3×3, stride 2, up"


def test_no_row_for_a_dropout_that_drops_nothing():
    spec = get_spec("paper").with_dense(dropout=0.0)
    assert not any(row.layer.startswith("dropout") for row in layer_table(spec))


def number(name):
    digits = "".join(c for c in name if c.isdigit())
    return int(digits) if digits else None


def test_variants_side_by_side():
    specs = [get_spec(name) for name in list_models()]
    table = comparison(specs)
    assert table[0] == ["layer", *list_models()]
    assert {len(line) for line in table} == {len(specs) + 1}
    rows = {line[0]: dict(zip(table[0][1:], line[1:], strict=True)) for line in table[1:]}
    assert len(rows) == len(table) - 1
    assert next(iter(rows)) == "input"
    assert list(rows)[-2:] == ["parameters", "multiply-accumulates"]
    assert rows["parameters"]["paper"] == "60,965,224"
    assert rows["multiply-accumulates"]["paper"] == "724,406,816"
    assert rows["order1"]["paper"] == "conv → relu → norm → pool"
    assert rows["order1"]["caffenet"] == "conv → relu → pool → norm"
    assert rows["order1"]["source2012"] == "conv → norm → pool → relu"
    assert rows["norm1"]["torchvision"] == rows["avgpool"]["paper"] == "–"
    for spec in specs:
        for row in layer_table(spec):
            assert rows[row.layer][spec.name] == row.structure
    numbers = [number(name) for name in rows if number(name)]
    assert numbers == sorted(numbers)


def test_a_sixth_convolution_has_its_place():
    adaptive = dataclasses.replace(SIX, name="seventh", adaptive_pool=6)
    names = [line[0] for line in comparison([get_spec("paper"), SIX, adaptive])]
    assert names.index("pool5") < names.index("conv6") < names.index("relu6")
    assert names.index("conv6") < names.index("avgpool")
    table = dict(zip(names, comparison([get_spec("paper"), SIX]), strict=False))
    assert table["conv6"][1:] == ["–", "256 of 3×3×256, stride 1, pad 1"]
    assert totals(layer_table(SIX))[0] == 61_555_304
