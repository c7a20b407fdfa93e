"""Calling a model: named stages, keys, forms, and JAX's transformations around it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_jax import create_model, list_models
from alexnet_jax.nn import forms as forms_of_blocks

from .builders import build, distance, made, narrow, parameters, pictures, run, stages

CLASSES = 7


def split(name, forms="auto", dtype="float64"):
    """A narrow model as (function of state and images, state, images)."""
    spec = narrow(name)
    model = made(spec, CLASSES, dtype=dtype, forms=forms)
    graph, state = nnx.split(model)

    def forward(state, images, **options):
        return nnx.merge(graph, state)(images, **options)

    return forward, state, jnp.asarray(pictures(spec), dtype)


def close(ours, theirs, bound):
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert distance(a, b) < bound, path


def test_one_stage_by_its_name():
    spec = narrow("paper")
    model, images = made(spec), pictures(spec).astype(np.float32)
    logits, one = model.activations(images[:1], "conv2")
    assert list(one) == ["conv2"]
    assert logits.shape == (1, CLASSES)
    logits, two = model.activations(images[:1], (name for name in ("fc7", "conv1.pre")))
    assert list(two) == ["fc7", "conv1.pre"]
    assert distance(logits, model(images[:1])) < 1e-6
    assert model.activations(images[:1], ())[1] == {}


def test_a_key_without_training_changes_nothing():
    spec = narrow("paper")
    model, images = made(spec), pictures(spec).astype(np.float32)
    np.testing.assert_array_equal(model(images, dropout_key=jax.random.key(0)), model(images))


def test_a_raw_key_is_a_key():
    spec = narrow("paper")
    model, images = made(spec), pictures(spec).astype(np.float32)
    typed = model(images, train=True, dropout_key=jax.random.key(5))
    np.testing.assert_array_equal(model(images, train=True, dropout_key=jax.random.PRNGKey(5)), typed)


def test_the_papers_dropout_halves_at_test_and_not_in_training(x64):
    spec = narrow("paper")
    model, images = made(spec, dtype="float64"), pictures(spec)
    found = stages(model, images)
    kernel, bias = model.fc7.kernel[...], model.fc7.bias[...].reshape(1, -1)
    assert distance(found["fc7.pre"], 0.5 * found["fc6"] @ kernel + bias) < 1e-14
    head = model.fc8.bias[...].reshape(1, -1)
    assert distance(found["logits"], 0.5 * found["fc7"] @ model.fc8.kernel[...] + head) < 1e-14
    trained = stages(model, images, train=True, dropout_key=jax.random.key(0))
    assert set(dropped_to(model, trained)) == {0.0, 1.0}


def dropped_to(model, found):
    """By what fc6's units were multiplied on their way to fc7, whose kernel is square."""
    rest = np.asarray(found["fc7.pre"] - model.fc7.bias[...].reshape(1, -1))
    saw = np.linalg.solve(np.asarray(model.fc7.kernel[...]).T, rest.T).T
    alive = np.asarray(found["fc6"]) > 1e-3
    return np.round(saw[alive] / np.asarray(found["fc6"])[alive], 6) + 0.0


def test_inverted_dropout_does_nothing_at_test_and_doubles_in_training(x64):
    spec = narrow("bvlc_alexnet")
    model, images = made(spec, dtype="float64"), pictures(spec)
    found = stages(model, images)
    kernel, bias = model.fc7.kernel[...], model.fc7.bias[...].reshape(1, -1)
    assert distance(found["fc7.pre"], found["fc6"] @ kernel + bias) < 1e-14
    trained = stages(model, images, train=True, dropout_key=jax.random.key(0))
    assert set(dropped_to(model, trained)) == {0.0, 2.0}


def test_torchvision_drops_what_fc6_sees(x64):
    spec = narrow("torchvision")
    model, images = made(spec, dtype="float64"), pictures(spec)
    flat = np.asarray(stages(model, images)["avgpool"]).reshape(2, -1)
    trained = stages(model, images, train=True, dropout_key=jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(trained["avgpool"]).reshape(2, -1), flat)
    plain = flat @ model.fc6.kernel[...] + model.fc6.bias[...].reshape(1, -1)
    assert distance(trained["fc6.pre"], plain) > 0.1
    # What fc8 sees is whole: dropout comes before fc6 and fc7 only.
    wanted = trained["fc7"] @ model.fc8.kernel[...] + model.fc8.bias[...].reshape(1, -1)
    assert distance(trained["logits"], wanted) < 1e-14


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "paper" else pytest.mark.slow) for name in list_models()],
)
def test_both_forms_agree(name, x64, monkeypatch):
    for bound in ("CHANNELS", "TILES", "WORK"):
        monkeypatch.setattr(forms_of_blocks, f"WINOGRAD_{bound}", 0)  # these networks are too small for it
    results = []
    for forms in ("auto", "reference"):
        forward, state, images = split(name, forms)
        results.append(
            jax.jit(jax.value_and_grad(lambda s, x, f=forward: jnp.sin(f(s, x)).sum(), argnums=(0, 1)))(state, images)
        )
    close(results[0], results[1], 1e-10)


@pytest.fixture
def slices_of_two(monkeypatch):
    """By Eigen, the networks of `narrow` see two images at a time."""
    monkeypatch.setattr(forms_of_blocks, "TOGETHER", 2 * 67 * 67)


