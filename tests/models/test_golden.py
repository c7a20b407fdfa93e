"""Values that must not change: one step of `paper`, and the stream of the dropout masks.

Whoever changes them changes what every checkpoint and every recorded run means.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_jax import get_spec, nn

from .builders import build, distance, made, narrow, parameters, pictures, stages

LOSS = 6.96205044943815
NORMS = {
    "conv1.kernel": 1.8121889611354052,
    "conv1.bias": 0.001240991974335264,
    "conv2.kernel": 5.659685660525489,
    "conv2.bias": 0.004031207548334709,
    "conv3.kernel": 9.355112336594544,
    "conv3.bias": 0.009517561831346822,
    "conv4.kernel": 8.458034185596992,
    "conv4.bias": 0.009890510253253436,
    "conv5.kernel": 9.411711417996287,
    "conv5.bias": 0.010470097299077817,
    "fc6.kernel": 23.16926441287432,
    "fc6.bias": 0.008800399476823104,
    "fc7.kernel": 15.340417271675598,
    "fc7.bias": 0.01760364943241391,
    "fc8.kernel": 307.95552697595247,
    "fc8.bias": 0.7066031615288789,
}


def test_a_step_of_paper(x64):
    """Loss and gradient norms at full size, dropout off, parameters and images from NumPy's raw stream."""
    spec = get_spec("paper")
    params = parameters(spec, seed=2012)
    params["fc8"]["kernel"] *= 0.05  # logits of order 1
    graph, state = nnx.split(build(spec, params, dtype="float64"))
    images, labels = pictures(spec, seed=2010), jnp.array([3, 997])

    def loss(state, images):
        logits = nnx.merge(graph, state)(images)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    @jax.jit
    def step(state, images):
        value, grads = jax.value_and_grad(loss)(state, images)
        return value, jax.tree.map(jnp.linalg.norm, grads)

    value, norms = step(state, images)
    found = {f"{layer}.{key}": float(n) for layer, leaf in nnx.to_pure_dict(norms).items() for key, n in leaf.items()}
    assert set(found) == set(NORMS)
    np.testing.assert_allclose(float(value), LOSS, rtol=1e-8)
    for name, norm in NORMS.items():
        np.testing.assert_allclose(found[name], norm, rtol=1e-8, err_msg=name)


def bits(mask):
    return np.packbits(np.asarray(mask) != 0, axis=-1).tobytes().hex()


ONES = np.ones((2, 64), np.float32)
MASKS = {
    "one group": "f56a0612f0fd0393fdba74291c489e1c",
    "two groups": "f56a0612f5634d58fdba742970e082e8",
    "second of two": "f5634d5870e082e8",
    "rate 0.25": "affa9fbcdfcfeefffdbedbdf873fbb0b",
    "a map": "f56a0612f0fd0393fdba74291c489e1c",
}


def mask(case):
    key = jax.random.key(0)
    options = {
        "one group": {},
        "two groups": {"groups": 2},
        "second of two": {"first_group": 1},
        "rate 0.25": {"rate": 0.25},
        "a map": {},
    }[case]
    x = np.ones((2, 2, 2, 16), np.float32) if case == "a map" else ONES
    x = x[:, :32] if case == "second of two" else x
    return nn.dropout(x, train=True, key=key, **options).reshape(2, -1)


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("wide", [False, True])
def test_the_stream_of_the_masks(case, wide):
    with jax.enable_x64(wide):
        assert bits(mask(case)) == MASKS[case]


def test_the_second_towers_mask_is_the_second_half():
    np.testing.assert_array_equal(mask("two groups")[:, 32:], mask("second of two"))


def test_the_models_masks_are_that_stream(x64):
    """Image, then layer, then tower are folded into the key."""
    spec = narrow("paper", features=64)
    model, images, key = made(spec, dtype="float64"), pictures(spec), jax.random.key(0)
    found = stages(model, images, train=True, dropout_key=key)
    for index, (layer, after) in enumerate([("fc6", "fc7"), ("fc7", "fc8")]):
        rows = []
        for image in range(2):
            own = jax.random.fold_in(jax.random.fold_in(key, image), index)
            words = [jax.random.bits(jax.random.fold_in(own, tower), (1,), jnp.uint32) for tower in range(2)]
            rows.append([int(word[0]) >> i & 1 for word in words for i in range(32)])
        dense = getattr(model, after)
        wanted = (found[layer] * np.array(rows)) @ dense.kernel[...] + dense.bias[...].reshape(1, -1)
        assert distance(found["logits" if after == "fc8" else f"{after}.pre"], wanted) < 1e-12
