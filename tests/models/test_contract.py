"""What every variant owes its users, from `list_models`."""

from __future__ import annotations

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_jax import ModelSpec, create_model, get_spec, list_models
from alexnet_jax.models.summary import layer_table

from .builders import distance, layer_names, made, pictures, run, small

pytestmark = pytest.mark.parametrize("name", list_models())
CLASSES = 7


@functools.lru_cache
def trial(name):
    """One compiled forward and backward pass of a small variant: model, images, logits, stages, gradients."""
    spec = small(name)
    model, images = made(spec, CLASSES), pictures(spec).astype(np.float32)
    graph, state = nnx.split(model)
    names = tuple(spec.stages(CLASSES))

    def loss(state, images):
        logits, found = nnx.merge(graph, state).activations(images, names)
        return -jax.nn.log_softmax(logits)[jnp.arange(2), jnp.array([1, 5])].mean(), (logits, found)

    (_, (logits, found)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state, images)
    return model, images, logits, found, nnx.to_pure_dict(grads)


def stage_of(row, spec):
    """The stage that a row of the summary describes."""
    digits = "".join(c for c in row.layer if c.isdigit())
    kind = row.layer.removesuffix(digits)
    if row.layer == spec.head_name():
        return "logits"
    if kind in ("conv", "fc"):
        return f"{row.layer}.pre"
    if kind == spec.activation:
        return f"conv{digits}" if int(digits) <= len(spec.convs) else f"fc{digits}"
    return row.layer


def test_forward(name):
    model, _, logits, _, _ = trial(name)
    assert logits.shape == (2, CLASSES)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    assert distance(logits[0], logits[1]) > 1e-3  # it looks at the image
    assert model.spec.name == name


def test_every_parameter_gets_a_gradient(name):
    model, _, _, _, grads = trial(name)
    assert list(grads) == layer_names(model.spec)
    for layer, leaves in grads.items():
        assert set(leaves) == {"kernel", "bias"}
        for key, grad in leaves.items():
            assert np.isfinite(grad).all(), (layer, key)
            for part in np.split(np.asarray(grad), [grad.shape[-1] // 2], axis=-1):
                assert np.linalg.norm(part) > 0, (layer, key)


def test_stages_are_the_specs(name):
    model, _, logits, found, _ = trial(name)
    assert {stage: value.shape[1:] for stage, value in found.items()} == model.spec.stages(CLASSES)
    np.testing.assert_array_equal(found["logits"], logits)


def test_stages_at_full_size_are_the_specs_and_the_summarys(name):
    spec, num_classes = get_spec(name), 10 if name == "cifar" else 1000
    wanted = spec.stages(num_classes)
    model = nnx.eval_shape(lambda: create_model(name, num_classes=num_classes))
    images = jax.ShapeDtypeStruct((3, spec.input.size, spec.input.size, 3), jnp.float32)
    graph, state = nnx.split(model)
    traced = jax.eval_shape(lambda s, x: nnx.merge(graph, s).activations(x, wanted)[1], state, images)
    assert {stage: value.shape for stage, value in traced.items()} == {k: (3, *v) for k, v in wanted.items()}

    rows = layer_table(spec, num_classes)
    told = {stage_of(row, spec): row.output for row in rows if not row.layer.startswith(("input", "dropout"))}
    assert list(told.items()) == list(wanted.items())
    for before, row in itertools.pairwise(rows):
        assert row.input == before.output or math.prod(row.input) == math.prod(before.output), row


def test_an_activation_is_the_relu_of_something(name):
    *_, found, _ = trial(name)
    for stage, value in found.items():
        if stage.endswith(".pre"):
            assert (np.asarray(value) < 0).any(), stage
        elif stage.startswith(("conv", "fc")):
            assert (np.asarray(value) >= 0).all(), stage
            assert (np.asarray(value) > 0).any(), stage


def test_dropout(name):
    model, images, logits, _, _ = trial(name)
    graph, state = nnx.split(model)
    training = jax.jit(lambda s, x, k: nnx.merge(graph, s)(x, train=True, dropout_key=k))
    key = jax.random.key(3)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(2))
    dropped = training(state, images, keys)
    if not model.spec.dense:
        assert distance(dropped, logits) < 1e-6
        return
    assert distance(dropped, logits) > 1e-2
    np.testing.assert_array_equal(training(state, images, keys), dropped)
    assert distance(training(state, images, keys[::-1]), dropped) > 1e-2
    # An image's masks come with its key, whatever its place in the batch.
    assert distance(training(state, images[::-1], keys[::-1]), dropped[::-1]) < 1e-6
    twins = training(state, images[[0, 0]], keys)
    assert distance(twins[0], dropped[0]) < 1e-6
    assert distance(twins[0], twins[1]) > 1e-2
    # One key stands for one an image.
    assert distance(training(state, images, key), dropped) < 1e-6


def test_the_spec_survives_json(name):
    spec = get_spec(name)
    back = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert back == spec
    assert hash(back) == hash(spec)
    assert back.stages(1000) == spec.stages(1000)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes(name, dtype):
    spec = small(name)
    images = jax.ShapeDtypeStruct((2, spec.input.size, spec.input.size, 3), jnp.float32)
    model = nnx.eval_shape(lambda: create_model(spec, num_classes=CLASSES, dtype=dtype))
    found = {path[-1]: leaf.dtype for path, leaf in nnx.to_flat_state(nnx.state(model))}
    assert found == {"kernel": jnp.float32, "bias": jnp.float32}
    graph, state = nnx.split(model)
    traced = jax.eval_shape(lambda s, x: nnx.merge(graph, s).activations(x, spec.stages(CLASSES))[1], state, images)
    assert {value.dtype for value in traced.values()} == {jnp.dtype(dtype)}
    # Without a dtype, the promoted one of images and parameters.
    model = nnx.eval_shape(lambda: create_model(spec, num_classes=CLASSES, param_dtype=dtype))
    graph, state = nnx.split(model)
    for given in (jnp.float32, dtype):
        images = jax.ShapeDtypeStruct(images.shape, given)
        assert jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x), state, images).dtype == jnp.dtype(given)


def test_float64(name, x64):
    model, images, logits, _, _ = trial(name)
    found = run(made(model.spec, CLASSES, dtype="float64"), images.astype(np.float64))
    assert found.dtype == jnp.float64
    assert distance(logits, found) < 1e-5


def test_no_images_have_no_logits(name):
    model = made(small(name), CLASSES)
    images = pictures(model.spec)[:0].astype(np.float32)
    assert model(images).shape == (0, CLASSES)
    assert jax.grad(lambda images: model(images).sum())(images).shape == images.shape
