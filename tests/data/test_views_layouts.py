"""The same augmented batch, bit for bit, on one device and on several, however the step is mapped."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from alexnet_jax.data.views import Augmentation, colour_directions, training_view, view_keys
from alexnet_jax.models.variants import VARIANTS

SIDE, SIZE = 12, 9
MEAN_IMAGE = np.random.default_rng(5).uniform(80, 170, (SIDE, SIDE, 3)).astype(np.float32)
CASES = {
    "source2012": Augmentation(flip=True, colour_noise="source2012", shared_draw=3),
    "bvlc_alexnet": Augmentation(flip=True, colour_noise="paper"),  # BGR, the mean image at the crop's position
    "torchvision": Augmentation(flip=True, colour_noise="paper", shared_draw=2),  # a scale and a standard deviation
}


def view_of(name):
    """A function of images and their global rows."""
    augmentation = CASES[name]
    contract = dataclasses.replace(VARIANTS[name].input, size=SIZE, resize=SIDE)
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    directions = colour_directions(augmentation.colour_noise, np.square([19.72, 37.09, 121.78]), vectors)

    def view(images, rows):
        views = view_keys(3, jnp.int32(5), rows, augmentation)
        return training_view(images, views, contract, jnp.asarray(MEAN_IMAGE), augmentation, directions)

    return view


def with_jit(view, images, rows, devices):
    """One compiled function, its arguments split by rows."""
    mesh = jax.sharding.Mesh(jax.devices()[:devices], "data")
    placed = jax.device_put((images, rows), NamedSharding(mesh, PartitionSpec("data")))
    found = jax.jit(view)(*placed)
    assert len(found.sharding.device_set) == devices
    return np.asarray(found)


def with_shard_map(view, images, rows, devices):
    """A function of each device's share, over a mesh."""
    mesh = jax.sharding.Mesh(jax.devices()[:devices], "data")
    spec = PartitionSpec("data")
    return np.asarray(jax.jit(jax.shard_map(view, mesh=mesh, in_specs=(spec, spec), out_specs=spec))(images, rows))


def with_pmap(view, images, rows, devices):
    """A function of each device's share, with a leading axis of devices."""
    split = [x.reshape(devices, -1, *x.shape[1:]) for x in (images, rows)]
    found = jax.pmap(view, devices=jax.devices()[:devices])(*split)
    return np.asarray(found).reshape(-1, *found.shape[2:])


@functools.cache
def alone(name):
    """Twelve images on one device, and what is seen of them."""
    images = np.random.default_rng(7).integers(0, 256, (12, SIDE, SIDE, 3), np.uint8)
    seen = np.asarray(jax.jit(view_of(name))(images, np.arange(12, dtype=np.int32)))
    assert len(np.unique(seen[:, 0, 0], axis=0)) == 12
    return images, seen


def check(name, count, devices, mapped):
    """The first images of the twelve, filled up with black ones to a multiple of the devices."""
    images, seen = alone(name)
    filled = -(-count // devices) * devices
    padded = np.concatenate([images[:count], np.zeros((filled - count, SIDE, SIDE, 3), np.uint8)])
    found = mapped(view_of(name), padded, np.arange(filled, dtype=np.int32), devices)
    np.testing.assert_array_equal(found[:count], seen[:count])


MAPS = (with_jit, with_shard_map, with_pmap)
QUICK = [
    *(("source2012", 5, devices, mapped) for devices in (2, 4) for mapped in MAPS),
    ("source2012", 1, 1, with_jit),
    ("source2012", 1, 2, with_pmap),
    ("bvlc_alexnet", 12, 4, with_pmap),
    ("torchvision", 5, 4, with_jit),
    ("torchvision", 1, 2, with_shard_map),
]


@pytest.mark.parametrize(("name", "count", "devices", "mapped"), QUICK)
def test_layouts_agree_bit_for_bit(name, count, devices, mapped):
    check(name, count, devices, mapped)


@pytest.mark.slow
@pytest.mark.parametrize("mapped", MAPS)
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("count", [1, 7, 12])
@pytest.mark.parametrize("name", CASES)
def test_all_layouts_agree_bit_for_bit(name, count, devices, mapped):
    check(name, count, devices, mapped)
