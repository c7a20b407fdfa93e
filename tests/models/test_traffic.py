"""What devices hold and exchange: by hand for the paper's network, and as the compiler has it."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from alexnet_jax.models import get_spec
from alexnet_jax.models.summary import layer_table, totals
from alexnet_jax.models.traffic import crossings, exchanges, held_cells, holdings

from .builders import made, narrow, pictures

BYTES = {"f64": 8, "f32": 4, "s32": 4, "u8": 1, "pred": 1}


def test_the_papers_gathers_by_hand():
    """Batch 128, float32: N · the shape of one image · 4; a device lacks half of it."""
    found = {one.layer: one for one in exchanges(get_spec("paper"), towers=2) if one.direction == "forward"}
    wanted = {
        "images": 128 * 256 * 256 * 3,
        "labels": 128 * 4,
        "mask": 128,
        "conv3": 128 * 13 * 13 * 256 * 4,
        "fc6": 128 * 6 * 6 * 256 * 4,
        "fc7": 128 * 4096 * 4,
        "fc8": 128 * 4096 * 4,
        "logits": 128 * 1000 * 4,
    }
    assert {name: one.result_bytes for name, one in found.items()} == wanted
    assert list(found) == list(wanted)
    assert wanted["conv3"] == 22_151_168
    assert all(one.link_bytes == one.result_bytes // 2 for one in found.values())
    assert {one.collective for one in found.values()} == {"all-gather"}
    back = [one for one in exchanges(get_spec("paper"), towers=2) if one.direction == "backward"]
    assert [one.layer for one in back] == ["logits", "fc8", "fc7", "fc6", "conv3"]
    assert all(one.collective == "reduce-scatter" for one in back)
    assert all(one.result_bytes == one.link_bytes == wanted[one.layer] // 2 for one in back)


def test_the_seam_by_hand():
    """Caffe's norms take two channels of either side: conv1 has 55 × 55, its pool 27 × 27 positions."""

    def seam(name):
        found = [one for one in exchanges(get_spec(name), towers=2) if one.collective == "collective-permute"]
        return [(one.layer, one.direction, one.link_bytes) for one in found]

    one, two = 128 * 55 * 55 * 2 * 4, 128 * 27 * 27 * 2 * 4
    assert seam("bvlc_alexnet") == [
        *[("norm1", "forward", one)] * 2,
        *[("norm2", "forward", two)] * 2,
        *[("norm2", "backward", two)] * 2,
        *[("norm1", "backward", one)] * 2,
    ]
    assert [size for _, _, size in seam("caffenet")[:4]] == [two, two, 128 * 13 * 13 * 2 * 4, 128 * 13 * 13 * 2 * 4]
    assert seam("paper") == seam("source2012") == []


@pytest.mark.parametrize(("data", "times"), [(2, 1.0), (4, 1.5)])
def test_the_sum_of_gradients(data, times):
    """An all-reduce among n devices brings each 2 (n - 1)/n of the array."""
    found = exchanges(get_spec("paper"), data=data)
    assert {one.collective for one in found} == {"all-reduce"}
    assert sum(one.result_bytes for one in found) == 4 * 60_965_224
    assert sum(one.link_bytes for one in found) == times * 4 * 60_965_224
    both = [one for one in exchanges(get_spec("paper"), towers=2, data=data) if one.direction == "update"]
    assert [one.layer for one in both] == [one.layer for one in found]
    assert sum(one.result_bytes for one in both) == 4 * 60_965_224 // 2


def test_one_device_exchanges_nothing():
    assert exchanges(get_spec("paper")) == []


def test_each_of_two_towers_holds_half():
    whole, half = (holdings(get_spec("paper"), towers=towers) for towers in (1, 2))
    assert [one.layer for one in half] == ["input", *(f"conv{i}" for i in range(1, 6)), "fc6", "fc7", "fc8"]
    for a, b in zip(whole, half, strict=True):
        assert (2 * b.parameters, 2 * b.momentum) == (a.parameters, a.momentum), a.layer
    assert sum(one.parameters for one in whole) == 4 * totals(layer_table(get_spec("paper")))[0]
    bytes_of = {one.layer: one.activations for one in half}
    assert bytes_of["input"] == 128 * 224 * 224 * 3 * 4
    assert bytes_of["conv1"] == 128 * 4 * 48 * (55 * 55 + 55 * 55 + 27 * 27)  # conv1, norm1, pool1
    assert bytes_of["conv3"] == 128 * 4 * 13 * 13 * (192 + 256)  # its own, and the gathered pool2
    assert bytes_of["fc6"] == 128 * 4 * (2048 + 6 * 6 * 256)
    assert bytes_of["fc8"] == 128 * 4 * (4096 + 1000)  # the gathered fc7, whole logits
    assert {one.layer: one.activations for one in whole}["conv3"] == 128 * 4 * 13 * 13 * 384


def test_what_a_norm_follows_is_held_too():
    """The 2012 source normalises conv1's output before its ReLU: norm1's gradient needs it."""
    found = {one.layer: one.activations for one in holdings(get_spec("source2012"))}
    assert found["conv1"] == 128 * 4 * 96 * (55 * 55 + 55 * 55 + 27 * 27 + 27 * 27)  # pre, norm1, pool1, conv1


