"""The ten crops, against windows cut in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.data.views import evaluation_view, ten_crops
from alexnet_jax.models.spec import InputSpec
from alexnet_jax.models.variants import VARIANTS

from .view_cases import CONTRACTS, COUNT, IMAGES, MEAN_IMAGE, SIDE, SIZE, reference

ROOM = SIDE - SIZE
PLACES = [(0, 0), (0, ROOM), (ROOM, 0), (ROOM, ROOM), (ROOM // 2, ROOM // 2)]


@pytest.mark.parametrize("name", CONTRACTS)
def test_five_windows_and_their_mirror_images(name):
    contract = CONTRACTS[name]
    found = np.asarray(jax.jit(lambda images, mean: ten_crops(images, contract, mean))(IMAGES, MEAN_IMAGE))
    assert found.shape == (COUNT, 10, SIZE, SIZE, 3)
    assert found.dtype == np.float32
    expected = [
        [reference(image, contract, *place, mirrored) for mirrored in (False, True) for place in PLACES]
        for image in IMAGES
    ]
    # Ten roundings of float32 on values that stay under 512 before the standard deviation.
    tolerance = 10 * 2**-24 * 512 * contract.scale / 255 / min(contract.std)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found[:, 4], evaluation_view(jnp.asarray(IMAGES), contract, MEAN_IMAGE), atol=1e-6)


def test_the_offsets_of_the_2012_source():
    rows, columns = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    places = np.stack([rows, columns, columns], -1).astype(np.uint8)[None]
    contract = VARIANTS["source2012"].input
    found = np.asarray(ten_crops(jnp.asarray(places), contract, jnp.zeros((256, 256, 3))))[0]
    offsets = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    assert [(int(crop[0, 0, 0]), int(crop[0, 0, 1])) for crop in found[:5]] == offsets
    assert [(int(crop[0, 0, 0]), int(crop[0, -1, 1])) for crop in found[5:]] == offsets


def test_without_room_the_five_are_one():
    contract = InputSpec(size=SIDE, resize=SIDE)
    found = np.asarray(ten_crops(jnp.asarray(IMAGES), contract, jnp.asarray(MEAN_IMAGE)))
    for number in range(5):
        np.testing.assert_array_equal(found[:, number], IMAGES)
        np.testing.assert_array_equal(found[:, 5 + number], IMAGES[:, :, ::-1])
