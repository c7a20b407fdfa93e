"""A layout alone: its devices, how arrays lie on them, what a mapped function gets and gives back."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.parallel import DATA, TOWER, Layout

LAYOUTS = [
    Layout(),
    Layout(mapping="shard_map"),
    Layout(towers=2),
    Layout(towers=2, mapping="shard_map"),
    Layout(2),
    Layout(2, 2),
    Layout(4),
]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: f"{one.data}x{one.towers} {one.mapping}")


def tree(seed=0):
    """Arrays that two towers split, and such as they can't."""
    draw = np.random.default_rng(seed)
    shapes = {"kernel": (2, 3, 4), "bias": (4,), "odd": (3, 5), "step": ()}
    return {name: jnp.asarray(draw.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("data", "towers", "mapping"),
    [(1, 1, "jit"), (1, 2, "pmap"), (2, 1, "shard_map"), (2, 2, "shard_map"), (4, 1, "shard_map")],
)
def test_the_mapping_that_fits_first(data, towers, mapping):
    layout = Layout(data, towers)
    assert (layout.mapping, layout.size, layout.processes) == (mapping, data * towers, 1)
    assert layout.devices == tuple(jax.devices()[: data * towers])
    assert layout.mesh.devices.shape == (data, towers)
    assert layout.mesh.axis_names == (DATA, TOWER)
    assert layout.tower_axis == (TOWER if towers > 1 else None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": 0}, "at least 1, got data=0 and towers=1"),
        ({"towers": -1}, "at least 1, got data=1 and towers=-1"),
        ({"data": 5}, r"5 devices are needed, and there are 4 \(cpu:0, cpu:1, cpu:2, cpu:3\)"),
        ({"data": 4, "towers": 2}, "8 devices are needed, and there are 4"),
        ({"data": 2, "devices": tuple(jax.devices()[:3])}, "takes other than 3 devices"),
        ({"mapping": "pmap"}, "mapping='pmap' does not fit data=1, towers=1"),
        ({"data": 2, "mapping": "pmap"}, r"mapping='pmap' does not fit data=2, towers=1: \['shard_map'\]"),
        ({"data": 2, "towers": 2, "mapping": "pmap"}, "mapping='pmap' does not fit"),
        ({"towers": 2, "mapping": "jit"}, r"mapping='jit' does not fit .*\['pmap', 'shard_map'\]"),
        ({"mapping": "vmap"}, "mapping='vmap' does not fit"),
    ],
)
def test_what_does_not_fit(options, words):
    with pytest.raises(ValueError, match=words):
        Layout(**options)


def test_chosen_devices():
    devices = tuple(reversed(jax.devices()[:2]))
    layout = Layout(towers=2, devices=devices)
    assert layout.devices == devices
    placed = layout.place({"kernel": jnp.arange(4.0)})
    first = {shard.device: shard.index for shard in placed["kernel"].addressable_shards}[devices[0]]
    assert first == (slice(0, 2),)


def test_what_is_split():
    assert [name for name, leaf in tree().items() if Layout(towers=2).is_split(leaf)] == ["kernel", "bias"]
    assert not any(Layout(4).is_split(leaf) for leaf in tree().values())
    assert Layout(towers=2).is_split(jax.ShapeDtypeStruct((3, 4), jnp.float32))


@each_layout
def test_a_state_comes_back_whole(layout):
    state = tree()
    placed = layout.place(state)
    for name, leaf in placed.items():
        assert leaf.shape == state[name].shape
        assert leaf.sharding.device_set == set(layout.devices)
        share = layout.towers if layout.is_split(leaf) else 1
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // share}, name
    jax.tree.map(np.testing.assert_array_equal, layout.fetch(placed), state)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in layout.fetch(placed).values())


