"""Dropout: what the mask is a function of, how often it drops, and what the two forms make of it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import in_forms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet_jax import keys
from alexnet_jax.nn import Dropout, dropout

# The fixture `x64` holds for all examples of a test alike.
CASES = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FORMS = ("paper", "inverted")
RATES = (0.5, 0.3, 0.9, 0.01)
KEY = jax.random.key(42)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "rate", "groups"))
def _draw(key, first_group, *, shape, dtype, rate, groups):
    return dropout(jnp.ones(shape, dtype), rate=rate, train=True, key=key, groups=groups, first_group=first_group)


def mask_of(shape, key=KEY, dtype=jnp.float32, rate=0.5, groups=1, first_group=0):
    """The 0/1 mask, as the paper's form gives it on ones; `first_group` is traced."""
    mask = np.asarray(_draw(key, first_group, shape=shape, dtype=dtype, rate=rate, groups=groups))
    assert set(np.unique(mask)) <= {0, 1}
    return mask


def within_chance(mask, rate):
    """Whether the fraction dropped is within 5 standard deviations of `rate`."""
    return abs((1 - mask).mean() - rate) < 5 * (rate * (1 - rate) / mask.size) ** 0.5


# Values and gradients


@CASES
@given(
    n=st.integers(1, 3),
    middle=st.sampled_from([(), (3,)]),
    per_group=st.integers(1, 40),
    groups=st.integers(1, 3),
    rate=st.sampled_from([0.5, 0.25, 0.8]),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 1000),
)
def test_forward_and_gradient(x64, n, middle, per_group, groups, rate, form, seed):
    """x·mask (÷ keep when inverted) in training, x·keep (x when inverted) at test, and gradients alike."""
    shape = (n, *middle, per_group * groups)
    x, dy = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    keywords = {"rate": rate, "groups": groups}
    result = in_forms(
        lambda x, ones, forms: dropout(
            ones if forms == "mask" else x,
            train=forms != "test",
            key=jax.random.key(seed),
            form="paper" if forms == "mask" else form,
            **keywords,
        ),
        x,
        np.ones(shape),
        cotangent=dy,
        forms=("mask", "train", "test"),
    )
    mask = result["mask"][0]
    assert set(np.unique(mask)) <= {0, 1}
    expected, expected_dx = np.zeros(shape), np.zeros(shape)
    for index in np.ndindex(shape):
        if mask[index] == 1:
            expected[index] = x[index] if form == "paper" else x[index] / (1 - rate)
            expected_dx[index] = dy[index] if form == "paper" else dy[index] / (1 - rate)

    y, (dx, _) = result["train"]
    np.testing.assert_allclose(y, expected, rtol=1e-14)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-14)
    y, (dx, _) = result["test"]
    factor = 1 - rate if form == "paper" else 1
    np.testing.assert_allclose(y, x * factor, rtol=1e-14)
    np.testing.assert_allclose(dx, dy * factor, rtol=1e-14)


def test_the_paper_s_form_written_out(x64):
    """Times 0 or 1 in training, times 0.5 at test: nothing else."""
    x = jnp.asarray(random(8, 64))
    y = dropout(x, train=True, key=KEY)
    assert np.all((np.asarray(y) == 0) | (np.asarray(y) == np.asarray(x)))
    assert 0 < np.count_nonzero(y) < y.size
    assert np.array_equal(dropout(x), 0.5 * x)
    assert np.array_equal(dropout(x, train=False, key=KEY), 0.5 * x)
    assert np.array_equal(dropout(x, form="inverted"), x)
    inverted = dropout(x, train=True, key=KEY, form="inverted")
    assert np.array_equal(inverted, 2 * y)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rate", [0.5, 0.3, 0.9])
def test_test_time_gives_the_mean_of_training(x64, rate, form):
    x = jnp.asarray(1 + abs(random(64)))
    trained = dropout(jnp.tile(x[None], (4000, 1)), rate=rate, train=True, key=KEY, form=form)
    tested = dropout(x[None], rate=rate, form=form)[0]
    # The mask's standard error, at 5 standard deviations, relative to the mean.
    np.testing.assert_allclose(trained.mean(0), tested, rtol=5 * (rate / (1 - rate) / 4000) ** 0.5)


@pytest.mark.parametrize("form", FORMS)
def test_rate_zero_keeps_all(form):
    x = jnp.asarray(random(2, 5), jnp.float32)
    for train in (False, True):
        assert np.array_equal(dropout(x, rate=0.0, train=train, key=KEY, form=form), x)


def test_what_is_dropped_is_zero_whatever_it_was():
    x = jnp.full((4, 64), jnp.inf)
    mask = mask_of((4, 64))
    y = dropout(x, train=True, key=KEY)
    assert np.array_equal(y, np.where(mask == 1, np.inf, 0))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16])
