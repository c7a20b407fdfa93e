"""What the network sees of an image, against every crop made in NumPy."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.data.views import evaluation_view, training_view
from alexnet_jax.models.spec import InputSpec
from alexnet_jax.models.variants import VARIANTS

COUNT, SIDE, SIZE = 12, 9, 6
MEAN_IMAGE = np.random.default_rng(5).uniform(80, 170, (SIDE, SIDE, 3)).astype(np.float32)
IMAGES = np.random.default_rng(6).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
CONTRACTS = {
    f"{mean_image} {order}": InputSpec(
        size=SIZE,
        resize=SIDE,
        channel_order=order,
        scale=scale,
        mean=tuple(np.multiply((0.1, 0.2, 0.3), scale)),
        std=(0.5, 1.0, 2.0),
        mean_image=mean_image,
    )
    for mean_image, order, scale in itertools.product((None, "centre", "position"), ("rgb", "bgr"), (255.0,))
} | {"unit scale": InputSpec(size=SIZE, resize=SIDE, scale=1.0, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))}


def keys_of(count: int, seed: int = 0) -> jax.Array:
    """One key an image."""
    return jax.random.split(jax.random.key(seed), count)


def reference(image, contract, top, left, mirrored) -> np.ndarray:
    """One view in float64."""
    window = np.s_[top : top + SIZE, left : left + SIZE]
    start = (SIDE - SIZE) // 2
    mean_image = {
        None: None,
        "centre": MEAN_IMAGE[start : start + SIZE, start : start + SIZE],
        "position": MEAN_IMAGE[window],
    }[contract.mean_image]
    if mirrored and contract.mean_image == "position":  # the mean image is mirrored with what it was taken from
        mean_image = mean_image[:, ::-1]
    crop = image[window].astype(np.float64)
    crop = crop[:, ::-1] if mirrored else crop
    if contract.channel_order == "bgr":
        crop = crop[..., ::-1]
        mean_image = None if mean_image is None else mean_image[..., ::-1]
    scale = contract.scale / 255
    mean = np.array(contract.mean) if mean_image is None else mean_image.astype(np.float64) * scale
    return (crop * scale - mean) / np.array(contract.std)


def found_choices(view, image, contract, flip):
    """All (top, left, mirrored) whose reference is the view."""
    room = range(SIDE - SIZE + 1)
    return [
        choice
        for choice in itertools.product(room, room, (False, True) if flip else (False,))
        if np.allclose(view, reference(image, contract, *choice), rtol=0, atol=1e-6 * contract.scale / 0.2)
    ]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", CONTRACTS)
def test_a_view_is_one_crop_in_the_contract(name, flip):
    contract = CONTRACTS[name]
    views = training_view(jnp.asarray(IMAGES), keys_of(COUNT), contract, jnp.asarray(MEAN_IMAGE), flip=flip)
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
        views = training_view(jnp.asarray(IMAGES), keys_of(COUNT), contract, jnp.asarray(MEAN_IMAGE), flip=True)
        drawn.append([found_choices(v, i, contract, True)[0] for v, i in zip(views, IMAGES, strict=True)])
    assert all(choices == drawn[0] for choices in drawn)


def test_all_offsets_are_equally_likely():
    count, room = 8000, SIDE - SIZE + 1
    rows, columns = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    places = np.stack([rows, columns, columns], -1).astype(np.uint8)
    contract = InputSpec(size=SIZE, resize=SIDE)
    view = jax.jit(lambda images, keys: training_view(images, keys, contract, jnp.zeros_like(MEAN_IMAGE), flip=True))
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
            lambda key: training_view(places[None], key[None], contract, mean, flip=False)[0, 0, 0, :2], keys
        )

    found = np.asarray(corners(keys_of(1000))).astype(int)
    assert set(found[:, 0]) == set(found[:, 1]) == set(range(33))


@pytest.mark.parametrize("name", ["paper", "bvlc_alexnet", "torchvision"])
def test_views_have_the_same_bits_in_every_layout(name):
    """One device, several, and not compiled at all: the keys are the rows' own."""
    contract = dataclasses.replace(VARIANTS[name].input, size=SIZE, resize=SIDE)
    keys, mean = keys_of(COUNT), jnp.asarray(MEAN_IMAGE)

    def view(images, keys, mean):
        return training_view(images, keys, contract, mean, flip=True)

    whole = np.asarray(jax.jit(view)(IMAGES, keys, mean))
    mesh = jax.sharding.Mesh(jax.devices()[:4], "data")
    rows, everywhere = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    spread = jax.shard_map(view, mesh=mesh, in_specs=(rows, rows, everywhere), out_specs=rows)
    np.testing.assert_array_equal(np.asarray(jax.jit(spread)(IMAGES, keys, mean)), whole)
    one = np.concatenate([jax.jit(view)(IMAGES[row : row + 1], keys[row : row + 1], mean) for row in range(3)])
    np.testing.assert_array_equal(one, whole[:3])
    plain = np.asarray(view(jnp.asarray(IMAGES), keys, mean))
    if contract.scale == 255:
        np.testing.assert_array_equal(plain, whole)
    else:  # where a product meets a sum, the compiler may keep more bits of it
        np.testing.assert_allclose(plain, whole, atol=1e-6)


def test_a_row_follows_its_key_alone():
    contract, mean = CONTRACTS["centre rgb"], jnp.asarray(MEAN_IMAGE)
    keys = keys_of(COUNT)
    whole = training_view(jnp.asarray(IMAGES), keys, contract, mean, flip=True)
    order = np.array([7, 2, 11])
    part = training_view(jnp.asarray(IMAGES[order]), keys[order], contract, mean, flip=True)
    np.testing.assert_array_equal(part, whole[order])


def test_an_image_without_room_is_only_mirrored():
    contract = InputSpec(size=SIDE, resize=SIDE)
    views = training_view(jnp.asarray(IMAGES), keys_of(COUNT), contract, jnp.asarray(MEAN_IMAGE), flip=True)
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
    view = training_view(jnp.asarray(IMAGES), keys_of(COUNT), contract, mean, flip=True)
    assert view.dtype == jnp.float32
    with jax.enable_x64(False):  # inside the 64-bit test
        plain = training_view(jnp.asarray(IMAGES), keys_of(COUNT), contract, mean, flip=True)
    np.testing.assert_array_equal(view, plain)