@each_layout
def test_rows_and_what_is_whole(layout):
    rows = np.arange(8 * 3).reshape(8, 3)
    placed = layout.place_rows((rows, rows[:, 0]))
    found = collections.Counter()
    for shard in placed[0].addressable_shards:
        assert shard.data.shape == (8 // layout.size, 3)
        position = layout.devices.index(shard.device)
        np.testing.assert_array_equal(shard.data, np.split(rows, layout.size)[position])
        found[shard.device] += 1
    assert set(found) == set(layout.devices)
    whole = layout.place_whole({"mean": jnp.asarray(rows)})["mean"]
    assert all(shard.data.shape == (8, 3) for shard in whole.addressable_shards)
    assert len(whole.addressable_shards) == layout.size


def mapped(layout, function, *rows, updates=False, state=None):
    """A function of one device, run over all."""
    state = tree() if state is None else state
    compiled = layout.compile(function, state, updates=updates)
    return compiled(layout.place(state), layout.place_whole(jnp.float32(2.0)), *layout.place_rows(rows))


@each_layout
def test_a_step_of_all(layout):
    """The state doubled and stepped, a sum over rows: as on one device, and lying where it lay."""

    def step(state, whole, rows):
        assert state["kernel"].shape == (2, 3, 4 // layout.towers)
        assert state["odd"].shape == (3, 5)
        rows = layout.all_rows(rows)
        assert rows.shape == (8 // layout.data,)
        return {name: leaf * whole for name, leaf in state.items()}, {"sum": layout.total(jnp.sum(rows))}

    state, totals = mapped(layout, step, np.arange(8.0, dtype=np.float32), updates=True)
    jax.tree.map(np.testing.assert_array_equal, layout.fetch(state), {k: 2 * v for k, v in tree().items()})
    placed = layout.place(tree())
    for name, leaf in state.items():
        assert leaf.sharding.is_equivalent_to(placed[name].sharding, leaf.ndim), name
    assert float(totals["sum"]) == 28
    again = layout.compile(step, tree(), updates=True)(state, jnp.float32(2.0), *layout.place_rows((np.ones(8),)))
    np.testing.assert_array_equal(layout.fetch(again[0])["odd"], 4 * tree()["odd"])


@each_layout
def test_the_state_is_taken_over_where_it_is_changed(layout):
    for updates in (True, False):
        state = layout.place(jax.tree.map(jnp.copy, tree()))
        function = (lambda s, w, x: (s, {"n": w})) if updates else (lambda s, w, x: {"n": w})
        compiled = layout.compile(function, tree(), updates=updates)
        jax.block_until_ready(compiled(state, layout.place_whole(jnp.float32(1)), *layout.place_rows((np.ones(8),))))
        assert state["kernel"].is_deleted() == updates


@each_layout
def test_rows_of_the_whole_batch_are_numbered(layout):
    """Each row is found under its own number; all towers of a part see the same rows."""

    def numbers(state, whole, rows):
        rows = layout.all_rows(rows)
        wrong = rows != layout.first_row(len(rows)) + jnp.arange(len(rows))
        return {"wrong": layout.total(jnp.sum(wrong)), "seen": layout.total(len(rows) + 0 * jnp.sum(rows))}

    found = mapped(layout, numbers, np.arange(8, dtype=np.int32))
    assert (int(found["wrong"]), int(found["seen"])) == (0, 8)


@each_layout
def test_a_sum_of_gradients(layout):
    """What is split is summed over the parts of the batch, what is whole over the towers too."""

    def sums(state, whole, rows):
        ones = {name: jnp.ones_like(leaf) for name, leaf in state.items()}
        return layout.gradient_sum(ones, tree()), {}

    found, _ = mapped(layout, sums, np.ones(8), updates=True)
    for name, leaf in layout.fetch(found).items():
        wanted = layout.data * (1 if layout.is_split(tree()[name]) else layout.towers)
        np.testing.assert_array_equal(leaf, np.full_like(tree()[name], wanted))


@pytest.mark.parametrize("layout", LAYOUTS[4:6], ids=["2x1", "2x2"])
def test_a_wish_of_any_device_is_one_of_all(layout):
    wishes = np.zeros((layout.size, 3), np.int32)
    wishes[-1, 1] = 1

    def asked(state, whole, wishes):
        return {"wishes": layout.any(wishes)}

    assert mapped(layout, asked, wishes)["wishes"].tolist() == [0, 1, 0]
    assert mapped(layout, asked, 0 * wishes)["wishes"].tolist() == [0, 0, 0]
