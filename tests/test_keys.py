"""Randomness as a pure function of seed, purpose, step, row, layer and tower."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import keys
from alexnet_jax.keys import Purpose


def data(key):
    return np.asarray(jax.random.key_data(key))


def distinct(*key_arrays):
    rows = np.concatenate([data(k).reshape(-1, data(k).shape[-1]) for k in key_arrays])
    return len({row.tobytes() for row in rows}) == len(rows)


def test_purposes_keep_their_numbers():
    """They are part of a run's identity: a changed one changes every run."""
    assert {purpose.name: int(purpose) for purpose in Purpose} == {"INIT": 0, "DROPOUT": 1, "VIEW": 2, "COLOUR": 3}


def test_keys_are_folded_by_hand_alike():
    """seed -> purpose -> step -> row -> layer -> tower."""
    fold = jax.random.fold_in
    root = fold(jax.random.key(3), 1)
    assert np.array_equal(data(keys.root(3, Purpose.DROPOUT)), data(root))
    rows = keys.for_step(3, Purpose.DROPOUT, jnp.int32(17), jnp.array([0, 5]))
    for i, row in enumerate((0, 5)):
        assert np.array_equal(data(rows[i]), data(fold(fold(root, 17), row)))
    towers = keys.fold(keys.fold(rows, 6), 1)
    for i, row in enumerate((0, 5)):
        assert np.array_equal(data(towers[i]), data(fold(fold(fold(fold(root, 17), row), 6), 1)))


def test_everything_counts():
    step, rows = jnp.int32(4), jnp.arange(5)
    assert distinct(
        *(keys.for_step(seed, purpose, step + i, rows) for seed in (0, 1) for purpose in Purpose for i in range(3)),
        *(keys.root(seed, purpose) for seed in (0, 1) for purpose in Purpose),
    )
    image_keys = keys.for_step(0, Purpose.DROPOUT, step, rows)
    assert distinct(image_keys, *(keys.fold(image_keys, i) for i in range(3)))


def test_a_row_s_key_is_the_same_whatever_the_share_of_the_batch():
    whole = data(keys.for_step(0, Purpose.VIEW, jnp.int32(9), jnp.arange(8)))
    for rows in ([0, 1, 2, 3], [4, 5, 6, 7], [7], [3, 0]):
        assert np.array_equal(data(keys.for_step(0, Purpose.VIEW, jnp.int32(9), jnp.array(rows))), whole[rows])


def test_traced_steps_and_rows_give_the_same_keys():
    def run(step, rows):
        return jax.random.key_data(keys.fold(keys.for_step(1, Purpose.DROPOUT, step, rows), rows[0]))

    plain = run(jnp.int32(123456), jnp.arange(4))
    assert np.array_equal(jax.jit(run)(jnp.int32(123456), jnp.arange(4)), plain)
    steps = jnp.array([7, 123456], jnp.int32)
    assert np.array_equal(jax.vmap(run, in_axes=(0, None))(steps, jnp.arange(4))[1], plain)


def test_keys_are_the_same_with_and_without_x64():
    def run():
        image_keys = keys.for_step(2, Purpose.VIEW, jnp.asarray(5), jnp.arange(3))
        return data(keys.fold(image_keys, 1)), data(keys.per_image(jax.random.key(2), 3))

    narrow = run()
    with jax.enable_x64(True):
        assert jnp.arange(3).dtype == jnp.int64
        wide = run()
    for a, b in zip(narrow, wide, strict=True):
        assert np.array_equal(a, b)


def test_per_image_from_one_key():
    key = jax.random.key(0)
    many = keys.per_image(key, 5)
    assert many.shape == (5,)
    assert jnp.issubdtype(many.dtype, jax.dtypes.prng_key)
    assert distinct(many, key)
    assert np.array_equal(data(keys.per_image(key, 3)), data(many)[:3])  # whatever the count
    raw = jax.random.PRNGKey(0)
    assert np.array_equal(data(keys.per_image(raw, 5)), data(many))
    assert np.array_equal(data(keys.per_image(np.asarray(raw), 5)), data(many))


def test_per_image_from_many_keys_passes_them():
    many = jax.random.split(jax.random.key(0), 4)
    assert np.array_equal(data(keys.per_image(many, 4)), data(many))
    raw = keys.per_image(jax.random.key_data(many), 4)
    assert jnp.issubdtype(raw.dtype, jax.dtypes.prng_key)
    assert np.array_equal(data(raw), data(many))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (3, "got 3"),
        (None, "got None"),
        ("seed", "got 'seed'"),
        (jnp.zeros(2), "got an array of float32"),
        (jnp.zeros(2, jnp.int32), "got an array of int32"),
    ],
)
def test_what_is_no_key_is_named(key, message):
    with pytest.raises(TypeError, match=rf"expected a key such as jax\.random\.key\(0\), {message}"):
        keys.per_image(key, 2)


@pytest.mark.parametrize("key", [np.uint32(3), np.zeros(3, np.uint32)])
def test_uint32_arrays_that_are_no_key_are_refused(key):
    with pytest.raises(TypeError, match="key"):
        keys.per_image(key, 2)


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 2), (0,)])
def test_another_number_of_keys_is_named(shape):
    many = jax.random.split(jax.random.key(0), shape)
    message = rf"each of 2 images, got keys of shape \({', '.join(map(str, shape))},?\)"
    with pytest.raises(ValueError, match=message):
        keys.per_image(many, 2)
    with pytest.raises(ValueError, match=message):
        keys.per_image(jax.random.key_data(many), 2)


def test_permutation():
    order = keys.permutation(0, 0, 1000)
    assert isinstance(order, np.ndarray)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(keys.permutation(0, 0, 1000), order)
    others = [keys.permutation(seed, epoch, 1000) for seed, epoch in ((0, 1), (1, 0), (1, 1))]
    for i, a in enumerate([order, *others]):
        for b in [order, *others][:i]:
            assert (a == b).mean() < 0.01
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.2
    assert np.array_equal(keys.permutation(0, 0, 1), [0])
    assert keys.permutation(0, 0, 0).size == 0


def test_permutation_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    keys.permutation(5, 2, 100)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