def test_data_groups_share_the_batch_and_not_the_network():
    one, two = (holdings(get_spec("paper"), data=data) for data in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert (a.parameters, a.activations) == (b.parameters, 2 * b.activations)


@pytest.mark.parametrize("data", [1, 2])
def test_classes_that_towers_do_not_divide(data):
    """The last layer is whole on every tower: no logits cross, and all devices sum its gradient."""
    assert crossings(get_spec("paper"), 5)[-1].layer == "fc8"
    held = holdings(get_spec("paper"), 5, towers=2, data=data)[-1]
    assert held.parameters == 4 * (4096 + 1) * 5
    assert held.activations == 128 // data * 4 * (4096 + 5)
    found = exchanges(get_spec("paper"), 5, towers=2, data=data)
    summed = {one.layer: one for one in found if one.direction == "update"}
    assert summed["fc8"].among == 2 * data
    assert summed["fc8"].result_bytes == 4 * (4096 + 1) * 5
    assert ("fc7" in summed) == (data > 1)


def test_smaller_numbers():
    found = exchanges(get_spec("paper"), towers=2, data=2, itemsize=2, image_size=64)
    first = {one.layer: one for one in reversed(found)}
    assert first["images"].result_bytes == 64 * 64 * 64 * 3
    assert first["fc7"].result_bytes == 64 * 4096 * 2
    assert held_cells(holdings(get_spec("paper"), towers=2, itemsize=2))[-1][0] == "total"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("single", {"towers": 2}, "single has 1 group.*can't be split over 2 towers"),
        ("paper", {"towers": 4}, "can't be split over 4 towers"),
        ("paper", {"towers": 2, "batch_size": 31}, "31 images .* take a multiple of 2"),
        ("paper", {"towers": 2, "data": 3, "batch_size": 128}, "128 images .* take a multiple of 6"),
        ("paper", {"towers": 0}, "towers=0"),
    ],
)
@pytest.mark.parametrize("function", [exchanges, holdings])
def test_what_can_not_be_split(function, name, options, words):
    with pytest.raises(ValueError, match=words):
        function(get_spec(name), **options)


def test_odd_layers_are_refused():
    spec = get_spec("paper").with_layer("fc6", features=4095)
    with pytest.raises(ValueError, match="fc6 has 4095 channels, which 2 towers do not divide"):
        exchanges(spec, towers=2)
    wide = dataclasses.replace(get_spec("caffenet").convs[0].norm, size=99)
    with pytest.raises(ValueError, match="norm1: a tower of 48 channels can't give 49"):
        exchanges(get_spec("caffenet").with_layer("conv1", norm=wide), towers=2)


def compiled(spec, images, labels, keys, data, classes):
    """HLO of the gradient over a mesh of data × 2 devices, each fed its share of the rows."""
    model = made(spec, classes)
    model.tower_axis = "tower"
    graph, state = nnx.split(model)
    shards = jax.tree.map(lambda x: PartitionSpec(*[None] * (x.ndim - 1), "tower"), state)
    rows = PartitionSpec(("data", "tower"))

    def gradient(state, images, labels, mask, keys):
        images, labels, mask = (jax.lax.all_gather(x, "tower", tiled=True) for x in (images, labels, mask))
        x = images.astype(jnp.float32)

        def loss(state):
            logits = nnx.merge(graph, state)(x, train=True, dropout_key=keys)
            found = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
            return jnp.where(mask, found, 0).mean() / 2

        return jax.tree.map(lambda g: jax.lax.pmean(g, "data") if data > 1 else g, jax.grad(loss)(state))

    mesh = Mesh(np.array(jax.devices()[: 2 * data]).reshape(data, 2), ("data", "tower"))
    specs = (shards, rows, rows, rows, PartitionSpec("data"))
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=shards, check_vma=False)
    return jax.jit(mapped).lower(state, images, labels, np.ones(len(labels), bool), keys).compile().as_text()


def collectives(hlo):
    """(collective, bytes of its result on a device), counted; an array of a joined all-reduce each."""
    found = collections.Counter()
    kinds = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
    for result, kind in re.findall(rf" = (\(.*?\)|\S+) ({kinds})(?:-start)?\(", hlo):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
            found[kind, math.prod(int(n) for n in shape.split(",") if n) * BYTES[dtype]] += 1
    return found


@pytest.mark.parametrize(("name", "data"), [("paper", 1), ("source2012", 1), ("caffenet", 1), ("bvlc_alexnet", 2)])
def test_the_compiler_exchanges_the_same(name, data):
    spec, classes, batch = narrow(name), 8, 4 * data
    images = np.tile(pictures(spec), (2 * data, 1, 1, 1))[:batch].astype(np.uint8)
    keys = jax.random.split(jax.random.key(0), batch)
    hlo = compiled(spec, images, np.arange(batch, dtype=np.int32), keys, data, classes)
    wanted = exchanges(spec, classes, batch, towers=2, data=data, image_size=spec.input.size)
    found = collectives(hlo)
    counted = collections.Counter((one.collective, one.result_bytes) for one in wanted if one.direction != "update")
    assert counted
    assert {key: n for key, n in found.items() if key[0] != "all-reduce"} == counted
    summed = sum(size * n for (kind, size), n in found.items() if kind == "all-reduce")
    assert summed == sum(one.result_bytes for one in wanted if one.direction == "update")