def test_dtypes(x64, dtype, train):
    x = jnp.asarray(random(2, 40), dtype)
    result = in_forms(
        lambda x, forms: dropout(x, rate=0.3, train=train, key=KEY, form=forms),
        x,
        cotangent=jnp.ones_like(x),
        forms=FORMS,
    )
    mask = result["paper"][0] != 0
    assert mask.all() != train
    for form, (y, (dx,)) in result.items():
        assert y.dtype == dx.dtype == dtype
        expected = np.asarray(x, np.float64) * mask
        if (form == "paper") != train:
            expected = expected * 0.7 if form == "paper" else expected / 0.7
        np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(("rate", "form"), [(0.5, "paper"), (0.3, "inverted")])
def test_jit_grad_vmap_and_jvp(x64, rate, form):
    x = jnp.asarray(random(3, 2, 8))
    image_keys = jax.random.split(KEY, 3)

    def run(x, key):
        return dropout(x, rate=rate, train=True, key=key, form=form, groups=2)

    whole = run(x, image_keys)
    assert np.array_equal(jax.jit(run)(x, image_keys), whole)
    each = jax.jit(jax.vmap(lambda x, key: run(x[None], key[None])[0]))(x, image_keys)
    assert np.array_equal(each, whole)
    mask = np.asarray(whole / x)
    gradient = jax.jit(jax.grad(lambda x: (run(x, image_keys) ** 2).sum()))(x)
    np.testing.assert_allclose(gradient, 2 * x * mask**2, rtol=1e-12)
    _, tangent = jax.jit(lambda x, t: jax.jvp(lambda x: run(x, image_keys), (x,), (t,)))(x, jnp.cos(x))
    np.testing.assert_allclose(tangent, jnp.cos(x) * mask, rtol=1e-12)


# How often


@pytest.mark.parametrize("rate", RATES)
def test_how_often_it_drops(rate):
    mask = mask_of((64, 2048), rate=rate)
    assert within_chance(mask, rate)
    # In each image and at each place, too: 6 standard deviations for the worst of 2112.
    for axis, count in ((1, 2048), (0, 64)):
        spread = abs((1 - mask).mean(axis) - rate).max()
        assert spread < 6 * (rate * (1 - rate) / count) ** 0.5 + 1 / count


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_how_often_it_drops_in_maps_of_odd_size(rate):
    assert within_chance(mask_of((1001, 7, 3), rate=rate), rate)


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_activations_are_dropped_independently(rate):
    """Neighbours, images, groups, bits of a word: equal as often as chance has it."""
    mask = mask_of((64, 2048), rate=rate, groups=2)
    expected = rate**2 + (1 - rate) ** 2
    for a, b in (
        *((mask[:, lag:], mask[:, :-lag]) for lag in range(1, 65)),
        (mask[1:], mask[:-1]),
        (mask[:, :1024], mask[:, 1024:]),
        (mask, mask_of((64, 2048), jax.random.key(43), rate=rate, groups=2)),
    ):
        assert abs((a == b).mean() - expected) < 5 * (expected * (1 - expected) / a.size) ** 0.5


# What the mask is a function of


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_an_image_s_mask_is_the_same_whatever_the_batch(rate):
    image_keys = keys.for_step(0, keys.Purpose.DROPOUT, jnp.int32(7), jnp.arange(6))
    whole = mask_of((6, 40), image_keys, rate=rate)
    for rows in ([5], [4, 1, 0]):
        assert np.array_equal(mask_of((len(rows), 40), image_keys[np.array(rows)], rate=rate), whole[rows])
    # From one key, image i has the same mask in a batch of any size.
    whole = mask_of((6, 40), rate=rate)
    for count in (1, 3):
        assert np.array_equal(mask_of((count, 40), rate=rate), whole[:count])


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_an_image_s_mask_is_the_same_whatever_the_batch_for_other_generators(implementation):
    image_keys = jax.random.split(jax.random.key(0, impl=implementation), 4)
    whole = mask_of((4, 40), image_keys)
    assert np.array_equal(mask_of((2, 40), image_keys[2:]), whole[2:])


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_the_mask_is_the_same_with_and_without_x64(rate):
    narrow = mask_of((3, 66), rate=rate, groups=2, first_group=jnp.asarray(1))
    with jax.enable_x64(True):
        wide_one = jnp.asarray(1)
        assert wide_one.dtype == jnp.int64
        wide = mask_of((3, 66), dtype=jnp.float64, rate=rate, groups=2, first_group=wide_one)
    assert np.array_equal(wide, narrow)


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_the_mask_depends_on_neither_values_nor_dtype_nor_form(rate):
    mask = mask_of((3, 40), rate=rate)
    assert np.array_equal(mask_of((3, 40), rate=rate, dtype=jnp.bfloat16), mask)
    x = jnp.asarray(random(3, 40), jnp.float32)
    for form in FORMS:
        assert np.array_equal(dropout(x, rate=rate, train=True, key=KEY, form=form) != 0, mask == 1)


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_images_groups_and_keys_have_masks_of_their_own(rate):
    mask = mask_of((64, 2048), rate=rate, groups=2)
    halves = [half.tobytes() for row in mask for half in np.split(row, 2)]
    assert len(set(halves)) == 128
    other = mask_of((64, 2048), jax.random.key(43), rate=rate, groups=2)
    assert not any(np.array_equal(a, b) for a, b in zip(mask, other, strict=True))


