"""One network over the devices of a mesh, each with a share of every layer, against the same on one device."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from .builders import build, distance, made, narrow, parameters, pictures, run, stages

CLASSES = 8
WHOLE = ("avgpool", "logits")  # what every tower holds whole


def on_last_axis(x):
    return PartitionSpec(*[None] * (x.ndim - 1), "tower")


def over_towers(model, function, out_specs, *, towers=2, whole_head=False):
    """function(model with one tower's share, *arguments) over a mesh; the arguments are replicated."""
    model = nnx.merge(*nnx.split(model))
    model.tower_axis = "tower"
    graph, state = nnx.split(model)
    specs = jax.tree.map(on_last_axis, state)
    if whole_head:
        specs[model.spec.head_name()] = jax.tree.map(lambda _: PartitionSpec(), specs[model.spec.head_name()])
    mesh = Mesh(np.array(jax.devices()[:towers]), ("tower",))

    def call(*arguments):
        replicated = jax.tree.map(lambda _: PartitionSpec(), arguments)
        mapped = jax.shard_map(
            lambda state, *arguments: function(nnx.merge(graph, state), *arguments),
            mesh=mesh,
            in_specs=(specs, *replicated),
            out_specs=out_specs(specs) if callable(out_specs) else out_specs,
            check_vma=False,
        )
        return jax.jit(mapped)(state, *arguments)

    return call


def everything(model, images, key=None):
    """Logits and every stage, gathered."""
    names = tuple(model.spec.stages(model.num_classes))

    def call(model, images, key):
        return model.activations(images, names, train=key is not None, dropout_key=key)

    ranks = {name: 1 + len(shape) for name, shape in model.spec.stages(model.num_classes).items()}
    sharded = {
        name: PartitionSpec() if name in WHOLE else PartitionSpec(*[None] * (rank - 1), "tower")
        for name, rank in ranks.items()
    }
    return call, (PartitionSpec(), sharded), (images, key)


def assert_the_same(spec, *, key=None, towers=2, whole_head=False):
    model = build(spec, parameters(spec, CLASSES), dtype="float64")
    images = pictures(spec)
    call, out_specs, arguments = everything(model, images, key)
    logits, found = over_towers(model, call, out_specs, towers=towers, whole_head=whole_head)(*arguments)
    options = {} if key is None else {"train": True, "dropout_key": key}
    wanted = stages(model, images, **options)
    for name, value in wanted.items():
        assert distance(found[name], value) < 1e-12, name
    assert distance(logits, wanted["logits"]) < 1e-12


@pytest.mark.parametrize("name", ["paper", "bvlc_alexnet", "source2012"])
def test_two_towers_are_the_network(name, x64):
    assert_the_same(narrow(name))


@pytest.mark.parametrize("name", ["paper", "caffenet"])
def test_two_towers_draw_the_same_masks(name, x64):
    assert_the_same(narrow(name), key=jax.random.key(7))


def test_the_head_may_be_whole_on_every_tower(x64):
    assert_the_same(narrow("paper"), key=jax.random.key(7), whole_head=True)


def test_adaptive_pooling_and_dropout_on_the_input(x64):
    spec = dataclasses.replace(narrow("paper"), adaptive_pool=2, dropout_form="inverted")
    assert_the_same(spec.with_dense(dropout_at="input"), key=jax.random.key(7))


def test_more_groups_than_towers(x64):
    """Four groups on two devices: each draws the masks of two."""
    assert_the_same(narrow("paper").with_groups(4), key=jax.random.key(1))


def test_four_devices_with_a_norm_across_all(x64):
    spec = narrow("caffenet").with_groups(4)
    assert_the_same(spec, towers=4)


def test_an_even_window_crosses_the_seam(x64):
    spec = narrow("bvlc_alexnet")
    assert_the_same(spec.with_layer("conv1", norm=dataclasses.replace(spec.convs[0].norm, size=4)))


def test_a_window_that_reaches_beyond_the_next_tower_is_refused(x64):
    """8 channels on 4 devices: a tower holds two, a window of 7 reaches three to each side."""
    spec = narrow("caffenet").with_groups(4)
    spec = spec.with_layer("conv1", norm=dataclasses.replace(spec.convs[0].norm, size=7, alpha=0.1))
    with pytest.raises(ValueError, match="a tower of 2 channels can't give 3 to its neighbour"):
        assert_the_same(spec, towers=4)


def test_the_gradient_of_the_towers(x64):
    """Each differentiates its loss over the number of towers; the shares together are the gradient."""
    spec = narrow("bvlc_alexnet")
    model = build(spec, parameters(spec, CLASSES), dtype="float64")
    images, key = pictures(spec), jax.random.key(0)

    def loss(model, images, key):
        logits = model(images, train=True, dropout_key=key)
        return -jax.nn.log_softmax(logits)[:, 1].mean()

    def share(model, images, key):
        graph, state = nnx.split(model)
        return jax.grad(lambda s: loss(nnx.merge(graph, s), images, key) / 2)(state)

    grads = over_towers(model, share, lambda specs: specs)(images, key)
    graph, state = nnx.split(model)
    wanted = jax.jit(jax.grad(lambda s: loss(nnx.merge(graph, s), images, key)))(state)
    for (path, a), b in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(wanted), strict=True):
        assert distance(a, b) < 1e-12, path


@pytest.mark.parametrize(("name", "towers"), [("paper", 4), ("single", 2), ("torchvision", 2), ("cifar", 2)])
def test_groups_that_the_towers_do_not_divide_are_refused(name, towers):
    """A network of one column has no towers: its masks are drawn for all channels at once."""
    spec = narrow(name)
    with pytest.raises(ValueError, match=f"{name} has . group.* can't be split over {towers} towers"):
        over_towers(made(spec, CLASSES), lambda m, x: m(x), PartitionSpec(), towers=towers)(
            pictures(spec).astype(np.float32)
        )


def test_a_norm_over_the_whole_width_is_refused():
    spec = narrow("bvlc_alexnet")
    spec = spec.with_layer("conv1", norm=dataclasses.replace(spec.convs[0].norm, size=None))
    model = made(spec, CLASSES)
    with pytest.raises(ValueError, match="can't run in towers: give it a size, or groups"):
        over_towers(model, lambda m, x: m(x), PartitionSpec())(pictures(spec).astype(np.float32))


def test_a_tower_holds_half_of_a_stage():
    """Inside the mapped function a stage is a share, in the order of the towers."""
    spec = narrow("paper")
    model, images = made(spec, CLASSES), pictures(spec).astype(np.float32)
    width = {}

    def call(model, images):
        _, found = model.activations(images, ["conv1", "fc6", "logits"])
        width.update({name: value.shape[-1] for name, value in found.items()})
        return found["conv1"][None]

    shares = over_towers(model, call, PartitionSpec("tower"))(images)
    assert width == {"conv1": 4, "fc6": 8, "logits": CLASSES}
    assert distance(jnp.concatenate(list(shares), -1), model.activations(images, "conv1")[1]["conv1"]) < 1e-5


def test_setting_no_axis_again(x64):
    spec = narrow("paper")
    model = build(spec, parameters(spec, CLASSES), dtype="float64")
    before = run(model, pictures(spec))
    model.tower_axis = "tower"
    with pytest.raises(NameError, match="tower"):
        model(pictures(spec))
    model.tower_axis = None
    np.testing.assert_array_equal(run(model, pictures(spec)), before)
