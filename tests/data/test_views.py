"""What the network sees of an image, against every crop made in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.data.views import Augmentation, ViewKeys, evaluation_view, training_view
from alexnet_jax.models.spec import InputSpec
from alexnet_jax.models.variants import VARIANTS

from .view_cases import CONTRACTS, COUNT, IMAGES, MEAN_IMAGE, SIDE, SIZE, found_choices, reference

FLIPPED = Augmentation(flip=True)


def keys_of(count: int, seed: int = 0) -> ViewKeys:
    """One key an image."""
    return ViewKeys(jax.random.split(jax.random.key(seed), count))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", CONTRACTS)
def test_a_view_is_one_crop_in_the_contract(name, flip):
    contract = CONTRACTS[name]
    views = training_view(
        jnp.asarray(IMAGES), keys_of(COUNT), contract, jnp.asarray(MEAN_IMAGE), Augmentation(flip=flip)
    )
    assert views.shape == (COUNT, SIZE, SIZE, 3)
    assert views.dtype == jnp.float32
    choices = [found_choices(view, image, contract, flip) for view, image in zip(views, IMAGES, strict=True)]
    assert [len(found) for found in choices] == [1] * COUNT
    drawn = {found[0] for found in choices}
    assert len({(top, left) for top, left, _ in drawn}) > 3
    assert {mirrored for *_, mirrored in drawn} == ({False, True} if flip else {False})


def test_a_key_decides_alike_in_every_contract():
    drawn = []
    for contract in CONTRACTS.values():
        views = training_view(jnp.asarray(IMAGES), keys_of(COUNT), contract, jnp.asarray(MEAN_IMAGE), FLIPPED)
        drawn.append([found_choices(v, i, contract, True)[0] for v, i in zip(views, IMAGES, strict=True)])
    assert all(choices == drawn[0] for choices in drawn)


def test_all_offsets_are_equally_likely():
    count, room = 8000, SIDE - SIZE + 1
    rows, columns = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    places = np.stack([rows, columns, columns], -1).astype(np.uint8)
    contract = InputSpec(size=SIZE, resize=SIDE)
    view = jax.jit(lambda images, keys: training_view(images, keys, contract, jnp.zeros_like(MEAN_IMAGE), FLIPPED))
    views = np.asarray(view(jnp.broadcast_to(places, (count, *places.shape)), keys_of(count, 1)))
    tops, lefts = views[:, 0, 0, 0].astype(int), views[..., 1].min((1, 2)).astype(int)
    mirrored = views[:, 0, 0, 1] > views[:, 0, -1, 1]
    assert set(tops) == set(lefts) == set(range(room))
    counts = np.zeros((room, room, 2))
    np.add.at(counts, (tops, lefts, mirrored.astype(int)), 1)
    expected = count / counts.size
    assert ((counts - expected) ** 2 / expected).sum() < 75  # 31 degrees of freedom: 1 in 40,000


def test_the_paper_draws_all_offsets_of_224_in_256():
    contract = VARIANTS["paper"].input
    rows, columns = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    places = jnp.asarray(np.stack([rows, columns, columns], -1).astype(np.uint8))

    @jax.jit
    def corners(keys):
        mean = jnp.zeros((256, 256, 3))
        return jax.lax.map(
            lambda key: training_view(places[None], ViewKeys(key[None]), contract, mean, Augmentation())[0, 0, 0, :2],
            keys,
        )

    found = np.asarray(corners(keys_of(1000).place)).astype(int)
    assert set(found[:, 0]) == set(found[:, 1]) == set(range(33))


def test_a_row_follows_its_key_alone():
    contract, mean = CONTRACTS["centre rgb"], jnp.asarray(MEAN_IMAGE)
    keys = keys_of(COUNT)
    whole = training_view(jnp.asarray(IMAGES), keys, contract, mean, FLIPPED)
    order = np.array([7, 2, 11])
    part = training_view(jnp.asarray(IMAGES[order]), ViewKeys(keys.place[order]), contract, mean, FLIPPED)
    np.testing.assert_array_equal(part, whole[order])


def test_an_image_without_room_is_only_mirrored():
    contract = InputSpec(size=SIDE, resize=SIDE)
    views = training_view(jnp.asarray(IMAGES), keys_of(COUNT), contract, jnp.asarray(MEAN_IMAGE), FLIPPED)
    same = [np.array_equal(view, image) for view, image in zip(views, IMAGES, strict=True)]
    mirrored = [np.array_equal(view, image[:, ::-1]) for view, image in zip(views, IMAGES, strict=True)]
    assert [a != b for a, b in zip(same, mirrored, strict=True)] == [True] * COUNT
    assert any(same)
    assert any(mirrored)


@pytest.mark.parametrize("name", CONTRACTS)
def test_evaluation_sees_the_central_crop(name):
    contract = CONTRACTS[name]
    views = evaluation_view(jnp.asarray(IMAGES), contract, jnp.asarray(MEAN_IMAGE))
    start = (SIDE - SIZE) // 2
    for view, image in zip(views, IMAGES, strict=True):
        np.testing.assert_allclose(view, reference(image, contract, start, start, False), atol=2e-3)


@pytest.mark.usefixtures("x64")
def test_64_bit_jax_sees_the_same():
    contract, mean = CONTRACTS["position rgb"], jnp.asarray(MEAN_IMAGE)
    view = training_view(jnp.asarray(IMAGES), keys_of(COUNT), contract, mean, FLIPPED)
    assert view.dtype == jnp.float32
    with jax.enable_x64(False):  # inside the 64-bit test
        plain = training_view(jnp.asarray(IMAGES), keys_of(COUNT), contract, mean, FLIPPED)
    np.testing.assert_array_equal(view, plain)