@pytest.mark.parametrize(("rate", "middle"), [(0.5, (5,)), (0.3, ())])
def test_a_device_can_draw_the_mask_of_its_tower_alone(rate, middle):
    whole = mask_of((3, *middle, 20), rate=rate, groups=2)
    for group, half in enumerate(np.split(whole, 2, -1)):
        assert np.array_equal(mask_of((3, *middle, 10), rate=rate, first_group=group), half)
    # A Python number, and two of four towers.
    half = dropout(jnp.ones((3, *middle, 10)), rate=rate, train=True, key=KEY, first_group=1)
    assert np.array_equal(half, whole[..., 10:])
    half = mask_of((3, *middle, 20), rate=rate, groups=2, first_group=2)
    assert np.array_equal(mask_of((3, *middle, 40), rate=rate, groups=4)[..., 20:], half)


def test_one_key_stands_for_one_an_image():
    assert np.array_equal(mask_of((3, 40), keys.per_image(KEY, 3)), mask_of((3, 40)))


def test_raw_keys_are_the_same_keys():
    raw = jax.random.PRNGKey(42)
    assert raw.dtype == jnp.uint32
    assert np.array_equal(mask_of((3, 40), raw), mask_of((3, 40)))
    assert np.array_equal(mask_of((3, 40), np.asarray(raw)), mask_of((3, 40)))
    typed = jax.random.split(KEY, 3)
    assert np.array_equal(mask_of((3, 40), jax.random.key_data(typed)), mask_of((3, 40), typed))


# The module, and errors


@pytest.mark.parametrize("train", [False, True])
def test_module_is_the_function(train):
    x = jnp.asarray(random(3, 40), jnp.float32)
    assert np.array_equal(Dropout()(x, train=train, key=KEY), dropout(x, train=train, key=KEY))
    keywords = {"form": "inverted", "groups": 2}
    expected = dropout(x, rate=0.3, train=train, key=KEY, **keywords)
    assert np.array_equal(Dropout(0.3, **keywords)(x, train=train, key=KEY), expected)


def test_module_tests_by_default():
    x = jnp.ones((2, 3))
    assert np.all(Dropout()(x) == 0.5)
    with pytest.raises(ValueError, match="needs a key"):
        Dropout()(x, train=True)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
@pytest.mark.parametrize("train", [False, True])
def test_a_rate_out_of_range_is_named(rate, train):
    with pytest.raises(ValueError, match=rf"rate must be in \[0, 1\), got {rate}"):
        dropout(jnp.ones((2, 3)), rate=rate, train=train, key=KEY)


@pytest.mark.parametrize(
    ("shape", "keywords", "error", "message"),
    [
        ((2, 3), {"form": "modern"}, ValueError, "'paper', 'inverted', got 'modern'"),
        ((2, 3), {"groups": 2}, ValueError, "dropout: 3 channels .* groups=2"),
        ((2, 3), {"groups": 0}, ValueError, "groups=0"),
        ((2, 3), {"key": None}, ValueError, "train=True needs a key"),
        ((3,), {}, ValueError, r"takes \(N, \.\.\., C\), got shape \(3,\)"),
        ((2, 3), {"key": 7}, TypeError, "expected a key .* got 7"),
        ((2, 3), {"key": jnp.zeros(2)}, TypeError, "expected a key .* got an array of float32"),
        ((2, 3), {"key": jnp.zeros(2, jnp.int32)}, TypeError, "expected a key .* got an array of int32"),
    ],
)
def test_bad_arguments_are_named(shape, keywords, error, message):
    with pytest.raises(error, match=message):
        dropout(jnp.ones(shape), **{"train": True, "key": KEY, **keywords})


def test_another_number_of_keys_is_named():
    with pytest.raises(ValueError, match=r"each of 2 images, got keys of shape \(3,\)"):
        dropout(jnp.ones((2, 3)), train=True, key=jax.random.split(KEY, 3))


def test_integers_are_refused():
    with pytest.raises(TypeError, match="dropout takes floating-point arrays, got int32"):
        dropout(jnp.ones((2, 3), jnp.int32), train=True, key=KEY)