@pytest.mark.parametrize("name", ["paper", pytest.param("torchvision", marks=pytest.mark.slow)])
def test_inference_in_slices(x64, slices_of_two, name):
    """Logits, every stage and gradients are those of the whole batch, in its order; and it is done in slices."""
    spec = narrow(name)
    model, images = made(spec, dtype="float64"), jnp.asarray(pictures(spec, 6))
    plain = made(spec, dtype="float64", forms="reference")

    def everything(model):
        graph, state = nnx.split(model)

        def run(state, images):
            return nnx.merge(graph, state).activations(images, tuple(spec.stages(CLASSES)))

        def gradients(state, images):
            return jax.grad(lambda *args: jnp.sin(run(*args)[0]).sum(), argnums=(0, 1))(state, images)

        return (lambda state, images: (run(state, images), gradients(state, images))), state

    (auto, state), (reference, _) = everything(model), everything(plain)
    close(forms_of_blocks.jit(auto)(state, images), jax.jit(reference)(state, images), 1e-10)


def scanned(model, images, **options):
    """Whether a program for Eigen goes through the images in slices."""
    graph, state = nnx.split(model)
    compiled = forms_of_blocks.jit(lambda state, images: nnx.merge(graph, state)(images, **options))
    return "scan[" in str(compiled.trace(state, images).jaxpr)


def test_when_slices_are_taken(slices_of_two):
    spec = narrow("paper")
    model, reference = made(spec), made(spec, forms="reference")
    images = pictures(spec, 6).astype(np.float32)
    assert scanned(model, images)
    assert not scanned(model, images[:2])
    assert not scanned(model, images, train=True, dropout_key=jax.random.key(0))
    assert not scanned(reference, images)
    graph, state = nnx.split(model)
    assert "scan[" not in str(jax.make_jaxpr(lambda x: nnx.merge(graph, state)(x))(images))  # not by Eigen


def test_forms_may_be_set_later(x64):
    spec = narrow("paper")
    model = made(spec, dtype="float64")
    auto = jax.make_jaxpr(nnx.merge(*nnx.split(model)))(pictures(spec))
    assert "custom_vjp" in str(auto)
    model.forms = "reference"
    assert "custom_vjp" not in str(jax.make_jaxpr(nnx.merge(*nnx.split(model)))(pictures(spec)))


def test_forward_mode_in_reference_forms(x64):
    forward, state, images = split("paper", "reference")
    tangent = jnp.asarray(pictures(narrow("paper"), seed=9))
    compiled = jax.jit(lambda x: forward(state, x))
    push = jax.jit(lambda x, t: jax.jvp(lambda x: forward(state, x), (x,), (t,))[1])(images, tangent)
    step = 1e-6
    numeric = (compiled(images + step * tangent) - compiled(images - step * tangent)) / (2 * step)
    assert distance(push, numeric) < 1e-6
    # and it agrees with reverse mode
    cotangent = jnp.cos(jnp.arange(2.0 * CLASSES)).reshape(2, CLASSES)
    pull = jax.jit(jax.grad(lambda x: (forward(state, x) * cotangent).sum()))(images)
    np.testing.assert_allclose((push * cotangent).sum(), (pull * tangent).sum(), rtol=1e-10)


def test_forward_mode_in_the_fast_forms_is_refused(x64):
    forward, state, images = split("paper", "auto")
    with pytest.raises(TypeError, match="reference"):
        jax.jvp(lambda x: forward(state, x), (images,), (images,))


def test_a_hessian_vector_product(x64):
    spec = narrow("paper")
    spec = dataclasses.replace(spec, convs=spec.convs[:2], dense=spec.dense[:1])
    params, images = parameters(spec, 3), pictures(spec)
    graph, state = nnx.split(build(spec, params, dtype="float64", forms="reference"))
    fast, _ = nnx.split(build(spec, params, dtype="float64"))
    vector = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape) * 1e-2, state)

    def loss(state, graph):
        return -jax.nn.log_softmax(nnx.merge(graph, state)(images))[:, 2].mean()

    def along(state):
        grads = jax.grad(loss)(state, fast)
        return sum(jax.tree.leaves(jax.tree.map(lambda g, v: (g * v).sum(), grads, vector)))

    product = jax.jit(lambda s: jax.jvp(jax.grad(lambda s: loss(s, graph)), (s,), (vector,))[1])(state)
    close(product, jax.jit(jax.grad(along))(state), 1e-10)


def test_vmap_over_images_is_the_batch(x64):
    forward, state, images = split("bvlc_alexnet")
    keys = jax.random.split(jax.random.key(2), 2)

    @jax.jit
    def both(images, keys):
        one = jax.vmap(lambda x, k: forward(state, x[None], train=True, dropout_key=k[None])[0])
        return one(images, keys), forward(state, images, train=True, dropout_key=keys)

    assert distance(*both(images, keys)) < 1e-12


def test_jit_is_the_same(x64):
    forward, state, images = split("source2012")
    spec = narrow("source2012")
    assert distance(nnx.jit(lambda m, x: m(x))(made(spec, dtype="float64"), images), forward(state, images)) < 1e-12


def test_bfloat16_is_near():
    spec = narrow("paper")
    model, images = made(spec), pictures(spec).astype(np.float32)
    half = create_model(spec, num_classes=CLASSES, dtype=jnp.bfloat16)
    nnx.update(half, nnx.state(model))
    found = run(half, images)
    assert found.dtype == jnp.bfloat16
    assert distance(found, run(model, images)) < 0.05


def test_the_seed_makes_the_parameters():
    spec = narrow("paper")
    one, again, rngs, other = (
        create_model(spec, num_classes=2, rngs=seed) for seed in (0, jax.random.key(0), nnx.Rngs(0), 1)
    )
    kernels = [np.asarray(model.conv4.kernel[...]) for model in (one, again, rngs, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    np.testing.assert_array_equal(kernels[0], kernels[2])
    assert not np.array_equal(kernels[0], kernels[3])
    assert not np.array_equal(one.conv3.kernel[...].ravel()[:50], one.conv4.kernel[...].ravel()[:50])
